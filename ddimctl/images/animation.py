"""Frames → GIF, WebP, APNG, MP4, a folder of PNG, or a strip; and how many frames a file really holds.

GIF and WebP writers merge identical neighbouring frames into one that is shown longer; the time shown in all stays
right. Only a WebP of nothing but identical frames becomes a still picture, without a time. GIF counts in steps of 10 ms,
WebP and APNG in 1 ms: where a frame's time is none of these, some frames are shown one step longer than others, and the
whole runs as long as it should to within half a step. What is shown for less than 20 ms (GIF) or 11 ms (all three) runs
at a tenth of that speed in browsers, which take it for a mistake: such frames get the shortest time that is honoured.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import make_folder, write_bytes
from ddimctl.images import metadata, video
from ddimctl.images.formats import check_side
from ddimctl.images.sheets import sheet, sheet_size
from ddimctl.images.writing import as_image, save_image

ANIMATED = (".gif", ".webp", ".apng", ".mp4")
MERGING = (".gif", ".webp")
STILL = (".png", ".jpg", ".jpeg")
FORMATS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}
STEP = {".gif": 10}  # ms that times are counted in; 1 in other formats
SHORTEST = {".gif": 20, ".webp": 11, ".apng": 11}  # ms that browsers honour


def check_target(path: Path, *, sound: bool = False) -> None:
    """Raises `UsageError` if `path` names nothing that frames, with `sound` perhaps, can be written to, before any work."""
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        video.check()
    elif sound:
        raise UsageError(f"{path} cannot hold sound", hint="name a .mp4")
    if suffix and suffix not in ANIMATED + STILL:
        known = " ".join(ANIMATED + STILL)
        raise UsageError(f"{path} has no suffix that frames can be written to", hint=f"{known}, or a folder")


def check_frames(path: Path, n: int, size: tuple[int, int]) -> None:
    """Raises `UsageError` if `path` cannot hold `n` frames of that size, height and width."""
    strip = path.suffix.lower() in STILL
    check_side(path, *(sheet_size(n, size, n) if strip else size))


def save_frames(
    path: Path,
    frames: np.ndarray,
    fps: float,
    *,
    times: Sequence[float] | None = None,
    sound: bytes | None = None,
    made: Mapping[str, Any] | None = None,
) -> None:
    """Writes uint8 (N, H, W, C): an animation, a strip (``.png``), or, without a suffix, a folder of PNG files.

    `times`, in ms, says how long each frame is shown where that is not 1/fps. `sound` is the content of a sound file, for
    an MP4. `made` is put into every file: see `metadata`.
    """
    check_target(path, sound=sound is not None)
    check_frames(path, len(frames), frames.shape[1:3])
    suffix = path.suffix.lower()
    times = [1000 / fps] * len(frames) if times is None else list(times)
    if not suffix:
        make_folder(path)
        width = len(str(len(frames) - 1))
        for i, frame in enumerate(frames):
            save_image(path / f"frame-{i:0{width}}.png", frame, made=made)
    elif suffix in STILL:
        save_image(path, sheet(frames, columns=len(frames)), made=made)
    elif suffix == ".mp4":
        write_bytes(path, video.encode(frames, times, sound=sound, comment=metadata.text(made or {})))
    else:
        pictures = [as_image(f) for f in frames]
        format_ = FORMATS[suffix]
        extra: dict[str, Any] = {"WEBP": {"lossless": True}}.get(format_, {})
        if format_ == "PNG":  # opaque frames look the same under both rules, and frames of different rules stay apart
            extra = {"blend": [i % 2 for i in range(len(frames))]}
        if format_ != "GIF":
            pictures = [p.convert("RGB") for p in pictures]
        extra |= {**metadata.options(format_, made or {}), "duration": durations(times, suffix), "loop": 0}
        out = io.BytesIO()
        try:
            pictures[0].save(out, format_, save_all=True, append_images=pictures[1:], **extra)
        except OverflowError as e:  # identical frames, merged
            raise DDIMError(
                f"cannot write {path}: a frame would be shown for too long", hint="choose more --fps, or .apng"
            ) from e
        except (OSError, ValueError, RuntimeError, struct.error) as e:  # each format has its own
            raise DDIMError(f"cannot write {path}: {e}") from e
        write_bytes(path, out.getvalue())


def durations(times: Sequence[float], suffix: str) -> list[int]:
    """How long each frame is shown in a file of that kind, in ms, where it should be shown for `times`."""
    step, least = STEP.get(suffix, 1), SHORTEST.get(suffix, 1)
    out: list[int] = []
    wanted = shown = 0.0
    for time in times:
        wanted += max(time, least)
        out.append(max(round((wanted - shown) / step), 1) * step)
        shown += out[-1]
    return out


def slowed(path: Path, fps: float) -> str:
    """What to tell of a film of so many frames a second that a file of that kind cannot show as fast; empty if it can."""
    least = SHORTEST.get(path.suffix.lower(), 0)
    if 1000 / fps >= least:
        return ""
    return (
        f"{path} shows each frame for {least} ms: browsers slow down what is faster ({fps:g} frames a second); use .mp4"
    )


def count_frames(path: Path) -> tuple[int, int]:
    """(frames the file holds, milliseconds it runs)."""
    with Image.open(path) as image:
        n, total = getattr(image, "n_frames", 1), 0
        for i in range(n):
            image.seek(i)
            image.load()  # a WebP tells a frame's time only then
            total += round(image.info.get("duration", 0))
    return n, total
