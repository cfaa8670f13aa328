"""How far two sets of images are apart.

A metric takes two tensors (B, C, H, W) in [−1, 1] and gives one float64 value per image, (B,); all but SSIM take numpy
arrays as well, and give one. Values outside [−1, 1]
are taken as they are, except where a docstring says "8-bit": there both images are first rounded to the 256 levels of a
PNG, exactly as they would be saved. All raise `ValueError` if the shapes differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddimctl.arrays import float64, largest, log10
from ddimctl.errors import UsageError
from ddimctl.images.levels import in_levels, nearest

if TYPE_CHECKING:
    from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM: Wang et al. 2004, section III-B
K1, K2 = 0.01, 0.03


def mse(a: Tensor, b: Tensor) -> Tensor:
    """The paper's reconstruction error (table 2): mean squared error per dimension, pixels scaled to [0, 1]."""
    a, b = _pair(a, b)
    return _mean((_unit(a) - _unit(b)) ** 2)


def mse_8bit(a: Tensor, b: Tensor) -> Tensor:
    """`mse` of the two 8-bit images: what is left of the error after saving."""
    a, b = _pair(a, b)
    return _mean(((nearest(a) - nearest(b)) / 255) ** 2)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, −10 log₁₀ `mse`; infinite for equal images."""
    return -10 * log10(mse(a, b))  # type: ignore[no-any-return]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, at most 1 (Wang et al. 2004): 11 × 11 Gaussian window of σ 1.5, data range 1.

    The mean over all windows inside the image, and over channels. Raises `UsageError` if no window fits.
    """
    a, b = _pair(a, b)
    if min(a.shape[-2:]) < WINDOW:
        raise UsageError(
            f"SSIM needs images of at least {WINDOW} × {WINDOW} pixels, not {a.shape[-2]} × {a.shape[-1]}",
            hint="use another metric, such as psnr",
        )
    x, y = _unit(a), _unit(b)
    mean_x, mean_y, xx, yy, xy = (_blur(v) for v in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * cov + K2**2) / (var_x + var_y + K2**2)
    return _mean(luminance * structure)


def max_abs(a: Tensor, b: Tensor) -> Tensor:
    """The largest absolute difference of one value, before rounding, in 8-bit levels (1 is 1/255 of the range).

    Below 0.5 an 8-bit original comes back exactly.
    """
    a, b = _pair(a, b)
    return largest(_flat(abs(in_levels(a - b))))  # type: ignore[no-any-return]


def wrong_pixels(a: Tensor, b: Tensor) -> Tensor:
    """How many 8-bit values differ, each channel counted by itself; 0 means that both save to the same PNG."""
    a, b = _pair(a, b)
    wrong: Tensor = float64(_flat(nearest(a) != nearest(b)).sum(1))
    return wrong


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"two tensors (B, C, H, W) are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
    return float64(a), float64(b)


def _unit(images: Any) -> Any:
    """[−1, 1] → [0, 1]."""
    return (images + 1) / 2


def _mean(values: Any) -> Tensor:
    out: Tensor = _flat(values).mean(1)
    return out


def _flat(values: Any) -> Any:
    """(B, …) → (B, d), also where B is 0."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _blur(images: Tensor) -> Tensor:
    """The Gaussian-weighted mean of every window that fits: (B, C, H − 10, W − 10)."""
    import torch
    import torch.nn.functional as F

    offset = torch.arange(WINDOW, dtype=torch.float64, device=images.device) - WINDOW // 2
    weight = (-0.5 * (offset / SIGMA) ** 2).exp()
    weight = weight / weight.sum()
    flat = images.flatten(0, 1)[:, None]
    out = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return out.view(*images.shape[:2], *out.shape[-2:])


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "mse_8bit": mse_8bit,
    "psnr": psnr,
    "ssim": ssim,
    "max_abs": max_abs,
    "wrong_pixels": wrong_pixels,
}
