"""What the explicit multistep methods are: Adams and Bashforth's, exponential, in log σ and √(1−α), with parts of each.

All are one recurrence, x̄_t = x̄_s + h ε_s + a (ε_s − ε_r) + b (ε_r − ε_q), through the last levels q, r, s; what a method is
lies in the weights h, a and b, which levels and parts alone decide. `solvers.march` runs it. Python floats, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Step = tuple[float, float, float | None]  # (h, a, b); b is None where there is no third level yet, or none is used
MIXING = {"ab2": 1, "ab3": 2}  # the solvers that take parts for each step, and how many


def weights(path: Sequence[float], mix: Sequence[float] = (), *, order: int = 2) -> list[Step]:
    """(h, a, b) of every step along `path`, rising or falling.

    `mix` is of the rising path: for each step the part of √(1−α) in the second order (see `slope`), then, with `order` 3,
    the part of the third (see `bend`). Without it there is log σ alone, and all of the third order. Raises `ValueError` for
    another number of parts.
    """
    steps = max(len(path) - 1, 0)
    parts, thirds = split(mix, steps, order=order)
    if path and path[-1] < path[0]:
        parts, thirds = parts[::-1], thirds[::-1]
    out: list[Step] = []
    for k, (s, t) in enumerate(pairwise(path)):
        a: float = 0.0
        b: float | None = None
        if k:
            a = slope(path[k - 1], s, t, part=parts[k])
        if k > 1 and order > 2:
            q, r = path[k - 2], path[k - 1]
            more, b = bend(q, r, s, t=t)
            a, b = a + thirds[k] * more, thirds[k] * b
        out.append((t - s, a, b))
    return out


def split(mix: Sequence[float], steps: int, *, order: int) -> tuple[list[float], list[float]]:
    """The parts of √(1−α) and those of the third order. Raises `ValueError` where they do not fit so many steps."""
    if not mix:
        return [0.0] * steps, [1.0] * steps
    if len(mix) != steps * (order - 1):
        raise ValueError(f"{len(mix)} parts do not fit {steps} steps of order {order}: too few, or too many")
    return list(mix[:steps]), list(mix[steps:])


def slope(r: float, s: float, t: float, *, part: float) -> float:
    """What ε_s − ε_r counts for from s to t: ∫_s^t (f(σ)−f(s)) dσ / (f(s)−f(r)), f = √(1−α) for that part, log for the rest.

    From or to σ = 0, where log 0 = −∞ leaves no slope, log counts for nothing, and any part of √(1−α) is the whole.
    """
    R, S, T = math.sqrt(1 + r * r), math.sqrt(1 + s * s), math.sqrt(1 + t * t)
    in_sine = (T - S - (t - s) * s / S) / (s / S - r / R) if part else 0.0
    return part * in_sine + (1 - part) * integral_log(s, t) / math.log(s / r) if r > 0 and s > 0 else in_sine


def bend(q: float, r: float, s: float, *, t: float) -> tuple[float, float]:
    """What ε_s − ε_r and ε_r − ε_q count for in the third order: the parabola's share in log σ, u, through three levels.

    ε[s, r, q] ∫_s^t (u−u_s)(u−u_r) dσ, with Newton's divided difference of ε. Nothing where one of the levels is 0.
    """
    if min(q, r, s) <= 0:
        return 0.0, 0.0
    far, near = math.log(s / q), math.log(s / r)
    area = (integral_square(s, t) + near * integral_log(s, t)) / far
    return area / near, -area / math.log(r / q)


def integral_log(s: float, t: float) -> float:
    """∫_s^t log(σ/s) dσ for s > 0, t ≥ 0."""
    return (t * math.log(t / s) if t > 0 else 0.0) - (t - s)


def integral_square(s: float, t: float) -> float:
    """∫_s^t log(σ/s)² dσ for s > 0, t ≥ 0."""
    u = math.log(t / s) if t > 0 else 0.0
    return t * (u * u - 2 * u) + 2 * (t - s)
