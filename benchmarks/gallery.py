"""Makes docs/gallery.md and its pictures, by running the command that stands under each: `make gallery`, some minutes.

    python benchmarks/gallery.py [ONLY]

ONLY is a word: pictures of other commands are left alone.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from film import FILMS, make

ROOT = Path(__file__).parent.parent
HELD_OUT = "models/emoji/held-out"
CLOTHES = "models/fashion-mnist/held-out"


@dataclass(frozen=True)
class Shown:
    """A picture: what it shows, its command, and what has to be run before."""

    title: str
    words: str
    file: str
    command: str
    before: str = ""


SHOWN = (
    Shown(
        "Between four images, in grey",
        "The corners are real and new to the model; everything between them is decoded from slerps of their latents.",
        "interpolation.png",
        f"ddimctl interpolate {CLOTHES}/000.png {CLOTHES}/001.png {CLOTHES}/006.png {CLOTHES}/018.png --grid --size 4x10"
        " --zoom 3 -o docs/interpolation.png",
    ),
    Shown(
        "There and back",
        "Real images that the model never saw, encoded and decoded by two solvers in 10 and 20 steps, with what is lost.",
        "gallery-round-trip.png",
        "ddimctl reconstruct -m emoji --steps 10,20 --solver ab2,ddim --limit 4 -o docs/gallery-round-trip.png",
    ),
    Shown(
        "Between four images, in colour",
        "The same with the model that knows emoji.",
        "gallery-grid.png",
        f"ddimctl interpolate {HELD_OUT}/000.png {HELD_OUT}/033.png {HELD_OUT}/019.png {HELD_OUT}/031.png -m emoji --grid"
        " --size 5x7 --zoom 3 --steps 20 -o docs/gallery-grid.png",
    ),
    Shown(
        "From words",
        "Pictures of a prompt by `emoji-text`, not selected: what they are is what was asked for, the details are its own.",
        "prompt-woman.png",
        'ddimctl sample -m emoji-text --prompt "woman red hair" --guidance 3 -n 8 -o docs/prompt-woman.png',
    ),
    Shown(
        "From other words",
        "The same noise, another prompt.",
        "prompt-cat.png",
        'ddimctl sample -m emoji-text --prompt "cat face" --guidance 3 -n 8 -o docs/prompt-cat.png',
    ),
    Shown(
        "Evenly from one to the other",
        "Frames at even distances of what is seen.",
        "gallery-strip.png",
        f"ddimctl interpolate {HELD_OUT}/000.png {HELD_OUT}/033.png -m emoji --even --frames 9 --zoom 3"
        " -o docs/gallery-strip.png",
    ),
    Shown(
        "The same noise in more steps",
        "Each column is one x_T, decoded in 5, 10, 20 and 50 steps: DDIM is consistent.",
        "gallery-consistency.png",
        "ddimctl sample -m emoji -n 8 --steps 5,10,20,50 -o docs/gallery-consistency.png",
    ),
    Shown(
        "A latent",
        "The channels of x_T, its values beside N(0, 1), its spectrum beside noise's, and the verdict.",
        "gallery-latent.png",
        "ddimctl info shoe.pt -o docs/gallery-latent.png",
        "ddimctl encode models/fashion-mnist/held-out/000.png -o shoe.pt",
    ),
    Shown(
        "The same on dark paper",
        "Every plot, too, with `--dark`.",
        "gallery-latent-dark.png",
        "ddimctl info shoe.pt -o docs/gallery-latent-dark.png --dark",
        "ddimctl encode models/fashion-mnist/held-out/000.png -o shoe.pt",
    ),
)


def page(shown: tuple[Shown, ...] = SHOWN) -> str:
    """docs/gallery.md."""
    parts = [
        "# Gallery",
        "Every film and picture, with the commands that made it (`make gallery` makes them all again). The films are of real"
        " runs; waits are cut to a second.",
    ]
    for f in FILMS:
        lines = "\n".join(f.commands)
        parts.append(f"## {f.title}\n\n{f.words}\n\n![A terminal: {f.title}]({f.file})\n\n```sh\n{lines}\n```")
    for s in shown:
        lines = "\n".join(filter(None, [s.before, s.command]))
        parts.append(f"## {s.title}\n\n{s.words}\n\n![{s.title}: {s.words}]({s.file})\n\n```sh\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


def main(only: str = "") -> None:
    for f in FILMS:
        if only in " ".join([f.file, *f.commands]):
            make(f)
    for s in SHOWN:
        if only in s.command:
            for command in filter(None, [s.before, f"{s.command} -q"]):
                words = shlex.split(command)[1:]
                subprocess.run([sys.executable, "-m", "ddimctl", *words, "--force"], cwd=ROOT, check=True)
    (ROOT / "shoe.pt").unlink(missing_ok=True)
    (ROOT / "docs" / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
