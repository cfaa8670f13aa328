"""Files ↔ tensors. The only module that knows pixels, colour and image formats.

Inside ddimctl images are (B, C, H, W) in [−1, 1]; here they become that, and here they become files again. Whatever an
image is in its file, the model gets 8-bit grey or sRGB of its own size. `read` does that and returns a record of what
it did; `describe` puts the record into words. The order is: frame, orientation, wider values → 8 bits, embedded profile
→ sRGB, transparency over a background, grey or colour, crop (or pad, or stretch) and resampling.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import math
import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fsdecode
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ddimctl.errors import DDIMError, FileError, UsageError, choose
from ddimctl.files import find, read_bytes, sha256, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}  # what images are called; each name's format is also the one it is written in
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # all that is ever opened, whatever its name
LOSSLESS: dict[str, dict[str, Any]] = {  # as far as the format can
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
LARGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535}  # pixels a side that a format can hold; the others, 2³¹ − 1
MAX_BYTES = 1 << 29  # an image file larger than this is refused
MAX_IDX = 1 << 30  # bytes that an IDX file may unpack to
MAX_HELD = 1 << 31  # bytes of pixels that one result may take
MAX_PIXELS = 100_000_000
LARGE = 16_000_000  # pixels: of images above, one at a time is decoded, to bound memory

ORIENTATION = 0x0112  # the EXIF tag

_one_large = threading.Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its complaints about a file go to stderr


@dataclass(frozen=True)
class Preprocessing:
    """What the user chooses about making an image fit a model.

    `fit` is a name of `FITS`. `background` is any CSS colour, seen through transparency and around padding. `frame` is
    the one to take of an animation or a file with several pages, from 0. `value_range` is the (black, white) of grey
    integers beyond 8 bits and of floats; without it 16-bit grey is 0 … 65535 and floats are refused. `max_pixels` is the
    largest width × height, checked before anything is decoded.
    """

    fit: str = "crop"
    background: str = "white"
    frame: int | None = None
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        choose(FITS, self.fit, "fit")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as e:
            raise UsageError(f"{self.background!r} is not a colour", hint="such as white, or #808080") from e
        if self.frame is not None and self.frame < 0:
            raise UsageError(f"there is no frame {self.frame}", hint="they count from 0")
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"{low}, {high} is not a range of values", hint="black first, then white")

    @property
    def colour(self) -> tuple[int, int, int]:
        r, g, b = ImageColor.getrgb(self.background)[:3]
        return r, g, b


def find_images(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted: by suffix, nothing hidden. Raises `UsageError` if there are none."""
    found = find(folder, SUFFIXES)
    if not found:
        raise UsageError(f"{folder} holds no images", hint=f"looked for {' '.join(SUFFIXES)}")
    return found


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


def check_memory(n: int, height: int, width: int, channels: int) -> None:
    """Raises `UsageError` if that many images of that size, which are held at once, are more than `MAX_HELD` bytes."""
    held = n * height * width * channels
    if held > MAX_HELD:
        raise UsageError(
            f"{n:,} images of {width:,} × {height:,} × {channels} values take {-(-held // 2**20):,} MiB;"
            f" at most {MAX_HELD // 2**20:,} are held",
            hint="choose fewer of them, or a smaller --zoom",
        )


def check_apart(path: Path, others: Iterable[str | Path]) -> None:
    """Raises `UsageError` if `path` is one of `others`, files that the same command reads or writes, by any name."""
    real = os.path.realpath(path)
    for other in others:
        with contextlib.suppress(ValueError):  # no file could be called that
            if os.path.realpath(other) == real:
                raise UsageError(f"{path} would be written over {other}", hint="name another file")


def check_channels(name: str, channels: int) -> None:
    """Raises `FileError` if an image called `name` cannot have so many channels."""
    if channels not in (1, 3):
        raise FileError(f"{name} would have {channels} channels", hint="images have 1 (grey) or 3 (colour)")


def check_finite(images: Any, name: str) -> None:
    """Raises `DDIMError` if what the model `name` made, of torch or of numpy, holds NaN or infinity."""
    if not bool((abs(images) < math.inf).all()):
        raise DDIMError(f"the model {name} gives values that are not finite")


