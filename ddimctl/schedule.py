"""The noise schedule: the one translator between the paper's α, the solvers' σ and the network's labels.

The paper's time runs t = 0 … T with α_0 = 1 (a clean image); its α_t is the cumulative product that most code calls
ᾱ_t. The solvers know only σ(t) = √((1−α_t)/α_t). The network was trained on the integer labels 0 … T−1, so paper time t
is label t−1. Everything here is Python floats: no torch, no numpy.

A *path* is a rising tuple of S+1 noise levels, so S steps along it. Read from the left it encodes, from the right it
decodes. Every path of a schedule ends at σ(T), so all its latents x_T are comparable; but for `leading`, which is
diffusers'.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from operator import mul
from typing import ClassVar

from ddimctl.errors import UsageError, choose
from ddimctl.tuned import OWN, PLAIN, Tuned, between

FLOW_SIGMA_MAX = 100.0  # t = 0.99: far above it what rounding and tolerances leave open is more than the image
MOST_SIGMA = 1e8
RHO = 7.0  # Karras et al. 2022, eq. 5
DEFAULT_SPACING = PLAIN
TUNED = OWN  # the spacing that is of a model, not of its schedule alone
OF_SOLVERS = {"exact": "log"}  # where another spacing is better: each step is as hard as the others
UNDER_GUIDANCE = {"exact": "guided"}  # likewise, where guidance leads beyond 0 … 1


def default_spacing(solver: str) -> str:
    """The spacing of a solver where none is named."""
    return OF_SOLVERS.get(solver, DEFAULT_SPACING)


def linear_betas(T: int, start: float, end: float) -> list[float]:
    """β_1 … β_T of DDPM (Ho et al. 2020), evenly spaced."""
    return [start + (end - start) * i / max(T - 1, 1) for i in range(T)]


@dataclass(frozen=True)
class Schedule:
    """`alpha[t]` for t = 0 … T: starts at 1, falls strictly, stays above 0.

    Where it is `endless`, α_T stands for 0 (zero terminal SNR), and σ(T) for ∞. `paths` are those that were tuned to the
    model whose schedule this is, and no part of what it is. Raises `ValueError` where α is otherwise.
    """

    alpha: tuple[float, ...]
    endless: bool = False
    paths: tuple[Tuned, ...] = field(default=(), compare=False, repr=False)

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

    @property
    def lowest(self) -> float:
        """Below this level the network is asked at it: it was trained on none below."""
        return self.sigmas[1]

    def up_to(self, sigma: float) -> Schedule:
        """The same with another σ for ∞. Raises `UsageError` where its end is what it was trained on."""
        if not self.endless:
            raise UsageError("the model's noise ends where it was trained to end", hint="leave --sigma-max away")
        if not self.sigmas[-2] < sigma <= MOST_SIGMA:
            hint = f"more than {self.sigmas[-2]:.4g}, and {MOST_SIGMA:g} at most"
            raise UsageError(f"--sigma-max {sigma:g} is not possible for this model", hint=hint)
        return Schedule((*self.alpha[:-1], 1 / (1 + sigma * sigma)), endless=True)

    def at(self, height: int, width: int) -> Schedule:
        """That of states of another size: the same."""
        return self

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
        """S+1 rising noise levels, so S steps; see `SPACINGS`. Raises `UsageError` unless 1 ≤ S ≤ T.

        The spacing `TUNED` is the model's own, and raises `UsageError` where it has none.
        """
        return _path(self, steps, spacing)

    def until(self, sigma: float) -> Schedule:
        """The same up to a noise level, which is its last: its paths lead part of the way. No tuned one does.

        Raises `UsageError` unless the level lies above σ(1), and no higher than σ(T).
        """
        if not self.sigmas[1] < sigma <= self.sigmas[-1] * (1 + 1e-9):
            raise UsageError(
                f"the noise level {sigma:g} is no part of the way",
                hint=f"this model's levels lie above {self.sigmas[1]:.3g}, up to {self.sigmas[-1]:.4g}",
            )
        t = bisect_left(self.sigmas, sigma)
        if t > self.T or self.sigmas[t] == sigma:
            return Schedule(self.alpha[: t + 1], self.endless and t >= self.T)
        return Schedule((*self.alpha[:t], 1 / (1 + sigma * sigma)))

    def sigma_of(self, strength: float) -> float:
        """The level at a share of the time, σ(strength · T): 1 is all the way. Raises `UsageError` unless 0 < it ≤ 1."""
        if not 0 < strength <= 1:
            raise UsageError(f"a strength lies above 0, and is at most 1, not {strength:g}")
        return self.sigmas[max(1, round(strength * self.T))]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the α, which names the schedule in latent files; what stands for 0 is not among them."""
        if self.endless:
            return hashlib.sha256(f"{' '.join(a.hex() for a in self.alpha[:-1])} 0".encode()).hexdigest()
        return hashlib.sha256(" ".join(a.hex() for a in self.alpha).encode()).hexdigest()


