"""Noise → images, with more noise on the way or without: the family of section 4.1, one dial (eq. 12 with eq. 16).

A step of eq. 12 from α_s to α_t (s noisier) predicts x_0, goes back to the level t along ε, and adds fresh noise z:
x_t = √α_t (x_s − √(1−α_s) ε)/√α_s + √(1−α_t−σ²) ε + σ z. Divided by √α_t, with x̄ = x/√α and the noise levels
s = σ(s) and t = σ(t), so that α_t = 1/(1+t²), it is

    x̄_t = x̄_s − s ε + √(t²−ν²) ε + ν z,    ν = σ/√α_t.

Eq. 16, σ = η √((1−α_t)/(1−α_s)) √(1−α_s/α_t), becomes ν = η t √(1 − t²/s²). At η = 0 that is Euler's step of the ODE, so
there `sample` is `ddim.decode` of `ddim.noise`; η = 1 is DDPM. The larger-variance DDPM, σ̂ = √(1−α_s/α_t) (appendix D.3),
puts ν̂ = √((s²−t²)(1+t²)/(1+s²)) before z and keeps η = 1 in the direction.

All of them share the marginals of x_t given x_0, which is why one network serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ddimctl import ddim
from ddimctl.ddim import DEFAULT_BATCH, Progress, Solution
from ddimctl.errors import UsageError
from ddimctl.solvers import DEFAULT_SOLVER, Array, Eps, States

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddimctl.model import Model

Spread = Callable[[float, float], tuple[float, float]]  # (s, t) → ν in the direction and ν before z, of x̄


def sample(
    model: Model,
    n: int,
    path: Sequence[float],
    seed: int = 0,
    eta: float = 0.0,
    sigma_hat: bool = False,
    solver: str = DEFAULT_SOLVER,
    first: int = 0,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
    tolerance: float | None = None,
) -> Solution:
    """Images number first … first+n−1 of a seed: (n, C, H, W) float64 in about [−1, 1], never clipped.

    `path` is the rising one that encodes; its first level counts as clean. Image k of a seed is the same, to float32
    rounding, whatever n, batch or device: each has its own generator, on the CPU, whose first draw is x_T and whose later
    ones are the noise of the steps. With η = 0 it is ``decode(model, noise(…))`` with `solver`; with more, or σ̂, it is
    eq. 12, which needs no solver. Raises `UsageError` where `check` does.
    """
    check(n, eta, sigma_hat, solver, tolerance)
    if not is_random(eta, sigma_hat):
        xT = ddim.noise(model.shape, n, seed, first)
        return ddim.decode(model, xT, path, solver, tolerance, batch_size, progress)
    import torch

    spread = hat(model.schedule.sigma(1)) if sigma_hat else dial(eta)
    xs = [torch.empty(0, *model.shape, dtype=torch.float64, device=model.state_device)]
    for start in range(first, first + n, batch_size):
        generators = ddim.generators(min(batch_size, first + n - start), seed, start)
        draw = partial(_draw, model, generators)
        xbar = draw() * math.sqrt(1 + path[-1] ** 2)
        for state in progress(eq_12(model.eps, xbar, path[::-1], spread, draw)):
            xbar = state
        xs.append(xbar)
    return Solution(torch.cat(xs), [len(path) - 1] * n)


def _draw(model: Model, generators: Sequence[torch.Generator]) -> Tensor:
    """The next N(0, I) of each image, where and as x̄ is."""
    return ddim.draw(model.shape, generators).to(model.state_device).double()


def eq_12(eps: Eps, xbar: Array, path: Sequence[float], spread: Spread, draw: Callable[[], Array]) -> States:
    """Eq. 12 in x̄ along a falling path; `draw` gives z ~ N(0, I) of x̄'s shape. One evaluation a step."""
    for s, t in pairwise(path):
        along, nu = spread(s, t)
        eps_s = eps(xbar, s)
        xbar = xbar - s * eps_s + math.sqrt(t * t - along * along) * eps_s + nu * draw()
        yield xbar
    return None


def dial(eta: float) -> Spread:
    """Eq. 16: η from 0 (DDIM) to 1 (DDPM)."""

    def spread(s: float, t: float) -> tuple[float, float]:
        nu = eta * t * math.sqrt(1 - (t / s) ** 2)
        return nu, nu

    return spread


def hat(lowest: float) -> Spread:
    """σ̂: the direction of η = 1 with more noise (appendix D.3). `lowest` is σ(1).

    Unlike η's, its noise does not vanish in a step to the clean image, where the formula gives √(1−α_s). As in the authors'
    code (`ddpm_steps`) it is left out of the step from t = 1 alone; in one from further up it stays, and is what ruins few
    steps in table 1.
    """
    along = dial(1.0)

    def spread(s: float, t: float) -> tuple[float, float]:
        if t == 0 and s <= lowest:
            return along(s, t)[0], 0.0
        return along(s, t)[0], math.sqrt((s * s - t * t) * (1 + t * t) / (1 + s * s))

    return spread


def is_random(eta: float, sigma_hat: bool) -> bool:
    """Whether noise is added on the way; if not, a solver decodes."""
    return eta > 0 or sigma_hat


def check(n: int, eta: float, sigma_hat: bool, solver: str, tolerance: float | None) -> None:
    """Raises `UsageError` for a number of images below 0, an η that is not within 0 … 1, an η below 1 beside σ̂ (0 is no
    choice), an unknown solver, and a tolerance where nothing iterates.
    """
    if n < 0:
        raise UsageError(f"{n} images make no sense", hint="give a number from 0 up")
    if not 0 <= eta <= 1:
        raise UsageError(f"an eta of {eta:g} makes no sense", hint="0 is DDIM, 1 is DDPM, and between them is between")
    if sigma_hat and eta not in (0, 1):
        raise UsageError(f"sigma-hat has the direction of eta 1, not {eta:g}", hint="leave eta away")
    ddim.bind(solver, None if is_random(eta, sigma_hat) else tolerance)
    if is_random(eta, sigma_hat) and tolerance is not None:
        raise UsageError("where noise is added on the way nothing iterates", hint="leave the tolerance away")
