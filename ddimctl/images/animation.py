"""Frames → GIF, WebP, APNG, MP4, a folder of PNG, or a strip; and how many frames a file really holds.

GIF and WebP writers merge identical neighbouring frames into one that is shown longer; the time shown in all stays
right. Only a WebP of nothing but identical frames becomes a still picture, without a time. GIF counts in steps of 10 ms,
WebP and APNG in 1 ms: where 1/fps is none of these, some frames are shown one step longer than others, and the whole
runs N/fps to within half a step.
"""

from __future__ import annotations

import importlib.util
import io
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import make_folder, write_bytes
from ddimctl.images.formats import check_side
from ddimctl.images.sheets import sheet, sheet_size
from ddimctl.images.writing import as_image, save_image

ANIMATED = (".gif", ".webp", ".apng", ".mp4")
MERGING = (".gif", ".webp")
STILL = (".png", ".jpg", ".jpeg")
VIDEO_HINT = "install it with: pip install 'ddimctl[video]'"


def check_target(path: Path) -> None:
    """Raises `UsageError` if `path` names nothing that frames can be written to, before any work is done."""
    suffix = path.suffix.lower()
    if suffix == ".mp4" and not any(importlib.util.find_spec(m) for m in ("av", "imageio_ffmpeg")):
        raise UsageError("writing .mp4 needs the extra 'video'", hint=VIDEO_HINT)
    if suffix and suffix not in ANIMATED + STILL:
        known = " ".join(ANIMATED + STILL)
        raise UsageError(f"{path} has no suffix that frames can be written to", hint=f"{known}, or a folder")


def check_frames(path: Path, n: int, height: int, width: int) -> None:
    """Raises `UsageError` if `path` cannot hold `n` frames of that size."""
    strip = path.suffix.lower() in STILL
    check_side(path, *(sheet_size(n, (height, width), n) if strip else (height, width)))


def save_frames(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (N, H, W, C): an animation, a strip (``.png``), or, without a suffix, a folder of PNG files."""
    check_target(path)
    check_frames(path, *frames.shape[:3])
    suffix = path.suffix.lower()
    if not suffix:
        make_folder(path)
        width = len(str(len(frames) - 1))
        for i, frame in enumerate(frames):
            save_image(path / f"frame-{i:0{width}}.png", frame)
    elif suffix in STILL:
        save_image(path, sheet(frames, columns=len(frames)))
    elif suffix == ".mp4":
        _save_mp4(path, frames, fps)
    else:
        pictures = [as_image(f) for f in frames]
        format_ = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[suffix]
        extra: dict[str, Any] = {"WEBP": {"lossless": True}}.get(format_, {})
        if format_ == "PNG":  # opaque frames look the same under both rules, and frames of different rules stay apart
            extra = {"blend": [i % 2 for i in range(len(frames))]}
        if format_ != "GIF":
            pictures = [p.convert("RGB") for p in pictures]
        times = durations(len(frames), fps, 10 if format_ == "GIF" else 1)
        out = io.BytesIO()
        try:
            pictures[0].save(out, format_, save_all=True, append_images=pictures[1:], duration=times, loop=0, **extra)
        except OverflowError as e:  # identical frames, merged
            raise DDIMError(
                f"cannot write {path}: a frame would be shown for too long", hint="choose more --fps, or .apng"
            ) from e
        except (OSError, ValueError, RuntimeError, struct.error) as e:  # each format has its own
            raise DDIMError(f"cannot write {path}: {e}") from e
        write_bytes(path, out.getvalue())


def durations(n: int, fps: float, step: int) -> list[int]:
    """How long each of `n` frames is shown, in ms: multiples of `step`, at least one, as even as they can be."""
    ends = [max(round(i * 1000 / fps / step), i) * step for i in range(n + 1)]
    return [b - a for a, b in pairwise(ends)]


def count_frames(path: Path) -> tuple[int, int]:
    """(frames the file holds, milliseconds it runs)."""
    with Image.open(path) as image:
        n, total = getattr(image, "n_frames", 1), 0
        for i in range(n):
            image.seek(i)
            image.load()  # a WebP tells a frame's time only then
            total += round(image.info.get("duration", 0))
    return n, total


def _save_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio.v3 as iio

    # H.264 wants even sides and colour.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    # To memory first: the plugins choose the container by the name, and a temporary file has another suffix.
    try:
        if importlib.util.find_spec("av"):
            data = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=fps)
        else:
            data = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, macro_block_size=2)
    except (ImportError, OSError, RuntimeError, ValueError) as e:
        raise DDIMError(f"cannot write {path}: {e}", hint=VIDEO_HINT) from e
    write_bytes(path, data)
