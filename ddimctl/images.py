"""Files ↔ tensors. The only module that knows pixels, colour and image formats.

Inside ddimctl images are (B, C, H, W) in [−1, 1]; here they become that, and here they become files again.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddimctl.errors import FileError, UsageError
from ddimctl.files import atomic_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted. Raises `UsageError` if there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UsageError(f"{folder} holds no images", hint=f"looked for {' '.join(SUFFIXES)}")
    return found


def open_image(path: Path) -> Image.Image:
    """The decoded image, upright. Raises `FileError` if it is not a whole image, `UsageError` if there is no file."""
    try:
        image = Image.open(path)
        image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder") from e
    except UnidentifiedImageError as e:
        raise FileError(f"{path} is not an image that can be read") from e
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, struct.error) as e:
        raise FileError(f"{path} is damaged: {e}") from e


def fit(image: Image.Image, channels: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, C): grey or RGB, the middle square (of the target's shape), resampled with Lanczos."""
    height, width = size
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (…, H, W, C) → float32 (…, C, H, W) in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3))).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """(…, C, H, W) in [−1, 1] → uint8 (…, H, W, C), rounded to nearest and clipped."""
    unit = (images.detach().double().cpu() + 1) * 127.5
    return np.moveaxis(unit.round().clamp(0, 255).to(torch.uint8).numpy(), -3, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) → a grey or RGB image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def sheet(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, C) → one contact sheet (H', W', C), row by row on white."""
    n, height, width, channels = pixels.shape
    rows = math.ceil(n / columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of (…, H, W, C) becomes a square."""
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 (H, W, C) as `path`'s suffix says."""
    format_ = Image.registered_extensions().get(path.suffix.lower())
    if format_ is None or format_ not in Image.SAVE:
        raise UsageError(f"{path} has no suffix of a known image format", hint="use .png")
    with atomic_file(path) as f:
        as_image(pixels).save(f, format_)


def load_dataset(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """All images of a folder or an IDX file (perhaps gzipped), as uint8 (N, C, H, W), held in memory."""
    if path.is_dir():
        arrays: Iterator[np.ndarray] | Sequence[np.ndarray] = (
            fit(open_image(p), channels, size) for p in find_images(path)
        )
    else:
        data = read_idx(path)
        if channels == 1 and data.shape[1:] == size:
            return torch.from_numpy(data)[:, None]
        arrays = (fit(Image.fromarray(a), channels, size) for a in data)
    return torch.stack([torch.from_numpy(np.moveaxis(a, -1, 0).copy()) for a in arrays])


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
            data = f.read(n * height * width)
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except (OSError, EOFError, struct.error) as e:
        raise FileError(f"{path} is not an IDX file of images: {e}") from e
    if len(data) != n * height * width:
        raise FileError(f"{path} is truncated")
    return np.frombuffer(bytearray(data), np.uint8).reshape(n, height, width)
