"""Words around a sheet: what its columns and rows are, and how all of it was made.

Pillow's own scalable font draws them, so that a sheet looks the same on every machine. It knows ASCII alone: other letters
become the ASCII ones they consist of, or are written out.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WRITTEN = {  # in the order in which they are looked for
    **dict.fromkeys("−–—", "-"),
    "×": "x",
    "η": "eta",
    "σ̂": "sigma^",
    "σ": "sigma",
    "√": "sqrt ",
    "ε": "eps",
}
LEAST, MOST = 12, 22  # pixels: what the letters' size is at least, and at most
MARGIN = 8  # pixels around what is written
LINES = 6  # of one text, at most


@dataclass(frozen=True)
class Labels:
    """What is written around a sheet; each may have several lines, and "" leaves a place to its neighbours."""

    above: Sequence[str] = ()  # an entry a column
    left: Sequence[str] = ()  # an entry a row
    below: Sequence[str] = ()  # an entry a column
    caption: str = ""  # below everything


@dataclass(frozen=True)
class Paper:
    """The two colours of a picture: what is drawn, and what it is drawn on. A level of grey each."""

    ink: int = 25
    paper: int = 255

    def mixed(self, part: float) -> int:
        """So much of the ink in the paper."""
        return round(self.paper + part * (self.ink - self.paper))


LIGHT, DARK = Paper(), Paper(ink=232, paper=18)


def around(pixels: np.ndarray, tile: tuple[int, int], gap: int, *, labels: Labels) -> np.ndarray:
    """A sheet (H, W, C) of tiles (height, width) with `gap` pixels between → one with `labels` around it, on white."""
    font = font_for(tile)
    height, width, channels = pixels.shape
    columns, apart = (width + gap) // (tile[1] + gap), font.size // 2
    high = (tile[0] + gap) // line_height(font)  # lines beside a row: none where they would run into its neighbours'
    names = ["\n".join(wrapped(t, font, tile[1]).split("\n")[:high]) for t in labels.left]
    above = placed(labels.above, columns, tile[1], gap=gap, font=font)
    below = placed(labels.below, columns, tile[1], gap=gap, font=font)
    left = max((measure(font, t)[0] + apart for t in names if t), default=0) + MARGIN
    top = max((measure(font, t)[1] + apart for t, _, _ in above), default=0) + MARGIN
    bottom = max((measure(font, t)[1] + apart for t, _, _ in below), default=0)
    caption = wrapped(labels.caption, font, left + width - MARGIN)
    foot = measure(font, caption)[1] + apart if caption else 0
    size = (left + width + MARGIN, top + height + bottom + foot + MARGIN)
    out = Image.new("L" if channels == 1 else "RGB", size, "white")
    out.paste(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), (left, top))
    draw = ImageDraw.Draw(out)
    for part, y, stands in ((above, top - apart, "d"), (below, top + height + apart, "a")):
        for text, x, side in part:
            write(draw, (left + x, y), text, font=font, anchor=f"{side}{stands}")
    for i, text in enumerate(names):
        write(draw, (left - apart, top + i * (tile[0] + gap) + tile[0] / 2), text, font=font, anchor="rm")
    write(draw, (MARGIN, top + height + bottom + apart), caption, font=font)
    array = np.asarray(out)
    return array[..., None] if channels == 1 else array


def room(tile: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that `around` adds at most to a sheet of such tiles."""
    font = font_for(tile)
    return 3 * LINES * line_height(font) + 2 * font.size + 2 * MARGIN, tile[1] + font.size + 2 * MARGIN


def placed(texts: Sequence[str], columns: int, width: int, *, gap: int, font: Any) -> list[tuple[str, int, str]]:
    """(text, x, the side of it that stands there) of each text that is not empty.

    A text begins at its column's left edge and may go on over empty neighbours. The last column's, where it has such, ends
    at the right edge, and shares the room between with the one before it.
    """
    taken = [i for i, t in enumerate(texts[:columns]) if t]
    turned = len(taken) > 1 and taken[-2] + 1 < taken[-1] == columns - 1
    out = []
    for i, stop in zip(taken, [*taken[1:], columns], strict=False):
        last = turned and i == columns - 1
        free: float = stop - i
        if turned and stop >= columns - 1:
            free = (columns - taken[-2]) / 2
        space = math.floor(free * (width + gap)) - max(gap, font.size // 2 if free > 1 else 0)
        out.append((wrapped(texts[i], font, space), i * (width + gap) + last * width, "r" if last else "l"))
    return out


def wrapped(text: str, font: Any, width: int) -> str:
    """The text in lines that fit into `width` pixels: broken between words, and a word that is too long is shortened."""
    lines: list[str] = []
    for line in written(text).split("\n"):
        now = ""
        for word in line.split(" "):
            word = shortened(word, font, width)
            if now and font.getlength(f"{now} {word}") > width:
                lines.append(now)
                now = word
            else:
                now = f"{now} {word}".strip()
        lines.append(now)
    return "\n".join(lines[:LINES]) if any(lines) else ""


def shortened(word: str, font: Any, width: int) -> str:
    """The word, without as much of its middle as it needs to fit."""
    if font.getlength(word) <= width:
        return word
    for kept in range(len(word) - 1, 1, -1):
        head = math.ceil(kept / 2)
        short = f"{word[:head]}…{word[len(word) - kept + head :]}"
        if font.getlength(short) <= width:
            return short
    return word[:1]


def written(text: str) -> str:
    """The text in what the font has: other letters become those they consist of, or a question mark."""
    for sign, word in WRITTEN.items():
        text = text.replace(sign, word)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.replace("…", "\0")) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c == "\n" else "…" if c == "\0" else "?" for c in plain)


def write(
    draw: Any, at: tuple[float, float], text: str, *, font: Any, anchor: str = "la", ink: Any = LIGHT.ink
) -> None:
    """Draws lines at a point, in a grey level or colour.

    `anchor` says which side of the text stands there: (l)eft, (m)iddle or (r)ight; then (a)bove, (m)iddle or (d)own.
    """
    lines = written(text).split("\n")
    ink = (ink,) * 3 if draw.mode == "RGB" and isinstance(ink, int) else ink
    step, high = line_height(font), line_height(font) * len(lines)
    y = at[1] - {"a": 0, "m": high / 2, "d": high}[anchor[1]]
    for i, line in enumerate(lines):
        x = at[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * font.getlength(line)
        draw.text((round(x), round(y + i * step)), line, ink, font=font)


def measure(font: Any, text: str) -> tuple[int, int]:
    """(width, height) of the lines of a text, in pixels."""
    lines = written(text).split("\n")
    return math.ceil(max(font.getlength(t) for t in lines)), line_height(font) * len(lines) if text else 0


def line_height(font: Any) -> int:
    return int(1.3 * font.size + 0.5)


def font_for(tile: tuple[int, int]) -> Any:
    """The font whose letters suit tiles of that size."""
    return font_of(min(MOST, max(LEAST, tile[1] // 9)))


@cache
def font_of(size: int) -> Any:
    """Pillow's font in that size."""
    return ImageFont.load_default(size)
