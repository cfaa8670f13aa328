"""What a page is made of, as HTML. Every text that comes in is made harmless here: names of files are anybody's."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LEAST_WIDE = 28  # CSS pixels that a picture is wide at scale 1, at least


class Section(Protocol):
    """One part of a page under its heading."""

    @property
    def title(self) -> str: ...

    def html(self) -> str: ...


@dataclass(frozen=True)
class Table:
    """Figures, a line each; the first column says of what. Pressing a column's name sorts by it.

    Beside the first column there may be a picture for each line (`picture`), under a heading of its own.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    drawn: Sequence[str] = ()
    drawn_as: str = ""

    def html(self) -> str:
        head = [f'<th scope="col">{safe(h)}</th>' for h in self.header]
        if self.drawn:
            head.insert(1, f'<th scope="col" class="still">{safe(self.drawn_as)}</th>')
        pictures = [f"<td>{d}</td>" for d in self.drawn] or [""] * len(self.rows)
        lines = [
            f'<tr><th scope="row">{safe(first)}</th>{drawn}{"".join(f"<td>{safe(c)}</td>" for c in rest)}</tr>'
            for (first, *rest), drawn in zip(self.rows, pictures, strict=True)
        ]
        table = f'<table class="figures"><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        return (scale() if self.drawn else "") + framed(table, self.title)


@dataclass(frozen=True)
class Pictures:
    """A table of pictures, uint8 (rows · columns, H, W, C) in reading order; there may be too few for the last row."""

    title: str
    pixels: np.ndarray
    columns: Sequence[str]  # what stands above each; may have several lines
    rows: Sequence[str]
    first: str = "image"  # what stands above the rows' names

    def html(self) -> str:
        return scale() + framed(self.table("pictures"), self.title)

    def table(self, name: str) -> str:
        """The table alone, by that id."""
        n = len(self.columns)
        head = "".join(f'<th scope="col">{safe(h)}</th>' for h in (self.first, *self.columns))
        lines = []
        for r, row in enumerate(self.rows):
            cells = [
                f"<td>{picture(image, f'{row}, {first_line(column)}', place=(r, c))}</td>"
                for c, (image, column) in enumerate(zip(self.pixels[r * n : (r + 1) * n], self.columns, strict=False))
            ]
            lines.append(f'<tr><th scope="row">{safe(row)}</th>{"".join(cells)}</tr>')
        return (
            f'<table class="pictures" id="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
        )


@dataclass(frozen=True)
class Comparison(Pictures):
    """Pictures whose columns are the original and, for each way, what came back and the difference; with a divider."""

    name: str = "compared"  # of the table in the page, each its own

    def html(self) -> str:
        ways = [first_line(c) for c in self.columns[1::2]]
        choices: dict[str, tuple[str, Sequence[tuple[object, str]]]] = {
            "row": ("Image", list(enumerate(self.rows))),
            "way": ("Way", list(enumerate(ways))),
            "what": ("Show", [("divider", "original and reconstruction"), ("difference", "difference, amplified")]),
            "zoom": ("Zoom", [(z, f"× {z}") for z in (1, 2, 4, 8, 12, 16)]),
        }
        chosen = "".join(
            f'<label>{said} <select data-choose="{name}">'
            + "".join(f'<option value="{value}">{safe(text)}</option>' for value, text in options)
            + "</select></label>"
            for name, (said, options) in choices.items()
        )
        return (
            f'<div class="viewer" data-of="{self.name}" hidden><p class="tool">{chosen}</p><div class="stage">'
            '<img class="back" alt="" draggable="false"><img class="front" alt="" draggable="false">'
            '<span class="line"></span>'
            '<span class="side">original</span><span class="side">reconstruction</span></div>'
            '<input type="range" class="slider" min="0" max="100" value="50" aria-label="Divider">'
            f'<p class="said" role="status"></p></div>{scale()}{framed(self.table(self.name), self.title)}'
        )


@dataclass(frozen=True)
class Gallery:
    """Pictures (N, H, W, C), one after the other, each with its name."""

    title: str
    pixels: np.ndarray
    names: Sequence[str]
    kind: str = "image"  # what one is, to a screen reader

    def html(self) -> str:
        shown = "".join(
            f"<li><figure>{picture(f, f'{self.kind} {name}')}<figcaption>{safe(name)}</figcaption></figure></li>"
            for f, name in zip(self.pixels, self.names, strict=True)
        )
        return f'{scale()}<ol class="frames">{shown}</ol>'


@dataclass(frozen=True)
class Film:
    """Frames (N, H, W, C) that are shown one after the other, each with its name."""

    title: str
    frames: np.ndarray
    names: Sequence[str]
    fps: float

    def html(self) -> str:
        return (
            f'<div class="film" data-fps="{self.fps:g}" hidden><img class="screen pixels" alt="">'
            f'<input type="range" class="slider" min="0" max="{len(self.frames) - 1}" value="0" aria-label="Frame">'
            '<p class="tool"><button type="button">Play</button><output></output>'
            "<span>Arrow keys step, the space bar plays.</span></p></div>"
            + Gallery(self.title, self.frames, self.names, "frame").html()
        )


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, and perhaps a sentence below: elements of `svg.chart`."""

    title: str
    drawn: Sequence[str]
    words: str = ""

    def html(self) -> str:
        below = f"<p>{safe(self.words)}</p>" if self.words else ""
        return f'<div class="charts">{"".join(f"<figure>{d}</figure>" for d in self.drawn)}</div>{below}'


def picture(pixels: np.ndarray, alt: str, *, place: tuple[int, int] | None = None) -> str:
    """uint8 (H, W, C) as an element that holds its own PNG; `place` says its row and column."""
    from ddimctl.images.writing import to_bytes

    data = base64.b64encode(to_bytes(pixels, ".png")).decode()
    at = "" if place is None else f' data-row="{place[0]}" data-column="{place[1]}"'
    height, width = pixels.shape[:2]
    return f'<img class="pixels" alt="{safe(alt)}" width="{width}" height="{height}"{at} src="data:image/png;base64,{data}">'


def scale() -> str:
    """What makes all small pictures of a page larger or smaller."""
    return (
        '<p class="tool" hidden><label>Size of the pictures <input type="range" class="scale" min="1" max="10" value="3">'
        "</label></p>"
    )


def framed(table: str, name: str) -> str:
    """A table that scrolls by itself where it is too wide, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{safe(name)}: table">{table}</div>'


def first_line(text: str) -> str:
    """Lines of a column's head as one: the way, without its figures."""
    return ", ".join(text.split("\n")[:2])


def safe(text: object) -> str:
    """A text that is nothing but text in HTML, inside quotes too; what cannot be seen is replaced."""
    seen = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return html.escape(seen, quote=True)
