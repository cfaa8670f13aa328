"""Stable Diffusion XL: a U-Net that reads two text encoders, what the second one pools, and the size of the image.

The size goes in as six numbers, diffusers' "time ids": height and width that the image had, where it was cropped, and
height and width that are wanted; here the image's own, uncropped, for the negative prompt too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.checkpoints import Said, pipelines
from ddimctl.errors import FileError
from ddimctl.families import assembly, autoencoders, text
from ddimctl.families.stable_diffusion import check_fit, unet_config
from ddimctl.model import About, Model
from ddimctl.network import Embedded

PIPELINE = "StableDiffusionXLPipeline"
IDS = 6


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, PIPELINE)


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder. Raises as `stable_diffusion.load`."""
    index = pipelines.check_index(path, PIPELINE)
    config = unet_config(path / "unet", ("text_time",))
    levels = pipelines.read_levels(path, said)
    schedule, prediction = levels.schedule, levels.prediction
    autoencoders.check_extra(about.name)
    vae = autoencoders.load(path / "vae", device)
    one, two = text.load_clip(path, device), text.load_clip(path, device, "_2", projected=True)

    def check(config: Any) -> None:
        check_fit(config, path, one.width + two.width)
        wants = (config.addition_time_embed_dim or 0) * IDS + two.encoder.config.projection_dim
        if config.projection_class_embeddings_input_dim != wants or one.length != two.length:
            raise FileError(f"{path}: its text encoders and its network are of different families")

    unet = assembly.load_denoiser("UNet2DConditionModel", config, path / "unet", check=check)
    zero = bool(index.get("force_zeros_for_empty_prompt", True))

    def states(prompt: str | None) -> Embedded:
        found, pooled = one.read(prompt or "", layers=True), two.read(prompt or "", layers=True)
        rows = torch.cat([found.hidden_states[-2], pooled.hidden_states[-2]], -1)
        embedded = {"encoder_hidden_states": rows, "text_embeds": pooled.text_embeds}
        return text.zeros_like(embedded) if prompt is None and zero else embedded

    heard = {
        "encoder_hidden_states": (1, one.length, one.width + two.width),
        "text_embeds": (1, two.encoder.config.projection_dim),
    }
    parts = assembly.Parts(path, unet, vae, [one, two], [prediction, zero], heard)
    network = ListeningXL(unet, vae.factor)
    channels, width = unet.config.in_channels, unet.config.block_out_channels[0]
    made = assembly.module(parts, network, channels=channels, width=width, device=device)
    return assembly.model(
        parts, made, about, family="stable-diffusion-xl", schedule=schedule, prediction=prediction,
        embed=text.embedder(about.name, states), unread=text.shortest([one, two]),
    )  # fmt: skip


class ListeningXL(nn.Module):
    """The U-Net as engines call it, which tells it the size of the image."""

    def __init__(self, unet: Any, factor: int):
        super().__init__()
        self.unet, self.factor = unet, factor

    def forward(self, x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, *, text_embeds: Tensor) -> Tensor:
        n, size = x.shape[0], [int(side) * self.factor for side in x.shape[2:]]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=x.dtype, device=x.device)
        more = {"text_embeds": text_embeds.expand(n, -1), "time_ids": ids.expand(n, -1)}
        rows = encoder_hidden_states.expand(n, -1, -1)
        out: Tensor = self.unet(x, labels.expand(n), rows, added_cond_kwargs=more, return_dict=False)[0]
        return out
