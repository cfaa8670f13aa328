"""The noise schedule: the one translator between the paper's α, the solvers' σ and the network's labels.

The paper's time runs t = 0 … T with α_0 = 1 (a clean image); its α_t is the cumulative product that most code calls
ᾱ_t. The solvers know only σ(t) = √((1−α_t)/α_t). The network was trained on the integer labels 0 … T−1, so paper time t
is label t−1. Everything here is Python floats: no torch, no numpy.

A *path* is a rising tuple of S+1 noise levels, so S steps along it. Read from the left it encodes, from the right it
decodes. Every path of a schedule ends at σ(T), so all its latents x_T are comparable.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul

from ddimctl.errors import UsageError, choose

RHO = 7.0  # Karras et al. 2022, eq. 5
DEFAULT_SPACING = "karras"
OF_SOLVERS = {"exact": "log"}  # where another spacing is better: each step is as hard as the others


def default_spacing(solver: str) -> str:
    """The spacing of a solver where none is named."""
    return OF_SOLVERS.get(solver, DEFAULT_SPACING)


def linear_betas(T: int, start: float, end: float) -> list[float]:
    """β_1 … β_T of DDPM (Ho et al. 2020), evenly spaced."""
    return [start + (end - start) * i / max(T - 1, 1) for i in range(T)]


@dataclass(frozen=True)
class Schedule:
    """`alpha[t]` for t = 0 … T: starts at 1, falls strictly, stays above 0.

    Raises `ValueError` where it does not.
    """

    alpha: tuple[float, ...]

    def __post_init__(self) -> None:
        a = self.alpha
        if len(a) < 2 or a[0] != 1.0 or not all(p > q > 0 for p, q in zip(a, a[1:], strict=False)):
            raise ValueError("alpha must start at 1, fall strictly and stay above 0 (is the final SNR zero?)")

    @classmethod
    def from_betas(cls, betas: Sequence[float]) -> Schedule:
        """α_t = ∏ (1 − β_s), s = 1 … t."""
        return cls(tuple(accumulate((1.0 - b for b in betas), mul, initial=1.0)))

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """DDPM's and the paper's: β rises linearly."""
        return cls.from_betas(linear_betas(T, beta_start, beta_end))

    @property
    def T(self) -> int:
        return len(self.alpha) - 1

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """σ(t) for t = 0 … T, rising from 0."""
        return tuple(math.sqrt((1.0 - a) / a) for a in self.alpha)

    @cached_property
    def _log_sigmas(self) -> tuple[float, ...]:
        return tuple(math.log(s) for s in self.sigmas[1:])

    def sigma(self, t: int) -> float:
        """σ(t) = √((1−α_t)/α_t), t = 0 … T."""
        if not 0 <= t <= self.T:
            raise ValueError(f"time {t} is outside 0 … {self.T}")
        return self.sigmas[t]

    def scale(self, sigma: float) -> float:
        """x̄/x_t = 1/√α = √(1+σ²)."""
        return math.sqrt(1.0 + sigma * sigma)

    def label(self, sigma: float) -> float:
        """The network's label for a noise level: linear in log σ between trained levels, exact at them.

        Levels below the first trained one, σ = 0 among them, have label 0. Raises `ValueError` below 0 and above σ(T).
        """
        if not 0 <= sigma <= self.sigmas[-1] * (1 + 1e-9):
            raise ValueError(f"noise level {sigma} is outside the schedule's 0 … {self.sigmas[-1]}")
        if sigma <= self.sigmas[1]:
            return 0.0
        if sigma >= self.sigmas[-1]:
            return float(self.T - 1)
        i = bisect_left(self.sigmas, sigma)  # sigmas[i-1] < sigma <= sigmas[i], and i >= 2
        if self.sigmas[i] == sigma:
            return float(i - 1)
        low, high = self._log_sigmas[i - 2], self._log_sigmas[i - 1]
        return i - 2 + (math.log(sigma) - low) / (high - low)

    def path(self, steps: int, spacing: str = DEFAULT_SPACING) -> tuple[float, ...]:
        """S+1 rising noise levels, so S steps; see `SPACINGS`. Raises `UsageError` unless 1 ≤ S ≤ T."""
        levels = choose(SPACINGS, spacing, "spacing")
        if not 1 <= steps <= self.T or (path := tuple(levels(self, steps)))[0] == path[-1]:
            raise UsageError(f"{steps} steps are not possible", hint=f"this model allows 1 to {self.T}")
        return path

    def until(self, sigma: float) -> Schedule:
        """The same up to a noise level, which is its last: its paths lead part of the way.

        Raises `UsageError` unless the level lies above σ(1), and no higher than σ(T).
        """
        if not self.sigmas[1] < sigma <= self.sigmas[-1] * (1 + 1e-9):
            raise UsageError(
                f"the noise level {sigma:g} is no part of the way",
                hint=f"this model's levels lie above {self.sigmas[1]:.3g}, up to {self.sigmas[-1]:.4g}",
            )
        t = bisect_left(self.sigmas, sigma)
        if t > self.T or self.sigmas[t] == sigma:
            return Schedule(self.alpha[: t + 1])
        return Schedule((*self.alpha[:t], 1 / (1 + sigma * sigma)))

    def sigma_of(self, strength: float) -> float:
        """The level at a share of the time, σ(strength · T): 1 is all the way. Raises `UsageError` unless 0 < it ≤ 1."""
        if not 0 < strength <= 1:
            raise UsageError(f"a strength lies above 0, and is at most 1, not {strength:g}")
        return self.sigmas[max(1, round(strength * self.T))]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the α, which names the schedule in latent files."""
        return hashlib.sha256(" ".join(a.hex() for a in self.alpha).encode()).hexdigest()


