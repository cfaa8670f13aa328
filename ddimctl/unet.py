"""The one network: the unconditional U-Net of DDPM, with the names and fields of diffusers' ``UNet2DModel``.

Down: each block runs some residual blocks (each perhaps followed by self-attention), remembers every result, and halves
the resolution. Up: the same in reverse, each residual block seeing the remembered result of its resolution. The noise
level enters as a sinusoidal embedding of the network's label, added in every residual block.

Parameter names, configuration fields and their *defaults* are diffusers', so that ``UNet2DModel`` weights load as they
are; what is not implemented is refused by name. ``tests/test_unet.py`` compares every field with diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddimctl.errors import FileError


class BlockKind(NamedTuple):
    """What distinguishes the block types: attention after each residual block, and how the resolution changes."""

    attention: bool
    resample: str | None  # "conv", "resnet", or None: as the configuration's {down,up}sample_type says


DOWN_BLOCKS = {
    "DownBlock2D": BlockKind(attention=False, resample="conv"),
    "AttnDownBlock2D": BlockKind(attention=True, resample=None),
    "ResnetDownsampleBlock2D": BlockKind(attention=False, resample="resnet"),
}
UP_BLOCKS = {
    "UpBlock2D": BlockKind(attention=False, resample="conv"),
    "AttnUpBlock2D": BlockKind(attention=True, resample=None),
    "ResnetUpsampleBlock2D": BlockKind(attention=False, resample="resnet"),
}
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}
LARGEST = 1 << 31  # number in a configuration; none that makes sense comes near


@dataclass(frozen=True)
class UNetConfig:
    """The fields of diffusers' ``UNet2DModel`` configuration; a field left out of a file means the default here."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | tuple[int, ...] | None = 8  # one for each resolution is our extension; None: one head
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Reads ``config.json``. Raises `FileError` on a field or value that this network does not implement."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(k for k in config if k not in known and not k.startswith("_"))
        if unknown:
            raise FileError(
                f"the U-Net configuration has fields that ddimctl does not implement: {', '.join(unknown)}",
                hint="only diffusers' unconditional UNet2DModel is supported",
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
        try:
            for field in {"down_block_types", "up_block_types"} & values.keys():
                # The first diffusers wrote UNetResDownBlock2D.
                values[field] = tuple(v.removeprefix("UNetRes") for v in values[field])
            result = cls(**values)
            result._check_types()
            result._check()
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
            raise FileError(f"the U-Net configuration makes no sense: {e}") from e
        return result

    def to_dict(self) -> dict[str, Any]:
        """The configuration as diffusers writes it, every field spelled out."""
        return {"_class_name": "UNet2DModel", **asdict(self)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, or None where the configuration leaves it open."""
        if self.sample_size is None:
            return None
        return (self.sample_size, self.sample_size) if isinstance(self.sample_size, int) else self.sample_size

    def head_dim(self, level: int) -> int:
        """Channels of an attention head at a resolution, 0 being the finest."""
        d = self.attention_head_dim
        return self.block_out_channels[level] if d is None else d if isinstance(d, int) else d[level]

    @property
    def mid_groups(self) -> int | None:
        """Groups of the norm before the attention in the middle; None for no norm there."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups

    def essence(self) -> tuple[object, ...]:
        """What the network computes beyond what its weights' names and shapes say, however the fields spell it.

        Two configurations that run the same weights alike have the same essence; dropout and image size are not in it.
        """

        def block(
            name: str, level: int, table: Mapping[str, BlockKind], kind: str | None, padding: str
        ) -> tuple[object, ...]:
            how = table[name].resample or kind or "conv"
            return (self.head_dim(level) if table[name].attention else 0, how + padding if how == "conv" else how)

        n = len(self.block_out_channels)
        down = [
            block(b, i, DOWN_BLOCKS, self.downsample_type, str(self.downsample_padding))
            for i, b in enumerate(self.down_block_types)
        ]
        up = [block(b, n - 1 - i, UP_BLOCKS, self.upsample_type, "") for i, b in enumerate(self.up_block_types)]
        down[-1], up[-1] = down[-1][:1], up[-1][:1]  # the last ones do not resample
        attention = (self.head_dim(n - 1), self.mid_groups) if self.add_attention else ()
        middle = (float(self.mid_block_scale_factor), *attention) if self.mid_block_type else ()
        return (
            self.center_input_sample, float(self.freq_shift), self.flip_sin_to_cos, tuple(down), middle, tuple(up),
            "silu" if self.act_fn == "swish" else self.act_fn, self.norm_num_groups, float(self.norm_eps),
            self.resnet_time_scale_shift,
        )  # fmt: skip

    def activation_floats(self) -> int:
        """Numbers held at once, at most, while one image goes through: an estimate from the fields.

        The skips are all alive when the way up begins, and the finest resolution needs a few copies of its widest map.
        Raises `ValueError` if the configuration leaves the image size open.
        """
        if self.image_size is None:
            raise ValueError("the configuration leaves the image size open")
        pixels = self.image_size[0] * self.image_size[1]
        c = self.block_out_channels
        areas = [pixels >> 2 * i for i in range(len(c))]
        skips = c[0] * pixels + sum(self.layers_per_block * w * a for w, a in zip(c, areas, strict=True))
        skips += sum(w * a for w, a in zip(c, areas[1:], strict=False))
        widest = max((w + max(c[i : i + 2])) * a for i, (w, a) in enumerate(zip(c, areas, strict=True)))
        return skips + 4 * widest

    def _check(self) -> None:
        def refuse(field: str, known: object) -> None:
            value = getattr(self, field)
            raise FileError(f"the U-Net has {field} = {value!r}, which ddimctl does not implement (known: {known})")

        for field, table in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            bad = [name for name in getattr(self, field) if name not in table]
            if bad:
                raise FileError(f"the U-Net has a block of type {bad[0]}, which ddimctl does not implement")
        for field, known in (
            ("act_fn", tuple(ACTIVATIONS)),
            ("time_embedding_type", ("positional",)),
            ("mid_block_type", ("UNetMidBlock2D", None)),
            ("downsample_type", ("conv", "resnet", None)),
            ("upsample_type", ("conv", "resnet", None)),
            ("downsample_padding", (0, 1)),
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("class_embed_type", (None,)),
        ):
            if getattr(self, field) not in known:
                refuse(field, known)
        n = len(self.block_out_channels)
        if not n or len(self.down_block_types) != n or len(self.up_block_types) != n:
            raise ValueError("block_out_channels, down_block_types and up_block_types differ in length")
        sizes = (*self.block_out_channels, self.in_channels, self.out_channels, self.time_embedding_dim or 1)
        if not all(0 < v <= 16384 for v in sizes) or not 0 < self.layers_per_block <= 64 or n > 12:
            raise ValueError("a channel or layer count is not sensible")
        if self.num_class_embeds is not None and not 0 < self.num_class_embeds <= 1_000_000:
            raise ValueError(f"num_class_embeds = {self.num_class_embeds}")
        if self.block_out_channels[0] // 2 <= self.freq_shift or not self.mid_block_scale_factor or self.norm_eps < 0:
            raise ValueError("freq_shift, mid_block_scale_factor or norm_eps is not sensible")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout = {self.dropout}")
        for groups in (self.norm_num_groups, self.attn_norm_num_groups):
            if groups is not None and (groups < 1 or any(c % groups for c in self.block_out_channels)):
                raise ValueError(f"{groups} groups do not divide the channels {self.block_out_channels}")
        if isinstance(self.attention_head_dim, tuple) and len(self.attention_head_dim) != n:
            raise ValueError("attention_head_dim does not have one value for each resolution")
        if any(not 0 < self.head_dim(i) <= c for i, c in enumerate(self.block_out_channels) if self._attends(i)):
            raise ValueError(f"attention_head_dim = {self.attention_head_dim} is more than the channels there are")
        if self.image_size is not None and (
            len(self.image_size) != 2 or not all(0 < v <= 8192 for v in self.image_size)
        ):
            raise ValueError(f"sample_size = {self.sample_size}")

    def _attends(self, level: int) -> bool:
        last = len(self.block_out_channels) - 1
        middle = level == last and self.mid_block_type is not None and self.add_attention
        return middle or "Attn" in self.down_block_types[level] + self.up_block_types[last - level]

    def _check_types(self) -> None:
        """Values from JSON can be anything; "false" would count as true."""
        for f in fields(self):
            value = getattr(self, f.name)
            if not any(_is(value, kind) for kind in str(f.type).split(" | ")):
                raise TypeError(f"{f.name} = {value!r}")


def _is(value: object, kind: str) -> bool:
    """Whether `value` is of the type that a field's annotation names, and no absurd number. A bool is not an int here."""
    if kind.startswith("tuple"):
        inner = kind[len("tuple[") :].split(",")[0]
        return isinstance(value, tuple) and all(_is(v, inner) for v in value)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    types: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "None": type(None)}
    return isinstance(value, types[kind]) and (not isinstance(value, int | float) or abs(value) <= LARGEST)


def timestep_embedding(label: Tensor, config: UNetConfig) -> Tensor:
    """Sinusoidal features (N, channels) of continuous labels (N,); DDPM's, after the Transformer's positions."""
    half = config.block_out_channels[0] // 2
    exponent = torch.arange(half, dtype=torch.float32, device=label.device) / (half - config.freq_shift)
    angle = label.float()[:, None] * torch.exp(-math.log(10000) * exponent)
    sin_cos = (angle.cos(), angle.sin()) if config.flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(sin_cos, dim=-1), (0, config.block_out_channels[0] % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoidal features to what the residual blocks add."""

    def __init__(self, config: UNetConfig, width: int):
        super().__init__()
        self.act = ACTIVATIONS["silu"]
        self.linear_1 = nn.Linear(config.block_out_channels[0], width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return out


class Resample(nn.Module):
    """Halves or doubles the resolution: a strided convolution, or nearest neighbours and a convolution.

    Padding 0 means what DDPM's TensorFlow meant: one row and column of zeros at the lower right only.
    """

    def __init__(self, channels: int, up: bool, padding: int = 1):
        super().__init__()
        self.up, self.padding = up, padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=padding)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


def _activated(act: Callable[..., Tensor], h: Tensor) -> Tensor:
    """act(h), in h's own memory where no gradient needs what was there. `h` must be nobody else's."""
    return act(h) if torch.is_grad_enabled() or act is F.gelu else act(h, inplace=True)


class ResnetBlock2D(nn.Module):
    """norm, act, conv, + time, norm, act, conv, + input; with `resample` it halves ("down") or doubles ("up")."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, resample: str = "", scale: float = 1):
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        width = config.time_embedding_dim or config.block_out_channels[0] * 4
        self.act = ACTIVATIONS[config.act_fn]
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.resample, self.scale, self.dropout = resample, scale, config.dropout
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """`temb` is after the activation, which all blocks share."""
        h = _activated(self.act, self.norm1(x))
        if self.resample == "up":
            x, h = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (x, h))
        elif self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        time = self.time_emb_proj(temb)
        if self.scale_shift:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(self.conv1(h))
            h = torch.addcmul(h + shift, h, scale)  # h (1 + scale) + shift; OpenVINO 2026.4 crashes on 1 + scale
        elif len(time) == 1:  # one label for all: a part of the bias, and one pass over h less
            bias = time[0] if self.conv1.bias is None else time[0] + self.conv1.bias
            h = self.norm2(F.conv2d(h, self.conv1.weight, bias.to(h.dtype), padding=1))
        else:
            h = self.norm2(self.conv1(h) + time[:, :, None, None])
        h = self.conv2(F.dropout(_activated(self.act, h), self.dropout, self.training))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out if self.scale == 1 else out / self.scale


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual connection."""

    def __init__(self, config: UNetConfig, channels: int, head_dim: int, groups: int | None, scale: float = 1):
        super().__init__()
        self.heads, self.scale = channels // head_dim, scale
        inner = self.heads * head_dim
        self.group_norm = nn.GroupNorm(groups, channels, eps=config.norm_eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h = x if self.group_norm is None else self.group_norm(x)
        h = h.flatten(2).transpose(1, 2)  # (B, HW, C); no copy when x is channels-last
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.to_out[0](h.transpose(1, 2).flatten(2))
        out: Tensor = x + h.transpose(1, 2).unflatten(2, (height, width))
        return out if self.scale == 1 else out / self.scale


class UNetBlock2D(nn.Module):
    """Residual blocks at one resolution, attention after each where the kind has it, then perhaps a resampling."""

    def __init__(self, config: UNetConfig, kind: BlockKind, level: int, widths: list[tuple[int, int]], resample: str):
        super().__init__()
        channels = widths[-1][1]
        self.resnets = nn.ModuleList([ResnetBlock2D(config, i, o) for i, o in widths])
        self.attentions = (
            nn.ModuleList([Attention(config, channels, config.head_dim(level), config.norm_num_groups) for _ in widths])
            if kind.attention
            else None
        )
        self.resamplers = resample + "samplers"
        if resample:
            how = kind.resample or (config.downsample_type if resample == "down" else config.upsample_type) or "conv"
            sampler = (
                Resample(channels, up=resample == "up", padding=config.downsample_padding if resample == "down" else 1)
                if how == "conv"
                else ResnetBlock2D(config, channels, channels, resample)
            )
            self.add_module(self.resamplers, nn.ModuleList([sampler]))

    def layer(self, i: int, x: Tensor, temb: Tensor) -> Tensor:
        out: Tensor = self.resnets[i](x, temb)
        if self.attentions is not None:
            out = self.attentions[i](out)
        return out

    def resample(self, x: Tensor, temb: Tensor) -> Tensor:
        out: Tensor = getattr(self, self.resamplers)[0](x, temb)
        return out

    @property
    def layers(self) -> int:
        return len(self.resnets)

    @property
    def resamples(self) -> bool:
        return hasattr(self, self.resamplers)


class UNetMidBlock2D(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        head_dim = config.head_dim(len(config.block_out_channels) - 1)
        attention = [Attention(config, channels, head_dim, config.mid_groups, scale)] if config.add_attention else []
        self.attentions = nn.ModuleList(attention)
        self.resnets = nn.ModuleList([ResnetBlock2D(config, channels, channels, scale=scale) for _ in range(2)])

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        x = self.resnets[0](x, temb)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x, temb)
        return out


class UNet2DModel(nn.Module):
    """ε_θ(x_t, label): noisy images (B, C, H, W) and labels (1,) or (B,) to a prediction (B, C', H, W)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        c = config.block_out_channels
        width = config.time_embedding_dim or c[0] * 4
        self.conv_in = nn.Conv2d(config.in_channels, c[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(config, width)
        self.class_embedding = nn.Embedding(config.num_class_embeds, width) if config.num_class_embeds else None

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, name in enumerate(config.down_block_types):
            widths = [(c[i], c[i])] * config.layers_per_block
            widths[0] = (c[max(i - 1, 0)], c[i])
            last = i == len(c) - 1
            self.down_blocks.append(UNetBlock2D(config, DOWN_BLOCKS[name], i, widths, "" if last else "down"))
        self.mid_block = UNetMidBlock2D(config) if config.mid_block_type else None
        r = c[::-1]
        for i, name in enumerate(config.up_block_types):
            # What comes from below, and the skip that is concatenated to it; the last skip is from the block above.
            below, above = r[max(i - 1, 0)], r[min(i + 1, len(c) - 1)]
            widths = [(r[i] + r[i], r[i])] * (config.layers_per_block + 1)
            widths[0] = (below + r[i], r[i])
            widths[-1] = (widths[-1][0] - r[i] + above, r[i])
            last = i == len(c) - 1
            self.up_blocks.append(UNetBlock2D(config, UP_BLOCKS[name], len(c) - 1 - i, widths, "" if last else "up"))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, c[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(c[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor, class_label: Tensor | None = None) -> Tensor:
        if self.config.center_input_sample:
            x = 2 * x - 1
        # One label for the whole batch is embedded once: (1, width) broadcasts in every residual block.
        features = timestep_embedding(label, self.config).to(self.conv_in.weight.dtype)
        temb = self.time_embedding(features)
        if self.class_embedding is not None:
            if class_label is None:
                raise ValueError("this network is class-conditional: give class_label")
            temb = temb + self.class_embedding(class_label)
        temb = ACTIVATIONS[self.config.act_fn](temb)

        x = self.conv_in(x)
        skips = [x]
        for block in cast(list[UNetBlock2D], self.down_blocks):
            for i in range(block.layers):
                x = block.layer(i, x, temb)
                skips.append(x)
            if block.resamples:
                x = block.resample(x, temb)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block(x, temb)
        for block in cast(list[UNetBlock2D], self.up_blocks):
            for i in range(block.layers):
                x = block.layer(i, torch.cat((x, skips.pop()), dim=1), temb)
            if block.resamples:
                x = block.resample(x, temb)
        out: Tensor = self.conv_out(_activated(F.silu, self.conv_norm_out(x)))
        return out
