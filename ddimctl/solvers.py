"""The solvers of dx̄ = ε(x̄, σ) dσ, the paper's ODE (eq. 14), one function each.

A solver is a generator over a path of noise levels that yields x̄ after each step. The order of the path is the
direction: rising levels encode, falling levels decode. Solvers know only σ; they use plain array arithmetic, and so run
on torch tensors and numpy arrays alike. History is a local variable, and progress is the caller's business. Solvers that
iterate return a `Convergence` when they are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from ddimctl import folds, implicit
from ddimctl.arrays import Array, per_image
from ddimctl.errors import UsageError, choose
from ddimctl.implicit import rms
from ddimctl.multistep import MIXING, weights

Eps = Callable[[Array, "float | Sequence[float]"], Array]  # ε(x̄, σ), σ one level or one for each of the B


@dataclass(frozen=True)
class Failure:
    """A step that could not be inverted: its upper level, its residual, and why."""

    level: float
    residual: float
    eigenvalue: float  # the smallest of DDIM's step down from there, as far as seen: at most 0 where that folds

    @property
    def fold(self) -> bool:
        """Whether DDIM's step is not injective there; and no state beyond the fold was found."""
        return self.eigenvalue <= 0

    def __str__(self) -> str:
        said = f"at σ = {self.level:.3g} the residual stays at {self.residual:.1e}"
        if self.fold:
            said += f"; DDIM's step folds there (its Jacobian has the eigenvalue {self.eigenvalue:.2g}) and is not injective"
        return said


@dataclass(frozen=True)
class Convergence:
    """What an iterative solver returns, an entry an image: its evaluations, and its largest relative residual."""

    evaluations: list[int]
    residuals: list[float]
    failures: list[Failure | None] | None = None  # the first step of each image that could not be inverted


@dataclass(frozen=True)
class Care:
    """What `exact` may know of the steps beforehand."""

    near: Sequence[tuple[Array, Array]] = ()  # for each step a state of the upper level near its solution, and ε there
    sure: bool = False  # steps may fold, as under guidance: each residual is looked at, none accepted ahead of time


ORDINARY = Care()

States = Generator[Array, None, "Convergence | None"]
Solver = Callable[[Eps, Array, Sequence[float]], States]

DEFAULT_SOLVER = "ab2"


