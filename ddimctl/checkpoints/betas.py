"""The noise schedules that checkpoints name: functions of (T, first β, last β) to the list of β."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ddimctl.errors import FileError
from ddimctl.schedule import Schedule, linear_betas

MAX_T = 100_000
ZERO_SNR_SIGMA = 1e4  # what stands for σ = ∞: above the 2254 before it, and low enough for float32's digits


def scaled_linear(T: int, start: float, end: float) -> list[float]:
    """√β rises linearly (latent diffusion); ermongroup/ddim call it quad."""
    return [b * b for b in linear_betas(T, math.sqrt(start), math.sqrt(end))]


def cosine(T: int, start: float, end: float) -> list[float]:
    """Nichol and Dhariwal 2021, eq. 17: ᾱ is a squared cosine and β at most 0.999. `start` and `end` play no part."""
    bar = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    return [min(1 - q / p, 0.999) for p, q in zip(bar, bar[1:], strict=False)]


def sigmoid(T: int, start: float, end: float) -> list[float]:
    """β rises as a logistic function from −6 to 6 (GeoDiff)."""
    return [start + (end - start) / (1 + math.exp(-x)) for x in linear_betas(T, -6.0, 6.0)]


def schedule(kind: Any, T: Any = 1000, start: Any = 1e-4, *, end: Any = 0.02) -> Schedule:
    """The schedule of that name, from values out of a file. Raises `FileError` if they make no sense."""
    if not isinstance(kind, str) or kind not in BETAS:
        raise FileError(f"the schedule {kind!r} is not implemented", hint=f"known: {', '.join(BETAS)}")
    if not isinstance(T, int) or isinstance(T, bool) or not 1 <= T <= MAX_T:
        raise FileError(f"a schedule of {T!r} levels makes no sense", hint=f"1 to {MAX_T} are possible")
    if not all(isinstance(b, int | float) and 0 < b < 1 for b in (start, end)):
        raise FileError(f"a schedule from β = {start!r} to {end!r} makes no sense")
    return checked(BETAS[kind](T, float(start), float(end)))


def checked(betas: list[float]) -> Schedule:
    """`Schedule.from_betas`. Raises `FileError` where it refuses."""
    try:
        return Schedule.from_betas(betas)
    except (TypeError, ValueError) as e:
        raise FileError(f"the checkpoint's schedule makes no sense: {e}") from e


def zero_snr(schedule: Schedule) -> Schedule:
    """The same with √α moved and stretched so that α_T = 0 (Lin et al. 2024, algorithm 1). Raises `FileError` where it is
    no schedule then."""
    roots = [math.sqrt(a) for a in schedule.alpha[1:]]
    first, last = roots[0], roots[-1]
    inner = [((r - last) * first / (first - last)) ** 2 for r in roots[:-1]] if first > last else []
    try:
        return Schedule((1.0, *inner, 1 / (1 + ZERO_SNR_SIGMA**2)), endless=True)
    except ValueError as e:
        raise FileError(f"the checkpoint's schedule makes no sense with zero final SNR: {e}") from e


BETAS: dict[str, Callable[[int, float, float], list[float]]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": cosine,
    "sigmoid": sigmoid,
}
