"""Encode, decode, sample: one loop over one list of noise levels, read in opposite orders.

In x̄ = x_t/√α_t and σ, DDIM is Euler's method on dx̄ = ε(x̄, σ) dσ (eq. 13 and 14). `integrate` knows nothing else:
no model, no torch, no direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ddimctl.errors import choose
from ddimctl.model import Model
from ddimctl.schedule import DEFAULT_SPACING
from ddimctl.solvers import DEFAULT_SOLVER, SOLVERS, Array, Eps

Progress = Callable[[Iterable[Array]], Iterable[Array]]  # wraps the iterator over steps, to show it


def integrate(
    eps: Eps, xbar: Array, path: Sequence[float], solver: str = DEFAULT_SOLVER, progress: Progress = iter
) -> Array:
    """x̄ at the end of `path`, from x̄ at its start: rising levels encode, falling levels decode."""
    for state in progress(choose(SOLVERS, solver, "solver")(eps, xbar, path)):
        xbar = state
    return xbar


def encode(model: Model, images: Tensor, path: Sequence[float], solver: str = DEFAULT_SOLVER, progress: Progress = iter) -> Tensor:
    """Images (B, C, H, W) in [−1, 1] → x_T, float64. `path` rises; its first level counts as clean."""
    xbar = images.to(model.state_device, torch.float64)
    return integrate(model.eps, xbar, path, solver, progress) / math.sqrt(1 + path[-1] ** 2)


def decode(model: Model, xT: Tensor, path: Sequence[float], solver: str = DEFAULT_SOLVER, progress: Progress = iter) -> Tensor:
    """x_T (B, C, H, W) → images in about [−1, 1], float64, not clipped. `path` is the rising one that encodes."""
    xbar = xT.to(model.state_device, torch.float64) * math.sqrt(1 + path[-1] ** 2)
    return integrate(model.eps, xbar, path[::-1], solver, progress)


def noise(shape: Sequence[int], n: int, seed: int) -> Tensor:
    """n draws of x_T ~ N(0, I), float32: image k of a seed is the same whatever n, batch or device."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(mix(seed, k))) for k in range(n)]
    return torch.stack(draws)


def mix(seed: int, k: int) -> int:
    """One 63-bit generator seed out of two numbers (SplitMix64's finaliser), so that neighbours are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) % 2**64
    return (z ^ (z >> 31)) >> 1


__all__ = ["DEFAULT_SPACING", "decode", "encode", "integrate", "mix", "noise"]
