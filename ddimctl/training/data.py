"""The images of a run: those to train on, those held out, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddimctl import seeds
from ddimctl.files import sha256
from ddimctl.images import levels


@dataclass(frozen=True)
class Data:
    """uint8 images (N, C, H, W), held in memory."""

    images: Tensor
    held_out: Tensor
    captions: tuple[str, ...] = ()  # one for each image, or none at all
    held_out_captions: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels trained on, and of the captions."""
        pixels = sha256(self.images.contiguous().numpy().data)
        return sha256("\n".join((pixels, *self.captions)).encode()) if self.captions else pixels

    @property
    def shared(self) -> int:
        """How many of the held-out images are, pixel by pixel, among the others as well."""
        known = {bytes(x) for x in self.images.flatten(1).numpy()}
        return sum(bytes(x) in known for x in self.held_out.flatten(1).numpy())


def split(images: Tensor, fraction: float, seed: int, *, captions: Sequence[str] = ()) -> Data:
    """A random `fraction` of the images, at least one, is never trained on.

    Those held out stay in the order they were drawn in, so that the first of them stand for all.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seeds.mix(seed, 0)))
    n = max(1, round(fraction * len(images)))
    kept, out = order[n:].sort().values, order[:n]
    texts = [tuple(captions[i] for i in part.tolist()) if captions else () for part in (kept, out)]
    return Data(images[kept], images[out], *texts)


def batch(step: int, size: int, n: int, *, seed: int) -> Tensor:
    """The rows of batch `step` of an endless sequence of shuffled passes over n images."""
    wanted = torch.arange(step * size, (step + 1) * size)
    out = torch.empty(size, dtype=torch.long)
    for epoch in (wanted // n).unique().tolist():
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seeds.mix(seed, epoch)))
        here = wanted // n == epoch
        out[here] = order[wanted[here] % n]
    return out


def signed(pixels: Tensor) -> Tensor:
    """uint8 → [−1, 1]."""
    images: Tensor = levels.signed(pixels.float())
    return images
