"""Noise of the lowest level, added to images before they are encoded, so that their latents are like noise.

A network has never seen an image without noise of σ(1), and real images carry none: their latents are weaker than noise,
and smooth where the image is flat. With σ(1) n added first, n ~ N(0, I), they are what the model maps to noise. It is
below what 8 bits show at a glance, and no loss: which draw of which seed it was is recorded, and taken away again.

The draw follows from the image, so that it is the same whatever else is encoded beside it, and another for another image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ddimctl.arrays import Array, as_kind, to_numpy
from ddimctl.errors import UsageError
from ddimctl.images.levels import to_pixels
from ddimctl.seeds import noise_array


@dataclass(frozen=True)
class Dither:
    """What was added to one image: `sigma` times draw number `draw` of `seed`."""

    seed: int
    draw: int
    sigma: float


def check(path: Sequence[float]) -> None:
    """Raises `UsageError` for a path that starts at the clean image: there is no room for noise."""
    if not path[0] > 0:
        raise UsageError(
            "noise cannot be added to what counts as clean", hint="use a --spacing that starts at σ(1), such as karras"
        )


def dithers_of(images: Array, seed: int, path: Sequence[float]) -> list[Dither | None]:
    """What `seed` adds to each of images (N, C, H, W) in [−1, 1] that are encoded along `path`. Raises as `check`."""
    check(path)
    digests = [hashlib.sha256(np.ascontiguousarray(p).tobytes()).digest() for p in to_pixels(to_numpy(images))]
    return [Dither(seed, int.from_bytes(d[:6], "big"), path[0]) for d in digests]


def added(dithers: Sequence[Dither | None], like: Array) -> Array:
    """σ n for each of the states `like` (N, …), an array of its kind; 0 where nothing was added."""
    out = np.zeros(like.shape)
    for x, d in zip(out, dithers, strict=True):
        if d is not None:
            x[...] = d.sigma * noise_array(x.shape, 1, d.seed, first=d.draw)[0].astype("float64")
    return as_kind(out, like)


def at(dithers: Sequence[Dither | None], level: float) -> list[Dither | None]:
    """Those whose noise is still there at a level; further down the network has taken it away."""
    return [d if d is not None and abs(d.sigma - level) <= 1e-9 * d.sigma else None for d in dithers]


def read(marks: Sequence[Mapping[str, Any] | None]) -> list[Dither | None]:
    """As a latent file records it."""
    return [None if m is None else Dither(m["seed"], m["draw"], float(m["sigma"])) for m in marks]


def seed_of(dithers: Sequence[Dither | None]) -> int | None:
    """The seed that all of them are of, if they are of one."""
    seeds = [None if d is None else d.seed for d in dithers]
    return seeds[0] if seeds and all(a == b for a, b in pairwise(seeds)) else None
