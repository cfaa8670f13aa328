"""Checkpoints in other projects' layouts, made here without the code under test, and a second network to compare with.

`to_ddim` renames diffusers' weights to the authors' names. `openai_state` makes random weights under exactly the names of
OpenAI's repositories, and `openai_forward` runs them: the U-Net as those repositories define it, straight from the names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def to_ddim(state: Mapping[str, Tensor], levels: int) -> State:
    """diffusers' U-Net weights under the names of ermongroup/ddim's ``models/diffusion.py``."""
    result = {}
    for key, w in state.items():
        new = key
        for pattern, replacement in (
            (r"^time_embedding\.linear_(\d)", lambda m: f"temb.dense.{int(m[1]) - 1}"),
            (r"^conv_norm_out", lambda m: "norm_out"),
            (r"^mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
            (r"^mid_block\.attentions\.0", lambda m: "mid.attn_1"),
            (r"^down_blocks\.(\d)", lambda m: f"down.{m[1]}"),
            (r"^up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}"),
            (r"resnets\.", lambda m: "block."),
            (r"attentions\.", lambda m: "attn."),
            (r"(down|up)samplers\.0", lambda m: f"{m[1]}sample"),
            (r"time_emb_proj", lambda m: "temb_proj"),
            (r"conv_shortcut", lambda m: "nin_shortcut"),
            (r"group_norm", lambda m: "norm"),
            (r"to_([qkv])\.", lambda m: f"{m[1]}."),
            (r"to_out\.0", lambda m: "proj_out"),
        ):
            new = re.sub(pattern, replacement, new)
        if re.search(r"(\.q|\.k|\.v|proj_out)\.weight$", new):
            w = w[:, :, None, None]
        result[new] = w
    return result


def ermongroup(state: State) -> list[object]:
    """What ermongroup/ddim's training saves: the live network, wrapped, is not what the average is."""
    live = {f"module.{k}": torch.zeros_like(w) for k, w in state.items()}
    return [live, {"state": {}, "param_groups": []}, 3, 4000, state]


