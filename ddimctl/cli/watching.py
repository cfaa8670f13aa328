"""A training run as it is watched: its progress, and signals that end it after the step it is in."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddimctl.cli.console import Console
    from ddimctl.training.log import Report
    from ddimctl.training.loop import Trainer


def watched(trainer: Trainer, console: Console) -> Iterator[Report]:
    """A bar with loss, images/s and time left on a terminal; elsewhere a line a minute."""
    if console.quiet:
        yield from trainer.train()
        return
    total, last = trainer.settings.steps, time.monotonic()
    mean = None
    if not sys.stderr.isatty():
        for report in trainer.train():
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
        for report in trainer.train():
            mean = report.loss if mean is None else 0.98 * mean + 0.02 * report.loss
            bar.update(
                task, completed=report.step, description=f"loss {mean:.4f}  {report.images_per_second:.0f} images/s"
            )
            yield report


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of breaking off: the loop ends after the step it is in."""
    stopped: list[int] = []
    before = {s: signal.signal(s, lambda n, frame: stopped.append(n)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
