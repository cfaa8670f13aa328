"""What determines a run, besides its images: one frozen dataclass for each kind of model.

Every field names the option of ``ddimctl train`` that sets it, so that the card's command, a refusal to resume and a
resumed run's defaults all speak of the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ddimctl.errors import UsageError

T = TypeVar("T", bound="Settings")


def option(name: str, default: Any = None, *, off: str = "") -> Any:
    """A field that the option `name` sets; `off` is the flag that says False."""
    about = {"option": name, "off": off}
    return field(metadata=about) if default is None else field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every kind of run has. `steps` counts optimiser steps.

    Raises `UsageError` where the values make no sense, alone or together.
    """

    channels: int = option("--grey")
    size: tuple[int, int] = option("--size")
    block_channels: tuple[int, ...] = option("--channels", (32, 64, 128))
    layers: int = option("--layers", 1)
    groups: int = option("--groups", 4)
    steps: int = option("--steps", 16_000)
    batch: int = option("--batch-size", 64)
    lr: float = option("--lr", 1e-3)
    warmup: int = option("--warmup", 200)
    weight_decay: float = option("--weight-decay", 1e-4)
    ema: float = option("--ema", 0.9995)
    clip: float = option("--clip", 1.0)
    flip: bool = option("--flip", False)
    bf16: bool = option("", True, off="--float32")
    seed: int = option("--seed", 0)

    def __post_init__(self) -> None:
        if min(self.block_channels, default=0) < 1:
            raise UsageError("the channels must be positive")
        for name in ("steps", "batch", "warmup", "layers", "groups", "lr", "clip"):
            self._check_positive(name)
        self._check_size()
        if any(c % self.groups for c in self.block_channels):
            raise UsageError(f"{self.groups} groups do not divide the channels {self.block_channels}", "see --groups")
        for name, end in (("ema", 1.0), ("weight_decay", math.inf)):
            self._check_range(name, end)

    @property
    def state_size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return self.size

    def _check_size(self) -> None:
        n, (height, width) = len(self.block_channels), self.state_size
        if any(side % 2 ** (n - 1) or side < 1 for side in self.state_size):
            raise UsageError(
                f"images of {height} x {width} do not halve evenly {n - 1} times", "see --size, --channels"
            )

    def _check_positive(self, name: str) -> None:
        if not 0 < getattr(self, name) < math.inf:
            raise UsageError(f"{name} must be positive")

    def _check_range(self, name: str, end: float) -> None:
        if not 0 <= getattr(self, name) < end:
            raise UsageError(f"{name} must be at least 0" + (" and below 1" if end == 1 else ""))


@dataclass(frozen=True, kw_only=True)
class UNetSettings(Settings):
    """A U-Net that predicts ε."""

    attention: tuple[int, ...] = option("--attention", (2,))  # the blocks with self-attention, 0 being the finest
    head_dim: int = option("--head-dim", 64)
    dropout: float = option("--dropout", 0.0)
    balance: float = option("--balance", 0.0)  # ε's error is weighted by 1 + min(σ², balance); 0 is the paper's loss

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(self.block_channels)
        self._check_positive("head_dim")
        if not set(self.attention) <= set(range(n)):
            raise UsageError(f"attention at {self.attention}, but the resolutions are 0 to {n - 1}", "see --attention")
        attentive = {self.block_channels[i] for i in self.attention} | {self.block_channels[-1]}  # and the middle
        if any(c % self.head_dim for c in attentive):
            raise UsageError(
                f"heads of {self.head_dim} channels do not divide {', '.join(map(str, sorted(attentive)))}",
                hint="see --head-dim; the lowest resolution always has attention in the middle block",
            )
        self._check_range("dropout", 1.0)
        self._check_range("balance", math.inf)


@dataclass(frozen=True, kw_only=True)
class PixelSettings(UNetSettings):
    """A network of pixels that is asked for nothing."""


@dataclass(frozen=True, kw_only=True)
class TextSettings(UNetSettings):
    """A network, of pixels or in an autoencoder's space, with a text encoder that is trained with it."""

    latent_channels: int = 3  # of what the network sees; the autoencoder says
    down: int = 1  # how many times smaller its sides are
    text_width: int = option("--text-width", 128)
    text_layers: int = option("--text-layers", 2)
    words: int = option("--words", 14)  # of a caption; the rest is not read
    drop: float = option("--drop", 0.1)  # of the captions, so that there is something to guide away from
    balance: float = option("--balance", 50.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_channels", "text_width", "text_layers", "words"):
            self._check_positive(name)
        self._check_range("drop", 1.0)
        if self.flip:
            raise UsageError("captions speak of images as they are, not mirrored", "leave --flip away")
        if self.text_width % 32:
            raise UsageError(f"a text of width {self.text_width} is not heads of 32", "see --text-width")
        if set(self.attention) - {len(self.block_channels) - 1}:
            raise UsageError("a network with captions has attention at its lowest resolution only", "see --attention")

    @property
    def state_size(self) -> tuple[int, int]:
        return self.size[0] // self.down, self.size[1] // self.down

    def _check_size(self) -> None:
        self._check_positive("down")
        height, width = self.size
        if height % self.down or width % self.down:
            raise UsageError(f"images of {height} x {width} are not multiples of {self.down}", "see --size")
        super()._check_size()


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Settings):
    """The way into a latent space and back."""

    block_channels: tuple[int, ...] = option("--channels", (24, 48, 96))
    groups: int = option("--groups", 8)
    lr: float = option("--lr", 2e-3)
    ema: float = option("--ema", 0.99)
    batch: int = option("--batch-size", 16)
    latent_channels: int = option("--latent-channels", 4)
    kl: float = option("--kl", 2e-4)  # the weight of the divergence from noise
    hue: bool = option("--hue", False)  # half of the images in other colours, so that few images teach all hues

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("latent_channels")
        self._check_range("kl", math.inf)
        if self.hue and self.channels != 3:
            raise UsageError("only images in colour have a hue", "leave --hue away")


KINDS: dict[str, type[Settings]] = {"pixel": PixelSettings, "text": TextSettings, "autoencoder": AutoencoderSettings}


def kind_of(settings: Settings) -> str:
    return next(name for name, kind in KINDS.items() if type(settings) is kind)


def from_dict(kind: type[T], stored: Mapping[str, Any]) -> T:
    """The settings of a run that was stored; what an older version did not know has its default."""
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k in known}
    return kind(**values)


def words(settings: Settings, name: str) -> list[str]:
    """The words of the command line that give field `name` its value."""
    about = type(settings).__dataclass_fields__[name].metadata
    value, flag = getattr(settings, name), about.get("option", "")
    if name == "channels":
        return [flag] if value == 1 else []
    if name == "size":
        return [flag, str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"]
    if value is False:
        return [about["off"]] if about["off"] else []
    if value is True:
        return [flag] if flag else []
    if isinstance(value, tuple):
        return [flag, ",".join(map(str, value)) or "none"]
    return [flag, str(value)] if flag else []


def differences(theirs: Settings, ours: Settings) -> list[str]:
    """What is different, in the options' words: "--lr 0.001, not 0.0005". That `ours` takes more steps is none."""
    out = []
    before, after = asdict(theirs), asdict(ours)
    for name in before:
        if before[name] == after.get(name) or (name == "steps" and ours.steps > theirs.steps):
            continue
        was, now = words(theirs, name), words(ours, name)
        if len(was) == 2 and len(now) == 2:
            out.append(f"{' '.join(was)}, not {now[1]}")
        else:
            out.append(" ".join(was) or f"no {now[0] if now else name}")
    return out
