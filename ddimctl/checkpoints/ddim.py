"""The layout of the paper's authors: ermongroup/ddim's ``ckpt.pth`` and pesser/pytorch_diffusion's ``.ckpt``.

Both hold DDPM's U-Net under the same names. The first is a list [network, optimiser, epoch, step, average], the second
the bare network. The tensors' shapes give the architecture; image size and schedule are not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddimctl.checkpoints import Checkpoint, betas, weights
from ddimctl.errors import FileError
from ddimctl.unet import UNetConfig

MARK = "temb.dense.0.weight"
ATTENTION_AT = 16  # pixels a side: where all the networks published in this layout have attention
# What their networks have in common beyond the shapes: models/diffusion.py of both repositories.
FIXED: dict[str, Any] = {
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "downsample_padding": 0,  # theirs pads (0, 1, 0, 1), which diffusers calls 0
    "attention_head_dim": None,
}
FIELDS = ("image_size", "beta_schedule", "beta_start", "beta_end", "num_diffusion_timesteps")
NAMES = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
}
PARTS = {"block": "resnets", "attn": "attentions"}
RESNET = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def recognises(content: Any) -> bool:
    return any(MARK in state for state in _states(content))


def _states(content: Any) -> list[dict[str, Any]]:
    """The mappings in a checkpoint that could be networks, without ``module.`` before the names."""
    parts = content if isinstance(content, list | tuple) else [content]
    return [{str(k).removeprefix("module."): v for k, v in p.items()} for p in parts if isinstance(p, Mapping)]


def read(content: Any, config: Mapping[str, Any] | None = None, name: str = "the checkpoint") -> Checkpoint:
    """Reads the loaded `content` of a file. Raises `FileError` if it is not the network that both repositories have."""
    notes, guesses = [], []
    candidates = [s for s in _states(content) if MARK in s]
    if len(candidates) > 1:
        notes.append("the averaged weights (EMA) were taken")
    elif isinstance(content, list | tuple):
        notes.append("there are no averaged weights (EMA); the last ones were taken")
    state = weights.state(candidates[-1], name)
    if state.pop("logvar", None) is not None:
        notes.append("the learned variances (logvar) were dropped")
    odd = [k for k in state if "conv_shortcut" in k]
    if odd:
        raise FileError(f"{name} has 3×3 shortcuts (conv_shortcut), which ddimctl does not implement")
    settings = dict(config or {})
    unknown = sorted(settings.keys() - set(FIELDS))
    if unknown:
        raise FileError(f"the configuration has fields that mean nothing here: {', '.join(unknown)}", _hint())
    fields = infer(state, name)
    size = settings.get("image_size")
    if size is None:
        level = next((i for i, kind in enumerate(fields["down_block_types"]) if "Attn" in kind), None)
        if level is None:
            raise FileError(
                f"{name} does not tell its image size", hint="add --config FILE with image_size; " + _hint()
            )
        size = ATTENTION_AT << level
        guesses.append(f"image size {size}: its attention was taken to be at {ATTENTION_AT} × {ATTENTION_AT} pixels")
    kind = {"quad": "scaled_linear"}.get(
        settings.get("beta_schedule", "linear"), settings.get("beta_schedule", "linear")
    )
    T, start, end = (
        settings.get("num_diffusion_timesteps", 1000),
        settings.get("beta_start", 1e-4),
        settings.get("beta_end", 0.02),
    )
    schedule = betas.schedule(kind, T, start, end=end)
    if "beta_schedule" not in settings:
        guesses.append(f"schedule: linear β from {start} to {end}, T = {T}, as for all the authors' networks")
    n = len(fields["block_out_channels"])
    renamed = {rename(k, n): _linear(k, w) for k, w in state.items()}
    return Checkpoint(
        UNetConfig.from_dict({**FIXED, **fields, "sample_size": size}), renamed, schedule, notes=notes, guesses=guesses
    )


def _hint() -> str:
    return f"known: {', '.join(FIELDS)}"


def infer(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The network's fields that the tensors' names and shapes give."""
    levels = {int(m[1]) for k in state if (m := re.match(r"down\.(\d+)\.", k))}
    n = len(levels)
    try:
        if levels != set(range(n)):
            raise KeyError("down")
        blocks = {int(m[1]) for k in state if (m := re.match(r"down\.0\.block\.(\d+)\.", k))}
        attention = {(side, i): f"{side}.{i}.attn.0.q.weight" in state for side in ("down", "up") for i in range(n)}
        if n > 1 and "down.0.downsample.conv.weight" not in state:
            raise FileError(f"{name} halves its images without a convolution, which ddimctl does not implement")
        return {
            "in_channels": state["conv_in.weight"].shape[1],
            "out_channels": state["conv_out.weight"].shape[0],
            "block_out_channels": [state[f"down.{i}.block.0.conv1.weight"].shape[0] for i in range(n)],
            "layers_per_block": len(blocks),
            "down_block_types": [("Attn" if attention["down", i] else "") + "DownBlock2D" for i in range(n)],
            "up_block_types": [("Attn" if attention["up", i] else "") + "UpBlock2D" for i in reversed(range(n))],
            "time_embedding_dim": state[MARK].shape[0],
            "add_attention": "mid.attn_1.q.weight" in state,
        }
    except (KeyError, IndexError) as e:
        raise FileError(f"{name} lacks a tensor of the DDPM U-Net: {e}") from e


def rename(key: str, levels: int) -> str:
    """The name of a tensor in diffusers' U-Net; an unknown name stays as it is."""
    stem, _, leaf = key.rpartition(".")
    for theirs, ours in NAMES.items():
        if stem == theirs or stem.startswith(theirs + "."):
            rest = stem[len(theirs) + 1 :]
            return ".".join(p for p in (ours, _part(rest, "attn" in theirs), leaf) if p)
    if m := re.fullmatch(r"(down|up)\.(\d+)\.(down|up)sample\.conv", stem):
        i = int(m[2]) if m[1] == "down" else levels - 1 - int(m[2])
        return f"{m[1]}_blocks.{i}.{m[3]}samplers.0.conv.{leaf}"
    if m := re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)", stem):
        i = int(m[2]) if m[1] == "down" else levels - 1 - int(m[2])
        return f"{m[1]}_blocks.{i}.{PARTS[m[3]]}.{m[4]}.{_part(m[5], m[3] == 'attn')}.{leaf}"
    return key


def _part(name: str, attention: bool) -> str:
    return (ATTENTION if attention else RESNET).get(name, name)


def _linear(key: str, w: Tensor) -> Tensor:
    """The attention's 1×1 convolutions are linear layers here."""
    attention = ".attn." in key or ".attn_1." in key
    return w.flatten(1) if attention and w.ndim == 4 and w.shape[2:] == (1, 1) else w