def read(
    source: str | PathLike[str] | bytes, channels: int, size: tuple[int, int], how: Preprocessing | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """An image as a model takes it, uint8 (H, W, C), and the record of what was done to it.

    `source` is a path, "-" for standard input, or the file's content; `size` is (height, width). Raises `UsageError` if
    there is no such file or a choice in `how` is missing, `FileError` if it is not a whole image of a known format.
    """
    how = how or Preprocessing()
    name, data = _content(source)
    check_channels(name, channels)
    allow_pixels(how.max_pixels)
    with _decoding(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > how.max_pixels:
            raise FileError(f"{name} has {width} × {height} pixels, too many", hint="--max-pixels allows more")
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # its checksums, which decoding ignores
        with _one_large if width * height > LARGE else contextlib.nullcontext():
            record: dict[str, Any] = {
                "name": name,
                "sha256": sha256(data),
                "bytes": len(data),
                "format": image.format,
                "mode": image.mode,
                "size": [height, width],
            }
            notes: list[str] = []
            picture = _in_colour(*_frame(image, name, how, record, notes), name, how, notes)
            picture = _on_background(picture, how, notes)
            if picture.mode != ("L" if channels == 1 else "RGB"):
                if channels == 1:
                    notes.append("colour to grey")
                picture = picture.convert("L" if channels == 1 else "RGB")
            picture, done = FITS[how.fit](picture, (size[1], size[0]), how)
            record |= {"colour": notes, **choices(how), **done, "pixels": [*size, channels]}
            return np.array(picture).reshape(*size, channels), record


def allow_pixels(n: int) -> None:
    """Has Pillow open images of so many pixels. Its bound stays: it alone sees tiles, and the frames before the wanted."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, n)


def choices(how: Preprocessing) -> dict[str, Any]:
    """What in `how` decides about the result, as it stands in a record."""
    value_range = list(how.value_range) if how.value_range else None
    return {"fit": how.fit, "background": how.background, "frame": how.frame, "value_range": value_range}


def digest(source: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as it stands in a record. Raises as `read` does."""
    return sha256(read_bytes(Path(source), MAX_BYTES))


def describe(record: dict[str, Any]) -> str:
    """What `read` did to an image, as one line; empty if it did nothing that changes a pixel."""
    done = []
    if record.get("frame") is not None:
        done.append(f"frame {record['frame']}")
    if record.get("orientation", 1) != 1:
        done.append(f"turned upright (EXIF orientation {record['orientation']})")
    done += record["colour"]
    height, width = record["size"]
    box = record["box"]
    if box != [0, 0, width, height]:
        done.append(f"cropped to {box[2] - box[0]:g} × {box[3] - box[1]:g}")
    if record["resampling"]:
        done.append(f"resampled to {record['inner'][1]} × {record['inner'][0]} ({record['resampling']})")
    if record["inner"] != record["pixels"][:2]:
        done.append(f"padded to {record['pixels'][1]} × {record['pixels'][0]}")
    return f"{record['name']}: {width} × {height} {record['format']}, {', '.join(done)}" if done else ""


def _content(source: str | PathLike[str] | bytes) -> tuple[str, bytes]:
    """(name, bytes) of what `read` was given."""
    if isinstance(source, bytes):
        return "image", source
    name = fsdecode(source)
    if name != "-":
        return name, read_bytes(Path(name), MAX_BYTES)
    return "-", read_stdin(MAX_BYTES)


def read_stdin(limit: int) -> bytes:
    """All of standard input. Raises `UsageError` if it is closed, `FileError` if it holds more than `limit` bytes."""
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="name a file, or pipe one in")
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"standard input holds more than {limit:,} bytes")
    return data


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises into a `FileError`."""
    try:
        yield
    except (FileError, UsageError):
        raise
    except UnidentifiedImageError as e:
        raise FileError(f"{name} is not an image that can be read", hint=f"known formats: {', '.join(FORMATS)}") from e
    except Image.DecompressionBombError as e:
        raise FileError(f"{name} has too many pixels") from e
    except MemoryError as e:
        raise FileError(f"{name} needs more memory than there is") from e
    except Exception as e:  # damaged bytes reach deep into Pillow, which documents no exceptions
        raise FileError(f"{name} is damaged: {e or type(e).__name__}") from e


class Raw(NamedTuple):
    """What a decoded image no longer tells: its format, the bits of a sample, whether a TIFF's zero is white."""

    format: str | None
    bits: int
    white_is_zero: bool


