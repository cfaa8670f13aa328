"""Quality against cost (section 5.1): sets of generated images, each made once and kept in a cache.

A set is one way to sample (`Setting`) and a number of images. It is kept in chunks, one file each: a JSON line (the
setting, the seconds it took, a SHA-256) and the 8-bit pixels. Chunks are written whole or not at all, so a killed run
goes on where it was; one that is damaged, or is of something else, is made again; a larger set reuses a smaller one. The
engine is no part of a setting, since all compute the same: the seconds are those of whatever made a chunk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddimctl import sampling
from ddimctl.archives.binaries import read_idx
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import atomic_file, clean, make_folder, read_bytes, sha256
from ddimctl.images.datasets import find_images, load_dataset
from ddimctl.images.levels import to_pixels
from ddimctl.images.preprocessing import Preprocessing, describe
from ddimctl.images.reading import read
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import DEFAULT_BATCH, Progress
from ddimctl.recipe import Recipe
from ddimctl.sampling import Noising

CHUNK = 128  # images of a file: what a killed run loses at most
VERSION = 1


@dataclass(frozen=True)
class Setting:
    """One way to sample: a cell of the paper's table 1."""

    how: Noising
    seed: int = 0
    condition: Condition = NOTHING

    @property
    def steps(self) -> int:
        return self.how.way.steps

    @property
    def row(self) -> str:
        """Its name in the table."""
        return "σ̂" if self.how.sigma_hat else f"η = {self.how.eta:g}"


@dataclass(frozen=True)
class Generated:
    """The first n images of a setting, uint8 (n, C, H, W), the seconds they took, and how many were made just now."""

    pixels: Tensor
    seconds: float
    made: int


def identity(model: Model, setting: Setting) -> dict[str, Any]:
    """What decides which images a setting gives, as JSON knows it."""
    how = setting.how
    made = Recipe.of(model, how.way, setting.condition)
    further = {"tolerance": how.way.tolerance, "autoencoder": made.autoencoder, **made.record().get("condition", {})}
    return {
        "version": VERSION,
        "model": made.model,
        "schedule": made.schedule,
        "class": setting.condition.class_label,
        "dtype": made.dtype,
        "shape": list(model.image_shape),
        "path": [level.hex() for level in made.way.levels or ()],
        "eta": how.eta,
        "sigma_hat": how.sigma_hat,
        "steps": how.way.steps,
        "spacing": how.way.spacing,
        "solver": "eq. 12" if how.is_random else how.way.solver,
        "seed": setting.seed,
        **{k: v for k, v in further.items() if v is not None},
    }


def generate(
    model: Model,
    setting: Setting,
    n: int,
    *,
    cache: Path,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Generated:
    """The first n images of `setting`, from the cache as far as they are there. They are clipped to 8 bits, as in a file.

    Raises `DDIMError` where the system refuses to write, or if what the model gives is not finite.
    """
    same = identity(model, setting)
    folder = _folder(cache, same)
    make_folder(folder)
    clean(folder)
    chunks, seconds, made = [], 0.0, 0
    for first in range(0, n, CHUNK):
        wanted = min(CHUNK, n - first)
        file, about = folder / f"{first:08}.chunk", {**same, "first": first}
        pixels, took = _read(file, about, model.image_shape)
        if len(pixels) < wanted:
            begin = time.perf_counter()
            more = sampling.sample(
                model, wanted - len(pixels), setting.how, setting.condition, seed=setting.seed,
                first=first + len(pixels), batch_size=batch_size, progress=progress,
            )  # fmt: skip
            took += time.perf_counter() - begin
            if not torch.isfinite(more.x).all():
                raise DDIMError(f"the model {model.name} gives images that are not finite ({setting.row})")
            made += len(more.x)
            pixels = np.concatenate([pixels, np.moveaxis(to_pixels(more.x), -1, 1)])
            _write(file, about, pixels, seconds=took)
        chunks.append(torch.from_numpy(pixels[:wanted].copy()))
        seconds += took * wanted / len(pixels)
    return Generated(torch.cat(chunks), seconds, made)


def missing(model: Model, setting: Setting, n: int, *, cache: Path) -> Iterator[int]:
    """How many images each of the chunks lacks, that does: what `generate` would make."""
    same = identity(model, setting)
    for first in range(0, n, CHUNK):
        file = _folder(cache, same) / f"{first:08}.chunk"
        lacks = min(CHUNK, n - first) - len(_read(file, {**same, "first": first}, model.image_shape)[0])
        if lacks > 0:
            yield lacks


def reference_images(path: Path, model: Model) -> tuple[Tensor, str]:
    """The images of a folder or an IDX file as the model takes them, uint8 (N, C, H, W), made to fit as for its training;
    and what that did to the first of them, if anything."""
    images = load_dataset(path, model.channels, model.size)
    if path.is_dir():
        record = read(find_images(path)[0], model.channels, model.size, how=Preprocessing(frame=0))[1]
        return images, describe(record | {"frame": None})
    height, width = read_idx(path).shape[1:]
    done = [f"resampled to {model.size[1]} × {model.size[0]}"] if (height, width) != model.size else []
    done += ["grey to colour"] if model.channels != 1 else []
    return images, f"{width} × {height} IDX, {', '.join(done)}" if done else ""


def _folder(cache: Path, same: dict[str, Any]) -> Path:
    return cache / "samples" / sha256(json.dumps(same, sort_keys=True).encode())[:24]


def _write(path: Path, same: dict[str, Any], pixels: np.ndarray, *, seconds: float) -> None:
    data = np.ascontiguousarray(pixels).tobytes()
    head = {"setting": same, "images": len(pixels), "seconds": seconds, "sha256": sha256(data)}
    with atomic_file(path) as f:
        f.write(json.dumps(head).encode() + b"\n" + data)


def _read(path: Path, same: dict[str, Any], shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """(uint8 (k, C, H, W), seconds) of a chunk; none and 0 if there is no file, or not a whole one of this setting."""
    size = int(np.prod(shape))
    none = np.zeros((0, *shape), np.uint8)
    try:
        head, _, data = read_bytes(path, CHUNK * size + 1_000_000).partition(b"\n")
        about = json.loads(head)
        k, seconds = int(about["images"]), float(about["seconds"])
        whole = len(data) == k * size and sha256(data) == about["sha256"] and 0 <= seconds < float("inf")
        if about["setting"] != same or not whole:
            return none, 0.0
    except (UsageError, FileError, ValueError, KeyError, TypeError, RecursionError):
        return none, 0.0
    return np.frombuffer(data, np.uint8).reshape(k, *shape), seconds
