"""Across a fold: the implicit step where DDIM's step down is not injective.

Under guidance an eigenvalue of J, the Jacobian of F(x) = x − (t−s) ε(x, t), may pass 0. On the near side of such a fold F
reaches no further, and a solver that goes up stalls. But where F is far away a positive multiple of x and something bounded,
as for data that is bounded, every state has at least one x that F brings down to it (F has degree 1): beyond the fold, where
F has turned round a second time.

The way there is a curve, {x: F(x) = base − μ u} with u the direction of the residual that was left. It passes the folds,
where μ turns, and ends at μ = 0. It is followed by its own length (Keller 1977): a step along the tangent, then corrections
at right angles to it, by Broyden's approximation of J⁻¹ (Broyden 1965), which each evaluation makes better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ddimctl import implicit
from ddimctl.arrays import Array
from ddimctl.implicit import LARGE, Solved, dot

BUDGET = 150  # evaluations along one curve
LOOK = 12  # of them, those that first say what J is like
ENOUGH = 0.05  # what they may leave of J z = u
MEMORY, MEMORY_LARGE = 60, 16  # steps remembered, of small states and of those beyond `LARGE` values
STEP = 0.3  # the first one's length, in σ
GROW, SHRINK = 1.6, 0.5
NEAR = 0.1  # off the curve, as a part of the step, that is near enough
CORRECTIONS = 8  # a step
SHORTEST = 7  # times that a step is halved
AWAY = 3.0  # a residual this many times the step, or the last one, is no correction
FAR = 100.0  # root mean square, in σ: where nothing is to be found any more
SINGULAR = 0.05  # of Broyden's denominator


@dataclass
class Inverse:
    """J⁻¹ as far as steps (Δx, ΔF) have shown it: 1 + Σ p qᵀ, Broyden's first method, of one image (1, …)."""

    memory: int
    pairs: list[tuple[Array, Array]] = field(default_factory=list)

    def __call__(self, w: Array) -> Array:
        out = w
        for p, q in self.pairs:
            out = out + dot(q, w)[0] * p
        return out

    def transposed(self, w: Array) -> Array:
        out = w
        for p, q in self.pairs:
            out = out + dot(p, w)[0] * q
        return out

    def learn(self, dx: Array, df: Array) -> None:
        """That J takes Δx to ΔF."""
        size = norm(dx)
        if not 0 < size < math.inf or not norm(df) < math.inf:
            return
        dx, df = dx * (1 / size), df * (1 / size)
        image, row = self(df), self.transposed(dx)
        below = dot(dx, image)[0]
        below = math.copysign(max(abs(below), SINGULAR), below)
        self.pairs = [*self.pairs, ((dx - image) * (1 / below), row)][-self.memory :]


def norm(a: Array) -> float:
    squared = dot(a, a)[0]
    return math.sqrt(squared) if squared >= 0 else math.nan


def unit(a: Array) -> Array:
    return a * (1 / max(norm(a), 1e-300))


