"""A latent as people want to see it: its channels, and charts beside them, with what is to be said below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ddimctl.charts import Chart
from ddimctl.images import drawing, labels
from ddimctl.images.labels import LIGHT, Paper

SIDE = 216  # pixels: of what the channels are drawn in, and of the charts' height
WIDE = 330  # pixels: of a chart
GAP = 24  # pixels between parts
TITLE, WORDS = 15, 12  # sizes of letters


@dataclass(frozen=True)
class Portrait:
    """What is drawn of one latent: its name, its channels as uint8 (C, H, W), charts, and a sentence or more."""

    name: str
    channels: np.ndarray
    charts: Sequence[Chart]
    words: str


def draw(portraits: Sequence[Portrait], paper: Paper = LIGHT) -> np.ndarray:
    """All of them, one below the other, as uint8 (H, W, 3)."""
    rows = [_row(p, paper) for p in portraits]
    width = max(row.width for row in rows)
    whole = Image.new("RGB", (width, sum(row.height for row in rows)), (paper.paper,) * 3)
    y = 0
    for row in rows:
        whole.paste(row, (0, y))
        y += row.height
    return np.asarray(whole)


def _row(portrait: Portrait, paper: Paper) -> Image.Image:
    channels = mosaic(portrait.channels, paper)
    width = GAP + SIDE + (GAP + WIDE) * len(portrait.charts) + GAP
    title, font = labels.font_of(TITLE), labels.font_of(WORDS)
    name = labels.wrapped(portrait.name, title, width - 2 * GAP).split("\n")[0]
    words = labels.wrapped(portrait.words, font, width - 2 * GAP)
    head = GAP // 2 + labels.line_height(title) + 6
    high = max(channels.shape[0] + labels.line_height(font), SIDE)
    out = Image.new("RGB", (width, head + high + 8 + labels.measure(font, words)[1] + GAP // 2), (paper.paper,) * 3)
    pen = ImageDraw.Draw(out)
    labels.write(pen, (GAP, GAP // 2), name, font=title, ink=paper.ink)
    n = len(portrait.channels)
    said = "x_T: black -3, white 3" if n == 1 else f"{n} channels: black -3, white 3"
    labels.write(pen, (GAP, head), said, font=font, ink=drawing.colour("muted", paper))
    out.paste(Image.fromarray(channels), (GAP, head + labels.line_height(font) + 2))
    for i, chart in enumerate(portrait.charts):
        picture = drawing.chart(chart, WIDE, SIDE, paper=paper)
        out.paste(Image.fromarray(picture), (2 * GAP + SIDE + i * (WIDE + GAP), head))
    labels.write(pen, (GAP, head + high + 8), words, font=font, ink=paper.ink)
    return out


def mosaic(channels: np.ndarray, paper: Paper = LIGHT) -> np.ndarray:
    """Channels (C, H, W) side by side in a square or so, each pixel enlarged as often as there is room, as (H', W', 3)."""
    n, height, width = channels.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    room = (SIDE - 20 - 2 * (columns - 1)) // columns
    factor = room / max(height, width)
    size = tuple(max(1, round(s * (math.floor(factor) if factor >= 1 else factor))) for s in (height, width))
    out = np.full((rows * (size[0] + 2) - 2, columns * (size[1] + 2) - 2, 3), paper.paper, np.uint8)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    for i, channel in enumerate(channels):
        y, x = (i // columns) * (size[0] + 2), (i % columns) * (size[1] + 2)
        tile = np.asarray(Image.fromarray(channel).resize(size[::-1], how))
        out[y : y + size[0], x : x + size[1]] = tile[..., None]
    return out
