"""Frames → GIF, WebP, APNG, MP4, a folder of PNG, or a strip; and how many frames a file really holds.

GIF, WebP and APNG writers merge identical neighbouring frames into one that is shown longer, and GIF rounds times to
10 ms; the time shown stays right.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import atomic_file, atomic_path, make_folder
from ddimctl.images import as_image, save_image, sheet

ANIMATED = (".gif", ".webp", ".apng", ".mp4")
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


def save_frames(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (N, H, W, C): an animation, a strip (``.png``), or, without a suffix, a folder of PNG files."""
    check_target(path)
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
        extra = {"lossless": True} if format_ == "WEBP" else {}
        if format_ != "GIF":
            pictures = [p.convert("RGB") for p in pictures]
        with atomic_file(path) as f:
            pictures[0].save(
                f, format_, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **extra
            )


def count_frames(path: Path) -> tuple[int, int]:
    """(frames the file holds, milliseconds it runs)."""
    with Image.open(path) as image:
        n, total = getattr(image, "n_frames", 1), 0
        for i in range(n):
            image.seek(i)
            total += int(image.info.get("duration", 0))
    return n, total


def _save_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio.v3 as iio

    # H.264 wants even sides and colour.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    if frames.shape[-1] == 1:
        frames = frames.repeat(3, axis=-1)
    with atomic_path(path) as temporary:
        try:
            plugin = "pyav" if importlib.util.find_spec("av") else "FFMPEG"
            if plugin == "pyav":
                iio.imwrite(temporary, frames, extension=".mp4", plugin=plugin, codec="libx264", fps=fps)
            else:
                iio.imwrite(temporary, frames, extension=".mp4", plugin=plugin, fps=fps, macro_block_size=2)
        except (ImportError, RuntimeError, ValueError) as e:
            raise DDIMError(f"cannot write {path}: {e}", hint=VIDEO_HINT) from e
