"""The library as a notebook uses it: `encode` and `decode` with the ways of a way by name, `save` and `open`.

The same as `ode` underneath; what is said of wrong arrays is in the words of who brings images, and what was encoded here
knows how, so that it can be saved as a file that says how to decode it.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import ode
from ddimctl.arrays import Array, float32, is_tensor, to_numpy
from ddimctl.errors import UsageError
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import DEFAULT_BATCH, Origin, Solution
from ddimctl.recipe import Recipe, Way
from ddimctl.solvers import DEFAULT_SOLVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddimctl.dither import Dither
    from ddimctl.latent import Latent

PIXELS = "ddimctl.to_tensor makes numbers in −1 … 1 of 8-bit pixels (N, H, W, C)"


def encode(
    model: Model,
    images: Array,
    way: Way | None = None,
    condition: Condition = NOTHING,
    *,
    steps: int | None = None,
    solver: str | None = None,
    spacing: str | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> Solution:
    """Images (N, C, H, W) in [−1, 1] → x_T, in `.x`, an array of the same library in float64.

    `steps`, `solver` and `spacing` are taken instead of those of `way`; name the same to `decode`. Raises `UsageError` for
    images that are not the model's, and where it has no such way or condition.
    """
    way = _way(way, steps, solver, spacing=spacing)
    check_shape(images, model.image_shape, f"the model {model.name} takes images")
    solution = ode.encode(model, _as_taken(images, model), way, condition, batch_size=batch_size)
    return replace(solution, x=_as_given(solution.x, images), origin=Origin(model, way, condition))


def decode(
    model: Model,
    xT: Array | Latent,
    way: Way | None = None,
    condition: Condition = NOTHING,
    *,
    steps: int | None = None,
    solver: str | None = None,
    spacing: str | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> Solution:
    """x_T (N, C, H, W) → images in about [−1, 1], in `.x`, never clipped.

    A `Latent`, as `open` gives it, brings its way, the path that it keeps and its condition with it, where no other are
    named. Raises `UsageError` for latents that are not the model's, and where it has no such way.
    """
    dithers: Sequence[Dither | None] = ()
    corrections = None
    if hasattr(xT, "provenance"):
        recipe, about = xT.recipe, xT.provenance
        if recipe.model != model.digest:
            raise UsageError(f"the latent was encoded with another model ({about['model']['name']})")
        model = recipe.in_tiles(model)
        if all(asked is None for asked in (way, steps, solver, spacing)):
            corrections = xT.corrections
        way = replace(recipe.way, solver=about["decoder"], tolerance=None) if way is None else way
        condition = recipe.condition if condition == NOTHING else condition
        dithers, xT = xT.dithers, xT.xT
    check_shape(xT, model.state_shape, f"x_T of the model {model.name} is")
    way = _way(way, steps, solver, spacing=spacing)
    if corrections is not None:
        corrections = _as_taken(corrections, model)
    solution = ode.decode(
        model, _as_taken(xT, model), way, condition,
        dithers=dithers, corrections=corrections, batch_size=batch_size,
    )  # fmt: skip
    return replace(solution, x=_as_given(solution.x, xT))


def save(path: str | PathLike[str], what: Solution | Latent | Array) -> None:
    """Writes latents, or one image, as the suffix says, whole or not at all; what is there is written over.

    `.pt` and `.safetensors` take what `encode` gave, or a `Latent`; suffixes of images one image: (C, H, W) or
    (1, C, H, W) in [−1, 1], which are clipped, or what `decode` gave for one. Raises `UsageError` where they do not fit.
    """
    from ddimctl import latent

    path = Path(path)
    if path.suffix.lower() in latent.SUFFIXES:
        latent.save(path, what if isinstance(what, latent.Latent) else _latent(path, what))
        return
    from ddimctl.images import levels, writing

    x: Any = what.x if isinstance(what, Solution) else what
    if isinstance(what, latent.Latent) or getattr(what, "origin", None) is not None:
        raise UsageError(
            f"{path} is for an image, this is a latent", hint=f"use a suffix of {' '.join(latent.SUFFIXES)}"
        )
    if getattr(x, "ndim", 0) == 4 and len(x) == 1:
        x = x[0]
    if getattr(x, "ndim", 0) != 3:
        raise UsageError(f"{path} is for one image (C, H, W), not {_shape(x)}", hint="save x[0], x[1], … one by one")
    if not _is_float(x):
        raise UsageError(f"{path} wants numbers in −1 … 1, not {x.dtype}", hint=PIXELS)
    levels.check_finite(x, "that was asked")
    writing.save_image(path, levels.to_pixels(_tensor(x)))


def open(path: str | PathLike[str], model: Model | None = None) -> Any:
    """A `Latent` of a latent file; of an image file a tensor (1, C, H, W) in [−1, 1], made to fit `model`.

    Runs no code from the file. Raises `UsageError` if there is none, or no model for an image, `FileError` if it is damaged.
    """
    from ddimctl import latent

    path = Path(path)
    if path.suffix.lower() in latent.SUFFIXES:
        return latent.load(path)
    if model is None:
        raise UsageError(f"{path} is to be made to fit a model", hint="ddimctl.open(path, model)")
    from ddimctl.images import levels, reading

    pixels, _ = reading.read(path, model.channels, model.size)
    return levels.to_tensor(pixels[None])


def check_shape(x: Any, shape: tuple[int, int, int], whose: str) -> None:
    """Raises `UsageError` unless `x` is an array (N, *shape) of floats."""
    wanted = f"(N, {shape[0]}, {shape[1]}, {shape[2]})"
    found = _shape(x)
    if found is None:
        raise UsageError(f"{whose} {wanted}, not {type(x).__name__}", hint="as a torch tensor, or a numpy array")
    if found == shape:
        raise UsageError(f"{whose} {wanted}, this is a single one {found}", hint="x[None] makes a batch of it")
    if len(found) == 4 and (found[1:] == (*shape[1:], shape[0])) and found[1:] != shape:
        raise UsageError(f"{whose} {wanted}, these have the channels last: {found}", hint=PIXELS)
    if len(found) != 4 or found[1:] != shape:
        raise UsageError(f"{whose} {wanted}, not {found}", hint="ddimctl.open(path, model) makes an image fit a model")
    if not _is_float(x):
        raise UsageError(f"{whose} of numbers in −1 … 1, not of {x.dtype}", hint=PIXELS)


def _way(way: Way | None, steps: int | None, solver: str | None, *, spacing: str | None) -> Way:
    """The way with something else in it. Raises `UsageError` for a solver that there is not, or a tolerance for none."""
    way = (way or Way(solver or DEFAULT_SOLVER)).anew(steps=steps, solver=solver, spacing=spacing)
    way.check()
    return way


def _latent(path: Path, what: Any) -> Latent:
    """What `encode` gave, as a file holds it."""
    from ddimctl import latent

    origin = getattr(what, "origin", None)
    if origin is None:
        raise UsageError(
            f"{path} is for latents that know how they were made", hint="save what ddimctl.encode gave, not its x alone"
        )
    recipe = Recipe.of(origin.model, origin.way, origin.condition)
    records: list[dict[str, Any]] = [{"name": f"image {i}"} for i in range(len(what.x))]
    about = latent.provenance(origin.model, recipe, what, records=records)
    return latent.Latent(float32(what.x), about, what.corrections)


def _shape(x: Any) -> tuple[int, ...] | None:
    shape = getattr(x, "shape", None)
    return None if shape is None else tuple(shape)


def _is_float(x: Any) -> bool:
    return bool(x.is_floating_point()) if is_tensor(x) else x.dtype.kind == "f"


def _tensor(x: Array) -> Any:
    import torch

    return x if is_tensor(x) else torch.from_numpy(to_numpy(x))


def _as_taken(x: Array, model: Model) -> Array:
    """As the model's engine takes it."""
    return _tensor(x) if model.network.needs_torch else x


def _as_given(x: Array, like: Array) -> Array:
    """Of the library of what was given."""
    return x if is_tensor(like) else to_numpy(x)
