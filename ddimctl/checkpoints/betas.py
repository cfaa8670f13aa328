"""The noise schedules that checkpoints name: functions of (T, first β, last β) to the list of β."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any

from ddimctl.errors import FileError
from ddimctl.schedule import Schedule, linear_betas

MAX_T = 100_000
ZERO_SNR_SIGMA = (
    1e4  # what stands for σ = ∞: above Stable Diffusion's 2254 before it, and low enough for float32's digits
)
ABOVE = 4.0  # times the level before it, at least


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


def listed(kind: Any, T: Any = 1000, start: Any = 1e-4, *, end: Any = 0.02) -> list[float]:
    """The β of the schedule of that name, from values out of a file. Raises `FileError` if they make no sense."""
    kind = ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in BETAS:
        raise FileError(f"the schedule {kind!r} is not implemented", hint=f"known: {', '.join((*BETAS, *ALIASES))}")
    if not isinstance(T, int) or isinstance(T, bool) or not 1 <= T <= MAX_T:
        raise FileError(f"a schedule of {T!r} levels makes no sense", hint=f"1 to {MAX_T} are possible")
    if not all(isinstance(b, int | float) and 0 < b < 1 for b in (start, end)):
        raise FileError(f"a schedule from β = {start!r} to {end!r} makes no sense")
    return BETAS[kind](T, float(start), float(end))


def schedule(betas: list[float], *, prediction: str = "epsilon", zero_snr: bool = False) -> Schedule:
    """The schedule of these β; `zero_snr` rescales them to end in noise alone, where β_T = 1 ends too.

    Raises `FileError` if they make no sense, or end there and the network predicts ε, which says nothing of the image then.
    """
    try:
        ends = zero_snr or (len(betas) > 1 and betas[-1] == 1)
        if ends and prediction == "epsilon":
            raise FileError(
                "the schedule has zero terminal SNR (rescale_betas_zero_snr): its σ(T) is infinite, where ε says nothing",
                hint="networks for such schedules predict v or sample; is prediction_type right?",
            )
        if not ends:
            return Schedule.from_betas(betas)
        alpha = list(accumulate((1.0 - b for b in betas), mul, initial=1.0))
        return endless(rescaled(alpha) if zero_snr else alpha)
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise FileError(f"the checkpoint's schedule makes no sense: {e}") from e


def rescaled(alpha: list[float]) -> list[float]:
    """√α moved and stretched so that α_T = 0 (Lin et al. 2024, algorithm 1)."""
    first, last = math.sqrt(alpha[1]), math.sqrt(alpha[-1])
    return [alpha[0], *(((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in alpha[1:])]


def endless(alpha: list[float]) -> Schedule:
    """The schedule of these α, whose last is 0 and gets what stands for it: x_T differs by 1/σ(T). Raises `ValueError`."""
    before = math.sqrt((1 - alpha[-2]) / alpha[-2])
    return Schedule((*alpha[:-1], 1 / (1 + max(ZERO_SNR_SIGMA, ABOVE * before) ** 2)), endless=True)


def listed_alphas(alphas: list[float]) -> Schedule:
    """The schedule of these α, from the first noise level on. Raises `FileError` if they do not fall."""
    try:
        whole = [1.0, *(float(a) for a in alphas)]
        return endless(whole) if whole[-1] == 0 else Schedule(tuple(whole))
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise FileError(f"the checkpoint's schedule makes no sense: {e}") from e


BETAS: dict[str, Callable[[int, float, float], list[float]]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear,
    "squaredcos_cap_v2": cosine,
    "sigmoid": sigmoid,
}
# Other repositories' names of the same.
ALIASES = {"cosine": "squaredcos_cap_v2", "quad": "scaled_linear"}
