"""What a command says: data on stdout, everything for people on stderr, progress bars only on a terminal."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ddimctl import places
from ddimctl.cli.progress import Meter

T = TypeVar("T")


@dataclass(frozen=True)
class Console:
    """The two streams of one command, as its -q, -v and --json options ask."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    piped: bool = False  # stdout takes a file

    def notice(self, text: str) -> None:
        """Something the user should know; not with -q."""
        if not self.quiet:
            _tell(text)

    def detail(self, text: str) -> None:
        """Something for the curious; with -v."""
        if self.verbose and not self.quiet:
            _tell(text)

    def data(self, text: str, record: dict[str, Any] | list[dict[str, Any]]) -> None:
        """The result: `text`, or `record` as JSON with --json, null where it is not finite."""
        if self.piped:
            if lines := [line for line in text.split("\n") if line not in places.STDOUT]:
                self.notice("\n".join(lines))
            return
        line = json.dumps(_finite(record), allow_nan=False) if self.json else text
        print(f"{line}\n", end="")  # in one piece, also unbuffered: whoever reads its first line gets all of it

    def meter(self, total: float, label: str, more: Callable[[], str] = str) -> Meter:
        """How far `total` units of work are: see `progress.Meter`."""
        return Meter(total, label, quiet=self.quiet, tell=self.notice, more=more, escape=printable)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Says so, with the cure, if the threads of what is done meanwhile starve."""
        from ddimctl.engines import processors

        before = processors.times()
        yield
        if said := processors.complaint(processors.times().since(before), processors.in_use()):
            self.notice(said)

    @contextmanager
    def bar(self, total: int, label: str) -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
        """One bar for `total` steps: yields a function that wraps an iterator and advances the bar at each item."""
        with self.meter(total, label) as meter, self.watched():
            yield meter.over


def _tell(text: str) -> None:
    """A stderr that is full or that nobody reads stops no work."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr)


def plain(text: str) -> str:
    """One line that steers no terminal, whatever a file is called."""
    return printable(" ".join(text[:2000].split()))


def printable(text: str) -> str:
    """The same lines, with what could steer a terminal, or is no Unicode, escaped."""
    seen = (
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )
    return "".join(seen)


def _finite(value: Any) -> Any:
    """As JSON can say it: NaN and infinity are None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text: columns aligned, the first to the left, the others to the right. Pipes and greps well."""
    lines = [list(header), *map(list, rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(header))]
    gaps = [[" " * (w - _width(c)) for c, w in zip(row, widths, strict=True)] for row in lines]
    cells = [
        [gap + c if i else c + gap for i, (c, gap) in enumerate(zip(*both, strict=True))]
        for both in zip(lines, gaps, strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _width(text: str) -> int:
    """How many columns it takes: an accent over a letter (σ̂) takes none."""
    return sum(not unicodedata.combining(c) for c in text)


def figure(value: float | None) -> str:
    """A number for a table: three significant digits, short; a count (an int) in full."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"
