"""What a command says: data on stdout, everything for people on stderr, progress bars only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Console:
    """The two streams of one command, as its -q, -v and --json options ask."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    def notice(self, text: str) -> None:
        """Something the user should know; not with -q."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def detail(self, text: str) -> None:
        """Something for the curious; with -v."""
        if self.verbose and not self.quiet:
            print(text, file=sys.stderr)

    def data(self, text: str, record: dict[str, Any]) -> None:
        """The result: `text`, or `record` as one JSON object with --json."""
        print(json.dumps(record, allow_nan=False) if self.json else text)

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """Passes `items` on, with a bar on stderr if that is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield from items
            return
        from rich.console import Console as RichConsole
        from rich.progress import track

        yield from track(items, label, total, console=RichConsole(stderr=True), transient=True)
