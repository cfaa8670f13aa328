"""Pixels one after the other, without any file of their own: IDX (MNIST's) and CIFAR's binary version.

Each image is handed on as a PGM or PPM, whose bytes are the same everywhere.
"""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ddimctl.archives.member import Member
from ddimctl.errors import FileError, UsageError
from ddimctl.remote import opened

MAX_IDX = 1 << 30  # bytes that an IDX file may unpack to
MAGIC = b"\0\0\x08\x03"
PIXELS = 3 * 32 * 32  # of a CIFAR image, plane by plane
LABELS = {PIXELS + 1: 1, PIXELS + 2: 2}  # bytes of a row → those of its label: CIFAR-10, CIFAR-100


def is_idx(path: Path) -> bool:
    """Whether a file, perhaps gzipped, begins as an IDX file of images does."""
    try:
        with path.open("rb") as f:
            head = f.read(4)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as g:
                head = g.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return head == MAGIC


def is_cifar(path: Path) -> bool:
    """Whether a .bin is as long as whole rows of CIFAR are."""
    n = path.stat().st_size if path.suffix.lower() == ".bin" and path.is_file() else 0
    return n > 0 and any(n % row == 0 for row in LABELS)


def idx(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    """The images of an IDX file, named by their number."""
    del suffixes, captions
    for i in range(len(_unpacked(archive))):
        yield Member(archive, f"{i:08}", _fetch_idx, (i,))


def cifar(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    """The images of a CIFAR binary, named by their number."""
    del suffixes, captions
    n = Path(archive).stat().st_size
    row = next(r for r in LABELS if n % r == 0)
    for i in range(n // row):
        yield Member(archive, f"{i:08}", _fetch_cifar, (i * row + LABELS[row],))


@functools.lru_cache(maxsize=2)
def _unpacked(archive: str) -> np.ndarray:
    return read_idx(Path(archive))


def _fetch_idx(archive: str, where: tuple[int, ...]) -> bytes:
    pixels = _unpacked(archive)[where[0]]
    data: bytes = pixels.tobytes()
    return b"P5 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + data


def _fetch_cifar(archive: str, where: tuple[int, ...]) -> bytes:
    with opened(archive) as f:
        f.seek(where[0])
        data = f.read(PIXELS)
    if len(data) != PIXELS:
        raise FileError(f"{archive} is cut short")
    pixels: bytes = np.frombuffer(data, np.uint8).reshape(3, -1).T.tobytes()
    return b"P6 32 32 255\n" + pixels


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of grey images (MNIST's format), perhaps gzipped: uint8 (N, H, W). Raises `FileError`."""
    try:
        with path.open("rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as f:
            header = f.read(16)
            magic, n, height, width = struct.unpack(">iiii", header)
            if magic != 0x803 or n <= 0 or not 0 < height <= 4096 or not 0 < width <= 4096:
                raise FileError(f"{path} is not an IDX file of images")
            size = n * height * width
            if size > MAX_IDX:
                raise FileError(f"{path} announces {size:,} bytes of images, more than {MAX_IDX:,}")
            data = bytearray()  # grows with what there is, and needs no second copy to be written to
            while part := f.read(min(1 << 20, size + 1 - len(data))):  # one more, so that gzip gets to its checksum
                data += part
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except (OSError, EOFError, struct.error, zlib.error) as e:
        raise FileError(f"{path} is not an IDX file of images: {e}") from e
    if len(data) != size:
        raise FileError(f"{path} does not hold the {n} images that it announces")
    return np.frombuffer(data, np.uint8).reshape(n, height, width)
