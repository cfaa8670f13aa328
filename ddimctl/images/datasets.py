"""Many images: the files of a folder, or an IDX file (MNIST's format), as one array."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ddimctl.errors import FileError, UsageError
from ddimctl.files import find
from ddimctl.images.fitting import crop
from ddimctl.images.formats import SUFFIXES, check_channels
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read

if TYPE_CHECKING:
    from torch import Tensor

MAX_IDX = 1 << 30  # bytes that an IDX file may unpack to


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted: by suffix, nothing hidden. Raises `UsageError` if there are none."""
    found = find(folder, SUFFIXES)
    if not found:
        raise UsageError(f"{folder} holds no images", hint=f"looked for {' '.join(SUFFIXES)}")
    return found


def load_dataset(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """All images of a folder or an IDX file (perhaps gzipped), as uint8 (N, C, H, W), held in memory."""
    import torch

    check_channels(str(path), channels)
    if path.is_dir():
        arrays: Iterator[np.ndarray] | Sequence[np.ndarray] = (read(p, channels, size)[0] for p in find_images(path))
    else:
        data = read_idx(path)
        if channels == 1 and data.shape[1:] == size:
            return torch.from_numpy(data)[:, None]
        mode = "L" if channels == 1 else "RGB"
        pictures = (crop(Image.fromarray(a).convert(mode), (size[1], size[0]), Preprocessing().colour)[0] for a in data)
        arrays = (np.asarray(p).reshape(*size, channels) for p in pictures)
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
