"""Stable Diffusion 1.x and 2.x from a folder in diffusers' layout: U-Net, autoencoder, text encoder, tokenizer, schedule.

Network, autoencoder and text encoder are diffusers' and transformers' classes with the folder's weights; the equation is
ours. The libraries are imported when such a folder is loaded, and nothing in it decides what code runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddimctl.checkpoints import Said, identify, pipelines
from ddimctl.errors import FileError
from ddimctl.families import assembly, autoencoders, text
from ddimctl.model import About, Model
from ddimctl.network import Embedded

PIPELINE = "StableDiffusionPipeline"
# What a U-Net might want more than an image, a label and a text.
MORE = ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type")


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, PIPELINE)


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder. Raises `FileError` if it is incomplete, hostile or not of this kind, `UsageError` without
    the extra."""
    pipelines.check_index(path, PIPELINE)
    config = unet_config(path / "unet", (None, "text"))
    levels = pipelines.read_levels(path, said)
    schedule, prediction = levels.schedule, levels.prediction
    autoencoders.check_extra(about.name)
    vae, clip = autoencoders.load(path / "vae", device), text.load_clip(path, device)
    unet = assembly.load_denoiser(
        "UNet2DConditionModel", config, path / "unet", check=lambda c: check_fit(c, path, clip.width)
    )

    def states(prompt: str | None) -> Embedded:
        return {"encoder_hidden_states": clip.read(prompt or "")[0]}

    heard = {"encoder_hidden_states": (1, clip.length, clip.width)}
    parts = assembly.Parts(path, unet, vae, [clip], [prediction], heard)
    network = Listening(unet)
    channels, width = unet.config.in_channels, unet.config.block_out_channels[0]
    made = assembly.module(parts, network, channels=channels, width=width, device=device)
    return assembly.model(
        parts, made, about, family="stable-diffusion", schedule=schedule, prediction=prediction,
        embed=text.embedder(about.name, states), unread=clip.unread,
    )  # fmt: skip


class Listening(nn.Module):
    """The U-Net as engines call it: (x_t, labels, encoder_hidden_states), the latter with one row or one an image."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, labels: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        n = x.shape[0]  # no len(x), which is a constant to what traces this
        rows = encoder_hidden_states.expand(n, -1, -1)
        out: Tensor = self.unet(x, labels.expand(n), rows, return_dict=False)[0]
        return out


def unet_config(folder: Path, additions: tuple[str | None, ...]) -> dict[str, Any]:
    """The network's configuration. Raises `FileError` where it wants more than `additions`."""
    config = pipelines.read_config(folder, "UNet2DConditionModel")
    for name in MORE:
        if config.get(name) is not None:
            raise FileError(f"{folder}: a network with {name} is not implemented", identify.NOT_HERE)
    if (what := config.get("addition_embed_type")) not in additions:
        raise FileError(f"{folder}: a network that is asked for {what!r} too is not implemented", identify.NOT_HERE)
    return config


def check_fit(config: Any, path: Path, width: int) -> None:
    """Raises `FileError` where the network is no denoiser of images alone, or reads text of another width."""
    if config.in_channels != config.out_channels:
        raise FileError(
            f"{path} maps {config.in_channels} channels to {config.out_channels}: not a denoiser of images alone",
            hint="inpainting, depth and editing networks need an image beside the noise",
        )
    wants = config.cross_attention_dim
    if ({wants} if isinstance(wants, int) else set(wants)) != {width}:
        raise FileError(f"{path}: the network reads text {wants} wide, it is {width} wide")
