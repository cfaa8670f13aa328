"""Networks of pixels: DDPM's U-Net, unconditional or with classes, from any checkpoint layout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ddimctl import engines
from ddimctl.checkpoints import Checkpoint, Said, formats, glance, told
from ddimctl.errors import FileError
from ddimctl.families.classes import embedder
from ddimctl.model import About, Model
from ddimctl.network import Facts, Module
from ddimctl.unet import UNet2DModel, UNetConfig
from ddimctl.unet.network import Attention

# Weights above this many bytes stay mapped from their file: channels-last copies of them save no measurable time.
COPY_BELOW = 200_000_000


def recognises(path: Path) -> bool:
    """Whatever it is: `load` says of what is no such model what it is."""
    return True


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder or file of any layout. Raises `FileError` if it cannot be used."""
    return from_checkpoint(formats.read(path, said), about, device=device)


def from_checkpoint(checkpoint: Checkpoint, about: About, *, device: str = "cpu") -> Model:
    """A `Model` of a checkpoint that was read. Raises `FileError` if weights and configuration do not fit, if it is no
    denoiser of images alone, or if it does not say its image size."""
    config, name = checkpoint.config, about.name
    module = make_module(checkpoint, name, device=device)
    if config.image_size is None:
        raise FileError(f"the model {name} does not say its image size (sample_size)")
    notes, classes = told(checkpoint), config.num_class_embeds
    about = replace(about, classes=classes, notes=notes, guesses=tuple(checkpoint.guesses))
    return Model(
        engines.make(module),
        checkpoint.schedule,
        image_shape=module.state_shape,
        about=about,
        prediction=checkpoint.prediction,
        label_scale=checkpoint.label_scale,
        embed=embedder(name, classes),
    )


def make_module(checkpoint: Checkpoint, name: str, *, device: str = "cpu") -> Module:
    """The network of a checkpoint. Raises `FileError` as `from_checkpoint`; its size may be open, and is 0 × 0 then."""
    config = checkpoint.config
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise FileError(
            f"{name} maps {config.in_channels} channels to {config.out_channels}: not a denoiser of images alone",
            hint="super-resolution and inpainting networks need an image beside the noise",
        )
    with torch.device("meta"):
        network = UNet2DModel(config)
    wanted = {k: v.shape for k, v in network.state_dict().items()}
    given = {k: v.shape for k, v in checkpoint.weights.items()}
    if wanted != given:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        raise FileError(f"the weights of {name} do not fit its configuration ({len(odd)} tensors, {odd[0]} first)")
    network.load_state_dict(checkpoint.weights, assign=True)
    network = network.to(device).eval().requires_grad_(False)
    if device != "cpu" or sum(w.nbytes for w in checkpoint.weights.values()) < COPY_BELOW:
        for w in network.parameters():
            if w.ndim == 4:
                w.data = w.data.contiguous(memory_format=torch.channels_last)

    def facts() -> Facts:
        return Facts(
            digest(config, network.state_dict(), prediction=checkpoint.prediction, label_scale=checkpoint.label_scale),
            sum(p.numel() for p in network.parameters()),
            flops(config) if config.image_size else 0,
        )

    return Module(
        (config.in_channels, *(config.image_size or (0, 0))), device, lambda: network, facts,
        dtype=str(network.conv_in.weight.dtype).removeprefix("torch."),
        activations=config.activation_floats() if config.image_size else 0,
    )  # fmt: skip


def digest(config: UNetConfig, weights: Mapping[str, Tensor], *, prediction: str, label_scale: float) -> str:
    """See `glance.digest`, which says the same of the same weights in their files."""
    tensors = (
        (name, tuple(w.shape), str(w.dtype), [w.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data])
        for name, w in weights.items()
    )
    return glance.digest(config, tensors, prediction=prediction, label_scale=label_scale)


def flops(config: UNetConfig) -> int:
    """Operations (a multiplication and an addition are two) of one evaluation for one image.

    Counted are convolutions, linear layers and attention, as torch's own counter does, which takes seconds to import.
    Raises `ValueError` if the size is open.
    """
    if config.image_size is None:
        raise ValueError("the configuration leaves the image size open")

    def cost(part: torch.nn.Module | None, area: int) -> int:
        total = 0
        for name, m in part.named_modules() if part is not None else ():
            if isinstance(m, Attention):  # q·k, and the sum over v
                total += 4 * area**2 * m.to_q.out_features
            elif isinstance(m, torch.nn.Conv2d | torch.nn.Linear):
                total += 2 * m.weight.numel() * (1 if "time_emb" in name else area)
        return total

    with torch.device("meta"):
        network = UNet2DModel(config)
    levels = len(config.block_out_channels)
    areas = [math.prod(config.image_size) >> 2 * i for i in range(levels)]
    total = cost(network.time_embedding, 1) + cost(network.mid_block, areas[-1])
    total += cost(network.conv_in, areas[0]) + cost(network.conv_out, areas[0])
    for i, (down, up) in enumerate(zip(network.down_blocks, reversed(network.up_blocks), strict=True)):
        for block, sampled in ((down, areas[min(i + 1, levels - 1)]), (up, areas[max(i - 1, 0)])):
            for name, part in block.named_children():
                total += cost(part, sampled if "samplers" in name else areas[i])
    return total
