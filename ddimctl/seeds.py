"""Randomness comes in as a seed: the noise of image k of a seed is the same whatever n, batch or device.

`noise` is torch's; `noise_array` is the same to float32's last digits where torch is not loaded, which takes longer than
what it would be loaded for: a Mersenne twister, and Box and Muller's transform in the order that torch has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


def noise(shape: Sequence[int], n: int, seed: int | Sequence[int], *, first: int | Sequence[int] = 0) -> Tensor:
    """Draws number first … first+n−1 of x_T ~ N(0, I), (n, *shape) float32; or as `draws` says."""
    return draw(shape, generators(draws(n, seed, first)))


def draws(n: int, seed: int | Sequence[int], first: int | Sequence[int] = 0) -> list[tuple[int, int]]:
    """(seed, number) of each of n images: one seed or one for each, numbers from `first` on or one for each."""
    numbers = range(first, first + n) if isinstance(first, int) else first
    return list(zip([seed] * n if isinstance(seed, int) else seed, numbers, strict=True))


def noise_array(shape: Sequence[int], n: int, seed: int, *, first: int = 0) -> np.ndarray:
    """As `noise`, without torch."""
    import numpy as np

    size = math.prod(shape)
    twisters = [np.random.RandomState(mix(seed, k) & 0xFFFFFFFF)._bit_generator for k in range(first, first + n)]

    def raw(count: int) -> np.ndarray:
        return np.stack([twister.random_raw(count) for twister in twisters])

    if size < 16:  # one after the other, of doubles
        high, low = np.moveaxis(raw(4 * size).reshape(n, -1, 2), -1, 0)
        u, v = np.moveaxis(((high << 32 | low) & (1 << 53) - 1).reshape(n, -1, 2) * 2.0**-53, -1, 0)
        r, angle = np.sqrt(-2 * np.log1p(-v)), 2 * math.pi * u
        return (
            np.stack([r * np.cos(angle), r * np.sin(angle)], -1).reshape(n, -1)[:, :size].astype("f").reshape(n, *shape)
        )

    def normal(bits: np.ndarray) -> np.ndarray:  # sixteen at a time
        u, v = np.moveaxis(((bits & 0xFFFFFF).astype("f") * np.float32(2**-24)).reshape(n, -1, 2, 8), 2, 0)
        r, angle = np.sqrt(-2 * np.log(1 - u)), np.float32(2 * math.pi) * v
        return np.stack([r * np.cos(angle), r * np.sin(angle)], 2).reshape(n, -1)

    bits, whole = raw(size), size // 16 * 16
    out = np.empty((n, size), "f")
    out[:, :whole] = normal(bits[:, :whole])
    if size > whole:
        out[:, -16:] = normal(raw(16))
    return out.reshape(n, *shape)


def generators(draws: Iterable[tuple[int, int]]) -> list[torch.Generator]:
    """One random generator an image, on the CPU, for (seed, number) of each."""
    import torch

    return [torch.Generator().manual_seed(mix(seed, k)) for seed, k in draws]


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
