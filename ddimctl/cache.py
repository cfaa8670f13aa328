"""What took long to make and may be made again: files in the user's cache folder, each with its own checksum.

A damaged entry counts as none. Where nothing can be written or read, or there is no home folder, everything still works,
only slower.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ddimctl.errors import DDIMError
from ddimctl.files import atomic_file, atomic_path, clean, make_folder, sha256

MAX_BYTES = 12 << 30  # what was not used for longest is removed beyond this
CHECKSUM = 64  # bytes before the content


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
        checksum, content = data[:CHECKSUM], data[CHECKSUM:]
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


def mapped(key: str, write: Callable[[BinaryIO], None]) -> memoryview:
    """As `fetch`, for what need not be in memory as a whole: mapped from its file, which `write` writes.

    Raises what `write` raises, and `DDIMError` where there is no room on any disk.
    """
    with contextlib.suppress(OSError, DDIMError):
        if (found := _map(folder() / key)) is not None:
            os.utime(folder() / key)
            return found
    with contextlib.suppress(OSError, DDIMError):
        make_folder(folder())
        clean(folder())
        with atomic_path(folder() / key) as temporary:
            _write(temporary, write)
        _shrink()
        if (found := _map(folder() / key)) is not None:
            return found
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # what is mapped stays when its name goes
        with atomic_path(Path(place, key)) as temporary:
            _write(temporary, write)
        found = _map(Path(place, key))
    if found is None:
        raise DDIMError("what was written to the disk is not what is read from it")
    return found


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    with path.open("r+b") as f:
        f.write(bytes(CHECKSUM))
        write(f)
        f.flush()
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as whole:
            checksum = sha256(whole[CHECKSUM:])
        f.seek(0)
        f.write(checksum.encode())


def _map(path: Path) -> memoryview | None:
    """The content of an entry's file; None if there is none, or if it is not what was written."""
    if not path.is_file() or path.stat().st_size <= CHECKSUM:
        return None
    with path.open("rb") as f:
        whole = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY))  # numpy and OpenVINO want to own it
    content = whole[CHECKSUM:]
    return content if sha256(content).encode() == bytes(whole[:CHECKSUM]) else None


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