def ddim(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """Euler's method, which is DDIM at σ_t = 0 (eq. 13). One evaluation a step, order 1."""
    for s, t in pairwise(path):
        xbar = xbar + (t - s) * eps(xbar, s)
        yield xbar
    return None


def march(eps: Eps, xbar: Array, levels: Sequence[Any], *, by: Sequence[tuple[Any, Any, Any]]) -> States:
    """The explicit multistep methods `by` their weights (see `multistep`). One evaluation a step.

    A level is one σ or a list of one for each image, a weight a number or an array of one for each.
    """
    eps_r = change = None
    for s, (h, a, b) in zip(levels, by, strict=False):
        eps_s = eps(xbar, s)
        xbar = xbar + h * eps_s
        if eps_r is not None:
            latest = eps_s - eps_r
            xbar = xbar + a * latest
            if b is not None:
                xbar = xbar + b * change
            change = latest
        eps_r = eps_s
        yield xbar
    return None


def ab2(eps: Eps, xbar: Array, path: Sequence[float], *, mix: Sequence[float] = ()) -> States:
    """Two-step exponential Adams–Bashforth. One evaluation a step, order 2.

    ε is extrapolated linearly in log σ through the last two levels r and s, and integrated exactly against dσ:
    x̄_t = x̄_s + (t−s) ε_s + (ε_s−ε_r)/log(s/r) · ∫_s^t log(σ/s) dσ. The first step has no r and is DDIM's.

    `mix`, a number for each step of the rising path, is the part of it that is extrapolated in √(1−α) = σ/√(1+σ²) instead:
    along the exact flow of Gaussian data of variance 1, ε is proportional to that, and ∫ √(1−α) dσ = √(1+σ²).
    """
    return march(eps, xbar, path, by=weights(path, mix))


def ab2mix(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """`ab2` with 0.7 parts of √(1−α) in every step. Order 2.

    The parts are those that lost fewest images at S = 20, with `arsinh` spacing (docs/inversion.md).
    """
    return ab2(eps, xbar, path, mix=[MIX] * (len(path) - 1))


MIX = 0.7


def ab3(eps: Eps, xbar: Array, path: Sequence[float], *, mix: Sequence[float] = ()) -> States:
    """Three-step exponential Adams–Bashforth: `ab2`, and a parabola in log σ through three levels. One evaluation a step.

    Order 3, but for the first step, which is DDIM's, and the second, which is `ab2`'s. `mix` is `ab2`'s, and after it, for
    each step, the part of the third order, 1 by default.
    """
    return march(eps, xbar, path, by=weights(path, mix, order=3))


def heun(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """The trapezoidal rule with an Euler predictor. Two evaluations a step, order 2."""
    for s, t in pairwise(path):
        eps_s = eps(xbar, s)
        xbar = xbar + (t - s) * 0.5 * (eps_s + eps(xbar + (t - s) * eps_s, t))
        yield xbar
    return None


def exact(eps: Eps, xbar: Array, path: Sequence[float], *, tolerance: float = 1e-5, care: Care = ORDINARY) -> States:
    """The inverse of `ddim`: ε is taken at the noisier end of every step, whichever way the path runs.

    On a falling path that is `ddim` itself. On a rising one it is implicit, x̄_t = x̄_s + (t−s) ε(x̄_t, t), and solved for
    each image until the residual (see `implicit.solve`) is at most `tolerance`. The first guess extrapolates the last ε;
    or it is what `care` has near. Usually two to four evaluations a step; a step to or from σ = 0 may be singular. Where
    iteration stalls the solution is sought across a fold (see `folds`); where none is found, the first such step of an
    image is looked at for one.
    """
    spent, residuals = [0] * len(xbar), [0.0] * len(xbar)
    failures: list[Failure | None] = [None] * len(xbar)
    known: list[tuple[float, Array]] = []  # (level, ε there) of the last four levels
    for k, (s, t) in enumerate(pairwise(path)):
        if t < s:
            xbar = xbar + (t - s) * eps(xbar, s)
            spent = [n + 1 for n in spent]
        else:
            guess, there = (
                care.near[k] if care.near else (xbar + (t - s) * extrapolate(known, t) if known else xbar, None)
            )
            solved = folds.solve(eps, xbar, guess, s=s, t=t, tolerance=tolerance, known=there, sure=care.sure)
            xbar = solved.x
            spent = [n + m for n, m in zip(spent, solved.evaluations, strict=True)]
            residuals = [max(p, q) for p, q in zip(residuals, solved.residuals, strict=True)]
            for i, residual in enumerate(solved.residuals):
                if not residual <= tolerance and failures[i] is None:
                    eigenvalue = implicit.smallest_eigenvalue(eps, xbar[i : i + 1], s, t=t, evaluations=LOOK)
                    failures[i] = Failure(t, residual, eigenvalue)
                    spent[i] += LOOK
            known = [*known[-3:], (t, solved.eps)]
        yield xbar
    return Convergence(spent, residuals, failures)


LOOK = 16  # evaluations that tell whether a step folds
STEEPER = 2.0  # a slope that is believed, beside the last one


def extrapolate(known: Sequence[tuple[float, Array]], t: float) -> Array:
    """ε at level t from the last four known: its slope in log σ is what those before would have told of the last one.

    A straight line goes too far, and to twice the error where steps are wide: the last slopes of each image say how much of
    them to believe, by least squares, and at most `STEEPER` times the last one: where slopes grow many times a step they say
    nothing. With two known it is a straight line, with one a constant.
    """
    known = [(s, e) for s, e in known if s > 0] or known[-1:]
    s, eps_s = known[-1]
    slopes: list[Array] = []
    for (q, eps_q), (r, eps_r) in pairwise(known):
        slopes = [(eps_r - eps_q) * (1 / math.log(r / q)), *slopes]
    if not slopes or s <= 0:
        return eps_s
    if len(slopes) == 1:
        return eps_s + math.log(t / s) * slopes[0]
    away, _ = implicit.combine(list(zip(slopes, slopes[1:], strict=False)), slopes[0])
    most = [STEEPER * a / max(b, 1e-300) for a, b in zip(rms(slopes[0]), rms(away), strict=True)]
    return eps_s - math.log(t / s) * per_image([min(1.0, v) for v in most], away) * away


def adaptive(eps: Eps, xbar: Array, path: Sequence[float], *, tolerance: float = 1e-5) -> States:
    """Dormand and Prince's pair of orders 5 and 4, with steps of its own for each image; the reference for the others.

    Only the ends of `path` matter. Each step's error estimate, as a root mean square relative to √(1+σ²), is at most
    `tolerance`. The variable is u = arsinh(10 σ), which is smooth through σ = 0 and logarithmic beyond.
    """
    if len(path) < 2:
        return None
    end = math.asinh(path[-1] / ADAPTIVE_SCALE)
    way = math.copysign(1.0, end - math.asinh(path[0] / ADAPTIVE_SCALE))

    def slope(x: Array, u: Sequence[float]) -> Array:  # dx̄/du = ε dσ/du
        return eps(x, [ADAPTIVE_SCALE * math.sinh(v) for v in u]) * per_image(
            [ADAPTIVE_SCALE * math.cosh(v) for v in u], x
        )

    n = len(xbar)
    state = xbar * 1.0
    u, h = [math.asinh(path[0] / ADAPTIVE_SCALE)] * n, [0.05 * way] * n
    spent, largest = [1] * n, [0.0] * n
    first = slope(state, u) if n else state  # each image's slope where it stands
    active = [i for i in range(n) if u[i] != end]
    while active:
        h = [way * min(abs(v), abs(end - w)) for v, w in zip(h, u, strict=True)]
        x, step = state[active], per_image([h[i] for i in active], state)
        k = [first[active]]
        for c, row in zip(DP_NODES, DP_ROWS, strict=True):
            at = [u[i] + c * h[i] if c < 1 else _land(u[i] + h[i], end) for i in active]
            proposal = x + step * sum(a * q for a, q in zip(row, k, strict=True) if a)
            k.append(slope(proposal, at))
        error = rms(step * sum(e * q for e, q in zip(DP_ERROR, k, strict=True) if e))
        keep = []
        for j, i in enumerate(active):
            spent[i] += len(DP_NODES)
            reached = _land(u[i] + h[i], end)
            e = error[j] / math.sqrt(1 + (ADAPTIVE_SCALE * math.sinh(reached)) ** 2)
            smallest = abs(h[i]) <= ADAPTIVE_SMALLEST
            if e <= tolerance or smallest:
                u[i], largest[i] = reached, max(largest[i], e)
                keep.append(j)
            h[i] *= min(4.0, max(0.2, 0.9 * (tolerance / e) ** 0.2)) if 0 < e < math.inf else 4.0 if e == 0 else 0.2
            h[i] = way * max(abs(h[i]), ADAPTIVE_SMALLEST)
        kept = [active[j] for j in keep]
        if kept:
            state[kept] = proposal[keep]
            first[kept] = k[-1][keep]
        active = [i for i in active if u[i] != end]
        yield state * 1.0
    return Convergence(spent, largest)


ADAPTIVE_SCALE = 0.1
ADAPTIVE_SMALLEST = 1e-3  # in u; float32 networks are not smooth below it
# Dormand and Prince 1980: nodes, rows of the last six stages (the last is the step itself), and order 5 less order 4.
DP_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
DP_ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
DP_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _land(u: float, end: float) -> float:
    """`end` itself where u is within rounding of it."""
    return end if abs(u - end) < 1e-9 else u


SOLVERS: dict[str, Solver] = {
    "ab2": ab2, "ab2mix": ab2mix, "ab3": ab3, "ddim": ddim, "heun": heun, "exact": exact, "adaptive": adaptive
}  # fmt: skip
# The solvers that iterate, and what they use where the caller names no tolerance.
TOLERANCES: dict[str, float] = {"exact": 1e-5, "adaptive": 1e-5}


def decoder(solver: str) -> str:
    """The solver that decodes what `solver` encoded: its own self, but for `exact`, which inverts `ddim`."""
    return "ddim" if solver == "exact" else solver


def bind(solver: str, tolerance: float | None, mix: Sequence[float] = ()) -> tuple[Solver, float | None]:
    """The solver of that name with its tolerance (its own default where none is given), and that tolerance.

    Raises `UsageError` for an unknown solver, or a tolerance or mix that it has no use for.
    """
    solve = choose(SOLVERS, solver, "solver")
    if mix:
        if solver not in MIXING:
            raise UsageError(f"the solver {solver} mixes nothing", hint=f"these do: {', '.join(MIXING)}")
        mixing: Any = solve
        solve = partial(mixing, mix=mix)
    if solver not in TOLERANCES:
        if tolerance is not None:
            raise UsageError(f"the solver {solver} takes no tolerance", hint=f"these do: {', '.join(TOLERANCES)}")
        return solve, None
    tolerance = TOLERANCES[solver] if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise UsageError(f"a tolerance of {tolerance:g} makes no sense", hint="give one between 0 and 1")
    iterative: Any = solve
    return partial(iterative, tolerance=tolerance), tolerance
