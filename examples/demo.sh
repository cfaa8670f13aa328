#!/usr/bin/env bash
# The main job end to end, on held-out images of the bundled model: bash examples/demo.sh [FOLDER]
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
pictures="$here/../models/fashion-mnist/held-out"
folder="${1:-demo}"

if [[ -e "$folder" && ! -e "$folder/.ddimctl-demo" ]]; then
    echo "$folder exists and was not made by this: name another folder" >&2
    exit 2
fi
rm -rf "$folder"
mkdir -p "$folder"
touch "$folder/.ddimctl-demo"
cp "$pictures/000.png" "$folder/img.png"
cp "$pictures/001.png" "$folder/a.png"
cp "$pictures/002.png" "$folder/b.png"
cd "$folder"

run() {
    echo
    echo "\$ $*"
    "$@"
}

echo "Images that the model has never seen: $folder/img.png, a.png, b.png"
run ddimctl encode img.png -o latent.pt
run ddimctl info latent.pt
run ddimctl decode latent.pt -o decoded.png
run ddimctl encode a.png -o a.pt
run ddimctl encode b.png -o b.pt
run ddimctl interpolate a.pt b.pt --frames 10
run ddimctl interpolate a.pt b.pt --frames 10 -o strip.png
run ddimctl reconstruct --steps 100 --report mse
run ddimctl reconstruct --steps 10,20,50,100 --solver ab2,ddim --limit 8 -o sheet.png

echo
echo "Look at:"
echo "  $folder/decoded.png        img.png, encoded and decoded again"
echo "  $folder/interpolation.gif  from a.png to b.png through their latents; strip.png shows every frame"
echo "  $folder/sheet.png          originals, reconstructions and their differences"
