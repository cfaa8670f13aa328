"""The U-Net's configuration: diffusers' fields, their defaults, and what of them this network implements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

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
ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
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
    sinusoid_channels: int | None = None  # our extension: of the features of the label; None: block_out_channels[0]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields' names."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Reads ``config.json``. Raises `FileError` on a field or value that this network does not implement."""
        known = {f.name: f for f in fields(cls)}
        # What a newer diffusers wrote as null says nothing.
        unknown = sorted(k for k, v in config.items() if k not in known and not k.startswith("_") and v is not None)
        if unknown:
            raise FileError(
                f"the U-Net configuration has fields that ddimctl does not implement: {', '.join(unknown)}",
                hint="only diffusers' unconditional UNet2DModel is supported",
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
        try:
            # To diffusers a switch of null is off.
            values |= {k: False for k, v in values.items() if v is None and known[k].type == "bool"}
            for field in {"down_block_types", "up_block_types"} & values.keys():
                # The first diffusers wrote UNetResDownBlock2D.
                values[field] = tuple(v.removeprefix("UNetRes") for v in values[field])
            result = cls(**values)
            result._check_types()
            result._check()
            if result.sinusoid == result.block_out_channels[0]:
                result = replace(result, sinusoid_channels=None)
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
            raise FileError(f"the U-Net configuration makes no sense: {e}") from e
        return result

    def to_dict(self) -> dict[str, Any]:
        """The configuration as diffusers writes it, every field spelled out; our extension only where it is needed."""
        extension = {"sinusoid_channels"} if self.sinusoid_channels is None else set()
        return {"_class_name": "UNet2DModel", **{k: v for k, v in asdict(self).items() if k not in extension}}

    @property
    def sinusoid(self) -> int:
        """The width of the sinusoidal features of the label."""
        return self.sinusoid_channels or self.block_out_channels[0]

    @property
    def beyond_diffusers(self) -> bool:
        """Whether a field has a value that diffusers' network does not know."""
        return isinstance(self.attention_head_dim, tuple) or self.sinusoid != self.block_out_channels[0]

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
            name: str, level: int, table: Mapping[str, BlockKind], *, kind: str | None, padding: str
        ) -> tuple[object, ...]:
            how = table[name].resample or kind or "conv"
            return (self.head_dim(level) if table[name].attention else 0, how + padding if how == "conv" else how)

        n = len(self.block_out_channels)
        down = [
            block(b, i, DOWN_BLOCKS, kind=self.downsample_type, padding=str(self.downsample_padding))
            for i, b in enumerate(self.down_block_types)
        ]
        up = [
            block(b, n - 1 - i, UP_BLOCKS, kind=self.upsample_type, padding="")
            for i, b in enumerate(self.up_block_types)
        ]
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
            ("act_fn", ACTIVATIONS),
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
        sizes = (
            *self.block_out_channels,
            self.in_channels,
            self.out_channels,
            self.time_embedding_dim or 1,
            self.sinusoid,
        )
        if not all(0 < v <= 16384 for v in sizes) or not 0 < self.layers_per_block <= 64 or n > 12:
            raise ValueError("a channel or layer count is not sensible")
        if self.num_class_embeds is not None and not 0 < self.num_class_embeds <= 1_000_000:
            raise ValueError(f"num_class_embeds = {self.num_class_embeds}")
        if self.sinusoid // 2 <= self.freq_shift or not self.mid_block_scale_factor or self.norm_eps < 0:
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
        self._check_halving()

    def _check_halving(self) -> None:
        """Images must come back from every halving at the size they had; odd is fine at the lowest resolution alone."""
        n = len(self.block_out_channels) - 1
        if self.image_size is not None and any(v % (1 << n) for v in self.image_size):
            size = " × ".join(map(str, self.image_size))
            raise FileError(
                f"the network is for images of {size} pixels, which it cannot halve {n} times",
                hint=f"with {n + 1} resolutions height and width must be multiples of {1 << n}",
            )

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
