"""A decoded image of any mode → 8-bit grey or sRGB, opaque.

The order is: wider values → 8 bits, embedded profile → sRGB, transparency over a background.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from ddimctl.errors import FileError, UsageError
from ddimctl.images.preprocessing import Preprocessing


class Raw(NamedTuple):
    """What a decoded image no longer tells: its format, the bits of a sample, whether a TIFF's zero is white."""

    format: str | None
    bits: int
    white_is_zero: bool


def in_srgb(image: Image.Image, raw: Raw, name: str, *, how: Preprocessing, notes: list[str]) -> Image.Image:
    """8-bit L, LA, RGB or RGBA, in sRGB."""
    info = image.info
    if not isinstance(info.get("transparency", 0), int | bytes | tuple):  # a text chunk of that name
        del info["transparency"]
    if image.mode[0] in "IF":
        return _from_range(image, raw, name, how=how, notes=notes)
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


def on_background(image: Image.Image, how: Preprocessing, notes: list[str]) -> Image.Image:
    """Opaque L or RGB."""
    if image.mode not in ("LA", "RGBA"):
        return image
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode[:-1])
    notes.append(f"transparency over {how.background}")
    below = Image.new("RGBA", image.size, how.colour)
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def _from_range(image: Image.Image, raw: Raw, name: str, *, how: Preprocessing, notes: list[str]) -> Image.Image:
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
