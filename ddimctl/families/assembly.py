"""A `Model` out of the parts of a latent, text-conditional pipeline: what all of these families do alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddimctl import engines
from ddimctl.checkpoints import pipelines
from ddimctl.errors import FileError
from ddimctl.families import autoencoders
from ddimctl.families.autoencoders import Latents
from ddimctl.families.text import Encoder
from ddimctl.model import About, Model
from ddimctl.network import Facts, Module

HELD = 40  # maps of the finest resolution that may be held at once: it bounds the batch, no more


@dataclass(frozen=True)
class Parts:
    """What was loaded from a folder."""

    path: Path
    denoiser: Any  # diffusers' network
    vae: Latents
    encoders: Sequence[Encoder] = ()
    essence: Sequence[Any] = ()  # what else decides what the network computes
    heard: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of what one condition becomes for it
    patch: int = 1  # the sides of its states are multiples of this
    size: Any = None  # of its states, where the denoiser does not say


def load_denoiser(kind: str, config: Mapping[str, Any], folder: Path, *, check: Callable[[Any], None]) -> Any:
    """diffusers' network of that class, with a folder's weights, on the CPU. Raises `FileError` where they do not fit.

    `check` sees its configuration, with diffusers' defaults, before there are any weights.
    """
    with autoencoders.quiet():
        import diffusers
    network = autoencoders.make(getattr(diffusers, kind), dict(config), folder)
    check(network.config)
    pipelines.fill(network, pipelines.read_weights(folder), folder)
    return network


def module(parts: Parts, network: nn.Module, *, channels: int, width: int, device: str) -> Module:
    """The network as engines take it: `network` calls the denoiser, whose finest maps are `width` wide.

    Raises `FileError` where autoencoder and network are of different families.
    """
    config, path = parts.denoiser.config, parts.path
    if channels != parts.vae.channels:
        raise FileError(f"{path}: the network takes {channels} channels, the autoencoder gives {parts.vae.channels}")
    height, wide = state_size(parts.size or config.get("sample_size"), path)
    if height % parts.patch or wide % parts.patch:
        raise FileError(f"{path}: states of {height} × {wide} are in no patches of {parts.patch}")

    def facts() -> Facts:
        said = {k: v for k, v in config.items() if not k.startswith("_") and k != "sample_size"}
        essence = [sorted(said.items()), *parts.essence, *(e.essence for e in parts.encoders)]
        modules = [parts.denoiser, *(e.encoder for e in parts.encoders)]
        digest = autoencoders.hash_of(repr(essence).encode(), modules)
        return Facts(digest, sum(p.numel() for p in parts.denoiser.parameters()), flops=0)

    return Module(
        (channels, height, wide), device, lambda: network, facts, activations=HELD * width * height * wide,
        count=lambda shape: operations(network, shape, parts.heard), mixed=bool(parts.heard),
    )  # fmt: skip


def operations(network: nn.Module, shape: tuple[int, ...], heard: Mapping[str, tuple[int, ...]]) -> int:
    """Operations of one evaluation for a state of that shape, counted by torch, without computing any."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tensors = [*network.parameters(), *network.buffers()]
    ghost = copy.deepcopy(network, {id(t): t.to("meta") for t in tensors})
    told = {k: torch.zeros(s, device="meta") for k, s in heard.items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH), autoencoders.quiet():
        ghost(torch.zeros(1, *shape, device="meta"), torch.zeros(1, device="meta"), **told)
    return int(counter.get_total_flops())


def model(parts: Parts, made: Module, about: About, *, family: str, **more: Any) -> Model:
    """The model; `more` are the fields of `Model` that are the family's own."""
    vae, (_, height, width) = parts.vae, made.state_shape
    told = f"predicts {more.get('prediction', 'epsilon')}; images by an autoencoder, {vae.factor} pixels a side to one"
    return Model(
        engines.make(made),
        image_shape=(vae.image_channels, height * vae.factor, width * vae.factor),
        about=replace(about, family=family, notes=(*about.notes, told)),
        autoencoder=vae,
        multiple=vae.factor * parts.patch,
        **more,
    )


def state_size(size: Any, path: Path) -> tuple[int, int]:
    """(height, width) of the states, from the network's sample_size."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(n, int) and 0 < n <= 1024 for n in sides):
        raise FileError(f"{path} does not say its image size (sample_size = {size!r})")
    return sides[0], sides[1]
