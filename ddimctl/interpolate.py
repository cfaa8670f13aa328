"""Interpolation between latents: slerp (appendix D.5), paths through any number of keyframes, 2-D grids.

High-dimensional Gaussian noise lies near a sphere; a straight line between two latents leaves it (its middle has norm
√½ of the ends') and decodes to something grey. Slerp follows the great circle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddimctl.errors import DDIMError, UsageError


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


Interpolant = Callable[[Tensor, Tensor, float], Tensor]
INTERPOLANTS: dict[str, Interpolant] = {"slerp": slerp, "lerp": lerp}


def weights(frames: int, ease: bool = False, end: bool = True) -> list[float]:
    """`frames` values rising from 0 to 1 (short of 1 without `end`); with `ease`, slow at both ends (smoothstep)."""
    n = frames - 1 if end else frames
    linear = [i / n for i in range(frames)] if n else [0.0]
    return [w * w * (3 - 2 * w) for w in linear] if ease else linear


def keyframes(
    latents: Sequence[Tensor], frames: int, loop: bool = False, ease: bool = False, interpolant: Interpolant = slerp
) -> Tensor:
    """`frames` latents (frames, …) along a path through all of `latents`, as evenly spread over its legs as possible.

    The path starts at the first and ends at the last latent, both among the frames; with `loop` it goes on to the first
    again, which is not repeated. Raises `UsageError` if the frames are too few to meet every latent.
    """
    if len(latents) < 2:
        raise UsageError("interpolation needs at least two latents")
    stops = [*latents, latents[0]] if loop else list(latents)
    legs = len(stops) - 1
    least = legs if loop else legs + 1
    if frames < least:
        raise UsageError(f"{frames} frames cannot show {len(latents)} latents", hint=f"--frames {least} or more")
    # Leg i holds the frames from its start up to, not including, its end; the last leg of an open path holds its end.
    moving = frames if loop else frames - 1
    bounds = [i * moving // legs for i in range(legs + 1)]
    out = []
    for i, (a, b) in enumerate(zip(stops, stops[1:], strict=False)):
        out += [interpolant(a, b, w) for w in weights(bounds[i + 1] - bounds[i], ease, end=False)]
    return torch.stack(out if loop else [*out, stops[-1]])


def grid(corners: Sequence[Tensor], rows: int, columns: int, interpolant: Interpolant = slerp) -> Tensor:
    """A slerp of slerps over four corners (appendix D.5): (rows · columns, …), row by row.

    The corners are upper left, upper right, lower left, lower right.
    """
    if len(corners) != 4:
        raise UsageError(f"a grid needs four corners, not {len(corners)}")
    if rows < 2 or columns < 2:
        raise UsageError("a grid has at least 2 rows and 2 columns")
    a, b, c, d = corners
    left, right = ([interpolant(p, q, w) for w in weights(rows)] for p, q in ((a, c), (b, d)))
    return torch.stack([interpolant(p, q, w) for p, q in zip(left, right, strict=True) for w in weights(columns)])
