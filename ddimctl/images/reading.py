"""Image files → pixels as a model takes them, and the record of what was done.

Whatever an image is in its file, the model gets 8-bit grey or sRGB of its own size. `read` does that; `describe` of
`preprocessing` puts the record into words. The order is: frame, orientation, colour (see `colour`), grey or colour,
crop (or pad, or stretch) and resampling (see `fitting`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Iterator
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ddimctl.errors import FileError, UsageError
from ddimctl.files import Held, read_bytes, read_stdin, sha256
from ddimctl.images import plugins
from ddimctl.images.colour import Raw, in_srgb, on_background
from ddimctl.images.fitting import FITS
from ddimctl.images.formats import check_channels
from ddimctl.images.preprocessing import Preprocessing, choices

MAX_BYTES = 1 << 29  # an image file larger than this is refused
LARGE = 16_000_000  # pixels: of images above, one at a time is decoded, to bound memory

ALLOW = "--max-pixels allows more"
ORIENTATION = 0x0112  # the EXIF tag
MAIN = {"MPO", "HEIF"}  # formats that may hold more pictures, but say which one is the picture

_one_large = threading.Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its complaints about a file go to stderr


def read(
    source: str | PathLike[str] | bytes | Held,
    channels: int,
    size: tuple[int, int],
    *,
    how: Preprocessing | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """An image as a model takes it, uint8 (H, W, C), and the record of what was done to it.

    `source` is a path, "-" for standard input, the file's content, or what holds it; `size` is (height, width). Raises
    `UsageError` if there is no such file or a choice in `how` is missing, `FileError` if it is not a whole image of a known
    format.
    """
    how = how or Preprocessing()
    name, data = content(source)
    check_channels(name, channels)
    with opened(name, data, how) as image:
        return take(image, about(name, data, image), channels, size=size, how=how)


@contextlib.contextmanager
def opened(name: str, data: bytes, how: Preprocessing) -> Iterator[Image.Image]:
    """An image file, whole and of a bounded size, not decoded yet; one of the large at a time. Raises `FileError`."""
    allow_pixels(how.max_pixels)
    with decoding(name), Image.open(io.BytesIO(data), formats=plugins.formats_for(data, name, how.max_pixels)) as image:
        if image.width * image.height > how.max_pixels:
            raise FileError(f"{name} has {image.width} × {image.height} pixels, too many", hint=ALLOW)
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # its checksums, which decoding ignores
        with _one_large if image.width * image.height > LARGE else contextlib.nullcontext():
            yield image


def about(name: str, data: bytes, image: Image.Image) -> dict[str, Any]:
    """A record's first fields: what the file is."""
    return {
        "name": name,
        "sha256": sha256(data),
        "bytes": len(data),
        "format": image.format,
        "mode": image.mode,
        "size": [image.height, image.width],
    }


def take(
    image: Image.Image, record: dict[str, Any], channels: int, *, size: tuple[int, int], how: Preprocessing
) -> tuple[np.ndarray, dict[str, Any]]:
    """The frame of an opened image that `how` asks for, as a model takes it, and the record that began as `about`."""
    notes: list[str] = []
    name = record["name"]
    picture = in_srgb(*_frame(image, name, how, record=record, notes=notes), name, how=how, notes=notes)
    picture = on_background(picture, how, notes)
    if picture.mode != ("L" if channels == 1 else "RGB"):
        if channels == 1:
            notes.append("colour to grey")
        picture = picture.convert("L" if channels == 1 else "RGB")
    picture, done = FITS[how.fit](picture, (size[1], size[0]), how.colour)
    record = {**record, "colour": notes, **choices(how), **done, "pixels": [*size, channels]}
    return np.array(picture).reshape(*size, channels), record


def allow_pixels(n: int) -> None:
    """Has Pillow open images of so many pixels. Its bound stays: it alone sees tiles, and the frames before the wanted."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, n)


def digest(source: str | PathLike[str] | Held) -> str:
    """SHA-256 of a file's bytes, as it stands in a record. Raises as `read` does."""
    return sha256(source.read() if isinstance(source, Held) else read_bytes(Path(source), MAX_BYTES))


def content(source: str | PathLike[str] | bytes | Held) -> tuple[str, bytes]:
    """(name, bytes) of what `read` was given."""
    if isinstance(source, bytes):
        return "image", source
    if isinstance(source, Held):
        return source.name, source.read()
    name = fsdecode(source)
    if name != "-":
        return name, read_bytes(Path(name), MAX_BYTES)
    return "-", read_stdin(MAX_BYTES)


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises into a `FileError`."""
    try:
        yield
    except (FileError, UsageError):
        raise
    except UnidentifiedImageError as e:
        raise FileError(f"{name} is not an image that can be read", hint=f"known formats: {plugins.known()}") from e
    except Image.DecompressionBombError as e:
        raise FileError(f"{name} has too many pixels") from e
    except MemoryError as e:
        raise FileError(f"{name} needs more memory than there is") from e
    except Exception as e:  # damaged bytes reach deep into Pillow, which documents no exceptions
        raise FileError(f"{name} is damaged: {e or type(e).__name__}") from e


def _frame(
    image: Image.Image, name: str, how: Preprocessing, *, record: dict[str, Any], notes: list[str]
) -> tuple[Image.Image, Raw]:
    """The wanted frame, decoded, upright."""
    several = image.format not in MAIN and getattr(image, "is_animated", False)
    if how.frame is not None:
        try:
            image.seek(how.frame)
        except EOFError as e:
            raise UsageError(f"{name} has no frame {how.frame}", hint="they count from 0") from e
        if image.width * image.height > how.max_pixels:
            raise FileError(f"{name} has too many pixels in frame {how.frame}", hint=ALLOW)
    elif several:
        raise UsageError(f"{name} holds several images", hint="choose one with --frame N, counted from 0")
    turned = None
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))
    raw = Raw(image.format, 16 if deep else 8, False)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        turned = image.tag_v2.get(ORIENTATION, 1)  # Pillow turns a TIFF while loading, and forgets it
        raw = Raw(image.format, int(bits[0]), image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION, 1) if turned is None else turned
        upright = ImageOps.exif_transpose(image)
    except Exception:  # camera software writes all kinds of things there
        orientation, upright = 1, image.copy()
        notes.append("EXIF unreadable, ignored")
    record["orientation"] = orientation if orientation in range(2, 9) else 1
    record["mode"], record["size"] = image.mode, [upright.height, upright.width]
    return upright, raw
