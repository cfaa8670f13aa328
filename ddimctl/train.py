"""The training loop: images → a model folder that every other command accepts.

The objective is the paper's L with γ_t = 1: the network sees x_t = √α_t x_0 + √(1−α_t) ε and predicts ε. What is
published is the exponential moving average of the weights. Every random number of a step follows from the seed and the
step's number alone, so a run that was stopped continues exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from ddimctl import ddim
from ddimctl.checkpoints import Checkpoint, diffusers
from ddimctl.checkpoints.diffusers import HELD_OUT_FOLDER
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import atomic_file, make_folder, sha256, write_bytes
from ddimctl.images import writing
from ddimctl.images.levels import signed
from ddimctl.model import from_checkpoint
from ddimctl.schedule import Schedule
from ddimctl.unet import UNet2DModel, UNetConfig

N_HELD_OUT_FILES = 64
N_VALIDATION = 1024
# What `torch.load` and the `load_state_dict` raise on a file that is not what `Trainer.save` wrote.
CORRUPT = (
    RuntimeError, KeyError, ValueError, OSError, TypeError, AttributeError, EOFError, IndexError, pickle.UnpicklingError
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run, besides the images. `steps` counts optimiser steps.

    Raises `UsageError` where the values make no sense, alone or together.
    """

    channels: int
    size: tuple[int, int]
    block_channels: tuple[int, ...] = (32, 64, 128)
    layers: int = 1
    attention: tuple[int, ...] = (2,)  # the blocks with self-attention, 0 being the finest
    groups: int = 4
    head_dim: int = 64
    dropout: float = 0.0
    steps: int = 16_000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 1e-4
    ema: float = 0.9995
    clip: float = 1.0
    flip: bool = False
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.block_channels)
        if min(self.block_channels, default=0) < 1:
            raise UsageError("the channels must be positive")
        if any(side % 2 ** (n - 1) for side in self.size):
            height, width = self.size
            raise UsageError(
                f"images of {height} x {width} do not halve evenly {n - 1} times", "see --size, --channels"
            )
        if not set(self.attention) <= set(range(n)):
            raise UsageError(f"attention at {self.attention}, but the resolutions are 0 to {n - 1}", "see --attention")
        if any(c % self.groups for c in self.block_channels):
            raise UsageError(f"{self.groups} groups do not divide the channels {self.block_channels}", "see --groups")
        attentive = {self.block_channels[i] for i in self.attention} | {self.block_channels[-1]}  # and the middle
        if any(c % self.head_dim for c in attentive):
            raise UsageError(
                f"heads of {self.head_dim} channels do not divide {', '.join(map(str, sorted(attentive)))}",
                hint="see --head-dim; the lowest resolution always has attention in the middle block",
            )
        for name in ("steps", "batch", "warmup", "layers", "groups", "head_dim", "lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be positive")
        for name, end in (("dropout", 1.0), ("ema", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < end:
                raise UsageError(f"{name} must be at least 0" + (" and below 1" if end == 1 else ""))

    def unet(self) -> UNetConfig:
        kinds = ["Attn" if i in self.attention else "" for i in range(len(self.block_channels))]
        return UNetConfig.from_dict(
            {
                "sample_size": self.size[0] if self.size[0] == self.size[1] else self.size,
                "in_channels": self.channels,
                "out_channels": self.channels,
                "block_out_channels": self.block_channels,
                "layers_per_block": self.layers,
                "down_block_types": tuple(f"{k}DownBlock2D" for k in kinds),
                "up_block_types": tuple(f"{k}UpBlock2D" for k in kinds[::-1]),
                "norm_num_groups": self.groups,
                "attention_head_dim": self.head_dim,
                "dropout": self.dropout,
            }
        )


@dataclass(frozen=True)
class Report:
    """What the loop tells its caller after every step."""

    step: int
    loss: float
    images_per_second: float
    held_out_loss: float | None = None  # ε-MSE of the averaged weights, where it was measured


class Trainer:
    """One run. `train()` yields a `Report` after each step; `save()` makes it safe to stop, `export()` publishes."""

    def __init__(self, settings: Settings, data: Tensor, held_out: Tensor, folder: Path, device: torch.device):
        """`data` and `held_out` are uint8 (N, C, H, W); `folder` becomes the model folder."""
        if len(data) < 1 or len(held_out) < 1:
            raise UsageError("there must be at least one image to train on and one held out")
        self.settings, self.data, self.held_out = settings, data, held_out
        self.folder, self.device, self.step = folder, device, 0
        self.data_digest = sha256(data.contiguous().numpy().data)
        self.about: dict[str, str] = {}  # what the caller wants to be remembered by `save`, such as a licence
        self._shows_held_out = False
        self.schedule = Schedule.linear()
        self.alpha = torch.tensor(self.schedule.alpha[1:], device=device)  # by label, so from paper time 1
        torch.manual_seed(settings.seed)
        self.network = UNet2DModel(settings.unet()).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(self.network, multi_avg_fn=_ema(settings.ema))
        # No decay for biases and norms, as is usual.
        decay = [p for p in self.network.parameters() if p.ndim > 1]
        no_decay = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": settings.weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=(0.9, 0.99),
            fused=True,
        )

    @property
    def work(self) -> Path:
        """What only the run itself needs: checkpoint, loss log, sample sheets."""
        return self.folder / "training"

    def train(self, validate_every: int = 1000) -> Iterator[Report]:
        """Runs to the last step. Raises `DDIMError` where the loss stops being a number; then do not `save`."""
        s = self.settings
        self.network.train()
        begin, n = time.perf_counter(), 0
        while self.step < s.steps:
            loss = self._one_step()
            self.step += 1
            if not math.isfinite(loss):
                raise DDIMError(
                    f"the loss is not a number at step {self.step}",
                    hint="try a smaller --lr, or --float32; --resume continues from the last checkpoint",
                )
            n += s.batch
            held_out = self.validate() if self.step % validate_every == 0 or self.step == s.steps else None
            yield Report(self.step, loss, n / (time.perf_counter() - begin), held_out)

    def _one_step(self) -> float:
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * learning_rate_factor(self.step, s.steps, s.warmup)
        torch.manual_seed(ddim.mix(s.seed + 1, self.step))  # for dropout
        g = torch.Generator().manual_seed(ddim.mix(s.seed, self.step))
        x0 = signed(self.data[self._indices(self.step)].float()).to(self.device)
        if s.flip:
            mirrored = torch.rand(len(x0), generator=g) < 0.5
            x0 = torch.where(mirrored.view(-1, 1, 1, 1).to(self.device), x0.flip(-1), x0)
        label = torch.randint(0, self.schedule.T, (len(x0),), generator=g)
        eps = torch.randn(x0.shape, generator=g)
        loss = self._loss(self.network, x0, label.to(self.device), eps.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), s.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.network)
        return loss.item()

    def _indices(self, step: int) -> Tensor:
        """Batch `step` of an endless sequence of shuffled passes over the images."""
        s, n = self.settings, len(self.data)
        wanted = torch.arange(step * s.batch, (step + 1) * s.batch)
        out = torch.empty(s.batch, dtype=torch.long)
        for epoch in (wanted // n).unique().tolist():
            order = torch.randperm(n, generator=torch.Generator().manual_seed(ddim.mix(s.seed + 2, epoch)))
            here = wanted // n == epoch
            out[here] = order[wanted[here] % n]
        return out

    def _loss(self, network: nn.Module, x0: Tensor, label: Tensor, eps: Tensor) -> Tensor:
        alpha = self.alpha[label].view(-1, 1, 1, 1)
        xt = (alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps).to(memory_format=torch.channels_last)
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.settings.bf16 else contextlib.nullcontext()
        # At these short sequences plain attention's backward pass takes a seventh of the fused one's time on a CPU.
        plain = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()
        with cast, plain:
            out = network(xt, label)
        return F.mse_loss(out.float(), eps)

    @torch.inference_mode()
    def validate(self) -> float:
        """ε-MSE of the averaged weights on the held-out images: the same noise and evenly spread labels each time."""
        self.average.eval()
        n = N_VALIDATION  # of few images each is seen at several noise levels
        x0 = signed(self.held_out[torch.arange(n) % len(self.held_out)].float())
        eps = ddim.noise(self.held_out.shape[1:], n, seed=1)
        label = (torch.arange(n) * 7919 % n) * self.schedule.T // n  # spread, and not in step with the images
        parts = zip(x0.split(64), label.split(64), eps.split(64), strict=True)
        total = sum(self._loss(self.average, *(t.to(self.device) for t in p)).item() * len(p[0]) for p in parts)
        return total / n

    def checkpoint(self) -> Checkpoint:
        """The averaged weights."""
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in self.average.module.state_dict().items()}
        return Checkpoint(self.network.config, weights, self.schedule)

    def samples(self, n: int = 64, steps: int = 20) -> Tensor:
        """n images by the averaged weights, from the same noise each time."""
        model = from_checkpoint(self.checkpoint(), "training", str(self.device))
        path = self.schedule.path(steps)
        x: Tensor = ddim.decode(model, ddim.noise(model.shape, n, seed=0), path).x
        return x

    def save(self) -> None:
        """Writes what `resume` needs, atomically. Raises `DDIMError` where the system refuses."""
        make_folder(self.work)
        state = {
            "settings": asdict(self.settings),
            "images": len(self.data),
            "data": self.data_digest,
            "about": self.about,
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.work / "checkpoint.pt"
        with atomic_file(path) as f:
            try:
                torch.save(state, f)
            except RuntimeError as e:  # torch's word for what the system refused, which it keeps as the cause
                raise DDIMError(f"cannot write {path}: {getattr(e.__context__, 'strerror', None) or e}") from e

    def resume(self) -> None:
        """Continues from the last `save`. Raises `UsageError` if there is none or it was made with other settings."""
        path = self.work / "checkpoint.pt"
        if not path.is_file():
            raise UsageError(f"nothing to resume: there is no {path}")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            theirs, ours = state["settings"], asdict(self.settings)
            changed = sorted(k for k in ours if theirs.get(k) != ours[k])
            if state["images"] != len(self.data) or state.get("data", self.data_digest) != self.data_digest:
                changed.append("set of images")
            if not changed:
                self.network.load_state_dict(state["network"])
                self.average.load_state_dict(state["average"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.about = state["step"], state.get("about", {})
        except CORRUPT as e:
            raise FileError(f"cannot resume: {path} is damaged ({type(e).__name__})") from e
        if changed:
            raise UsageError(f"the run in {self.folder} was started with another {', '.join(changed)}")

    def export(self, card: str) -> None:
        """Writes the model folder: averaged weights in diffusers' layout, the card, held-out images."""
        make_folder(self.folder)
        diffusers.write(self.folder, self.checkpoint())
        write_bytes(self.folder / "README.md", card.encode())
        if not self._shows_held_out:  # once a run is enough
            self._show_held_out()
            self._shows_held_out = True

    def _show_held_out(self) -> None:
        target = self.folder / HELD_OUT_FOLDER
        make_folder(target)
        shown = self.held_out[:N_HELD_OUT_FILES].permute(0, 2, 3, 1).numpy()
        for i, pixels in enumerate(shown):
            writing.save_image(target / f"{i:03}.png", pixels)


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up from 0 to 1, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class LossLog:
    """``loss.csv``: a row of means every `every` steps. A resumed run drops the rows after its checkpoint."""

    columns = ("step", "images", "loss", "images_per_second", "held_out_loss")

    def __init__(self, path: Path, start: int, batch: int, every: int = 50):
        self.path, self.batch, self.every = path, batch, every
        self.losses: list[float] = []
        self.held_out_loss: float | None = None  # the last one measured
        rows: list[list[str]] = []
        if start and path.is_file():
            with path.open(newline="", errors="replace") as f:
                whole = (r for r in csv.reader(f) if len(r) == len(self.columns) and r[0].isdigit())
                rows = [r for r in whole if int(r[0]) <= start]
        out = io.StringIO()
        csv.writer(out).writerows([self.columns, *rows])
        write_bytes(path, out.getvalue().encode())
        with contextlib.suppress(ValueError):
            self.held_out_loss = next((float(r[4]) for r in reversed(rows) if r[4]), None)

    def add(self, report: Report) -> None:
        self.losses.append(report.loss)
        if report.step % self.every and report.held_out_loss is None:
            return
        mean = sum(self.losses) / len(self.losses)
        held_out = ""
        if report.held_out_loss is not None:
            self.held_out_loss = report.held_out_loss
            held_out = f"{report.held_out_loss:.6f}"
        rate = f"{report.images_per_second:.1f}"
        with self.path.open("a", newline="") as f:
            csv.writer(f).writerow([report.step, report.step * self.batch, f"{mean:.6f}", rate, held_out])
        self.losses.clear()


def split(data: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(training, held out): a random `fraction` of the images, at least one, is never trained on.

    Those held out stay in the order they were drawn in, so that the first of them stand for all.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(ddim.mix(seed, 0)))
    n = max(1, round(fraction * len(data)))
    return data[order[n:].sort().values], data[order[:n]]


def shared(data: Tensor, held_out: Tensor) -> int:
    """How many of the held-out images are, pixel by pixel, among the others as well."""
    known = {bytes(x) for x in data.flatten(1).numpy()}
    return sum(bytes(x) in known for x in held_out.flatten(1).numpy())


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """An average that trusts the young less: the decay rises from 0.1 to `decay`."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], n: Tensor) -> None:
        count = float(n)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + count) / (10 + count)))

    return update