def openai_state(
    channels: Sequence[int] = (32, 64),
    layers: int = 1,
    attention: Sequence[int] = (1,),
    updown: bool = False,
    scale_shift: bool = True,
    learn_sigma: bool = False,
    classes: int = 0,
    seed: int = 0,
    model_channels: int | None = None,
    shapes_alone: bool = False,
) -> State:
    """Random weights of OpenAI's U-Net. `attention` lists the resolutions that have it, 0 being the finest;
    `model_channels` are the sinusoid's, where the first resolution has others. With `shapes_alone` nothing is drawn."""
    g = torch.Generator().manual_seed(seed)
    state: State = {}
    sinusoid = model_channels or channels[0]
    width = 4 * sinusoid

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta") if shapes_alone else torch.randn(shape, generator=g)

    def layer(name: str, *shape: int) -> None:
        fan = math.prod(shape[1:])
        state[f"{name}.weight"] = draw(*shape) / math.sqrt(fan)
        state[f"{name}.bias"] = draw(shape[0]) * 0.1

    def norm(name: str, c: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * draw(c)
        state[f"{name}.bias"] = 0.1 * draw(c)

    def resblock(name: str, i: int, o: int) -> None:
        norm(f"{name}.in_layers.0", i)
        layer(f"{name}.in_layers.2", o, i, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * o if scale_shift else o, width)
        norm(f"{name}.out_layers.0", o)
        layer(f"{name}.out_layers.3", o, o, 3, 3)
        if i != o:
            layer(f"{name}.skip_connection", o, i, 1, 1)

    def attend(name: str, c: int) -> None:
        norm(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", width, sinusoid)
    layer("time_embed.2", width, width)
    if classes:
        state["label_emb.weight"] = draw(classes, width)
    layer("input_blocks.0.0", channels[0], 3, 3, 3)
    skips, c, k = [channels[0]], channels[0], 1
    for level, o in enumerate(channels):
        for _ in range(layers):
            resblock(f"input_blocks.{k}.0", c, o)
            c = o
            if level in attention:
                attend(f"input_blocks.{k}.1", c)
            skips.append(c)
            k += 1
        if level < len(channels) - 1:
            if updown:
                resblock(f"input_blocks.{k}.0", c, c)
            else:
                layer(f"input_blocks.{k}.0.op", c, c, 3, 3)
            skips.append(c)
            k += 1
    resblock("middle_block.0", c, c)
    attend("middle_block.1", c)
    resblock("middle_block.2", c, c)
    k = 0
    for level, o in reversed(list(enumerate(channels))):
        for j in range(layers + 1):
            resblock(f"output_blocks.{k}.0", c + skips.pop(), o)
            c = o
            part = 1
            if level in attention:
                attend(f"output_blocks.{k}.1", c)
                part = 2
            if level and j == layers:
                if updown:
                    resblock(f"output_blocks.{k}.{part}", c, c)
                else:
                    layer(f"output_blocks.{k}.{part}.conv", c, c, 3, 3)
            k += 1
    norm("out.0", c)
    layer("out.2", 6 if learn_sigma else 3, c, 3, 3)
    return state


def openai_forward(
    state: State,
    x: Tensor,
    label: Tensor,
    heads: int = 4,
    head_channels: int = -1,
    new_order: bool = False,
    classes: Tensor | None = None,
) -> Tensor:
    """The U-Net of improved- and guided-diffusion, run from its weights' names. `label` (B,) is already rescaled."""

    def has(name: str) -> bool:
        return f"{name}.weight" in state

    def linear(name: str, v: Tensor) -> Tensor:
        return F.linear(v, state[f"{name}.weight"].flatten(1), state[f"{name}.bias"])

    def conv(name: str, v: Tensor, stride: int = 1) -> Tensor:
        w = state[f"{name}.weight"]
        return F.conv2d(v, w, state[f"{name}.bias"], stride=stride, padding=w.shape[-1] // 2)

    def norm(name: str, v: Tensor) -> Tensor:
        return F.group_norm(v, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def resblock(name: str, v: Tensor, change: str = "") -> Tensor:
        h = F.silu(norm(f"{name}.in_layers.0", v))
        if change == "down":
            h, v = F.avg_pool2d(h, 2), F.avg_pool2d(v, 2)
        if change == "up":
            h, v = (y.repeat_interleave(2, -1).repeat_interleave(2, -2) for y in (h, v))
        h = conv(f"{name}.in_layers.2", h)
        e = linear(f"{name}.emb_layers.1", F.silu(emb))[..., None, None]
        if e.shape[1] == 2 * h.shape[1]:
            scale, shift = e[:, : h.shape[1]], e[:, h.shape[1] :]
            h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.out_layers.0", h + e)
        h = conv(f"{name}.out_layers.3", F.silu(h))
        return h + (conv(f"{name}.skip_connection", v) if has(f"{name}.skip_connection") else v)

    def attend(name: str, v: Tensor) -> Tensor:
        b, c, height, width = v.shape
        n = c // head_channels if head_channels > 0 else heads
        d = c // n
        qkv = linear(f"{name}.qkv", norm(f"{name}.norm", v).flatten(2).mT).mT  # (B, 3C, pixels)
        out = []
        for h in range(n):
            if new_order:
                q, k, u = (qkv[:, p * c + h * d : p * c + (h + 1) * d] for p in range(3))
            else:
                q, k, u = (qkv[:, (3 * h + p) * d : (3 * h + p + 1) * d] for p in range(3))
            weight = torch.softmax(q.mT @ k / math.sqrt(d), dim=-1)
            out.append(u @ weight.mT)
        return v + linear(f"{name}.proj_out", torch.cat(out, 1).mT).mT.reshape(b, c, height, width)

    def block(name: str, v: Tensor, change: str) -> Tensor:
        """All parts of a block; a residual block resamples if it stands for a resampling."""
        for part in range(3):
            here = f"{name}.{part}"
            if has(f"{here}.in_layers.0"):
                resamples = change == "down" or (change == "up" and part > 0)
                v = resblock(here, v, change if resamples else "")
            elif has(f"{here}.qkv"):
                v = attend(here, v)
            elif has(f"{here}.op"):
                v = conv(f"{here}.op", v, stride=2)
            elif has(f"{here}.conv"):
                v = conv(f"{here}.conv", v.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return v

    def count(part: str) -> int:
        return len({k.split(".")[1] for k in state if k.startswith(part + ".")})

    width = state["time_embed.0.weight"].shape[1]
    angle = label[:, None].float() * 10000.0 ** -(torch.arange(width // 2) / (width // 2))
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat([angle.cos(), angle.sin()], 1))))
    if classes is not None:
        emb = emb + state["label_emb.weight"][classes]
    upsamples = sum(
        1 for k in range(count("output_blocks")) for i in (1, 2) if has(f"output_blocks.{k}.{i}.in_layers.0")
    )
    upsamples += sum(1 for k in range(count("output_blocks")) for i in (1, 2) if has(f"output_blocks.{k}.{i}.conv"))
    period = count("output_blocks") // (upsamples + 1)
    h = conv("input_blocks.0.0", x)
    hs = [h]
    for k in range(1, count("input_blocks")):
        h = block(f"input_blocks.{k}", h, "down" if k % period == 0 else "")
        hs.append(h)
    h = resblock("middle_block.2", attend("middle_block.1", resblock("middle_block.0", h)))
    for k in range(count("output_blocks")):
        h = block(f"output_blocks.{k}", torch.cat([h, hs.pop()], 1), "up")
    return conv("out.2", F.silu(norm("out.0", h)))
