"""Charts as pixels, with Pillow: lines are drawn four times as large and made smaller, words in their own size."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ddimctl.charts import LETTER, MUTED, Chart, Mark, marks
from ddimctl.images.labels import DARK, LIGHT, Paper, font_of, measure, write

FINE = 4  # how many times as large lines are drawn
COLOURS = {
    LIGHT: ((26, 95, 168), (190, 72, 0), (30, 120, 55), (140, 40, 140), (130, 95, 0), (0, 115, 120)),
    DARK: ((112, 178, 245), (255, 158, 92), (114, 208, 138), (226, 150, 226), (230, 200, 90), (86, 212, 214)),
}


def chart(what: Chart, width: int, height: int, *, paper: Paper = LIGHT) -> np.ndarray:
    """A chart as uint8 (height, width, 3)."""
    font = font_of(LETTER)
    found = marks(what, width, height, measure=lambda text: measure(font, text)[0])
    large = Image.new("RGB", (FINE * width, FINE * height), (paper.paper,) * 3)
    draw = ImageDraw.Draw(large)
    for mark in found:
        if mark.kind != "text":
            _shape(draw, mark, paper)
    small = large.resize((width, height), Image.Resampling.BOX)
    draw = ImageDraw.Draw(small)
    for mark in found:
        if mark.kind == "text":
            write(draw, mark.points[0], mark.text, font=font, anchor=mark.anchor, ink=colour(mark.colour, paper))
    return np.asarray(small)


def colour(name: int | str, paper: Paper) -> tuple[int, int, int]:
    """The colour of a mark on that paper."""
    parts = {"ink": 1.0, "muted": 0.68, "grid": 0.12, MUTED: 0.62}
    if name in parts:
        return (paper.mixed(parts[name]),) * 3
    known = COLOURS[paper]
    return known[int(name) % len(known)]


def _shape(draw: Any, mark: Mark, paper: Paper) -> None:
    at = [(FINE * x, FINE * y) for x, y in mark.points]
    ink = colour(mark.colour, paper)
    if mark.kind == "area":
        faint = tuple(round(paper.paper + 0.35 * (c - paper.paper)) for c in ink)
        draw.polygon(at, fill=faint)
    elif mark.kind == "dot":
        (x, y), r = at[0], 3.5 * FINE
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    else:
        wide = FINE if mark.colour in ("grid", "muted") else 2 * FINE
        for part in dashes(at) if mark.dashed else [at]:
            draw.line(part, fill=ink, width=wide, joint="curve")


def dashes(
    at: list[tuple[float, float]], on: float = 6 * FINE, off: float = 4 * FINE
) -> list[list[tuple[float, float]]]:
    """A line's points → the pieces that are drawn of it."""
    points = np.asarray(at, dtype=float)
    along = np.concatenate([[0.0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    out = []
    for start in np.arange(0, along[-1], on + off):
        inside = along[(along > start) & (along < start + on)]
        stops = np.array([start, *inside, min(start + on, along[-1])])
        out.append(
            [(float(np.interp(s, along, points[:, 0])), float(np.interp(s, along, points[:, 1]))) for s in stops]
        )
    return out
