"""An image of any size → the model's size: cropped, padded or stretched, and resampled where it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

Colour = tuple[int, int, int]
Fitted = tuple[Image.Image, dict[str, Any]]


def crop(image: Image.Image, size: tuple[int, int], background: Colour) -> Fitted:
    """The largest middle part with the target's shape. `size` is (width, height)."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    if scale == 1:  # nothing to resample, and nothing to blur by half a pixel
        left, top = left // 1, top // 1
    box = (max(left, 0.0), max(top, 0.0), min(left + width, image.width), min(top + height, image.height))
    return _resampled(image, size, box)


def stretch(image: Image.Image, size: tuple[int, int], background: Colour) -> Fitted:
    """All of it, in the target's shape."""
    return _resampled(image, size, (0.0, 0.0, image.width, image.height))


def pad(image: Image.Image, size: tuple[int, int], background: Colour) -> Fitted:
    """All of it, in its own shape, in the middle of the background."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    fitted, done = _resampled(image, inner, (0.0, 0.0, image.width, image.height))
    whole = Image.new("RGB", size, background).convert(image.mode)
    whole.paste(fitted, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return whole, done


def _resampled(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Fitted:
    done: dict[str, Any] = {"box": [round(v, 3) for v in box], "resampling": None, "inner": [size[1], size[0]]}
    if (box[2] - box[0], box[3] - box[1]) == size and all(v == int(v) for v in box):
        return image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3]))), done
    done["resampling"] = "Lanczos"
    return image.resize(size, Image.Resampling.LANCZOS, box), done


FITS: dict[str, Callable[[Image.Image, tuple[int, int], Colour], Fitted]] = {
    "crop": crop,
    "pad": pad,
    "stretch": stretch,
}
