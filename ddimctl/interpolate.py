"""Interpolation between latents: slerp (appendix D.5), paths through any number of keyframes, 2-D grids.

High-dimensional Gaussian noise lies near a sphere; a straight line between two latents leaves it (its middle has norm
√½ of the ends') and decodes to something grey. Slerp follows the great circle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ddimctl.errors import DDIMError, UsageError
from ddimctl.motion import Place, counts, places, weights


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """sin((1−w)θ)/sin θ · a + sin(wθ)/sin θ · b, θ the angle between the flattened a and b (eq. 67).

    One latent each, any shape; float64 inside, the result has a's dtype. Where the two are parallel the limit is the
    straight line. Raises `DDIMError` where they are opposite: then no great circle is shorter than another.
    """
    u, v = a.double().flatten(), b.double().flatten()
    if u.norm() == 0 or v.norm() == 0:
        raise DDIMError("a latent of zeros has no direction to interpolate along")
    u, v = u / u.norm(), v / v.norm()
    # Kahan's formula: acos loses half its digits near 0 and π, this none.
    theta = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    if math.pi - theta < 1e-6:
        raise DDIMError("the two latents are exactly opposite: there is no shortest way between them")
    if theta < 1e-6:
        return lerp(a, b, w)
    s, t = math.sin((1 - w) * theta) / math.sin(theta), math.sin(w * theta) / math.sin(theta)
    return (s * a.double() + t * b.double()).to(a.dtype)


def lerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """(1−w) a + w b: for comparison."""
    return ((1 - w) * a.double() + w * b.double()).to(a.dtype)


def renorm(a: Tensor, b: Tensor, w: float) -> Tensor:
    """`slerp`, whose norm leaves that of the ends for that of noise, √d, which it has in the middle. The ends stay.

    Latents of real images are weaker than noise, and what lies between two of them decodes smoother than either.
    """
    between = slerp(a.double(), b.double(), w)
    strength = float(between.square().mean().sqrt())
    return (between * strength ** -math.sin(math.pi * w) if 0 < w < 1 else between).to(a.dtype)


Value = TypeVar("Value")
Between = Callable[[Value, Value, float], Value]
Interpolant = Between[Tensor]
INTERPOLANTS: dict[str, Interpolant] = {"slerp": slerp, "lerp": lerp, "renorm": renorm}


def along(
    latents: Sequence[Tensor], places: Sequence[Place], *, loop: bool = False, interpolant: Interpolant = slerp
) -> Tensor:
    """The latents at places on the path through all of `latents`, and with `loop` on to the first again."""
    return torch.stack(between(latents, places, loop=loop, interpolant=interpolant))


def between(
    values: Sequence[Value], places: Sequence[Place], *, loop: bool = False, interpolant: Between[Value]
) -> list[Value]:
    """`along` for anything that something lies between, such as what each latent is asked for."""
    stops = [*values, values[0]] if loop else list(values)
    return [stops[i + 1] if w == 1 else interpolant(stops[i], stops[i + 1], w) for i, w in places]


def keyframes(
    latents: Sequence[Tensor], frames: int, loop: bool = False, *, ease: bool = False, interpolant: Interpolant = slerp
) -> Tensor:
    """`frames` latents (frames, …) along a path through all of `latents`, as evenly spread over its legs as possible.

    The path starts at the first and ends at the last latent, both among the frames; with `loop` it goes on to the first
    again, which is not repeated. Raises `UsageError` if the frames are too few to meet every latent.
    """
    legs = legs_of(latents, loop)
    return along(
        latents, places(counts(frames, legs, loop=loop), loop=loop, ease=ease), loop=loop, interpolant=interpolant
    )


def legs_of(latents: Sequence[Tensor], loop: bool = False) -> int:
    """How many legs the path through latents has. Raises `UsageError` for fewer than two latents."""
    if len(latents) < 2:
        raise UsageError("interpolation needs at least two latents")
    return len(latents) if loop else len(latents) - 1


def within(corners: Sequence[Value], across: float, down: float, *, interpolant: Between[Value]) -> Value:
    """Over four corners, as a slerp of slerps (appendix D.5): so much of the way across, and of the way down.

    The corners are upper left, upper right, lower left, lower right.
    """
    if len(corners) != 4:
        raise UsageError(f"a grid needs four corners, not {len(corners)}")
    a, b, c, d = corners
    return interpolant(interpolant(a, c, down), interpolant(b, d, down), across)


def grid(corners: Sequence[Tensor], rows: int, columns: int, *, interpolant: Interpolant = slerp) -> Tensor:
    """The latents `within` four corners at evenly spaced places: (rows · columns, …), row by row."""
    return torch.stack(over_grid(corners, rows, columns, interpolant=interpolant))


def over_grid(corners: Sequence[Value], rows: int, columns: int, *, interpolant: Between[Value]) -> list[Value]:
    """`grid` for anything that something lies between."""
    if rows < 2 or columns < 2:
        raise UsageError("a grid has at least 2 rows and 2 columns")
    places = [(across, down) for down in weights(rows) for across in weights(columns)]
    return [within(corners, across, down, interpolant=interpolant) for across, down in places]
