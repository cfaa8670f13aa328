"""A training run as it is watched: its log, its progress, and signals that end it after the step it is in."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from typer import Exit

from ddimctl.cli.progress import EVERY
from ddimctl.errors import DDIMError

if TYPE_CHECKING:
    from ddimctl.cli.console import Console
    from ddimctl.training.card import About
    from ddimctl.training.log import Report
    from ddimctl.training.loop import Trainer
    from ddimctl.training.processes import Group

T = TypeVar("T")


def watched(trainer: Trainer, stopped: Sequence[int], console: Console) -> Iterator[Report]:
    """A bar with loss, images/s and time left on a terminal; elsewhere a line a minute. `stopped` is what `stopping` has."""
    reports = trainer.train(asked=lambda: stopped[0] if stopped else 0)
    if console.quiet:
        yield from reports
        return
    total, last = trainer.settings.steps, time.monotonic()
    mean = None
    if not sys.stderr.isatty():
        for report in reports:
            mean = report.loss if mean is None else 0.98 * mean + 0.02 * report.loss
            if time.monotonic() - last > 60 or report.step == total:
                last = time.monotonic()
                left = (total - report.step) * trainer.settings.batch / report.images_per_second / 60
                speed = f"{report.images_per_second:.0f} images/s"
                console.notice(f"step {report.step}/{total}  loss {mean:.4f}  {speed}  {left:.0f} min left")
            yield report
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=trainer.step)
        for report in reports:
            mean = report.loss if mean is None else 0.98 * mean + 0.02 * report.loss
            bar.update(
                task, completed=report.step, description=f"loss {mean:.4f}  {report.images_per_second:.0f} images/s"
            )
            yield report


def run(trainer: Trainer, about: About, console: Console, *, every: tuple[int, int], features: bool) -> None:
    """The loop with its log, sheets and checkpoints, to the end or to a signal; then what is measured once.

    `every` is how many steps lie between two sheets, and between two checkpoints.
    """
    from ddimctl.files import make_folder
    from ddimctl.training import card
    from ddimctl.training.log import LossLog

    data, steps, first = trainer.task.data, trainer.settings.steps, trainer.group.rank == 0
    if not first:
        _follow(trainer, console)
        return
    make_folder(trainer.work)
    log = LossLog(trainer.work / "loss.csv", trainer.step, trainer.settings.batch)
    parameters = sum(p.numel() for p in trainer.task.network.parameters())
    start = f"continuing at step {trainer.step}" if trainer.step else f"{parameters:,} parameters"
    console.notice(f"{len(data.images):,} images to train on, {len(data.held_out):,} held out; {start}")
    if data.shared:
        console.notice(f"warning: {data.shared:,} of the held-out images are among those to train on as well")
    with stopping() as stopped:
        for report in watched(trainer, stopped, console):
            log.add(report)
            if report.step == steps:
                trainer.save()
                break
            if report.step % every[0] == 0:
                trainer.sheet()
            if report.stopped or report.step % every[1] == 0:
                trainer.save()
                trainer.export(card.write(trainer, about, log.held_out_loss))
            if report.stopped:
                console.notice(f"stopped at step {report.step} of {steps}; --resume continues")
                _part(trainer)
                raise Exit(128 + report.stopped)
    # What follows only reads the checkpoint: if it is interrupted, --resume does it again.
    trainer.sheet()
    held_out_loss = trainer.validate() if log.held_out_loss is None else log.held_out_loss
    with console.bar(card.round_trip_steps(), "measuring round trips") as bar:
        measured = card.measure(trainer, progress=bar)
    trainer.export(card.write(trainer, about, held_out_loss, measured=measured))
    if features:
        _write_features(trainer, about, console)


def _follow(trainer: Trainer, console: Console) -> None:
    """What all processes but the first do: their part of each step, to the end or to a signal that one of them got."""
    with stopping() as stopped:
        for report in watched(trainer, stopped, console):
            if report.stopped and report.step < trainer.settings.steps:
                _part(trainer)
                raise Exit(128 + report.stopped)


def _part(trainer: Trainer) -> None:
    """Waits until the first has saved: when one is gone, torchrun ends the others."""
    if trainer.group.size > 1:
        trainer.group.tell("")


def _write_features(trainer: Trainer, about: About, console: Console) -> None:
    """What `ddimctl evaluate` compares the model's samples with: its own features of the images trained on."""
    from ddimctl import bottleneck, families
    from ddimctl.features import FILE

    device = next(trainer.task.network.parameters()).device
    data, model = trainer.task.data, families.load(str(trainer.folder), str(device))
    said = {"data": about.data_name, "license": about.license}
    own = bottleneck.write(trainer.folder / FILE, model, data.images, held_out=data.held_out, about=said)
    console.notice(f"{FILE}: {own.dimension} features of {len(data.images):,} images, for ddimctl evaluate")


def counted(items: Iterable[T], console: Console) -> Iterator[T]:
    """The images of a data set as they are read: how many there were so far is said once a minute."""
    last = time.monotonic()
    for n, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            console.notice(f"{n:,} images read")


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of breaking off: the loop ends after the step it is in."""
    stopped: list[int] = []
    before = {s: signal.signal(s, lambda n, frame: stopped.append(n)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    except (
        Exit,
        DDIMError,
    ):  # it ends: another signal, such as torchrun sends when a process is gone, has nothing to stop
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def spoken(team: Group) -> Iterator[None]:
    """Of a failure that several processes share, the first of them alone speaks."""
    try:
        yield
    except DDIMError as e:
        if team.size > 1:
            for s in (signal.SIGINT, signal.SIGTERM):
                signal.signal(s, signal.SIG_IGN)  # torchrun ends the others when one is gone, and all are ending
        if team.rank:
            raise Exit(e.exit_code) from e
        raise
