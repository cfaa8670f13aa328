"""All frames of an animation or a film, each made to fit a model: GIF, WebP, APNG and pages, and MP4 and others with PyAV.

A frame's record is what `reading.read` says of that frame alone, and for how long it is shown: enough to make the same
film again of what the frames became.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from ddimctl.errors import FileError
from ddimctl.images import plugins, reading, video
from ddimctl.images.formats import MAX_HELD, check_channels
from ddimctl.images.preprocessing import Preprocessing

DEFAULT_TIME = 100.0  # ms, of frames that say nothing or that browsers would show for as long
LONGEST = 1e7  # ms that a frame may be said to be shown for


@dataclass(frozen=True)
class Film:
    """Frames uint8 (N, H, W, C), and a record of each."""

    pixels: np.ndarray
    records: tuple[dict[str, Any], ...]

    @property
    def times(self) -> list[float]:
        """How long each frame is shown, in ms."""
        return [float(record["duration"]) for record in self.records]


def read(
    source: str | PathLike[str] | bytes, channels: int, size: tuple[int, int], *, how: Preprocessing | None = None
) -> Film:
    """A film of any kind that is read here; an image is a film of one frame. `how.frame` does not matter.

    Raises as `reading.read` does, and `FileError` for more frames than are held.
    """
    how = how or Preprocessing()
    name, data = reading.content(source)
    check_channels(name, channels)
    pixels, records = [], []
    frames = _of_video if is_video(data) else _of_image
    for array, record in frames(name, data, channels, size=size, how=how):
        pixels.append(array)
        records.append(record)
        if len(pixels) * array.size > MAX_HELD:
            raise FileError(f"{name} has more than {len(pixels) - 1:,} frames, too many to hold")
    if not pixels:
        raise FileError(f"{name} holds no frames")
    return Film(np.stack(pixels), tuple(records))


def is_video(data: bytes) -> bool:
    """Whether a file begins as one that PyAV is needed for: MP4 and QuickTime, Matroska and WebM, AVI."""
    boxes = bool(plugins.brands(data)) and not (plugins.begins_avif(data) or plugins.begins_heic(data))
    old = data[4:8] in (b"moov", b"mdat", b"wide", b"free")
    return boxes or old or data.startswith(b"\x1aE\xdf\xa3") or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def times_of(records: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """How long each frame is shown, in ms, where all the records are a film's; they may come from anybody."""
    found = [record.get("duration") for record in records]
    times = [float(t) for t in found if isinstance(t, int | float) and math.isfinite(t) and 0 < t <= LONGEST]
    return times if len(times) == len(found) > 1 else None


def _of_image(
    name: str, data: bytes, channels: int, *, size: tuple[int, int], how: Preprocessing
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    with reading.opened(name, data, how) as image:
        first = reading.about(name, data, image)
        for i in range(getattr(image, "n_frames", 1) if image.format not in reading.MAIN else 1):
            pixels, record = reading.take(image, dict(first), channels, size=size, how=replace(how, frame=i))
            shown = float(image.info.get("duration") or 0)
            yield pixels, {**record, "duration": shown if 10 < shown <= LONGEST else DEFAULT_TIME}


def _of_video(
    name: str, data: bytes, channels: int, *, size: tuple[int, int], how: Preprocessing
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Each frame with the time until the next; the last is shown for as long as the one before."""
    held: list[tuple[np.ndarray, dict[str, Any]]] = []
    starts: list[float] = []
    first: dict[str, Any] | None = None
    for i, (frame, start) in enumerate(video.decode(data, name, how.max_pixels)):
        picture = Image.fromarray(frame)
        picture.format = "film"
        first = first or reading.about(name, data, picture)
        held.append(reading.take(picture, dict(first), channels, size=size, how=replace(how, frame=0)))
        held[-1][1]["frame"] = i
        starts.append(start)
        if len(held) == 2:
            yield _timed(held.pop(0), starts[-1] - starts[-2])
    for last in held:
        yield _timed(last, starts[-1] - starts[-2] if len(starts) > 1 else DEFAULT_TIME)


def _timed(frame: tuple[np.ndarray, dict[str, Any]], time: float) -> tuple[np.ndarray, dict[str, Any]]:
    return frame[0], {**frame[1], "duration": round(time, 3) if 0 < time <= LONGEST else DEFAULT_TIME}
