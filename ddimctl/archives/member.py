"""One image of many in a file, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ddimctl.errors import FileError

MAX_KEY = 200  # bytes of a part of a name, which becomes a file's
PLAIN = re.compile(
    rf"[A-Za-z0-9_%-][A-Za-z0-9_.%-]{{0,{MAX_KEY - 1}}}(/[A-Za-z0-9_%-][A-Za-z0-9_.%-]{{0,{MAX_KEY - 1}}})*"
)


@dataclass(frozen=True, slots=True)
class Member:
    """An image in an archive: where it is, how to fetch it, and its caption where that was asked for."""

    archive: str  # a path or a URL
    key: str
    fetch: Callable[[str, tuple[int, ...]], bytes]  # (archive, where) → an image file's bytes
    where: tuple[int, ...]
    suffix: str = ""
    caption: str | None = None

    @property
    def name(self) -> str:
        return f"{self.archive}::{self.key}{self.suffix}"

    def read(self) -> bytes:
        """Raises `FileError` if it cannot be read, `UsageError` if the archive is gone."""
        return self.fetch(self.archive, self.where)


def checked(key: str, archive: str) -> str:
    """A name in an archive, which may come from anybody: output files are called after it. Raises `FileError`."""
    if PLAIN.fullmatch(key):  # as nearly all are
        return key
    path = PurePosixPath(key)
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or "\\" in key or not key.isprintable():
        raise FileError(f"{archive} holds {key[:80]!r}, a name that leads elsewhere")
    if any(len(part.encode("utf-8", "replace")) > MAX_KEY for part in parts):
        raise FileError(f"{archive} holds a name of more than {MAX_KEY} bytes: {key[:40]!r}…")
    return path.as_posix()
