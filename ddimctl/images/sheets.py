"""Contact sheets: many images on one, each enlarged to be seen. uint8 (N, H, W, C) throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_DOWN, Context
from typing import TYPE_CHECKING

import numpy as np

from ddimctl.images.levels import to_pixels

if TYPE_CHECKING:
    from torch import Tensor


def sheet_size(n: int, size: tuple[int, int], columns: int, *, gap: int = 2, factor: int = 1) -> tuple[int, int]:
    """(height, width) of the `sheet` of so many images of that size, each enlarged `factor` times."""
    height, width = size
    return math.ceil(n / columns) * (factor * height + gap) - gap, columns * (factor * width + gap) - gap


def sheet(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, C) → one contact sheet (H', W', C), row by row on white."""
    n, height, width, channels = pixels.shape
    out = np.full((*sheet_size(n, (height, width), columns, gap=gap), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out


def comparison(originals: Tensor, reconstructions: Sequence[Tensor]) -> tuple[np.ndarray, list[float]]:
    """Originals (N, C, H, W) in [−1, 1] | a reconstruction of them | the difference, amplified | the next | …

    The pixels are uint8 (N · columns, H, W, C), for a `sheet` of 1 + 2·R columns; with them comes each reconstruction's
    gain: its largest difference becomes black or white, and no difference is the grey in the middle.
    """
    x0 = originals.double().cpu()
    columns, gains = [x0], []
    for reconstruction in reconstructions:
        back = reconstruction.double().cpu()
        gains.append(filling(float((back - x0).abs().max()) if x0.numel() else 0.0))
        columns += [back, (back - x0) * gains[-1]]
    pixels = np.stack([to_pixels(c) for c in columns], axis=1)
    return pixels.reshape(-1, *pixels.shape[2:]), gains


def alike(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Groups of images of several sizes as tiles of one: in the middle on white, grey in three colours beside those."""
    height, width, channels = (max(g.shape[axis] for g in groups) for axis in (1, 2, 3))
    out = []
    for g in groups:
        n, h, w, _ = g.shape
        tiles = np.full((n, height, width, channels), 255, np.uint8)
        y, x = (height - h) // 2, (width - w) // 2
        tiles[:, y : y + h, x : x + w] = g
        out.append(tiles)
    return out


def filling(worst: float) -> float:
    """The gain that brings a difference of `worst` to 1, in three digits so that it can be stated; 1 for no difference."""
    if not 0 < worst < math.inf:
        return 1.0
    return float(Context(prec=3, rounding=ROUND_DOWN).create_decimal((1 + 1e-9) / worst))


def stated(gain: float) -> str:
    """A gain of three digits in full: 0.625, 12.3, 1,230."""
    return f"{gain:,.0f}" if gain >= 100 else f"{gain:.3g}"


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of (…, H, W, C) becomes a square."""
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def factor_to_see(size: tuple[int, int], side: int = 112) -> int:
    """How many times images of that size are enlarged to be seen: to about `side` pixels."""
    return max(1, side // max(size))
