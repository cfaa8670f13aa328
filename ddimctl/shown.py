"""How values show themselves in a notebook: one line, and a picture of a few images."""

from __future__ import annotations

import base64
import html
from typing import Any

SHOWN = 8  # images
SIDE = 112  # pixels, about


def shape(x: Any) -> str:
    """ "3 × 1 × 28 × 28"."""
    return " × ".join(map(str, x.shape))


def as_html(line: str, images: Any = None) -> str:
    """The line, and the first few images (N, C, H, W) in [−1, 1] in a row below it, where they are grey or colour."""
    text = f"<code>{html.escape(line)}</code>"
    if images is None or images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        return text
    from ddimctl.arrays import to_numpy
    from ddimctl.images import levels, sheets, writing

    values = to_numpy(images[:SHOWN])
    pixels = levels.nearest(values).astype("uint8").transpose(0, 2, 3, 1)
    row = sheets.sheet(sheets.enlarge(pixels, sheets.factor_to_see(pixels.shape[1:3], SIDE)), len(pixels))
    data = base64.b64encode(writing.to_bytes(row, ".png")).decode()
    return f'{text}<br><img alt="{html.escape(line)}" src="data:image/png;base64,{data}">'


def latents_as_images(xT: Any) -> Any:
    """x_T in the range of images: three standard deviations of noise reach black and white."""
    return xT / 3
