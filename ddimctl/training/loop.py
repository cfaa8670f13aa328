"""The training loop, whatever is trained: optimiser, averaged weights, checkpoints.

What is published is the exponential moving average of the weights. Every random number of a step follows from the seed
and the step's number alone, so a run that was stopped continues exactly as if it had not been. They are drawn for the
whole batch, a row for each image: whatever part of it a process sees at a time, the mean of the gradients is the same.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddimctl import seeds
from ddimctl.checkpoints.diffusers import HELD_OUT_FOLDER
from ddimctl.engines import pytorch
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import atomic_file, make_folder, write_bytes
from ddimctl.images.labels import Labels, around
from ddimctl.images.levels import to_pixels
from ddimctl.images.sheets import enlarge, sheet
from ddimctl.images.writing import save_image
from ddimctl.training import settings as kinds
from ddimctl.training.captured import Captured
from ddimctl.training.data import Data, batch
from ddimctl.training.log import Report
from ddimctl.training.processes import ALONE, Group
from ddimctl.training.settings import Settings

N_HELD_OUT_FILES = 64
CHECKPOINT = "checkpoint.pt"
GAP = 4  # pixels between the images of a sheet
# What `torch.load` and the `load_state_dict` raise on a file that is not what `Trainer.save` wrote.
CORRUPT = (
    RuntimeError, KeyError, ValueError, OSError, TypeError, AttributeError, EOFError, IndexError, pickle.UnpicklingError
)  # fmt: skip


class Task(Protocol):
    """What is trained. A `network` that is handed in is the task's own, or the average of it."""

    @property
    def settings(self) -> Settings: ...

    @property
    def data(self) -> Data: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def space(self) -> str:
        """The digest of what images go through before they are seen and that is not trained; empty where nothing is."""

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, ...]:
        """All random numbers of a batch of n, from `g`: a row of each for an image."""

    def seen(self, rows: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `loss` sees of the images `rows`, on its device, with what was drawn for them."""

    @property
    def loss(self) -> Callable[..., Tensor]:
        """The mean over the images, of what was `seen`, to be differentiated; it asks for nothing else."""

    def validate(self, network: nn.Module) -> float:
        """The held-out loss: the same noise each time."""

    def samples(self, network: nn.Module, n: int) -> Tensor:
        """What the network makes, as images (n, C, H, W) in about [−1, 1]: the same noise each time."""

    def words(self, n: int) -> tuple[int, Labels]:
        """How many columns a sheet of these has, and what is said around it."""

    def write(self, folder: Path, network: nn.Module) -> None:
        """The model's own files, in diffusers' layout."""


class Objective(nn.Module):
    """A task's loss as a module, so that several processes can share its gradients."""

    def __init__(self, task: Task):
        super().__init__()
        self.network, self.loss = task.network, task.loss

    def forward(self, *seen: Tensor) -> Tensor:
        return self.loss(*seen)


class Trainer:
    """One run. `train()` yields a `Report` after each step; `save()` makes it safe to stop, `export()` publishes."""

    def __init__(self, task: Task, folder: Path, *, group: Group = ALONE, accumulate: int = 1, compiled: bool = False):
        """`folder` becomes the model folder. A batch is divided among the `group`, and seen in so many parts.

        `compiled` has PyTorch's compiler fuse the passes: a minute or more, once a process.
        """
        if len(task.data.images) < 1 or len(task.data.held_out) < 1:
            raise UsageError("there must be at least one image to train on and one held out")
        group.check(task.settings.batch, accumulate)
        self.task, self.settings, self.folder, self.step = task, task.settings, folder, 0
        self.group, self.parts = group, group.share(task.settings.batch, accumulate)
        self.data_digest = task.data.digest
        self.about: dict[str, str] = {}  # what the caller wants to be remembered by `save`, such as a licence
        self._shows_held_out = False
        self.average = AveragedModel(task.network, multi_avg_fn=_ema(task.settings.ema))
        # No decay for biases and norms, as is usual.
        decay = [p for p in task.network.parameters() if p.ndim > 1]
        no_decay = [p for p in task.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
            lr=self.settings.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        objective: nn.Module = Objective(task)
        if compiled:
            if not pytorch.can_compile(next(task.network.parameters()).device.type):
                raise UsageError("--compile needs a C++ compiler", hint="install g++, or train without it")
            objective.compile(dynamic=False)  # in place: the names of its weights stay
        self._objective = group.shared(objective)
        self._captured: Captured | None = None

    @property
    def work(self) -> Path:
        """What only the run itself needs: checkpoint, loss log, sample sheets."""
        return work(self.folder)

    def train(self, validate_every: int = 1000, *, asked: Callable[[], int] = int) -> Iterator[Report]:
        """Runs to the last step. `asked` is the number of a signal that this process got, or 0.

        Raises `DDIMError` where the loss stops being a number or another process is gone; then do not `save`.
        """
        s = self.settings
        self.task.network.train()
        begin, n = time.perf_counter(), 0
        while self.step < s.steps:
            with self.group.connected():
                loss = self._one_step()
            self.step += 1
            loss, stop = self.group.settle(loss, asked())
            if not math.isfinite(loss):
                self.group.ending()
                raise DDIMError(
                    f"the loss is not a number at step {self.step}",
                    hint="try a smaller --lr, or --float32; --resume continues from the last checkpoint",
                )
            n += s.batch
            measured = self.group.rank == 0 and (self.step % validate_every == 0 or self.step == s.steps)
            held_out = self.validate() if measured else None
            yield Report(self.step, loss, n / (time.perf_counter() - begin), held_out, stop)

    def _one_step(self) -> float:
        """Returns the mean loss of this process' part of the batch."""
        s, network = self.settings, self.task.network
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * learning_rate_factor(self.step, s.steps, s.warmup)
        g = torch.Generator().manual_seed(seeds.mix(s.seed, self.step))
        rows, drawn = batch(self.step, s.batch, len(self.task.data.images), seed=s.seed + 2), self.task.draw(s.batch, g)
        total: float | Tensor = 0.0
        for part in self.parts:
            # For dropout, which differs from part to part: of those that a process has, and of those of others.
            torch.manual_seed(seeds.mix(s.seed + 1 + part.start * 2**20, self.step))
            with contextlib.nullcontext() if part is self.parts[-1] else self.group.alone(self._objective):
                loss = self._differentiate(self.task.seen(rows[part], tuple(d[part] for d in drawn)))
            total += loss / len(self.parts)
        norm = nn.utils.clip_grad_norm_(network.parameters(), s.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self._captured is None)
        self.average.update_parameters(network)
        return float(total + 0 * norm)  # no number, where the gradient was none and has spoilt the weights

    def _differentiate(self, seen: tuple[Tensor, ...]) -> Tensor:
        """Adds a part's gradients to those there are, and returns its loss.

        A small network keeps a GPU waiting for the processor, which launches a thousand kernels a step: all of them are
        captured once and launched as one, where one process sees whole batches.
        """
        if seen[0].device.type == "cuda" and self.group.size == len(self.parts) == 1:
            if self._captured is None:
                self._captured = Captured(self._objective, seen)
            return self._captured(seen)
        loss: Tensor = self._objective(*seen) / len(self.parts)
        loss.backward()
        return loss.detach() * len(self.parts)

    @torch.inference_mode()
    def validate(self) -> float:
        """The held-out loss of the averaged weights."""
        self.average.eval()
        return self.task.validate(self.average.module)

    @torch.inference_mode()
    def samples(self, n: int = 64) -> Tensor:
        """n images by the averaged weights, from the same noise each time."""
        self.average.eval()
        return self.task.samples(self.average.module, n)

    def sheet(self, n: int = 64) -> None:
        """Writes `samples` as a picture: the latest beside the card, every one in `work`."""
        columns, words = self.task.words(n)
        words = replace(words, caption=f"step {self.step:,} of {self.settings.steps:,}: {words.caption}")
        tiles = enlarge(to_pixels(self.samples(n)), 2)
        pixels = around(sheet(tiles, columns, GAP), tiles.shape[1:3], GAP, labels=words)
        save_image(self.work / f"samples-{self.step:06}.png", pixels)
        save_image(self.folder / "samples.png", pixels)

    def save(self) -> None:
        """Writes what `resume` needs, atomically. Raises `DDIMError` where the system refuses."""
        make_folder(self.work)
        state = {
            "kind": kinds.kind_of(self.settings),
            "settings": asdict(self.settings),
            "images": len(self.task.data.images),
            "data": self.data_digest,
            "space": self.task.space,
            "about": self.about,
            "step": self.step,
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.work / CHECKPOINT
        with atomic_file(path) as f:
            try:
                torch.save(state, f)
            except RuntimeError as e:  # torch's word for what the system refused, which it keeps as the cause
                raise DDIMError(f"cannot write {path}: {getattr(e.__context__, 'strerror', None) or e}") from e

    def resume(self) -> None:
        """Continues from the last `save`. Raises `UsageError` if there is none or it was made with other settings.

        More steps than it was started with are no other settings: the learning rate falls more slowly from here on.
        """
        state = _load(self.folder)
        changed: list[str] = []
        try:
            theirs = _settings(state)
            if type(theirs) is not type(self.settings):
                changed.append(f"another kind of model: {kinds.kind_of(theirs)}, not {kinds.kind_of(self.settings)}")
            else:
                changed += kinds.differences(theirs, self.settings)
            if state["images"] != len(self.task.data.images) or state.get("data", self.data_digest) != self.data_digest:
                changed.append("another set of images")
            if state.get("space", self.task.space) != self.task.space:
                changed.append("another autoencoder")
            if not changed:
                self.task.network.load_state_dict(state["network"])
                self.average.load_state_dict(state["average"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.about = state["step"], state.get("about", {})
        except CORRUPT as e:
            raise _damaged(self.folder, e) from e
        if changed:
            raise UsageError(
                f"the run in {self.folder} was started with {'; '.join(changed)}",
                hint="--resume alone takes the run's own settings",
            )

    def export(self, card: str) -> None:
        """Writes the model folder: averaged weights in diffusers' layout, the card, held-out images."""
        make_folder(self.folder)
        self.task.write(self.folder, self.average.module)
        write_bytes(self.folder / "README.md", card.encode())
        if not self._shows_held_out:  # once a run is enough
            self._show_held_out()
            self._shows_held_out = True

    def _show_held_out(self) -> None:
        target = self.folder / HELD_OUT_FOLDER
        make_folder(target)
        data = self.task.data
        shown = data.held_out[:N_HELD_OUT_FILES].permute(0, 2, 3, 1).numpy()
        for i, pixels in enumerate(shown):
            save_image(target / f"{i:03}.png", pixels)
            if data.held_out_captions:
                write_bytes(target / f"{i:03}.txt", f"{data.held_out_captions[i]}\n".encode())


def work(folder: Path) -> Path:
    return folder / "training"


def clear(folder: Path) -> None:
    """Removes what another run left: a checkpoint, which would be resumed, and its sheets. Raises `DDIMError`."""
    try:
        for path in (work(folder) / CHECKPOINT, *work(folder).glob("samples-*.png")):
            path.unlink(missing_ok=True)
    except OSError as e:
        raise DDIMError(f"cannot remove {path}: {e.strerror or e}") from e


def stored(folder: Path) -> tuple[Settings, dict[str, str]]:
    """The settings of the run in `folder` and what it was to remember. Raises `UsageError` if there is none."""
    state = _load(folder)
    try:
        return _settings(state), dict(state.get("about", {}))
    except CORRUPT as e:
        raise _damaged(folder, e) from e


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up from 0 to 1, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _load(folder: Path) -> dict[str, Any]:
    path = work(folder) / CHECKPOINT
    if not path.is_file():
        raise UsageError(f"nothing to resume: there is no {path}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["settings"].items()
    except CORRUPT as e:
        raise _damaged(folder, e) from e
    return state


def _settings(state: dict[str, Any]) -> Settings:
    return kinds.from_dict(kinds.KINDS[state.get("kind", "pixel")], state["settings"])


def _damaged(folder: Path, error: Exception) -> FileError:
    return FileError(f"cannot resume: {work(folder) / CHECKPOINT} is damaged ({type(error).__name__})")


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """An average that trusts the young less: the decay rises from 0.1 to `decay`."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], n: Tensor) -> None:
        count = float(n)
        torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + count) / (10 + count)))

    return update
