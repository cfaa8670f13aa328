"""The U-Net's modules: `UNet2DModel` and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddimctl.unet.config import DOWN_BLOCKS, UP_BLOCKS, BlockKind, UNetConfig
from ddimctl.unet.norm import GroupNorm, in_graph

# The mean squared difference of neighbouring pixels from which torch's GroupNorm keeps its digits: any, or noise of 0.3
# where groups have few channels or the map is large; the sums of the largest have too many terms whatever the picture.
LOUD, LOUD_IF_HARD = 1e-6, 0.2
LARGE, LARGEST_MAP = 64 * 64, 1 << 15  # pixels
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def timestep_embedding(label: Tensor, config: UNetConfig) -> Tensor:
    """Sinusoidal features (N, channels) of continuous labels (N,); DDPM's, after the Transformer's positions."""
    half = config.sinusoid // 2
    exponent = torch.arange(half, dtype=torch.float32, device=label.device) / (half - config.freq_shift)
    angle = label.float()[:, None] * torch.exp(-math.log(10000) * exponent)
    sin_cos = (angle.cos(), angle.sin()) if config.flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(sin_cos, dim=-1), (0, config.sinusoid % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers from the sinusoidal features to what the residual blocks add."""

    def __init__(self, config: UNetConfig, width: int):
        super().__init__()
        self.act = ACTIVATIONS["silu"]
        self.linear_1 = nn.Linear(config.sinusoid, width)
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

    def forward(self, x: Tensor, temb: Tensor, careful: bool = False) -> Tensor:
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

    def __init__(
        self, config: UNetConfig, in_channels: int, out_channels: int, *, resample: str = "", scale: float = 1
    ):
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        width = config.time_embedding_dim or config.block_out_channels[0] * 4
        self.act = ACTIVATIONS[config.act_fn]
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.resample, self.scale, self.dropout = resample, scale, config.dropout
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(width, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor, careful: bool = False) -> Tensor:
        """`temb` is after the activation, which all blocks share; `careful` as in `GroupNorm`."""
        h = _activated(self.act, self.norm1(x, careful))
        if self.resample == "up":
            x, h = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (x, h))
        elif self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        time = self.time_emb_proj(temb)
        if self.scale_shift:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(self.conv1(h), careful)
            h = torch.addcmul(h + shift, h, scale)  # h (1 + scale) + shift; OpenVINO 2026.4 crashes on 1 + scale
        elif len(time) == 1:  # one label for all: a part of the bias, and one pass over h less
            bias = time[0] if self.conv1.bias is None else time[0] + self.conv1.bias
            h = self.norm2(F.conv2d(h, self.conv1.weight, bias.to(h.dtype), padding=1), careful)
        else:
            h = self.norm2(self.conv1(h) + time[:, :, None, None], careful)
        h = self.conv2(F.dropout(_activated(self.act, h), self.dropout, self.training))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out if self.scale == 1 else out / self.scale


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual connection."""

    def __init__(self, config: UNetConfig, channels: int, head_dim: int, *, groups: int | None, scale: float = 1):
        super().__init__()
        self.heads, self.scale = channels // head_dim, scale
        inner = self.heads * head_dim
        self.group_norm = GroupNorm(groups, channels, eps=config.norm_eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor, careful: bool = False) -> Tensor:
        height, width = x.shape[-2:]
        h = x if self.group_norm is None else self.group_norm(x, careful)
        h = h.flatten(2).transpose(1, 2)  # (B, HW, C); no copy when x is channels-last
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.to_out[0](h.transpose(1, 2).flatten(2))
        out: Tensor = x + h.transpose(1, 2).unflatten(2, (height, width))
        return out if self.scale == 1 else out / self.scale


class UNetBlock2D(nn.Module):
    """Residual blocks at one resolution, attention after each where the kind has it, then perhaps a resampling."""

    def __init__(
        self, config: UNetConfig, kind: BlockKind, level: int, *, widths: list[tuple[int, int]], resample: str
    ):
        super().__init__()
        channels = widths[-1][1]
        self.resnets = nn.ModuleList([ResnetBlock2D(config, i, o) for i, o in widths])
        self.attentions = (
            nn.ModuleList(
                [Attention(config, channels, config.head_dim(level), groups=config.norm_num_groups) for _ in widths]
            )
            if kind.attention
            else None
        )
        self.resamplers = resample + "samplers"
        if resample:
            how = kind.resample or (config.downsample_type if resample == "down" else config.upsample_type) or "conv"
            sampler = (
                Resample(channels, up=resample == "up", padding=config.downsample_padding if resample == "down" else 1)
                if how == "conv"
                else ResnetBlock2D(config, channels, channels, resample=resample)
            )
            self.add_module(self.resamplers, nn.ModuleList([sampler]))

    def layer(self, i: int, x: Tensor, temb: Tensor, *, careful: bool) -> Tensor:
        out: Tensor = self.resnets[i](x, temb, careful)
        if self.attentions is not None:
            out = self.attentions[i](out, careful)
        return out

    def resample(self, x: Tensor, temb: Tensor, careful: bool) -> Tensor:
        out: Tensor = getattr(self, self.resamplers)[0](x, temb, careful)
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
        attention = (
            [Attention(config, channels, head_dim, groups=config.mid_groups, scale=scale)]
            if config.add_attention
            else []
        )
        self.attentions = nn.ModuleList(attention)
        self.resnets = nn.ModuleList([ResnetBlock2D(config, channels, channels, scale=scale) for _ in range(2)])

    def forward(self, x: Tensor, temb: Tensor, careful: bool) -> Tensor:
        x = self.resnets[0](x, temb, careful)
        for attention in self.attentions:
            x = attention(x, careful)
        out: Tensor = self.resnets[1](x, temb, careful)
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
            self.down_blocks.append(
                UNetBlock2D(config, DOWN_BLOCKS[name], i, widths=widths, resample="" if last else "down")
            )
        self.mid_block = UNetMidBlock2D(config) if config.mid_block_type else None
        r = c[::-1]
        for i, name in enumerate(config.up_block_types):
            # What comes from below, and the skip that is concatenated to it; the last skip is from the block above.
            below, above = r[max(i - 1, 0)], r[min(i + 1, len(c) - 1)]
            widths = [(r[i] + r[i], r[i])] * (config.layers_per_block + 1)
            widths[0] = (below + r[i], r[i])
            widths[-1] = (widths[-1][0] - r[i] + above, r[i])
            last = i == len(c) - 1
            self.up_blocks.append(
                UNetBlock2D(config, UP_BLOCKS[name], len(c) - 1 - i, widths=widths, resample="" if last else "up")
            )

        self.conv_norm_out = GroupNorm(config.norm_num_groups, c[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(c[0], config.out_channels, 3, padding=1)
        self.few = any(m.few for m in self.modules() if isinstance(m, GroupNorm))

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

        quiet = self._quiet(x)
        if len(set(quiet)) < 2:
            return self._through(x, temb, careful=any(quiet))
        # Each image by itself decides, so that it comes out the same whatever else is in its batch.
        rows = torch.tensor(quiet)
        out: Tensor | None = None
        for careful in (True, False):
            mine = rows == careful
            part = self._through(x[mine], temb if len(temb) == 1 else temb[mine], careful)
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[mine] = part
        assert out is not None
        return out

    def _quiet(self, x: Tensor) -> list[bool]:
        """Which images have norms that lose digits: those whose neighbouring pixels hardly differ, and the largest."""
        if in_graph() or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return [False]
        if torch.is_autocast_enabled("cpu"):  # three digits are wanted, not seven
            return [False]
        pixels = x.shape[2] * x.shape[3]
        if pixels >= LARGEST_MAP:
            return [True]
        loud = LOUD_IF_HARD if self.few or pixels >= LARGE else LOUD
        return [v < loud for v in (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3)).tolist()]

    def _through(self, x: Tensor, temb: Tensor, careful: bool) -> Tensor:
        """The blocks, down, middle and up, each seeing the activated embedding of label and class."""
        x = self.conv_in(x)
        skips = [x]
        for block in cast(list[UNetBlock2D], self.down_blocks):
            for i in range(block.layers):
                x = block.layer(i, x, temb, careful=careful)
                skips.append(x)
            if block.resamples:
                x = block.resample(x, temb, careful)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block(x, temb, careful)
        for block in cast(list[UNetBlock2D], self.up_blocks):
            for i in range(block.layers):
                x = block.layer(i, torch.cat((x, skips.pop()), dim=1), temb, careful=careful)
            if block.resamples:
                x = block.resample(x, temb, careful)
        out: Tensor = self.conv_out(_activated(F.silu, self.conv_norm_out(x, careful)))
        return out
