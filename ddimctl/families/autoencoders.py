"""Autoencoders between images and latent states: diffusers' ``AutoencoderKL``, and the library itself, loaded quietly."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.arrays import Array
from ddimctl.checkpoints import pipelines
from ddimctl.errors import FileError, UsageError


@dataclass(frozen=True)
class KL:
    """z = (mean − shift)·scale, in float32 whatever the network computes in; never a sample."""

    vae: Any  # an ``AutoencoderKL``
    scale: float
    shift: float
    factor: int  # pixels a side for each latent

    @cached_property
    def digest(self) -> str:
        said = {k: v for k, v in self.vae.config.items() if not k.startswith("_") and k != "sample_size"}
        return hash_of(repr(sorted(said.items())).encode(), [self.vae])

    @torch.no_grad()
    def encode(self, images: Array) -> Array:
        """Raises `UsageError` for sides that do not divide, which diffusers would crop."""
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise UsageError(f"the autoencoder takes images whose sides are multiples of {self.factor}")
        x = torch.as_tensor(images).to(self.vae.device, torch.float32)
        # Image by image: at 512 × 512 one needs gigabytes.
        means = [self.vae.encode(one).latent_dist.mean for one in x.split(1)]
        return _back((torch.cat(means).double() - self.shift) * self.scale, images)

    @torch.no_grad()
    def decode(self, z: Array) -> Array:
        states = (torch.as_tensor(z).double() / self.scale + self.shift).to(self.vae.device, torch.float32)
        images = [self.vae.decode(one, return_dict=False)[0] for one in states.split(1)]
        return _back(torch.cat(images).double(), z)


def _back(x: Tensor, like: Array) -> Array:
    """x in float64, as and where `like` is."""
    return x.to(like.device) if isinstance(like, Tensor) else x.cpu().numpy()


def load_kl(folder: Path, device: str) -> KL:
    """The autoencoder in a folder. Raises `FileError` if it cannot be used."""
    config = pipelines.read_config(folder, "AutoencoderKL")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise FileError(f"{folder}: latents with a mean and deviation by channel are not implemented")
    with quiet():
        from diffusers import AutoencoderKL
    vae = make(AutoencoderKL, config, folder)
    pipelines.fill(vae, pipelines.read_weights(folder), folder)
    scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    if not isinstance(scale, int | float) or not 0 < scale < 1e6 or not isinstance(shift, int | float):
        raise FileError(f"{folder}: scaling_factor = {scale!r} makes no sense")
    return KL(vae.to(device), float(scale), float(shift), 2 ** (len(vae.config.block_out_channels) - 1))


def make(kind: Any, config: dict[str, Any], where: Path) -> Any:
    """A network of diffusers' without memory for its weights. Raises `FileError` where its configuration is no good."""
    try:
        with quiet(), torch.device("meta"):
            return kind.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    except Exception as e:  # whatever nonsense provokes: ValueError, KeyError, TypeError, ZeroDivisionError, …
        reason = " ".join(str(e).split())[:120] or type(e).__name__
        raise FileError(f"{where} has a configuration that makes no network: {reason}") from e


def check_extra(name: str) -> None:
    """Raises `UsageError` unless the libraries of the extra are installed."""
    if find_spec("diffusers") is None or find_spec("transformers") is None:
        hint = "install it with: pip install 'ddimctl[diffusers]'"
        raise UsageError(f"the model {name} needs the extra 'diffusers'", hint=hint)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """diffusers and transformers warn of what is none of the user's business, while they are imported and later."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def hash_of(said: bytes, modules: Sequence[nn.Module]) -> str:
    """SHA-256 of a text and of the weights of modules."""
    h = hashlib.sha256(said)
    for module in modules:
        for name, w in sorted(module.state_dict().items()):
            h.update(f"{name} {tuple(w.shape)} {w.dtype}".encode())
            h.update(_bytes(w))
    return h.hexdigest()


def _bytes(w: Tensor) -> memoryview:
    data: memoryview = w.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return data