@dataclass
class Curve:
    """{x: F(x) = base − μ u} from a state that F brings to base − r, with u the direction of r."""

    eps: Callable[[Array, float], Array]
    base: Array
    s: float
    t: float
    x: Array  # on the curve, with its ε and residual
    f: Array
    evaluations: int = 0

    def __post_init__(self) -> None:
        self.r = self.base + (self.t - self.s) * self.f - self.x
        self.u, self.mu = unit(self.r), norm(self.r)
        self.look()
        ahead = unit(self.inverse(self.u))
        self.tangent = ahead if dot(ahead, self.u)[0] >= 0 else -1 * ahead  # what is left of the way shows it

    def look(self) -> None:
        """What J is like at x, where J z = u is being solved: differences along x."""
        self.inverse = Inverse(MEMORY if math.prod(self.x.shape) <= LARGE else MEMORY_LARGE)
        width, left = implicit.DIFFERENCE * math.sqrt((1 + self.t**2) * math.prod(self.x.shape)), self.u
        for _ in range(LOOK):
            d = self.inverse(left)
            size = norm(d)
            d = d * (1 / size)
            slope = d - ((self.t - self.s) / width) * (self.eps(self.x + width * d, self.t) - self.f)
            self.evaluations += 1
            self.inverse.learn(d, slope)
            left = left - size * slope
            if not ENOUGH < norm(left) < math.inf:
                break

    def correction(self, r: Array, limit: float) -> Array:
        """Towards the curve from residual r, at right angles to the tangent."""
        back, along = self.inverse(r), self.inverse(self.u)
        move = back - (dot(self.tangent, back)[0] / (dot(self.tangent, along)[0] or 1e-300)) * along
        return move * min(1.0, limit / max(norm(move), 1e-300))

    def step(self, size: float) -> tuple[Array, Array, Array, float, int] | None:
        """The curve's point that far along: x, ε, residual, μ, and the corrections it took; None if it was not found."""
        y = self.x + size * self.tangent + self.correction(self.r, size / 2)
        before, least = (self.x, self.r), math.inf
        for k in range(CORRECTIONS):
            f = self.eps(y, self.t)
            r = self.base + (self.t - self.s) * f - y
            self.evaluations += 1
            self.inverse.learn(y - before[0], before[1] - r)
            before = y, r
            mu = dot(r, self.u)[0]
            off = norm(r - mu * self.u)
            if off <= NEAR * size:
                return y, f, r, mu, k
            if not off < AWAY * min(size, least):
                return None
            least = min(off, least)
            y = y + self.correction(r, size / 2)
        return None

    def turn(self, way: Array) -> None:
        """The tangent as J has it, on along `way`."""
        ahead = unit(self.inverse(self.u))
        c = dot(ahead, way)[0]
        self.tangent = way if abs(c) < 0.5 else ahead * math.copysign(1.0, c)


def across(
    eps: Callable[[Array, float], Array], base: Array, x: Array, *, f: Array, s: float, t: float
) -> tuple[Array | None, int]:
    """About where the curve from `x`, whose ε is `f`, comes to F(x) = base, or None; and the evaluations. One image."""
    curve = Curve(eps, base, s, t, x, f)
    size, halved, fresh = STEP * t, 0, True
    while curve.evaluations < BUDGET and norm(curve.x - x) < FAR * t * math.sqrt(math.prod(x.shape)):
        found = curve.step(size)
        if found is None:
            size, halved = size * SHRINK, halved + 1
            if halved >= 2 and not fresh:
                curve.look()
                curve.turn(curve.tangent)
                fresh = True
            elif halved > SHORTEST:
                break
            continue
        y, f, r, mu, corrections = found
        if mu <= 0:
            return curve.x + curve.mu / (curve.mu - mu) * (y - curve.x), curve.evaluations
        way = unit(y - curve.x)
        curve.x, curve.f, curve.r, curve.mu, halved, fresh = y, f, r, mu, 0, False
        curve.turn(way)
        size *= (GROW, 1.2, 1.0, 1.0)[corrections] if corrections < 4 else 0.7
    return None, curve.evaluations


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
    """`implicit.solve`, and across the fold for each image that it leaves with more than the tolerance."""
    solved = implicit.solve(eps, base, guess, s=s, t=t, tolerance=tolerance, known=known, sure=sure)
    for i, residual in enumerate(solved.residuals):
        if residual <= tolerance or not residual < math.inf or s <= 0:
            continue
        one = slice(i, i + 1)
        beyond, spent = across(eps, base[one], solved.x[one], f=solved.eps[one], s=s, t=t)
        solved.evaluations[i] += spent
        if beyond is None:
            continue
        again = implicit.solve(eps, base[one], beyond, s=s, t=t, tolerance=tolerance, sure=True)
        solved.evaluations[i] += again.evaluations[0]
        if again.residuals[0] < residual:
            solved.x[one], solved.eps[one], solved.residuals[i] = again.x, again.eps, again.residuals[0]
    return solved
