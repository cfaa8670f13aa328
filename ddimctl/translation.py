"""Translation: encoded as one thing, decoded as another (dual diffusion implicit bridges, Su et al. 2023).

A side is a model under a condition: a class, a prompt, or another model altogether. All x_T of models with the same state
shape are noise of the same kind, so what one side encoded another may decode; what the two have in common stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ddimctl import ode
from ddimctl.arrays import Array, float32
from ddimctl.errors import FileError
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import DEFAULT_BATCH, DEFAULT_WAY, Progress, Solution
from ddimctl.recipe import Way
from ddimctl.solvers import TOLERANCES, decoder


@dataclass(frozen=True)
class Side:
    """What an image is, or becomes."""

    model: Model
    condition: Condition = NOTHING


def check(source: Side, target: Side) -> None:
    """Raises `FileError` unless what one side encodes the other can decode, `UsageError` for what it cannot be asked."""
    a, b = source.model, target.model
    if (a.state_shape, a.image_shape) != (b.state_shape, b.image_shape):
        raise FileError(
            f"{a.name} has states {a.state_shape} of images {a.image_shape}, {b.name} {b.state_shape} of {b.image_shape}",
            hint="only models of the same shapes share their latents",
        )
    b.embed(target.condition)


def way_back(way: Way, source: Side, target: Side) -> Way:
    """How a target decodes what was encoded `way`: along its own levels, and by the path kept if it is the same model's."""
    solver, same = decoder(way.solver), source.model.digest == target.model.digest
    tolerance = way.tolerance if solver in TOLERANCES else None
    return replace(way, solver=solver, tolerance=tolerance, keep=way.keep if same else None)


def translate(
    source: Side,
    images: Array,
    targets: Sequence[Side],
    *,
    way: Way = DEFAULT_WAY,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
    each: Callable[[Side, Array], None],
) -> Solution:
    """Encodes images (N, C, H, W) as `source`, and gives what each target decodes to `each`. Raises as `check`.

    Where `way` keeps its path and a target is the same model, that is direct inversion.
    """
    for target in targets:
        check(source, target)
    encoded = ode.encode(source.model, images, way, source.condition, batch_size=batch_size, progress=progress)
    xT = float32(encoded.x)
    for target in targets:
        back = way_back(way, source, target)
        kept = encoded.corrections if back.keep is not None else None
        decoded = ode.decode(
            target.model, xT, back, target.condition, corrections=kept, batch_size=batch_size, progress=progress
        )
        each(target, decoded.x)
    return encoded
