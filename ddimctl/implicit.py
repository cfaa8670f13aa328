"""One implicit step, solved for each image of a batch: x̄_t = x̄_s + (t−s) ε(x̄_t, t).

Fixed-point iteration with Anderson acceleration (Anderson 1965; Walker and Ni 2011): the last few changes of x and of the
residual say, by least squares, which combination of them cancels the residual at hand. Each image has its own
coefficients and leaves the batch's work when it is done, so its result does not depend on the others.

An image is done when its residual is within the tolerance, or *ahead of time*: when the residual that the least squares
leave, times the factor by which the one before fell short of its promise, is. That saves the evaluation which would
only have confirmed it, about one a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddimctl.arrays import Array, as_kind, per_image

DEPTH = 3  # changes remembered; more of them once an image proves difficult
DEPTH_DIFFICULT = 20
DIFFICULT = 4  # iterations after which it does
LARGE = 1 << 16  # values of a state beyond which so many changes are too much memory
DEPTH_LARGE = 8
NOISE = 1e-12  # squared, relative: changes this small beside the residual are rounding
LIMIT = 60  # evaluations a step
LIMIT_SURE = 30  # what has not converged by then is likely to be at a fold
RIDGE = 1e-10  # relative, keeps the least squares solvable where two changes are parallel
LEAP = 8.0  # from one level's √(1+σ²) to the next; no usual path has a greater one
STRICTER = 100.0  # under guidance decoding magnifies what is left: as much less is aimed at, as far as rounding lets it
PATIENCE = 8  # evaluations
DIVERGED = 4.0  # a residual this many times the best one sends an image back to where that was


@dataclass(frozen=True)
class Solved:
    """x̄_t and ε(x̄_t, t), and for each image the evaluations it took and the relative residual it was left with."""

    x: Array
    eps: Array
    evaluations: list[int]
    residuals: list[float]


def solve(
    eps: Callable[[Array, float], Array],
    base: Array,
    guess: Array,
    *,
    s: float,
    t: float,
    tolerance: float,
    known: Array | None = None,
    sure: bool = False,
) -> Solved:
    """Solves x = base + (t−s) ε(x, t) from `guess`, until each image's residual is at most `tolerance`.

    The residual is the root mean square over an image, relative to √(1+t²), or to `LEAP`·√(1+s²) where t is far above s,
    and to `weight`. ε of the guess may be `known`, which saves an evaluation; then a guess may also be so near that one
    step of the fixed-point iteration, which leaves 1 − s/t of the residual where the data is thin, is enough. To be `sure`,
    nothing is accepted ahead of time: where a step nearly folds the residual is no straight line; and it goes on to the
    tolerance over `STRICTER`, or until `PATIENCE` evaluations no longer halve the residual, as a network's rounding has a
    floor. An image that does not get there within `LIMIT` evaluations, then `LIMIT_SURE`, comes back as the best one seen,
    with its residual.
    """
    h, n, aim = t - s, len(base), tolerance / STRICTER if sure else tolerance
    scale = min(math.sqrt(1 + t * t), LEAP * math.sqrt(1 + s * s)) * weight(t)  # decoding must come back to s
    deep = DEPTH_DIFFICULT if math.prod(base.shape[1:]) <= LARGE else DEPTH_LARGE
    out, out_eps = guess * 1.0, base * 0.0
    evaluations, residuals = [0] * n, [math.inf] * n
    halved = [(math.inf, 0)] * n  # the last residual that was half of the one before it, and when
    active = list(range(n))  # the images at work: row j of what follows belongs to image active[j]
    x, b = guess, base
    x_before = r_before = None
    promised: list[float] = []
    changes: list[tuple[Array, Array]] = []  # (Δx, Δr)
    for k in range(LIMIT_SURE if sure else LIMIT):
        if not active:
            break
        free = known if k == 0 else None
        f = eps(x, t) if free is None else free
        r = b + h * f - x
        size = [v / scale for v in rms(r)]
        for j, i in enumerate(active):
            evaluations[i] += free is None
            if size[j] < residuals[i]:  # the best so far, should there be no better
                out[i], out_eps[i], residuals[i] = x[j], f[j], size[j]
            if size[j] <= halved[i][0] / 2:
                halved[i] = size[j], k
        if k:
            changes = [*changes, (x - x_before, r - r_before)][-(DEPTH if k < DIFFICULT else deep) :]
        broken = [not v < math.inf for v in size]
        lost = [b_ or v > DIVERGED * residuals[i] for b_, v, i in zip(broken, size, active, strict=True)]
        if any(lost):  # on from the best point seen, wiser by this change
            best = out[active]
            x = _replace(x, best, lost)
            r = _replace(r, b + h * out_eps[active] - best, lost)
        if any(broken):  # the network gave no number: nothing to be learnt, half a step instead
            zero = r * 0.0
            changes = [(_replace(p, zero, broken), _replace(q, zero, broken)) for p, q in changes]
            r = _replace(r, r * 0.5, broken)
        dx, rest = combine(changes, r)
        ahead_x = x + dx + rest
        left = [v / scale for v in rms(rest)]
        # Of the promise before this evaluation, how much was kept; a first promise is not believed, but of a near guess.
        first = (1 - s / t) if known is not None else math.inf
        ahead = [p * size[j] / max(promised[j], 1e-300) if k else first * p for j, p in enumerate(left)]
        go = []
        for j, i in enumerate(active):
            if size[j] <= aim or (residuals[i] <= tolerance and k - halved[i][1] >= PATIENCE):
                continue
            if not sure and ahead[j] <= tolerance and not lost[j]:
                out[i], residuals[i] = ahead_x[j], ahead[j]
                out_eps[i] = (ahead_x[j] - b[j]) / h
                continue
            go.append(j)
        x_before, r_before, x, b = x[go], r[go], ahead_x[go], b[go]
        changes = [(dx[go], dr[go]) for dx, dr in changes]
        promised = [left[j] for j in go]
        active = [active[j] for j in go]
    return Solved(out, out_eps, evaluations, residuals)


def weight(t: float) -> float:
    """How much more residual the image bears from level t than from the middle of the way.

    A residual on the way up is one of the image; measured, with what it costs to make it smaller (docs/inversion.md).
    """
    return 0.5 + 1.5 / (1 + (t / 6) ** 2)


def smallest_eigenvalue(
    eps: Callable[[Array, float], Array], x: Array, s: float, *, t: float, evaluations: int = 16
) -> float:
    """The smallest real eigenvalue of I − (t−s) ∂ε/∂x at `x`, one image (1, …) at level t, as far as Arnoldi's method sees.

    That is the Jacobian of DDIM's step from t down to s. Where it is 0 or below the step folds: it is not injective, and
    states on both sides of the fold come down to the same one. (Without guidance a perfect network's is at least s/t:
    σ ∂ε/∂x is 1 less a covariance.) Derivatives are differences along x.
    """
    rng = np.random.default_rng(0)
    start, width = eps(x, t), DIFFERENCE * math.sqrt((1 + t * t) * math.prod(x.shape))
    basis: list[Array] = [as_kind(rng.standard_normal(tuple(x.shape)), x)]
    basis[0] = basis[0] * (1 / math.sqrt(dot(basis[0], basis[0])[0]))
    h = np.zeros((evaluations + 1, evaluations))
    m = 0
    for m in range(1, evaluations):
        w = ((t - s) / width) * (eps(x + width * basis[-1], t) - start)
        for _ in range(2):  # once more, for what rounding left
            for i, v in enumerate(basis):
                part = dot(v, w)[0]
                h[i, m - 1] += part
                w = w - part * v
        norm = math.sqrt(dot(w, w)[0])
        h[m, m - 1] = norm
        if not 1e-8 < norm < math.inf:
            break
        basis.append(w * (1 / norm))
    if not np.isfinite(h).all():
        return math.nan
    values = np.linalg.eigvals(h[:m, :m])
    real = values.real[np.abs(values.imag) <= 0.05 * np.abs(values)]
    return 1 - float(real.max()) if len(real) else math.nan


DIFFERENCE = 1e-3  # root mean square, relative to √(1+t²): small, and still far above the rounding of a float32 network


def combine(changes: Sequence[tuple[Array, Array]], r: Array) -> tuple[Array, Array]:
    """(−Σ γ_j Δx_j, r − Σ γ_j Δr_j) with each image's γ minimising the norm of the latter."""
    if not changes:
        return r * 0.0, r
    lower = [[dot(p, q) for _, q in changes[: k + 1]] for k, (_, p) in enumerate(changes)]
    gram = np.array([[lower[max(k, m)][min(k, m)] for m in range(len(changes))] for k in range(len(changes))])
    gram = gram.transpose(2, 0, 1)
    right = np.array([dot(p, r) for _, p in changes]).T
    size = np.sqrt(np.maximum(np.einsum("bii->bi", gram), 1e-300))
    noise = NOISE * np.array(dot(r, r))[:, None] / size**2  # a change lost in rounding teaches nothing
    scaled = gram / size[:, :, None] / size[:, None, :] + np.eye(len(changes)) * (RIDGE + noise)[:, None, :]
    gamma = np.linalg.solve(scaled, (right / size)[:, :, None])[:, :, 0] / size
    dx, rest = r * 0.0, r
    for j, (cx, cr) in enumerate(changes):
        g = per_image(gamma[:, j].tolist(), r)
        dx, rest = dx - g * cx, rest - g * cr
    return dx, rest


def dot(a: Array, b: Array) -> list[float]:
    """Each image's inner product."""
    values: list[float] = (a * b).reshape(len(a), -1).sum(-1).tolist()
    return values


def rms(a: Array) -> list[float]:
    """Each image's root mean square."""
    d = math.prod(a.shape[1:])
    return [math.sqrt(v / d) if v >= 0 else math.nan for v in dot(a, a)]


def _replace(a: Array, by: Array, rows: Sequence[bool]) -> Array:
    """`a` with the rows marked taken from `by`."""
    a = a * 1.0
    marked = [j for j, v in enumerate(rows) if v]
    a[marked] = by[marked]
    return a
