"""What goes wrong, as one line for the user: the error classes, and the exit codes they end a command with."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

# Exit codes. 0 is success; 130 and 143 follow from SIGINT and SIGTERM.
FAILED = 1  # the work could not be done
USAGE = 2  # the command line makes no sense
BAD_FILE = 3  # a file is corrupt, hostile, or does not fit the model
SOME_FAILED = 4  # some items of a batch failed, the others are done
ABOVE_LIMIT = 5  # --fail-above was exceeded


class DDIMError(Exception):
    """An expected failure. `str(error)` is what is wrong; `error.hint`, perhaps empty, is what to do about it."""

    exit_code = FAILED

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class UsageError(DDIMError):
    """An argument or an option makes no sense."""

    exit_code = USAGE


class FileError(DDIMError):
    """A file is corrupt, hostile, or does not fit the model."""

    exit_code = BAD_FILE


class SomeFailed(DDIMError):
    """Some items of a batch failed; the others are done."""

    exit_code = SOME_FAILED


class AboveLimit(DDIMError):
    """A measured error exceeds the limit that the user set."""

    exit_code = ABOVE_LIMIT


def choose(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a `UsageError` that lists the names there are and guesses which one was meant."""
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown {kind} {name!r}", hint=f"{hint}known: {', '.join(table)}")
