"""Frames of an interpolation: x_T, what each is asked for, how much of each latent is in it; and each as a latent file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl import motion
from ddimctl.dither import Dither
from ddimctl.files import make_folder, refuse_existing
from ddimctl.interpolate import Interpolant, along, between, grid, over_grid
from ddimctl.model import Condition
from ddimctl.recipe import Recipe
from ddimctl.runs.work import Decoding

SUFFIX = ".safetensors"

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Frames:
    """What is decoded, frame by frame."""

    xT: Any  # (N, C, H, W)
    conditions: list[Condition]
    weights: list[Weights]  # of each latent in each frame

    @property
    def stops(self) -> dict[int, int]:
        """Which frames are a latent itself, and which one."""
        return {i: w.index(1.0) for i, w in enumerate(self.weights) if 1.0 in w}


def on_path(
    xT: Any, conditions: Sequence[Condition], places: Sequence[motion.Place], *, loop: bool, interpolant: Interpolant
) -> Frames:
    """Those at places on the path through all latents."""
    return Frames(
        along(list(xT), places, loop=loop, interpolant=interpolant),
        between(conditions, places, loop=loop, interpolant=Condition.toward),
        between(_each_alone(len(xT)), places, loop=loop, interpolant=_mean),
    )


def on_grid(xT: Any, conditions: Sequence[Condition], rows: int, *, columns: int, interpolant: Interpolant) -> Frames:
    """Those of a grid over four latents, row by row."""
    return Frames(
        grid(list(xT), rows, columns, interpolant=interpolant),
        over_grid(conditions, rows, columns, interpolant=Condition.toward),
        over_grid(_each_alone(len(xT)), rows, columns, interpolant=_mean),
    )


def _each_alone(n: int) -> list[Weights]:
    return [tuple(float(i == j) for j in range(n)) for i in range(n)]


def _mean(a: Weights, b: Weights, w: float) -> Weights:
    return tuple((1 - w) * x + w * y for x, y in zip(a, b, strict=True))


def paths(folder: Path, n: int) -> list[Path]:
    """The latents of n frames in a folder, named as their pictures are in one."""
    width = len(str(n - 1))
    return [folder / f"frame-{i:0{width}}{SUFFIX}" for i in range(n)]


def refuse(folder: Path, n: int, *, force: bool) -> None:
    """Raises `UsageError` where the latents of n frames cannot be written."""
    for path in paths(folder, n):
        refuse_existing(path, force, makes_folder=True)


def save(
    folder: Path,
    frames: Frames,
    decoding: Decoding,
    *,
    parents: Sequence[dict[str, Any]],
    dithers: Sequence[Dither | None] = (),
) -> list[Path]:
    """Writes each frame's latent, which decodes to that frame again; `parents` are `origin.parent` of each latent."""
    from ddimctl import latent
    from ddimctl.ode import Solution

    make_folder(folder)
    written = paths(folder, len(frames.xT))
    for i, path in enumerate(written):
        recipe = Recipe.of(decoding.model, decoding.way, frames.conditions[i])
        marks = [dithers[i]] if dithers and dithers[i] is not None else None
        solution = Solution(frames.xT[i : i + 1], [0], dithers=marks)
        about = latent.provenance(decoding.model, recipe, solution, records=[{"name": path.name}])
        made = [
            {"name": p["name"], "sha256": p.get("sha256", ""), "weight": w}
            for p, w in zip(parents, frames.weights[i], strict=True)
            if w
        ]
        about["made"] = {"operation": "interpolate", "parents": made, "difference": False}
        latent.save(path, latent.Latent(solution.x, about))
    return written
