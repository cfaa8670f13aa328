"""The images of a run: those to train on, those held out, and their captions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ddimctl import seeds
from ddimctl.files import sha256
from ddimctl.images import levels

PART = 256  # images that are looked at together


class Images(Protocol):
    """uint8 images (N, C, H, W): a tensor, or `Rows` of one that is not to be copied."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor: ...

    def split(self, size: int, /) -> Iterable[Tensor]: ...


@dataclass(frozen=True)
class Rows:
    """Some of many images, taken when they are asked for."""

    images: Tensor
    rows: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice, /) -> Tensor:
        return self.images[self.rows[rows]]

    def split(self, size: int, /) -> Iterator[Tensor]:
        """All of them, so many at a time."""
        return (self[slice(i, i + size)] for i in range(0, len(self), size))


@dataclass(frozen=True)
class Data:
    """The images, and one caption for each, or none at all."""

    images: Images
    held_out: Images
    captions: tuple[str, ...] = ()
    held_out_captions: tuple[str, ...] = ()
    memory: float = math.inf  # bytes that what is made of all images may take in memory

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels trained on, and of the captions."""
        whole = hashlib.sha256()
        for part in self.images.split(PART):
            whole.update(part.contiguous().numpy().data)
        pixels = whole.hexdigest()
        return sha256("\n".join((pixels, *self.captions)).encode()) if self.captions else pixels

    @cached_property
    def shared(self) -> int:
        """How many of the held-out images are, pixel by pixel, among the others as well."""
        held_out = [_mark(x) for part in self.held_out.split(PART) for x in part]
        wanted, found = set(held_out), set[bytes]()
        for part in self.images.split(PART):
            found |= wanted.intersection(map(_mark, part))
        return sum(mark in found for mark in held_out)


def _mark(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().data).digest()


def split(images: Images, fraction: float, seed: int, *, captions: Sequence[str] = ()) -> Data:
    """A random `fraction` of the images, at least one, is never trained on.

    Those held out stay in the order they were drawn in, so that the first of them stand for all. `Rows` stay rows.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seeds.mix(seed, 0)))
    n = max(1, round(fraction * len(images)))
    kept, out = order[n:].sort().values, order[:n]
    said, others = [tuple(captions[i] for i in part.tolist()) if captions else () for part in (kept, out)]
    if isinstance(images, Rows):
        return Data(Rows(images.images, images.rows[kept]), Rows(images.images, images.rows[out]), said, others)
    return Data(images[kept], images[out], said, others)


def batch(step: int, size: int, n: int, *, seed: int) -> Tensor:
    """The rows of batch `step` of an endless sequence of shuffled passes over n images."""
    wanted = torch.arange(step * size, (step + 1) * size)
    out = torch.empty(size, dtype=torch.long)
    for epoch in (wanted // n).unique().tolist():
        order = _order(n, seeds.mix(seed, epoch))
        here = wanted // n == epoch
        out[here] = order[wanted[here] % n]
    return out


@lru_cache(maxsize=2)
def _order(n: int, seed: int) -> Tensor:
    """Of a pass, which many steps are part of; not to be written to."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def signed(pixels: Tensor) -> Tensor:
    """uint8 → [−1, 1]."""
    images: Tensor = levels.signed(pixels.float())
    return images
