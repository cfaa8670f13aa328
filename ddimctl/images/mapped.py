"""Arrays of one shape that may be too many for memory: from some size on they lie in a file, which is mapped.

The file is in the cache folder and made once, whole or not at all: the arrays one after the other, what is to be remembered
of them as JSON, how many bytes that is, and the SHA-256 of all before. It is checked whenever it is opened; a damaged one
counts as none. Of a mapped file the system holds in memory what there is room for.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddimctl import cache
from ddimctl.errors import DDIMError
from ddimctl.files import atomic_file, clean, make_folder

if TYPE_CHECKING:
    from torch import Tensor

LENGTH, DIGEST = 8, 32  # bytes at the end of a file
UNUSED = 30 * 24 * 3600  # seconds: what was not opened for longer goes when another is made
PART = 1 << 22  # bytes that are read at once


def folder() -> Path:
    """Raises `DDIMError` where there is no home folder."""
    return cache.folder() / "images"


def load(key: str) -> tuple[Tensor, dict[str, Any]] | None:
    """The arrays (N, …) of an entry and what was remembered; None if there is none, or if it is not what was written."""
    with contextlib.suppress(OSError, DDIMError, ValueError, KeyError):
        path = folder() / key
        size = path.stat().st_size
        with path.open("rb") as f:
            f.seek(size - DIGEST - LENGTH)
            length = int.from_bytes(f.read(LENGTH), "little")
            digest = f.read(DIGEST)
            f.seek(size - DIGEST - LENGTH - length)
            about = json.loads(f.read(length))
            f.seek(0)
            if _digest(f, size - DIGEST) != digest:
                return None
        os.utime(path)
        return _map(path, about["shape"], about["dtype"]), about
    return None


def collect(arrays: Iterator[np.ndarray], key: str, *, memory: float, about: Callable[[], dict[str, Any]]) -> Tensor:
    """Arrays of one shape and type as one, (N, …): in memory if they take at most so many bytes, else as the entry `key`.

    `about` is asked at the end for what `load` is to remember. Raises `DDIMError` where the file cannot be written.
    """
    import torch

    held: list[np.ndarray] = []
    total = 0
    for array in arrays:
        held.append(array)
        total += array.nbytes
        if total > memory:
            break
    else:
        return torch.from_numpy(np.stack(held)) if held else torch.empty(0, dtype=torch.uint8)
    shape, kind = held[0].shape, str(held[0].dtype)
    try:
        path = folder() / key
        make_folder(path.parent)
        clean(path.parent)
        _forget(path.parent)
        with atomic_file(path) as f:
            digest, n = hashlib.sha256(), 0
            held.reverse()
            for array in itertools.chain((held.pop() for _ in range(len(held))), arrays):
                data = array.tobytes()
                digest.update(data)
                f.write(data)
                n += 1
            text = json.dumps({**about(), "shape": [n, *shape], "dtype": kind}).encode()
            end = text + len(text).to_bytes(LENGTH, "little")
            digest.update(end)
            f.write(end + digest.digest())
    except DDIMError as e:
        raise type(e)(str(e), e.hint or "XDG_CACHE_HOME names another folder, --memory what may be held") from e
    return _map(path, [n, *shape], kind)


def _map(path: Path, shape: list[int], kind: str) -> Tensor:
    import torch

    found: Tensor = torch.from_file(str(path), size=math.prod(shape), dtype=getattr(torch, kind))
    return found.view(shape)


def _digest(f: Any, size: int) -> bytes:
    digest, left = hashlib.sha256(), size
    while left and (part := f.read(min(PART, left))):
        digest.update(part)
        left -= len(part)
    return digest.digest()


def _forget(where: Path) -> None:
    """Removes what was not opened for long. What another process has mapped stays until it ends."""
    with contextlib.suppress(OSError):
        for path in where.iterdir():
            if len(path.name) == 64 and time.time() - path.stat().st_mtime > UNUSED:
                path.unlink(missing_ok=True)
