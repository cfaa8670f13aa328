"""Files are written whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder.

A reader never sees half a file, and a crash leaves the old file as it was. What a killed process may leave behind is a
hidden ``.NAME.RANDOM.tmp``, which nothing reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ddimctl.errors import DDIMError, UsageError


def refuse_existing(path: Path, force: bool) -> None:
    """Raises `UsageError` if `path` exists and `force` is false, or if no file can be put there."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", hint="add --force to overwrite it")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there becomes `path` when the block ends well.

    Raises `DDIMError` where the system refuses (no such folder, read-only, full).
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            yield temporary
            with temporary.open("rb+") as f:
                os.fsync(f.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _fsync_folder(path.parent)
        except OSError as e:
            raise DDIMError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """As `atomic_path`, with the temporary file opened for writing."""
    with atomic_path(path) as temporary, temporary.open("wb") as f:
        yield f


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with atomic_file(path) as f:
        f.write(data)


def make_folder(path: Path) -> None:
    """Makes `path` and its parents. Raises `DDIMError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DDIMError(f"cannot make the folder {path}: {e.strerror or e}") from e


def sha256(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
