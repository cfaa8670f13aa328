"""Stable Diffusion 3: a transformer that is a flow, and reads two of CLIP's text encoders and, where it is there, T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ddimctl.checkpoints import Said, configs, flows, pipelines
from ddimctl.errors import FileError
from ddimctl.families import assembly, autoencoders, text
from ddimctl.model import About, Model
from ddimctl.network import Embedded

PIPELINE = "StableDiffusion3Pipeline"
T5_TOKENS = 256  # as many as its pipeline reads


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, PIPELINE)


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder; T5 may be missing. Raises as `stable_diffusion.load`."""
    pipelines.refuse_config(path, said.config, said.schedule)
    index = pipelines.check_index(path, PIPELINE)
    config = pipelines.read_config(path / "transformer", "SD3Transformer2DModel")
    patch = config.get("patch_size", 2)
    flow = configs.read_json(path / "scheduler" / "scheduler_config.json")
    schedule, label_scale = flows.read(flow, patch if isinstance(patch, int) else 2)
    autoencoders.check_extra(about.name)
    vae = autoencoders.load(path / "vae", device)
    clips = [text.load_clip(path, device, n, projected=True) for n in ("", "_2")]
    t5 = text.load_t5(path, device, "_3", length=T5_TOKENS) if pipelines.has(index, "text_encoder_3") else None

    def check(config: Any) -> None:
        pooled = sum(c.encoder.config.projection_dim for c in clips)
        wide = config.joint_attention_dim
        fits = pooled == config.pooled_projection_dim and sum(c.width for c in clips) <= wide
        if not fits or (t5 is not None and t5.encoder.config.d_model != wide):
            raise FileError(f"{path}: its text encoders and its network are of different families")
        if config.in_channels != (config.out_channels or config.in_channels):
            raise FileError(
                f"{path} maps {config.in_channels} channels to {config.out_channels}: no denoiser of images"
            )

    transformer = assembly.load_denoiser("SD3Transformer2DModel", config, path / "transformer", check=check)
    wide = transformer.config.joint_attention_dim

    def states(prompt: str | None) -> Embedded:
        found = [c.read(prompt or "", layers=True) for c in clips]
        rows = torch.cat([f.hidden_states[-2] for f in found], -1)
        more = torch.zeros(1, T5_TOKENS, wide, device=rows.device) if t5 is None else t5.read(prompt or "")[0]
        return {
            "encoder_hidden_states": torch.cat([pad(rows, (0, wide - rows.shape[-1])), more], -2),
            "pooled_projections": torch.cat([f.text_embeds for f in found], -1),
        }

    encoders = [*clips, *([] if t5 is None else [t5])]
    tokens = clips[0].length + (T5_TOKENS if t5 is None else t5.length)
    heard = {
        "encoder_hidden_states": (1, tokens, wide),
        "pooled_projections": (1, transformer.config.pooled_projection_dim),
    }
    parts = assembly.Parts(path, transformer, vae, encoders, ["flow"], heard, patch=transformer.config.patch_size)
    width = max(1, transformer.inner_dim // parts.patch**2)
    made = assembly.module(
        parts, Listening3(transformer), channels=transformer.config.in_channels, width=width, device=device
    )
    return assembly.model(
        parts, made, about, family="stable-diffusion-3", schedule=schedule.at(*made.state_shape[1:]), prediction="flow",
        label_scale=label_scale, embed=text.embedder(about.name, states), unread=text.shortest(encoders),
        largest=transformer.config.pos_embed_max_size * parts.patch * vae.factor,
    )  # fmt: skip


class Listening3(nn.Module):
    """The transformer as engines call it."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(
        self, x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, *, pooled_projections: Tensor
    ) -> Tensor:
        n = x.shape[0]
        out: Tensor = self.transformer(
            x, encoder_hidden_states=encoder_hidden_states.expand(n, -1, -1),
            pooled_projections=pooled_projections.expand(n, -1), timestep=labels.expand(n), return_dict=False,
        )[0]  # fmt: skip
        return out
