"""8-bit levels, 0 … 255, ↔ [−1, 1]. The one place where the formula stands; numpy and torch alike.

Inside ddimctl images are (B, C, H, W) in [−1, 1]; in files and on sheets they are uint8 (…, H, W, C).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from ddimctl.errors import DDIMError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = TypeVar("Array", Tensor, np.ndarray)

PER_UNIT = 127.5  # levels in 1 of [−1, 1]


def signed(levels: Array) -> Array:
    """Levels, as floats of any shape → [−1, 1], in the same precision."""
    return levels / PER_UNIT - 1


def nearest(images: Array) -> Array:
    """[−1, 1] → the nearest level of each value, a whole number in 0 … 255, in the same precision."""
    return ((images + 1) * PER_UNIT).round().clip(0, 255)


def in_levels(difference: Array) -> Array:
    """A difference of two images in [−1, 1], in levels."""
    return difference * PER_UNIT


def to_array(pixels: np.ndarray) -> np.ndarray:
    """uint8 (…, H, W, C) → float32 (…, C, H, W) in [−1, 1]."""
    import numpy as np

    return signed(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """As `to_array`, for torch."""
    import torch

    return torch.from_numpy(to_array(pixels))


def to_pixels(images: Array) -> np.ndarray:
    """(…, C, H, W) in [−1, 1] → uint8 (…, H, W, C), rounded to nearest and clipped."""
    import numpy as np

    from ddimctl.arrays import float64, to_numpy

    return np.moveaxis(to_numpy(nearest(float64(images))).astype(np.uint8), -3, -1)


def check_finite(images: Any, name: str) -> None:
    """Raises `DDIMError` if what the model `name` made, of torch or of numpy, holds NaN or infinity."""
    if not bool((abs(images) < math.inf).all()):
        raise DDIMError(f"the model {name} gives values that are not finite")
