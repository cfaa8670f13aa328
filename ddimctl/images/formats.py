"""What image files are called, what their formats can hold, and the checks on a name or size before any work is done."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddimctl.errors import FileError, UsageError
from ddimctl.places import is_stream

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}  # what images are called; each name's format is also the one it is written in
READ_ONLY = {
    ".apng": "PNG",
    ".dib": "BMP",
    ".mpo": "JPEG",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".pfm": "PPM",
}  # names that images come with, but are not written under; `plugins` knows more
LIKE = {
    *(".avif", ".avifs", ".heic", ".heif", ".hif", ".jxl"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".jxr", ".qoi", ".tga", ".pcx", ".dds", ".exr", ".hdr", ".pam", ".sgi"),
    *(
        ".psd",
        ".psb",
        ".xcf",
        ".kra",
        ".svg",
        ".svgz",
        ".eps",
        ".ico",
        ".icns",
        ".cur",
        ".xbm",
        ".xpm",
        ".dcm",
        ".fits",
    ),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".raf", ".rw2", ".pef", ".3fr", ".iiq"),
}  # suffixes of pictures: where they are not read, a folder's are told of
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # all that is ever opened, whatever its name
LOSSLESS: dict[str, dict[str, Any]] = {  # as far as the format can
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
LARGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}  # pixels a side that a format can hold; the others, 2³¹ − 1
MAX_HELD = 1 << 31  # bytes of pixels that one result may take


def check_suffix(path: Path) -> None:
    """Raises `UsageError` unless `path` names an image format that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a known image format", hint=f"use one of {' '.join(SUFFIXES)}")


def check_side(path: Path, height: int, width: int) -> None:
    """Raises `UsageError` if no file called `path` can hold an image of that size."""
    format_ = SUFFIXES.get(path.suffix.lower(), "")
    if max(height, width) > LARGEST.get(format_, sys.maxsize):
        raise UsageError(
            f"{path} would have {width} × {height} pixels; {format_} holds at most {LARGEST[format_]} a side",
            hint="make it smaller, or name a .png",
        )


def check_memory(n: int, size: tuple[int, int], channels: int) -> None:
    """Raises `UsageError` if that many images of that size, which are held at once, are more than `MAX_HELD` bytes."""
    height, width = size
    held = n * height * width * channels
    if held > MAX_HELD:
        raise UsageError(
            f"{n:,} images of {width:,} × {height:,} × {channels} values take {-(-held // 2**20):,} MiB;"
            f" at most {MAX_HELD // 2**20:,} are held",
            hint="choose fewer of them, or a smaller --zoom",
        )


def check_apart(path: Path, others: Iterable[str | Path]) -> None:
    """Raises `UsageError` if `path` is one of `others`, files that the same command reads or writes, by any name."""
    if is_stream(path):
        return
    real = os.path.realpath(path)
    for other in others:
        with contextlib.suppress(ValueError):  # no file could be called that
            if os.path.realpath(other) == real:
                raise UsageError(f"{path} would be written over {other}", hint="name another file")


def check_channels(name: str, channels: int) -> None:
    """Raises `FileError` if an image called `name` cannot have so many channels."""
    if channels not in (1, 3):
        raise FileError(f"{name} would have {channels} channels", hint="images have 1 (grey) or 3 (colour)")
