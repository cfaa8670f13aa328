"""The glyphs of Noto Color Emoji as a folder of 32 × 32 images: what `models/emoji` was trained on.

    apt-get install fonts-noto-color-emoji && pip install fonttools
    python examples/emoji.py -o emoji-glyphs
    ddimctl train emoji-glyphs -o emoji --size 32

The font (SIL Open Font Licence 1.1) keeps a bitmap of 136 × 128 pixels per glyph in its CBDT table. Each is composed on
white, padded to a square and reduced to 32 × 32 with Lanczos' filter; of glyphs that look the same only the first is kept.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # where Debian puts it


def glyphs(font: Path) -> Iterator[tuple[str, Image.Image]]:
    """The name and the picture of each glyph that has one."""
    for strike in TTFont(font)["CBDT"].strikeData:
        for name, glyph in sorted(strike.items()):
            with Image.open(io.BytesIO(glyph.imageData)) as picture:
                yield name, picture.convert("RGBA")


def on_white(picture: Image.Image, side: int) -> Image.Image:
    """`picture` in the middle of a white square, `side` pixels wide."""
    width = max(picture.size)
    square = Image.new("RGBA", (width, width), "white")
    square.alpha_composite(picture, ((width - picture.width) // 2, (width - picture.height) // 2))
    return square.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the glyphs of a colour font as a folder of images.")
    parser.add_argument("font", nargs="?", type=Path, default=FONT, help="a font with a CBDT table")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--size", type=int, default=32, help="width and height of the images")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    seen = set()
    for name, picture in glyphs(arguments.font):
        small = on_white(picture, arguments.size)
        if small.tobytes() not in seen:
            seen.add(small.tobytes())
            small.save(arguments.output / f"{name}.png")
    print(f"{arguments.output}: {len(seen):,} images")


if __name__ == "__main__":
    main()
