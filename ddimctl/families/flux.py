"""Flux: a transformer that is a flow, reads T5 and what CLIP pools, and takes its states packed, two by two to a token.

Where it is distilled it is told a guidance as a number, beside that of Ho and Salimans: `Condition.distilled`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.checkpoints import Said, configs, flows, identify, pipelines
from ddimctl.errors import FileError
from ddimctl.families import assembly, autoencoders, text
from ddimctl.model import About, Model
from ddimctl.network import Embedded

PIPELINE = "FluxPipeline"
T5_TOKENS = 512  # as many as its pipeline reads
DISTILLED = 3.5  # what its pipeline tells it
PATCH = 2


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, PIPELINE)


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder. Raises as `stable_diffusion.load`."""
    pipelines.refuse_config(path, said.config, said.schedule)
    pipelines.check_index(path, PIPELINE)
    config = pipelines.read_config(path / "transformer", "FluxTransformer2DModel")
    # It multiplies its label by 1000 itself.
    schedule, _ = flows.read(configs.read_json(path / "scheduler" / "scheduler_config.json"), PATCH)
    autoencoders.check_extra(about.name)
    vae, clip = autoencoders.load(path / "vae", device), text.load_clip(path, device)
    t5 = text.load_t5(path, device, "_2", length=T5_TOKENS)

    def check(config: Any) -> None:
        if config.patch_size != 1 or config.in_channels != (config.out_channels or config.in_channels):
            raise FileError(f"{path} is not a denoiser of images alone", identify.NOT_HERE)
        if (clip.width, t5.encoder.config.d_model) != (config.pooled_projection_dim, config.joint_attention_dim):
            raise FileError(f"{path}: its text encoders and its network are of different families")

    transformer = assembly.load_denoiser("FluxTransformer2DModel", config, path / "transformer", check=check)

    def states(prompt: str | None) -> Embedded:
        return {
            "encoder_hidden_states": t5.read(prompt or "")[0],
            "pooled_projections": clip.read(prompt or "").pooler_output,
        }

    size = vae.vae.config.sample_size
    sides = size if isinstance(size, int) else 0
    distilled = DISTILLED if transformer.config.guidance_embeds else None
    heard: dict[str, tuple[int, ...]] = {
        "encoder_hidden_states": (1, t5.length, transformer.config.joint_attention_dim),
        "pooled_projections": (1, clip.width),
        **({} if distilled is None else {"guidance": (1,)}),
    }
    parts = assembly.Parts(path, transformer, vae, [clip, t5], ["flow"], heard, PATCH, sides // vae.factor)
    made = assembly.module(
        parts, Packing(transformer), channels=transformer.config.in_channels // PATCH**2,
        width=max(1, transformer.inner_dim // PATCH**2), device=device,
    )  # fmt: skip
    return assembly.model(
        parts, made, about, family="flux", schedule=schedule.at(*made.state_shape[1:]), prediction="flow",
        embed=text.embedder(about.name, states, distilled=distilled), unread=text.shortest([clip, t5]),
    )  # fmt: skip


class Packing(nn.Module):
    """The transformer as engines call it: states in, two by two to a token, and out again."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(
        self, x: Tensor, labels: Tensor, encoder_hidden_states: Tensor, *, pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        n, c, h, w = x.shape
        h, w = h // PATCH, w // PATCH
        tokens = x.reshape(n, c, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, c * PATCH**2)
        rows = torch.arange(h, device=x.device)[:, None].expand(h, w)
        columns = torch.arange(w, device=x.device)[None].expand(h, w)
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(h * w, 3).to(x.dtype)
        out = self.transformer(
            tokens, encoder_hidden_states=encoder_hidden_states.expand(n, -1, -1),
            pooled_projections=pooled_projections.expand(n, -1), timestep=labels.expand(n),
            img_ids=places, txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3, dtype=x.dtype, device=x.device),
            guidance=None if guidance is None else guidance.expand(n), return_dict=False,
        )[0]  # fmt: skip
        found: Tensor = out.reshape(n, h, w, c, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return found.reshape(n, c, h * PATCH, w * PATCH)
