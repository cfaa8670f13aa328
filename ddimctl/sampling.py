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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from ddimctl import ode, seeds
from ddimctl.arrays import Array
from ddimctl.errors import UsageError
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import DEFAULT_BATCH, Progress, Solution
from ddimctl.recipe import Way
from ddimctl.schedule import FlowSchedule, default_spacing
from ddimctl.solvers import Eps, States

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Spread = Callable[[float, float], tuple[float, float]]  # (s, t) → ν in the direction and ν before z, of x̄


@dataclass(frozen=True)
class Noising:
    """How noise becomes images: the way, and how much noise is added on it.

    With η = 0 the way's solver decodes; with more, or σ̂, it is eq. 12, which needs no solver. Where the way names no spacing
    it is the solver's own: a tuned path is known to win round trips, and says nothing of images from noise.
    """

    way: Way = field(default_factory=Way)
    eta: float = 0.0  # 0 is DDIM, 1 is DDPM
    sigma_hat: bool = False  # the DDPM of larger variance, whose direction is that of η = 1

    @property
    def is_random(self) -> bool:
        """Whether noise is added on the way; if not, a solver decodes."""
        return self.eta > 0 or self.sigma_hat

    def __post_init__(self) -> None:
        if not self.way.spacing:
            object.__setattr__(self, "way", replace(self.way, spacing=default_spacing(self.way.solver)))

    def check(self) -> None:
        """Raises `UsageError` for an η that is not within 0 … 1, an η below 1 beside σ̂ (0 is no choice), an unknown
        solver, and a tolerance where nothing iterates."""
        if not 0 <= self.eta <= 1:
            hint = "0 is DDIM, 1 is DDPM, and between them is between"
            raise UsageError(f"an eta of {self.eta:g} makes no sense", hint=hint)
        if self.sigma_hat and self.eta not in (0, 1):
            raise UsageError(f"sigma-hat has the direction of eta 1, not {self.eta:g}", hint="leave eta away")
        if self.is_random and self.way.tolerance is not None:
            raise UsageError("where noise is added on the way nothing iterates", hint="leave the tolerance away")
        self.way.check()


DDIM = Noising()


def sample(
    model: Model,
    n: int,
    how: Noising = DDIM,
    condition: Condition = NOTHING,
    *,
    seed: int | Sequence[int] = 0,
    first: int | Sequence[int] = 0,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """Images number first … first+n−1 of a seed, or of a seed and a number for each: (n, C, H, W) float64 in about [−1, 1],
    never clipped.

    The way's lowest level counts as clean. Image k of a seed is the same, to float32 rounding, whatever n, batch or
    device: each has its own generator, on the CPU, whose first draw is x_T and whose later ones are the noise of the
    steps. Without noise on the way it is ``decode(model, noise(…))``, the same way. Raises `UsageError` where
    `Noising.check` does, and for a number of images below 0.
    """
    if n < 0:
        raise UsageError(f"{n} images make no sense", hint="give a number from 0 up")
    how.check()
    if not how.is_random:
        xT = seeds.noise(model.state_shape, n, seed, first=first)
        return ode.decode(model, xT, how.way, condition, batch_size=batch_size, progress=progress)
    import torch

    if how.sigma_hat and isinstance(model.schedule, FlowSchedule):
        raise UsageError("sigma-hat is DDPM's, and the model is a flow", hint="leave sigma-hat away")
    path, eps = how.way.path(model.schedule), model.eps(condition)
    spread = hat(model.schedule.sigma(1)) if how.sigma_hat else dial(how.eta)
    images = [torch.empty(0, *model.image_shape, dtype=torch.float64, device=model.network.module.state_device)]
    draws = seeds.draws(n, seed, first)
    for start in range(0, n, batch_size):
        draw = partial(_draw, model, seeds.generators(draws[start : start + batch_size]))
        xbar = draw() * model.schedule.scale(path[-1])
        for state in progress(eq_12(eps, xbar, path[::-1], spread=spread, draw=draw)):
            xbar = state
        images.append(model.autoencoder.decode(xbar))
    return Solution(torch.cat(images), [len(path) - 1] * n)


def _draw(model: Model, generators: Sequence[torch.Generator]) -> Tensor:
    """The next N(0, I) of each image, where and as x̄ is."""
    return seeds.draw(model.state_shape, generators).to(model.network.module.state_device).double()


def eq_12(eps: Eps, xbar: Array, path: Sequence[float], *, spread: Spread, draw: Callable[[], Array]) -> States:
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
