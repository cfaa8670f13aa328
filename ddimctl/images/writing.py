"""Pixels → image files, without loss where the format can."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from ddimctl.errors import DDIMError
from ddimctl.files import write_bytes
from ddimctl.images.formats import LOSSLESS, SUFFIXES, check_channels, check_side, check_suffix


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) → a grey or RGB image. Raises `FileError` for other channels."""
    check_channels("the image", pixels.shape[-1])
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 (H, W, C) as `path`'s suffix says, without loss where the format can, whole or not at all.

    Raises `UsageError` for an unknown suffix or a size that its format cannot hold, `DDIMError` where the system refuses.
    """
    check_suffix(path)
    check_side(path, *pixels.shape[:2])
    write_bytes(path, to_bytes(pixels, path.suffix))


def to_bytes(pixels: np.ndarray, suffix: str) -> bytes:
    """uint8 (H, W, C) as the content of a file with that suffix (one of `SUFFIXES`). Raises `DDIMError` if it cannot be."""
    format_ = SUFFIXES[suffix.lower()]
    image, out = as_image(pixels), io.BytesIO()
    try:
        image.save(out, format_, **LOSSLESS.get(format_, {}))
    except (OSError, ValueError, OverflowError, RuntimeError, struct.error) as e:  # each format has its own
        raise DDIMError(f"cannot make a {format_} of {image.width} × {image.height} pixels: {e}") from e
    return out.getvalue()