def _frame(
    image: Image.Image, name: str, how: Preprocessing, record: dict[str, Any], notes: list[str]
) -> tuple[Image.Image, Raw]:
    """The wanted frame, decoded, upright."""
    several = image.format != "MPO" and getattr(image, "is_animated", False)  # an MPO's first picture is the picture
    if how.frame is not None:
        try:
            image.seek(how.frame)
        except EOFError as e:
            raise UsageError(f"{name} has no frame {how.frame}", hint="they count from 0") from e
        if image.width * image.height > how.max_pixels:
            raise FileError(f"{name} has too many pixels in frame {how.frame}", hint="--max-pixels allows more")
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


def _in_colour(image: Image.Image, raw: Raw, name: str, how: Preprocessing, notes: list[str]) -> Image.Image:
    """8-bit L, LA, RGB or RGBA, in sRGB."""
    info = image.info
    if not isinstance(info.get("transparency", 0), int | bytes | tuple):  # a text chunk of that name
        del info["transparency"]
    if image.mode[0] in "IF":
        return _from_range(image, raw, name, how, notes)
    if raw.bits > 8:
        notes.append(f"{raw.bits} bits to 8 by the high byte")
        if isinstance(info.get("transparency"), tuple):
            info["transparency"] = tuple(v >> 8 for v in info["transparency"])
    if image.mode in ("1", "P", "PA", "La", "RGBa") or "transparency" in info:
        clear = image.mode in ("PA", "La", "RGBa") or "transparency" in info
        image = image.convert("RGBA" if clear else "L" if image.mode == "1" else "RGB")
    if image.mode == "LAB":
        notes.append("CIELAB → sRGB")
        return _transformed(image, ImageCms.createProfile("LAB"), "RGB")
    if isinstance(info.get("icc_profile"), bytes) and info["icc_profile"]:
        try:
            return _from_profile(image, info["icc_profile"], notes)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("embedded profile unreadable, ignored")
    if image.mode == "CMYK":
        notes.append("CMYK → sRGB without a profile")
    return image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")


def _from_range(image: Image.Image, raw: Raw, name: str, how: Preprocessing, notes: list[str]) -> Image.Image:
    """Grey integers beyond 8 bits, or floats: black … white → 0 … 255, rounded to nearest, clipped."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and raw.format == "PPM")
    if how.value_range is None and not sixteen:
        kind = "floats" if image.mode == "F" else "integers of unknown range"
        raise UsageError(f"{name} holds {kind}", hint="say what is black and what white, such as --range 0,1")
    low, high = how.value_range or (0.0, 4095.0 if raw.bits == 12 else 65535.0)
    notes.append(f"{low:g} … {high:g} to 8 bits")
    values = np.asarray(image)
    clear = values == image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
    rows = []
    for part in np.array_split(values, max(1, values.size // 2**22)):  # in parts, because float64 takes much memory
        scaled = (part.astype(np.float64) - low) * (255.0 / (high - low))
        if not np.isfinite(scaled).all():
            raise FileError(f"{name} holds NaN or infinity")
        rows.append(np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8))
    grey = np.concatenate(rows)
    if raw.white_is_zero:  # Pillow inverts it at 8 bits, but not beyond
        notes.append("white is zero: inverted")
        grey = 255 - grey
    if clear is None:
        return Image.fromarray(grey)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))])


def _from_profile(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    """From the embedded ICC profile to sRGB, perceptually, unless the profile is not for such an image or is sRGB."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = profile.profile.xcolor_space.strip()
    colours, alpha = (image.convert("RGB"), image.getchannel("A")) if image.mode == "RGBA" else (image, None)
    if image.mode == "LA":
        colours, alpha = image.getchannel("L"), image.getchannel("A")
    if {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "YCbCr": "YCbr"}.get(colours.mode) != space:
        notes.append(f"embedded profile ignored (for {space}, the image is {image.mode})")
        return image.convert("RGB") if image.mode not in ("L", "LA", "RGB", "RGBA") else image
    described = ImageCms.getProfileDescription(profile).strip() or "embedded profile"
    if colours.mode == "RGB":
        cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(18, -1, 3)
        moved = np.asarray(_transformed(Image.fromarray(cube), profile, "RGB"))
        if np.abs(moved.astype(int) - cube).max() <= 1:  # sRGB itself: its rounding would only do harm
            return image
    notes.append(f"{described} → sRGB")
    result = _transformed(colours, profile, "RGB")
    if colours.mode == "L":
        result = result.convert("L")
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _transformed(image: Image.Image, profile: Any, mode: str) -> Image.Image:
    result = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    return result or image  # None only where it was asked to work in place


