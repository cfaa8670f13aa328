"""Contact sheets: many images on one, each enlarged to be seen. uint8 (N, H, W, C) throughout."""

from __future__ import annotations

import math

import numpy as np


def sheet_size(n: int, size: tuple[int, int], columns: int, gap: int = 2, factor: int = 1) -> tuple[int, int]:
    """(height, width) of the `sheet` of so many images of that size, each enlarged `factor` times."""
    height, width = size
    return math.ceil(n / columns) * (factor * height + gap) - gap, columns * (factor * width + gap) - gap


def sheet(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, C) → one contact sheet (H', W', C), row by row on white."""
    n, height, width, channels = pixels.shape
    out = np.full((*sheet_size(n, (height, width), columns, gap), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of (…, H, W, C) becomes a square."""
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def factor_to_see(size: tuple[int, int], side: int = 112) -> int:
    """How many times images of that size are enlarged to be seen: to about `side` pixels."""
    return max(1, side // max(size))
