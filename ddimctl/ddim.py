"""Encode, decode, reconstruct: one loop over one list of noise levels, read in opposite orders.

In x̄ = x_t/√α_t and σ, DDIM is Euler's method on dx̄ = ε(x̄, σ) dσ (eq. 13 and 14). `integrate` knows nothing else:
no model, no torch, no direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ddimctl.errors import UsageError, choose
from ddimctl.solvers import DEFAULT_SOLVER, SOLVERS, TOLERANCES, Array, Convergence, Eps, Solver

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddimctl.model import Model

Progress = Callable[[Iterable[Array]], Iterable[Array]]  # wraps the iterator over the steps of a batch, to show it
DEFAULT_STEPS = 20
DEFAULT_BATCH = 64


@dataclass(frozen=True)
class Check:
    """How an image came back when its float32 x_T was decoded with plain DDIM."""

    wrong: int  # 8-bit values that differ
    where: list[tuple[int, int, int, float]]  # the worst of them: channel, row, column, by how many levels
    worst: float  # the largest difference, in 8-bit levels, before rounding
    tolerance: float  # that `exact` was given


@dataclass(frozen=True)
class Solution:
    """What an integration came to: x, and for each image its cost and, from iterative solvers, how well it converged."""

    x: Array  # (B, …) float64: x̄ from `integrate`, x_T from `encode`, images from `decode`
    evaluations: list[int]  # of the network, for each image
    residuals: list[float] | None = None  # the largest of each image's implicit steps or error estimates, relative
    tolerance: float | None = None
    checks: list[Check] | None = None  # from `lossless.encode`

    @property
    def mean_evaluations(self) -> float:
        return sum(self.evaluations) / max(len(self.evaluations), 1)

    @property
    def unconverged(self) -> list[int]:
        """The images whose residual is above the tolerance."""
        if self.residuals is None or self.tolerance is None:
            return []
        return [i for i, r in enumerate(self.residuals) if not r <= self.tolerance]

    def select(self, images: Sequence[int]) -> Solution:
        """The part of it for some of the images."""
        return Solution(
            self.x[list(images)],
            [self.evaluations[i] for i in images],
            None if self.residuals is None else [self.residuals[i] for i in images],
            self.tolerance,
            None if self.checks is None else [self.checks[i] for i in images],
        )


def integrate(
    eps: Eps,
    xbar: Array,
    path: Sequence[float],
    solver: str = DEFAULT_SOLVER,
    tolerance: float | None = None,
    progress: Progress = iter,
) -> Solution:
    """Solves dx̄ = ε(x̄, σ) dσ along `path` from x̄ at its start: rising levels encode, falling levels decode.

    `tolerance` is for the iterative solvers (see `TOLERANCES`). Raises `UsageError` for an unknown solver, or a tolerance
    that it has no use for.
    """
    solve, tolerance = bind(solver, tolerance)
    calls, result = 0, None

    def counted(x: Array, sigma: float | Sequence[float]) -> Array:
        nonlocal calls
        calls += 1
        return eps(x, sigma)

    def steps() -> Generator[Array, None, None]:
        nonlocal result
        result = yield from solve(counted, xbar, path)

    for state in progress(steps()):
        xbar = state
    if not isinstance(result, Convergence):  # an explicit solver: every call was for every image
        return Solution(xbar, [calls] * len(xbar))
    return Solution(xbar, result.evaluations, result.residuals, tolerance)


def bind(solver: str, tolerance: float | None) -> tuple[Solver, float | None]:
    """The solver of that name with its tolerance (its own default where none is given), and that tolerance."""
    solve = choose(SOLVERS, solver, "solver")
    if solver not in TOLERANCES:
        if tolerance is not None:
            raise UsageError(f"the solver {solver} takes no tolerance", hint=f"these do: {', '.join(TOLERANCES)}")
        return solve, None
    tolerance = TOLERANCES[solver] if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise UsageError(f"a tolerance of {tolerance:g} makes no sense", hint="give one between 0 and 1")
    iterative: Any = solve
    return partial(iterative, tolerance=tolerance), tolerance


def encode(
    model: Model,
    images: Array,
    path: Sequence[float] | None = None,
    solver: str = DEFAULT_SOLVER,
    tolerance: float | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """Images (N, C, H, W) in [−1, 1] → x_T, an array of the same library in float64.

    `path` rises (default: ``model.schedule.path(20)``); its first level counts as clean.
    """
    path = model.schedule.path(DEFAULT_STEPS) if path is None else path
    return _in_batches(model, images, 1.0, path, 1 / _scale(path), solver, tolerance, batch_size, progress)


def decode(
    model: Model,
    xT: Array,
    path: Sequence[float] | None = None,
    solver: str = DEFAULT_SOLVER,
    tolerance: float | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """x_T (N, C, H, W) → images in about [−1, 1], never clipped. `path` is the rising one that encodes."""
    path = model.schedule.path(DEFAULT_STEPS) if path is None else path
    return _in_batches(model, xT, _scale(path), path[::-1], 1.0, solver, tolerance, batch_size, progress)


def _scale(path: Sequence[float]) -> float:
    """x̄/x_t = √(1 + σ²) at the noisy end."""
    return math.sqrt(1 + path[-1] ** 2)


def _in_batches(
    model: Model,
    x: Array,
    before: float,
    path: Sequence[float],
    after: float,
    solver: str,
    tolerance: float | None,
    batch_size: int,
    progress: Progress,
) -> Solution:
    xs: list[Any] = []
    evaluations: list[int] = []
    residuals: list[float] = []
    used = bind(solver, tolerance)[1]
    for start in range(0, max(len(x), 1), batch_size):
        xbar = _state(x[start : start + batch_size], model) * before
        solution = integrate(model.eps, xbar, path, solver, tolerance, progress)
        xs.append(solution.x * after)
        evaluations += solution.evaluations
        residuals += solution.residuals or []
    return Solution(_joined(xs), evaluations, residuals or None, used)


def _state(x: Array, model: Model) -> Array:
    """x in float64, on the device where the state lives."""
    return x.to(model.state_device).double() if hasattr(x, "new_tensor") else x.astype("float64")


def _joined(parts: Sequence[Array]) -> Array:
    """One array of all parts."""
    if hasattr(parts[0], "new_tensor"):
        import torch

        return torch.cat(list(parts))
    import numpy as np

    return np.concatenate(parts)


def as_stored(x: Array) -> Array:
    """float32, what a latent file holds."""
    return x.float() if hasattr(x, "new_tensor") else x.astype("float32")


def noise(shape: Sequence[int], n: int, seed: int, first: int = 0) -> Tensor:
    """Draws number first … first+n−1 of x_T ~ N(0, I), (n, *shape) float32.

    Draw k of a seed is the same whatever n, batch or device.
    """
    return draw(shape, generators(n, seed, first))


def generators(n: int, seed: int, first: int = 0) -> list[torch.Generator]:
    """One random generator an image, on the CPU, for the images first … first+n−1 of a seed."""
    import torch

    return [torch.Generator().manual_seed(mix(seed, k)) for k in range(first, first + n)]


def draw(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """The next N(0, I) of each generator: (n, *shape) float32."""
    import torch

    out = torch.empty(len(generators), *shape)
    for x, generator in zip(out, generators, strict=True):
        torch.randn(tuple(shape), generator=generator, out=x)
    return out


def mix(seed: int, k: int) -> int:
    """One 63-bit generator seed out of two numbers (SplitMix64's finaliser), so that neighbours are unrelated."""
    z = (seed * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) % 2**64
    return (z ^ (z >> 31)) >> 1