def linear(schedule: Schedule, steps: int) -> list[float]:
    """The paper's τ_i = ⌊i·T/S⌋, from the clean image (appendix D.2)."""
    return [schedule.sigma(i * schedule.T // steps) for i in range(steps + 1)]


def quadratic(schedule: Schedule, steps: int) -> list[float]:
    """The paper's τ_i = ⌊T·(i/S)²⌋, from the clean image; where two would coincide, the later one moves up."""
    tau = [0]
    for i in range(1, steps + 1):
        tau.append(max(schedule.T * i * i // (steps * steps), tau[-1] + 1))
    return [schedule.sigma(t) for t in tau]


def karras(schedule: Schedule, steps: int) -> list[float]:
    """σ^(1/7) evenly spaced from σ(1) to σ(T) (Karras et al. 2022, eq. 5).

    It starts at the lowest noise the network was trained on, invisible at 8 bits, and so has no singular last step.
    """
    return _even(schedule, steps, lambda sigma: sigma ** (1 / RHO), back=lambda u: u**RHO)


def log(schedule: Schedule, steps: int) -> list[float]:
    """log σ evenly spaced from σ(1) to σ(T): no step is much harder than another for the implicit solver `exact`."""
    return _even(schedule, steps, math.log, back=math.exp)


def arsinh(schedule: Schedule, steps: int) -> list[float]:
    """arsinh(10 σ) evenly spaced from σ(1) to σ(T): linear where noise is invisible, logarithmic beyond."""
    return _even(schedule, steps, lambda sigma: math.asinh(10 * sigma), back=lambda u: math.sinh(u) / 10)


def trailing(schedule: Schedule, steps: int) -> list[float]:
    """diffusers' timestep_spacing "trailing": T − i·T/S, rounded, down to σ(1), where Stable Diffusion's samplers end.

    Where the last of these is σ(1) itself the clean image follows it. Where S divides T, it is `linear` but for that end.
    """
    times = sorted(round(schedule.T - i * schedule.T / steps) for i in range(steps))
    return [schedule.sigma(1 if times[0] > 1 else 0), *map(schedule.sigma, times)]


def _even(
    schedule: Schedule, steps: int, to: Callable[[float], float], *, back: Callable[[float], float]
) -> list[float]:
    """Evenly spaced in to(σ), from σ(1) to σ(T); `back` is its inverse."""
    low, high = to(schedule.sigma(1)), to(schedule.sigma(schedule.T))
    inner = [back(low + (high - low) * i / steps) for i in range(1, steps)]
    return [schedule.sigma(1), *inner, schedule.sigma(schedule.T)]


SPACINGS: dict[str, Callable[[Schedule, int], list[float]]] = {
    "karras": karras,
    "linear": linear,
    "quadratic": quadratic,
    "log": log,
    "arsinh": arsinh,
    "trailing": trailing,
}
