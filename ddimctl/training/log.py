"""``loss.csv``: a row of means every so many steps."""

from __future__ import annotations

import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ddimctl.files import write_bytes


@dataclass(frozen=True)
class Report:
    """What the loop tells its caller after every step."""

    step: int
    loss: float
    images_per_second: float
    held_out_loss: float | None = None  # of the averaged weights, where it was measured
    stopped: int = 0  # the number of a signal that a process of the run got


class LossLog:
    """The file and what is not in it yet. A resumed run drops the rows after its checkpoint."""

    columns = ("step", "images", "loss", "images_per_second", "held_out_loss")

    def __init__(self, path: Path, start: int, batch: int, *, every: int = 50):
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
