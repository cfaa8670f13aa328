"""How far the work is: a bar on a terminal, elsewhere a line a minute; both move with the steps of the integration.

What is left is told from the average so far: the last few seconds say little of a run whose images come in batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
EVERY = 60.0  # seconds between two lines where there is no terminal
SOON = 1.0  # seconds of work before anything is said of what is left


class Meter:
    """Counts units of work of which there are `total`. What counts nothing but takes its time moves it a little, too:
    see `partly`.

    `tell` gets the lines where there is no terminal, `more` says what else is to be shown, `escape` what could steer one.
    """

    def __init__(
        self,
        total: float,
        label: str,
        *,
        quiet: bool = False,
        tell: Callable[[str], None],
        more: Callable[[], str] = str,
        escape: Callable[[str], str] = str,
    ) -> None:
        self.total, self.label, self.tell, self.more, self.escape = total, label, tell, more, escape
        self.done = 0.0  # finished units, those that cost nothing among them
        self.worked = 0.0  # units that cost time
        self.part = 0.0  # of units that are not finished
        self.begin = self.last = time.monotonic()
        self.quiet = quiet
        self.bar: Progress | None = None if quiet or not sys.stderr.isatty() else _bar()

    def __enter__(self) -> Meter:
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task(self.label, total=self.total, said="")
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, where: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each is a unit once what comes next is asked for."""
        for item in items:
            yield item
            self.add()

    def partly(self, amount: float) -> None:
        """So much of units that will be added later is done."""
        self.part += amount
        self.worked += amount
        self._show()

    def add(self, amount: float = 1, *, free: bool = False) -> None:
        """So many units are finished; `free` if they cost nothing, as what was there already."""
        started = min(self.part, amount)
        self.part -= started
        self.done += amount
        self.worked += 0 if free else amount - started
        self._show()

    @property
    def share(self) -> float:
        """Of the whole, 0 to 1."""
        return min(1.0, (self.done + self.part) / self.total) if self.total else 1.0

    def left(self) -> float | None:
        """Seconds, by the average so far; None while nothing can be said."""
        spent = time.monotonic() - self.begin
        if self.worked <= 0 or spent < SOON:
            return None
        return spent / self.worked * max(0.0, self.total - self.done - self.part)

    def say(self, text: str) -> None:
        """A line for people, above the bar if there is one."""
        if self.bar is None:
            self.tell(text)
            return
        self.bar.console.print(self.escape(text), markup=False, highlight=False)

    def line(self) -> str:
        """How far it is."""
        left = self.left()
        parts = [f"{self.label}: {100 * self.share:.0f} %", self.more(), f"{duration(left)} left" if left else ""]
        return "  ".join(p for p in parts if p)

    def _show(self) -> None:
        if self.bar is not None:
            left = self.left()
            said = "  ".join(p for p in (self.more(), f"{duration(left)} left" if left else "") if p)
            self.bar.update(self.bar.task_ids[0], completed=self.share * self.total, said=said)
            return
        now = time.monotonic()
        if not self.quiet and now - self.last >= EVERY:
            self.last = now
            self.tell(self.line())


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[said]}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def duration(seconds: float) -> str:
    """ "8 s", "2 min 20 s", "3 h 5 min": as exact as an estimate is."""
    s = round(seconds)
    if s < 60:
        return f"{max(s, 1)} s"
    minutes = round(s / 60)
    if minutes < 10:
        return f"{s // 60} min {s % 60} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