def _on_background(image: Image.Image, how: Preprocessing, notes: list[str]) -> Image.Image:
    """Opaque L or RGB."""
    if image.mode not in ("LA", "RGBA"):
        return image
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode[:-1])
    notes.append(f"transparency over {how.background}")
    below = Image.new("RGBA", image.size, how.colour)
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


Fitted = tuple[Image.Image, dict[str, Any]]


def crop(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> Fitted:
    """The largest middle part with the target's shape. `size` is (width, height)."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    if scale == 1:  # nothing to resample, and nothing to blur by half a pixel
        left, top = left // 1, top // 1
    box = (max(left, 0.0), max(top, 0.0), min(left + width, image.width), min(top + height, image.height))
    return _resampled(image, size, box)


def stretch(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> Fitted:
    """All of it, in the target's shape."""
    return _resampled(image, size, (0.0, 0.0, image.width, image.height))


def pad(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> Fitted:
    """All of it, in its own shape, in the middle of the background."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted, done = _resampled(image, inner, (0.0, 0.0, image.width, image.height))
    background = Image.new("RGB", size, how.colour).convert(image.mode)
    background.paste(fitted, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return background, done


def _resampled(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Fitted:
    done: dict[str, Any] = {"box": [round(v, 3) for v in box], "resampling": None, "inner": [size[1], size[0]]}
    if (box[2] - box[0], box[3] - box[1]) == size and all(v == int(v) for v in box):
        return image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3]))), done
    done["resampling"] = "Lanczos"
    return image.resize(size, Image.Resampling.LANCZOS, box), done


FITS: dict[str, Callable[[Image.Image, tuple[int, int], Preprocessing], Fitted]] = {
    "crop": crop,
    "pad": pad,
    "stretch": stretch,
}


def to_array(pixels: np.ndarray) -> np.ndarray:
    """uint8 (…, H, W, C) → float32 (…, C, H, W) in [−1, 1]."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """As `to_array`, for torch."""
    import torch

    return torch.from_numpy(to_array(pixels))


def to_pixels(images: Tensor) -> np.ndarray:
    """(…, C, H, W) in [−1, 1] → uint8 (…, H, W, C), rounded to nearest and clipped."""
    import torch

    unit = (images.detach().double().cpu() + 1) * 127.5
    return np.moveaxis(unit.round().clamp(0, 255).to(torch.uint8).numpy(), -3, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) → a grey or RGB image. Raises `FileError` for other channels."""
    check_channels("the image", pixels.shape[-1])
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def sheet_size(n: int, size: tuple[int, int], columns: int, gap: int = 2, factor: int = 1) -> tuple[int, int]:
    """(height, width) of the `sheet` of so many images of that size, each enlarged `factor` times."""
    height, width = size
    return math.ceil(n / columns) * (factor * height + gap) - gap, columns * (factor * width + gap) - gap


def sheet(pixels: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, C) → one contact sheet (H', W', C), row by row on white."""
    n, height, width, channels = pixels.shape
    out = np.full((*sheet_size(n, (height, width), columns, gap), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        out[y : y + height, x : x + width] = image
    return out


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of (…, H, W, C) becomes a square."""
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def factor_to_see(size: tuple[int, int], side: int = 112) -> int:
    """How many times images of that size are enlarged to be seen: to about `side` pixels."""
    return max(1, side // max(size))


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
        how, mode = Preprocessing(), "L" if channels == 1 else "RGB"
        pictures = (crop(Image.fromarray(a).convert(mode), (size[1], size[0]), how)[0] for a in data)
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
