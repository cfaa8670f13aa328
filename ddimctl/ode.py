"""Encode, decode, reconstruct: one loop over one list of noise levels, read in opposite orders.

In x̄ = x_t/√α_t and σ, DDIM is Euler's method on dx̄ = ε(x̄, σ) dσ (eq. 13 and 14). `integrate` knows nothing else:
no model, no torch, no direction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ddimctl import keeping, shown
from ddimctl.arrays import Array, concatenate, float32, float64, on
from ddimctl.dither import Dither, added, at
from ddimctl.errors import UsageError
from ddimctl.implicit import rms
from ddimctl.keeping import Keep, take
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Way
from ddimctl.solvers import DEFAULT_SOLVER, ORDINARY, Care, Convergence, Eps, Failure, bind, decoder

Progress = Callable[[Iterable[Array]], Iterable[Array]]  # wraps the iterator over the steps of a batch, to show it
DEFAULT_BATCH = 64
DEFAULT_WAY = Way()
LEVELS, STATE = "levels", "z"  # what a check counts
RETURNS = 1e-3  # relative error of a state that counts as having come back


@dataclass(frozen=True)
class Check:
    """How an image came back when its float32 x_T was decoded with plain DDIM; where there is an autoencoder, its state z.

    `unit` says what is counted: 8-bit levels; of z, parts of its root mean square.
    """

    wrong: int  # 8-bit values that differ; of z, values further off than `lossless.ROUNDING`
    where: list[tuple[int, int, int, float]]  # the worst of them: channel, row, column, by how much
    worst: float  # the largest difference, before rounding
    tolerance: float  # that `exact` was given
    unit: str = LEVELS

    def record(self) -> dict[str, Any]:
        """As it stands in a provenance."""
        return {k: v for k, v in asdict(self).items() if k != "unit" or v != LEVELS}


@dataclass(frozen=True)
class Origin:
    """How a latent was made, so that it can be saved: see `notebook.save`."""

    model: Model
    way: Way
    condition: Condition


@dataclass(frozen=True, repr=False)
class Solution:
    """What an integration came to: x, and for each image its cost and, from iterative solvers, how well it converged."""

    x: Array  # (B, …) float64: x̄ from `integrate`, x_T from `encode`, images from `decode`
    evaluations: list[int]  # of the network, for each image
    residuals: list[float] | None = None  # the largest of each image's implicit steps or error estimates, relative
    tolerance: float | None = None
    checks: list[Check] | None = None  # from `lossless.encode`
    failures: list[Failure | None] | None = None  # the first step of each image that `exact` could not invert
    returned: list[float] | None = None  # how far off the decoded state was, relative, where that was looked at
    corrections: Array | None = None  # (B, K + 1, …) of the path down, where that was kept: see `keeping`
    origin: Origin | None = None  # from `notebook.encode`
    dithers: list[Dither | None] | None = None  # what was added to the images before

    def __repr__(self) -> str:
        said = f"Solution({shown.shape(self.x)}, {self.mean_evaluations:.4g} evaluations an image"
        return f"{said}, {len(self.unconverged)} not converged)" if self.unconverged else f"{said})"

    def _repr_html_(self) -> str:
        """With the first images; of latents as far as noise reaches."""
        return shown.as_html(repr(self), shown.latents_as_images(self.x) if self.origin else self.x)

    @property
    def mean_evaluations(self) -> float:
        return sum(self.evaluations) / max(len(self.evaluations), 1)

    @property
    def unconverged(self) -> list[int]:
        """The images whose residual is above the tolerance."""
        if self.residuals is None or self.tolerance is None:
            return []
        return [i for i, r in enumerate(self.residuals) if not r <= self.tolerance]

    @property
    def lost(self) -> list[int]:
        """The images that were found not to come back."""
        return [i for i, error in enumerate(self.returned or []) if not error <= RETURNS]

    def select(self, images: Sequence[int]) -> Solution:
        """The part of it for some of the images."""
        return Solution(
            self.x[list(images)],
            [self.evaluations[i] for i in images],
            None if self.residuals is None else [self.residuals[i] for i in images],
            self.tolerance,
            None if self.checks is None else [self.checks[i] for i in images],
            None if self.failures is None else [self.failures[i] for i in images],
            None if self.returned is None else [self.returned[i] for i in images],
            None if self.corrections is None else self.corrections[list(images)],
            self.origin,
            None if self.dithers is None else [self.dithers[i] for i in images],
        )


def integrate(
    eps: Eps,
    xbar: Array,
    path: Sequence[float],
    solver: str = DEFAULT_SOLVER,
    *,
    tolerance: float | None = None,
    mix: Sequence[float] = (),
    care: Care = ORDINARY,
    progress: Progress = iter,
) -> Solution:
    """Solves dx̄ = ε(x̄, σ) dσ along `path` from x̄ at its start: rising levels encode, falling levels decode.

    `tolerance` is for the iterative solvers (see `TOLERANCES`), `mix` for `ab2` and `ab3`, `care` for `exact`. Raises
    `UsageError` for an unknown solver, or what it has no use for.
    """
    solve, tolerance = bind(solver, tolerance, mix)
    if care.near or care.sure:
        exact: Any = solve
        solve = partial(exact, care=care)
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
    return Solution(xbar, result.evaluations, result.residuals, tolerance, failures=result.failures)


def encode(
    model: Model,
    images: Array,
    way: Way = DEFAULT_WAY,
    condition: Condition = NOTHING,
    *,
    dithers: Sequence[Dither | None] = (),
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
    check: bool = True,
) -> Solution:
    """Images (N, C, H, W) in [−1, 1] → x_T, an array of the same library in float64.

    The lowest level of the way counts as clean; `dithers` is noise of that level, added before, for each image. With
    `exact` and guidance, unless not to `check`, x_T is decoded again to see that the states return: a small residual does
    not promise that where decoding magnifies it. Where `way` keeps its path, the corrections come with it. Raises
    `UsageError` where the model has no such way or condition.
    """
    way, eps = way.on(model.schedule), model.eps(condition)
    path = way.path(model.schedule)
    scale = model.schedule.scale(path[-1])
    if way.keep is not None and way.solver == "adaptive":
        raise UsageError("adaptive takes steps of its own, and has no path to keep", hint="choose another solver")

    def one(rows: slice) -> Solution:
        xbar = _state(model.autoencoder.encode(images[rows]), model)
        if dithers:
            xbar = xbar + added(dithers[rows], xbar)
        states = [xbar]

        def watched(new: Iterable[Array]) -> Generator[Array, None, None]:
            for state in progress(new):
                if way.keep is not None:
                    states.append(state)
                yield state

        sure = is_checked(way, condition)
        solution = integrate(
            eps, xbar, path, way.solver, tolerance=way.tolerance, mix=way.mix, care=Care(sure=sure), progress=watched
        )
        solution = replace(solution, x=solution.x * (1 / scale))
        held = float64(float32(solution.x)) * scale  # what a file holds
        if way.keep is not None:
            return _kept(solution, eps, states, path=path, held=held, keep=way.keep, progress=progress)
        if not (check and sure):
            return solution
        back = integrate(eps, held, path[::-1], decoder(way.solver), progress=progress)
        spent = [n + m for n, m in zip(solution.evaluations, back.evaluations, strict=True)]
        return replace(solution, evaluations=spent, returned=relative(back.x, xbar))

    solution = _in_batches(one, len(images), batch_size)
    return replace(solution, dithers=list(dithers)) if dithers else solution


def _kept(
    solution: Solution,
    eps: Eps,
    states: Sequence[Array],
    *,
    path: Sequence[float],
    held: Array,
    keep: Keep,
    progress: Progress,
) -> Solution:
    """`solution` with the corrections that bring x_T, which is held as `held`, back along the states visited."""
    corrections: Array = None

    def steps() -> Generator[Array, None, None]:
        nonlocal corrections
        corrections = yield from take(eps, states, path, xbar=held, keep=keep)

    back = held
    for state in progress(steps()):
        back = state
    spent = [n + len(path) - 1 for n in solution.evaluations]
    returned = relative(back, states[0])
    return replace(solution, evaluations=spent, returned=returned, corrections=corrections)


def is_checked(way: Way, condition: Condition) -> bool:
    """Whether `encode` looks if what it encodes comes back."""
    return way.solver == "exact" and condition.extrapolates


def relative(x: Array, true: Array) -> list[float]:
    """Each image's root mean square error, relative to its size."""
    return [e / max(size, 1e-12) for e, size in zip(rms(x - true), rms(true), strict=True)]


