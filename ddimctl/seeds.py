"""Randomness comes in as a seed: the noise of image k of a seed is the same whatever n, batch or device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def noise(shape: Sequence[int], n: int, seed: int, *, first: int = 0) -> Tensor:
    """Draws number first … first+n−1 of x_T ~ N(0, I), (n, *shape) float32."""
    return draw(shape, generators(n, seed, first=first))


def generators(n: int, seed: int, *, first: int = 0) -> list[torch.Generator]:
    """One random generator an image, on the CPU, for the images first … first+n−1 of a seed."""
    import torch

    return [torch.Generator().manual_seed(mix(seed, k)) for k in range(first, first + n)]


def draw(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """The next N(0, I) of each generator: (n, *shape) float32."""
    import torch

    out = torch.empty(len(generators), *shape)
    for x, generator in zip(out, generators, strict=True):
        torch.randn(tuple(shape), generator=generator, out=x)
    return out


def mix(seed: int, k: int) -> int:
    """One 63-bit generator seed out of two numbers (SplitMix64's finaliser), so that neighbours are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) % 2**64
    return (z ^ (z >> 31)) >> 1
