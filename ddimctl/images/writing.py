"""Pixels → image files, without loss where the format can."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddimctl.errors import DDIMError
from ddimctl.files import write_bytes
from ddimctl.images import metadata
from ddimctl.images.formats import FORMATS, LOSSLESS, SUFFIXES, check_channels, check_side, check_suffix


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) → a grey or RGB image. Raises `FileError` for other channels."""
    check_channels("the image", pixels.shape[-1])
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(path: Path, pixels: np.ndarray, *, made: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 (H, W, C) as `path`'s suffix says, without loss where the format can, whole or not at all.

    `made` says how it was made: see `metadata`. Raises `UsageError` for an unknown suffix or a size that its format
    cannot hold, `DDIMError` where the system refuses.
    """
    check_suffix(path)
    check_side(path, *pixels.shape[:2])
    write_bytes(path, to_bytes(pixels, path.suffix, made=made))


def to_bytes(pixels: np.ndarray, suffix: str, *, made: Mapping[str, Any] | None = None) -> bytes:
    """uint8 (H, W, C) as the content of a file with that suffix (one of `SUFFIXES`). Raises `DDIMError` if it cannot be."""
    format_ = SUFFIXES[suffix.lower()]
    image, out = as_image(pixels), io.BytesIO()
    try:
        image.save(out, format_, **LOSSLESS.get(format_, {}), **metadata.options(format_, made or {}))
    except (OSError, ValueError, OverflowError, RuntimeError, struct.error) as e:  # each format has its own
        raise DDIMError(f"cannot make a {format_} of {image.width} × {image.height} pixels: {e}") from e
    return out.getvalue()


def is_same(file: Path | bytes, data: bytes) -> bool:
    """Whether an image file shows what `data`, the content of another, shows; what each says of itself does not matter."""
    try:
        with (
            Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as ours,
            Image.open(io.BytesIO(data), formats=FORMATS) as theirs,
        ):
            alike = (ours.size, ours.mode, ours.format) == (theirs.size, theirs.mode, theirs.format)
            return alike and ours.tobytes() == theirs.tobytes()
    except Exception:  # damaged bytes reach deep into Pillow
        return False