def decode(
    model: Model,
    xT: Array,
    way: Way = DEFAULT_WAY,
    condition: Condition = NOTHING,
    *,
    dithers: Sequence[Dither | None] = (),
    corrections: Array | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """x_T (N, C, H, W) → images in about [−1, 1], never clipped. `way` is the one that encodes.

    `dithers` is what was added before encoding, for each image, and is taken away where the way ends at its level. With
    `corrections` (N, K + 1, C, H, W), which encoding has given where `way` keeps its path, the way down is DDIM's,
    corrected; see `keeping`. Raises `UsageError` where they do not belong to it.
    """
    way, eps = way.on(model.schedule), model.eps(condition)
    path = way.path(model.schedule)
    if corrections is not None:
        keeping.check(corrections, len(path) - 1, tuple(xT.shape))
    there = at(dithers, path[0])

    def one(rows: slice) -> Solution:
        xbar = _state(xT[rows], model) * model.schedule.scale(path[-1])
        if corrections is None:
            solution = integrate(
                eps, xbar, path[::-1], way.solver, tolerance=way.tolerance, mix=way.mix, progress=progress
            )
        else:
            for state in progress(keeping.corrected(eps, xbar, path[::-1], corrections=corrections[rows])):
                xbar = state
            solution = Solution(xbar, [len(path) - 1] * len(xbar))
        x = solution.x - added(there[rows], solution.x) if any(there[rows]) else solution.x
        return replace(solution, x=model.autoencoder.decode(x))

    return _in_batches(one, len(xT), batch_size)


def _in_batches(one: Callable[[slice], Solution], n: int, size: int) -> Solution:
    """The solutions of some rows of n at a time, together."""
    parts = [one(slice(i, i + size)) for i in range(0, max(n, 1), size)]
    return Solution(
        concatenate([part.x for part in parts]),
        [n for part in parts for n in part.evaluations],
        [r for part in parts for r in part.residuals or []] or None,
        parts[0].tolerance,
        failures=[f for part in parts for f in part.failures or []] or None,
        returned=[e for part in parts for e in part.returned or []] or None,
        corrections=None if parts[0].corrections is None else concatenate([part.corrections for part in parts]),
    )


def _state(x: Array, model: Model) -> Array:
    """x in float64, on the device where the state lives."""
    return float64(on(model.network.module.state_device, x))
