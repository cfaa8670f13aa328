"""Autoencoders between images and latent states, diffusers' ``AutoencoderKL`` and ``VQModel``; and that library, quietly."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.arrays import Array
from ddimctl.checkpoints import pipelines
from ddimctl.errors import FileError, UsageError
from ddimctl.network import Network


@dataclass(frozen=True)
class Latents:
    """z = (latents − shift)·scale, in float32 whatever the network computes in; of a distribution the mean, no sample."""

    vae: Any  # a network of diffusers'
    of: Callable[[Any], Tensor]  # what it encodes an image to
    scale: Tensor  # float64, one number or one a channel, as of shift
    shift: Tensor
    factor: int  # pixels a side for each latent
    tile: int | None = None  # pixels a side of the tiles it goes by, which overlap; None: all at once
    by: tuple[Network, Network] | None = None  # what evaluates encoder and decoder instead: see `halves`

    @property
    def channels(self) -> int:
        """Of z."""
        return int(self.vae.config.latent_channels)

    @property
    def engine(self) -> str | None:
        """What evaluates it, where torch does not."""
        return None if self.by is None else self.by[0].engine

    @property
    def image_channels(self) -> int:
        return int(self.vae.config.in_channels)

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
        up = self._half(0, x)
        # Image by image: at 512 × 512 one needs gigabytes.
        with self._in_tiles():
            latents = torch.cat([up(one) if up else self.of(self.vae.encode(one)) for one in x.split(1)]).double()
        return _back((latents - self.shift.to(latents.device)) * self.scale.to(latents.device), images)

    @torch.no_grad()
    def decode(self, z: Array) -> Array:
        """A quantising one takes the nearest of its vectors here, and not in `encode`."""
        latents = torch.as_tensor(z).double()
        latents = latents / self.scale.to(latents.device) + self.shift.to(latents.device)
        parts = latents.to(self.vae.device, torch.float32).split(1)
        down = self._half(1, latents)
        with self._in_tiles():
            images = [down(one) if down else self.vae.decode(one, return_dict=False)[0] for one in parts]
            return _back(torch.cat(images).double(), z)

    def _half(self, which: int, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What evaluates encoder (0) or decoder (1), if it is not torch, as it is: not by tiles, and for that size alone."""
        if self.by is None or self.tile is not None or tuple(x.shape[1:]) != self.by[which].module.state_shape:
            return None
        network = self.by[which]
        return lambda one: torch.as_tensor(network(one, [0.0], {}))

    def but(self, **changes: Any) -> Latents:
        """One that computes the same in another way; with the digest, if that is known, for it takes seconds."""
        made = replace(self, **changes)
        if "digest" in vars(self):
            vars(made)["digest"] = self.digest
        return made

    def tiled(self, tile: int | None) -> Latents:
        """The same by tiles of so many pixels a side. Raises `UsageError` where it has none of that size."""
        if tile is None:
            return self.but(tile=None)
        unit = 4 * self.factor  # a quarter overlaps
        if not hasattr(self.vae, "use_tiling"):
            raise UsageError("this autoencoder does not go by tiles", hint="leave --tile away")
        if tile < 2 * unit or tile % unit:
            near = max(2, round(tile / unit)) * unit
            raise UsageError(f"tiles of {tile} pixels a side do not divide", hint=f"such as --tile {near}")
        return self.but(tile=tile)

    @contextlib.contextmanager
    def _in_tiles(self) -> Iterator[None]:
        vae = self.vae
        if self.tile is None:
            yield
            return
        before = vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, self.tile, self.tile // self.factor
        try:
            yield
        finally:
            vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = before


def _back(x: Tensor, like: Array) -> Array:
    """x in float64, as and where `like` is."""
    return x.to(like.device) if isinstance(like, Tensor) else x.cpu().numpy()


def load(folder: Path, device: str, kind: str = "AutoencoderKL") -> Latents:
    """The autoencoder in a folder, of one of `KINDS`. Raises `FileError` if it cannot be used."""
    config = pipelines.read_config(folder, kind)
    with quiet():
        import diffusers
    vae = make(getattr(diffusers, kind), config, folder)
    pipelines.fill(vae, pipelines.read_weights(folder), folder)
    said = vae.config
    if said.in_channels != said.out_channels:
        raise FileError(f"{folder} maps {said.in_channels} channels to {said.out_channels}: no autoencoder of images")
    scale = _numbers(said.scaling_factor, folder, "scaling_factor", n=1)
    shift = _numbers(said.get("shift_factor") or 0.0, folder, "shift_factor", n=1)
    if said.get("latents_std") is not None:
        scale = scale / _numbers(said.latents_std, folder, "latents_std", n=said.latent_channels)
    if said.get("latents_mean") is not None:
        shift = shift + _numbers(said.latents_mean, folder, "latents_mean", n=said.latent_channels)
    if not ((scale > 0).all() and (scale < 1e6).all()):
        raise FileError(f"{folder}: its scale of {float(scale.min()):g} makes no sense")
    return Latents(vae.to(device), KINDS[kind], scale, shift, 2 ** (len(said.block_out_channels) - 1))


def _numbers(value: Any, where: Path, name: str, *, n: int) -> Tensor:
    """n numbers of a configuration, as (1, n, 1, 1). Raises `FileError` where they are none."""
    found = value if isinstance(value, list | tuple) else [value]
    if len(found) != n or not all(isinstance(v, int | float) and math.isfinite(v) for v in found):
        raise FileError(f"{where}: {name} = {str(value)[:40]} makes no sense")
    return torch.tensor(found, dtype=torch.float64)[None, :, None, None]


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


# Class → what it encodes an image to, out of what its ``encode`` returns.
KINDS: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda found: found.latent_dist.mean,
    "VQModel": lambda found: found.latents,
}
