"""What the user chooses about making an image fit a model, and the words for what was done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import ImageColor

from ddimctl.errors import UsageError, choose
from ddimctl.images.fitting import FITS

MAX_PIXELS = 100_000_000


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


def choices(how: Preprocessing) -> dict[str, Any]:
    """What in `how` decides about the result, as it stands in a record."""
    value_range = list(how.value_range) if how.value_range else None
    return {"fit": how.fit, "background": how.background, "frame": how.frame, "value_range": value_range}


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
