"""The layout of the paper's authors: ermongroup/ddim's ``ckpt.pth`` and pesser/pytorch_diffusion's ``.ckpt``.

Both hold DDPM's U-Net under the same names. The first is a list [network, optimiser, epoch, step, average], the second
the bare network. The tensors' shapes give the architecture; image size and schedule are not in the file, but in the
repositories' YAML files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddimctl.checkpoints import NOTHING_SAID, Checkpoint, Said, configs, scheduler
from ddimctl.errors import FileError
from ddimctl.unet import UNetConfig

MARK = "temb.dense.0.weight"
MARKS = (MARK,)
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
FIELDS = ("image_size", "resolution", *scheduler.IN_CONFIGS)
# What the tensors decide: compared with them. What decides nothing.
DECIDED = ("ch", "ch_mult", "num_res_blocks", "in_channels", "out_ch", "resamp_with_conv", "attn_resolutions")
IGNORED = (
    "channels", "type", "dropout", "var_type", "ema", "ema_rate", "dataset", "category", "rescaled",
    "logit_transform", "uniform_dequantization", "gaussian_dequantization", "random_flip", "num_workers", "out_of_dist",
    "subset_1k",
)  # fmt: skip
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


def read(state: Mapping[str, Tensor], said: Said = NOTHING_SAID, name: str = "the checkpoint") -> Checkpoint:
    """Reads a state dict. Raises `FileError` if it is not the network that both repositories have."""
    state = dict(state)
    notes, guesses = [], []
    if state.pop("logvar", None) is not None:
        notes.append("the learned variances (logvar) were dropped")
    if any("conv_shortcut" in k for k in state):
        raise FileError(f"{name} has 3×3 shortcuts (conv_shortcut), which ddimctl does not implement")
    fields = infer(state, name)
    given, others = configs.flat(said.config or {}, (*FIELDS, *DECIDED, *IGNORED))
    guesses += configs.told(others)
    _compare(given, fields, name)
    size = given.get("image_size", given.get("resolution"))
    if size is None:
        level = next((i for i, kind in enumerate(fields["down_block_types"]) if "Attn" in kind), None)
        if level is None:
            hint = f"add --config FILE with image_size; known: {', '.join(FIELDS)}"
            raise FileError(f"{name} does not tell its image size", hint)
        size = ATTENTION_AT << level
        guesses.append(f"image size {size}: its attention was taken to be at {ATTENTION_AT} × {ATTENTION_AT} pixels")
    told = {k: v for k, v in given.items() if k in scheduler.IN_CONFIGS} | dict(said.schedule or {})
    made = scheduler.read(told)
    if not told.keys() & {"beta_schedule", "noise_schedule", "trained_betas", "beta_start", "_class_name"}:
        kind = f"linear β from 0.0001 to 0.02, T = {made.schedule.T}"
        guesses.append(f"schedule: {kind}, as for all the authors' networks")
    n = len(fields["block_out_channels"])
    renamed = {rename(k, n): _linear(k, w) for k, w in state.items()}
    config = UNetConfig.from_dict({**FIXED, **fields, "sample_size": size})
    return Checkpoint(config, renamed, made.schedule, made.prediction, made.label_scale, notes, guesses)


def _compare(given: Mapping[str, Any], fields: Mapping[str, Any], name: str) -> None:
    """Raises `FileError` where a configuration contradicts the tensors."""
    ch, widths = fields["sinusoid_channels"], fields["block_out_channels"]
    shape: dict[str, Any] = {
        "ch": ch,
        "ch_mult": [w // ch for w in widths],
        "num_res_blocks": fields["layers_per_block"],
        "in_channels": fields["in_channels"],
        "out_ch": fields["out_channels"],
        "resamp_with_conv": True,
    }
    attended = ["Attn" in kind for kind in fields["down_block_types"]]
    size, at = given.get("image_size", given.get("resolution")), given.get("attn_resolutions")
    if isinstance(size, int) and isinstance(at, list):
        shape["attn_resolutions"] = sorted(size >> i for i, has in enumerate(attended) if has)
        # What no resolution has changes nothing.
        given = {**given, "attn_resolutions": sorted(v for v in at if v in [size >> i for i in range(len(widths))])}

    for field in DECIDED:
        value = given.get(field)
        if value is not None and value != shape.get(field, value):
            raise FileError(f"{name} does not fit its configuration: {field} is {shape[field]}, not {value}")


def infer(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The network's fields that the tensors' names and shapes give."""
    levels = {int(m[1]) for k in state if (m := re.match(r"down\.(\d+)\.", k))}
    n = len(levels)
    try:
        if levels != set(range(n)):
            raise KeyError("down")
        blocks = {int(m[1]) for k in state if (m := re.match(r"down\.0\.block\.(\d+)\.", k))}
        attention = {(side, i): f"{side}.{i}.attn.0.q.weight" in state for side in ("down", "up") for i in range(n)}
        if (
            state[MARK].shape[1] < 1
            or state["conv_in.weight"].shape[0] != state["down.0.block.0.norm1.weight"].shape[0]
        ):
            raise KeyError("conv_in")
        if state["conv_in.weight"].shape[0] != state["down.0.block.0.conv1.weight"].shape[0]:
            raise FileError(f"{name} widens its first resolution (ch_mult), which ddimctl does not implement")
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
            "sinusoid_channels": state[MARK].shape[1],
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
