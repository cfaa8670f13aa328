"""What took long to make and may be made again: files in the user's cache folder, each with its own checksum.

A damaged entry counts as none. Where nothing can be written or read, or there is no home folder, everything still works,
only slower.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from ddimctl.errors import DDIMError
from ddimctl.files import atomic_file, clean, make_folder, sha256

MAX_BYTES = 2 << 30  # what was not used for longest is removed beyond this


def folder() -> Path:
    """``$XDG_CACHE_HOME/ddimctl``, or ``~/.cache/ddimctl``. Raises `DDIMError` if there is no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddimctl"
    except RuntimeError as e:
        raise DDIMError("there is no home folder to keep a cache in", hint="set XDG_CACHE_HOME") from e


def is_there() -> bool:
    """Whether anything was ever cached here, and may be read."""
    with contextlib.suppress(OSError, DDIMError):
        return folder().is_dir()
    return False


def name(*what: object) -> str:
    """The name of the entry that `what` decides about."""
    return sha256(repr(what).encode())


def has(key: str) -> bool:
    """Whether there is an entry of that name, whole or not."""
    with contextlib.suppress(OSError, DDIMError):
        return (folder() / key).is_file()
    return False


def load(key: str) -> bytes | None:
    """The content of an entry; None if there is none, or if it is not what was written."""
    try:
        path = folder() / key
        data = path.read_bytes()
        checksum, content = data[:64], data[64:]
        if sha256(content).encode() != checksum:
            return None
        os.utime(path)
    except (OSError, DDIMError):
        return None
    return content


def fetch(key: str, make: Callable[[], bytes]) -> bytes:
    """The content of an entry, which is made and kept if there is none."""
    content = load(key)
    if content is None:
        content = make()
        store(key, content)
    return content


def store(key: str, content: bytes) -> None:
    """Keeps an entry, whatever was there, where that is possible."""
    with contextlib.suppress(DDIMError):  # a full disk, or no right to write
        make_folder(folder())
        clean(folder())
        with atomic_file(folder() / key) as f:
            f.write(sha256(content).encode())
            f.write(content)
        _shrink()


def _shrink() -> None:
    """Removes what was not used for longest, until what is left is no more than `MAX_BYTES`."""
    with contextlib.suppress(OSError):
        entries = sorted(((p.stat(), p) for p in folder().iterdir() if len(p.name) == 64), key=lambda e: -e[0].st_mtime)
        total = 0
        for stat, path in entries:
            total += stat.st_size
            if total > MAX_BYTES:
                path.unlink(missing_ok=True)