@dataclass(frozen=True)
class FlowSchedule:
    """Flow matching: x_t = (1−t) x_0 + t ε, 0 ≤ t ≤ 1, so σ = t/(1−t), x̄ = x_t/(1−t), and t is the network's label.

    t = 1 is σ = ∞; paths end at `sigma_max` instead. A `shift` multiplies σ and says where a path's levels lie, no more;
    where it grows with the image, ln shift = a·n + b for n patches: `growth` is (a, b, a patch's side).
    """

    shift: float = 1.0
    sigma_max: float = FLOW_SIGMA_MAX
    growth: tuple[float, float, int] | None = None
    paths: tuple[Tuned, ...] = field(default=(), compare=False, repr=False)  # as a `Schedule`'s
    T: ClassVar[int] = 1000  # as many levels have names
    endless: ClassVar[bool] = True
    lowest: ClassVar[float] = 0.0  # it was trained on all

    def sigma(self, t: int) -> float:
        """σ(t), t = 0 … T: before the shift evenly spaced in the flow's own time, from 0 to `sigma_max`."""
        if not 0 <= t <= self.T:
            raise ValueError(f"time {t} is outside 0 … {self.T}")
        if t == self.T:
            return self.sigma_max
        top = self.sigma_max / self.shift
        u = t / self.T * top / (1 + top)
        return self.shift * u / (1 - u)

    def scale(self, sigma: float) -> float:
        """x̄/x_t = 1/(1−t) = 1+σ."""
        return 1.0 + sigma

    def label(self, sigma: float) -> float:
        """t = σ/(1+σ). Raises `ValueError` below 0."""
        if not 0 <= sigma < math.inf:
            raise ValueError(f"there is no noise level {sigma}")
        return sigma / (1.0 + sigma)

    def path(self, steps: int, spacing: str = DEFAULT_SPACING) -> tuple[float, ...]:
        """As `Schedule.path`."""
        return _path(self, steps, spacing)

    def up_to(self, sigma: float) -> FlowSchedule:
        """The same with another end. Raises `UsageError` where that makes no sense."""
        if not 1 <= sigma <= MOST_SIGMA:
            raise UsageError(f"--sigma-max {sigma:g} is not possible for a flow", hint=f"1 to {MOST_SIGMA:g} are")
        return replace(self, sigma_max=float(sigma), paths=())

    def until(self, sigma: float) -> FlowSchedule:
        """As `Schedule.until`."""
        if not 0 < sigma <= self.sigma_max * (1 + 1e-9):
            hint = f"this model's levels lie above 0, up to {self.sigma_max:.4g}"
            raise UsageError(f"the noise level {sigma:g} is no part of the way", hint=hint)
        return replace(self, sigma_max=sigma, paths=())

    def sigma_of(self, strength: float) -> float:
        """As `Schedule.sigma_of`."""
        if not 0 < strength <= 1:
            raise UsageError(f"a strength lies above 0, and is at most 1, not {strength:g}")
        return self.sigma(max(1, round(strength * self.T)))

    def at(self, height: int, width: int) -> FlowSchedule:
        """That of states of another size."""
        if self.growth is None:
            return self
        a, b, patch = self.growth
        return replace(self, shift=math.exp(a * (height // patch) * (width // patch) + b))

    @property
    def digest(self) -> str:
        """What names it in latent files: neither its end nor its shift, as those write down their levels."""
        return hashlib.sha256(b"flow: sigma = t / (1 - t)").hexdigest()


Levels = Schedule | FlowSchedule


def _path(schedule: Levels, steps: int, spacing: str) -> tuple[float, ...]:
    levels = choose({**SPACINGS, TUNED: tuned}, spacing, "spacing")
    if not 1 <= steps <= schedule.T or (path := tuple(levels(schedule, steps)))[0] == path[-1]:
        raise UsageError(f"{steps} steps are not possible", hint=f"this model allows 1 to {schedule.T}")
    return path


def linear(schedule: Levels, steps: int) -> list[float]:
    """The paper's τ_i = ⌊i·T/S⌋, from the clean image (appendix D.2)."""
    return [schedule.sigma(i * schedule.T // steps) for i in range(steps + 1)]


def quadratic(schedule: Levels, steps: int) -> list[float]:
    """The paper's τ_i = ⌊T·(i/S)²⌋, from the clean image; where two would coincide, the later one moves up."""
    tau = [0]
    for i in range(1, steps + 1):
        tau.append(max(schedule.T * i * i // (steps * steps), tau[-1] + 1))
    return [schedule.sigma(t) for t in tau]


def karras(schedule: Levels, steps: int) -> list[float]:
    """σ^(1/7) evenly spaced from σ(1) to σ(T) (Karras et al. 2022, eq. 5).

    It starts at the lowest noise the network was trained on, invisible at 8 bits, and so has no singular last step.
    """
    return _even(schedule, steps, lambda sigma: sigma ** (1 / RHO), back=lambda u: u**RHO)


def log(schedule: Levels, steps: int) -> list[float]:
    """log σ evenly spaced from σ(1) to σ(T): no step is much harder than another for the implicit solver `exact`."""
    return _even(schedule, steps, math.log, back=math.exp)


def arsinh(schedule: Levels, steps: int) -> list[float]:
    """arsinh(10 σ) evenly spaced from σ(1) to σ(T): linear where noise is invisible, logarithmic beyond."""
    return _even(schedule, steps, lambda sigma: math.asinh(10 * sigma), back=lambda u: math.sinh(u) / 10)


def guided(schedule: Levels, steps: int) -> list[float]:
    """log σ + 6 √(1−α) evenly spaced from σ(1) to σ(T), √(1−α) = σ/√(1+σ²): `log` with steps a third as wide around
    σ = 0.7, where guidance makes DDIM's step fold (docs/inversion.md)."""

    def to(sigma: float) -> float:
        return math.log(sigma) + 6 * sigma / math.sqrt(1 + sigma * sigma)

    def back(u: float) -> float:
        low, high = u - 6, u  # of log σ
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if to(math.exp(middle)) < u else (low, middle)
        return math.exp(high)

    return _even(schedule, steps, to, back=back)


def trailing(schedule: Levels, steps: int) -> list[float]:
    """diffusers' timestep_spacing "trailing": T − i·T/S, rounded, down to σ(1), where Stable Diffusion's samplers end.

    Where the last of these is σ(1) itself the clean image follows it. Where S divides T, it is `linear` but for that end.
    A flow's are t = i/S, shifted, as Flux's pipeline has them, with its own end for t = 1.
    """
    if isinstance(schedule, FlowSchedule):
        levels = [schedule.shift * i / (steps - i) for i in range(steps)]
        if levels[-1] >= schedule.sigma_max:
            hint = f"such as --sigma-max {10 * levels[-1]:.0g}, or fewer steps, or another spacing"
            raise UsageError(f"{steps} trailing steps go beyond noise of {schedule.sigma_max:g}", hint=hint)
        return [*levels, schedule.sigma_max]
    times = sorted(round(schedule.T - i * schedule.T / steps) for i in range(steps))
    return [schedule.sigma(1 if times[0] > 1 else 0), *map(schedule.sigma, times)]


def leading(schedule: Levels, steps: int) -> list[float]:
    """diffusers' timestep_spacing "leading" with Stable Diffusion's steps_offset 1: labels 1 + i·⌊T/S⌋, from σ(1).

    It ends below σ(T): with S = 20 at label 951 of 999. And its second step is the widest of all, from label 1 to
    1 + ⌊T/S⌋, which at few steps no solver inverts: see docs/interop.md.
    """
    if isinstance(schedule, FlowSchedule):
        raise UsageError("a flow has no leading levels", hint="trailing are those that its pipelines take")
    apart = schedule.T // steps
    offset = 1 if apart > 1 else 0  # where every label is used there is none to leave out
    return [schedule.sigma(offset), *(schedule.sigma(1 + offset + i * apart) for i in range(steps))]


def tuned(schedule: Levels, steps: int) -> list[float]:
    """What was tuned to the model, or lies between: see `between`. Raises `UsageError` where nothing was."""
    if not schedule.paths:
        hint = "ddimctl tune makes one in the model's folder, for the whole way; or choose another spacing"
        raise UsageError("no path was tuned to this model", hint=hint)
    return list(between(schedule.paths, steps).levels)


def _even(schedule: Levels, steps: int, to: Callable[[float], float], *, back: Callable[[float], float]) -> list[float]:
    """Evenly spaced in to(σ), from σ(1) to σ(T); `back` is its inverse.

    Where σ(T) stands for zero terminal SNR the last step leaps there: from noise to noise alone nothing changes on the way.
    """
    top, leap = schedule.T, schedule.endless and isinstance(schedule, Schedule) and steps > 1
    if leap:
        steps, top = steps - 1, top - 1
    low, high = to(schedule.sigma(1)), to(schedule.sigma(top))
    inner = [back(low + (high - low) * i / steps) for i in range(1, steps)]
    return [schedule.sigma(1), *inner, schedule.sigma(top), *([schedule.sigma(schedule.T)] if leap else [])]


SPACINGS: dict[str, Callable[[Levels, int], list[float]]] = {
    "karras": karras,
    "linear": linear,
    "quadratic": quadratic,
    "log": log,
    "arsinh": arsinh,
    "guided": guided,
    "trailing": trailing,
    "leading": leading,
}
