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
from itertools import pairwise
from typing import Any

Array = Any  # a torch tensor or a numpy array of shape (B, …), float64
Eps = Callable[[Array, "float | Sequence[float]"], Array]  # ε(x̄, σ), σ one level or one for each of the B


@dataclass(frozen=True)
class Convergence:
    """What an iterative solver returns, an entry an image: its evaluations, and its largest relative residual."""

    evaluations: list[int]
    residuals: list[float]


States = Generator[Array, None, "Convergence | None"]
Solver = Callable[[Eps, Array, Sequence[float]], States]

DEFAULT_SOLVER = "ab2"


def ddim(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """Euler's method, which is DDIM at σ_t = 0 (eq. 13). One evaluation a step, order 1."""
    for s, t in pairwise(path):
        xbar = xbar + (t - s) * eps(xbar, s)
        yield xbar
    return None


def ab2(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """Two-step exponential Adams–Bashforth. One evaluation a step, order 2.

    ε is extrapolated linearly in log σ through the last two levels r and s, and integrated exactly against dσ:
    x̄_t = x̄_s + (t−s) ε_s + (ε_s−ε_r)/log(s/r) · ∫_s^t log(σ/s) dσ. The first step has no r and is DDIM's.
    """
    r, eps_r = 0.0, None
    for s, t in pairwise(path):
        eps_s = eps(xbar, s)
        xbar = xbar + (t - s) * eps_s
        if r > 0 and s > 0:  # log 0 = −∞: the extrapolation's slope is zero
            xbar = xbar + (integral_log(s, t) / math.log(s / r)) * (eps_s - eps_r)
        r, eps_r = s, eps_s
        yield xbar
    return None


def heun(eps: Eps, xbar: Array, path: Sequence[float]) -> States:
    """The trapezoidal rule with an Euler predictor. Two evaluations a step, order 2."""
    for s, t in pairwise(path):
        eps_s = eps(xbar, s)
        xbar = xbar + (t - s) * 0.5 * (eps_s + eps(xbar + (t - s) * eps_s, t))
        yield xbar
    return None


def integral_log(s: float, t: float) -> float:
    """∫_s^t log(σ/s) dσ for s > 0, t ≥ 0."""
    return (t * math.log(t / s) if t > 0 else 0.0) - (t - s)


SOLVERS: dict[str, Solver] = {"ab2": ab2, "ddim": ddim, "heun": heun}
TOLERANCES: dict[str, float] = {}  # the iterative solvers, and what they use where the caller names no tolerance
