"""Analytic ε(x̄, σ) with their exact flows: what a perfect network would predict, for data whose law is known.

For any data law, ε*(x̄, σ) = −σ ∇log p_σ(x̄), where p_σ is the law blurred by N(0, σ²). They run on torch and numpy alike
where only arithmetic is needed, and stand in for a `Model` through `AnalyticModel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddimctl.schedule import Schedule


def levels(sigma: float | Sequence[float], like: Any) -> Any:
    """One level as it is; one for each image as a column that broadcasts against `like`."""
    if isinstance(sigma, float | int):
        return sigma
    column = torch.as_tensor(sigma, dtype=like.dtype) if isinstance(like, Tensor) else np.asarray(sigma)
    return column.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    """Data N(μ, s²), independent dimensions; `mu` and `s` are numbers, or arrays with one for each dimension."""

    mu: Any = 0.3
    s: Any = 0.5

    def eps(self, xbar: Any, sigma: float | Sequence[float]) -> Any:
        sigma = levels(sigma, xbar)
        return sigma * (xbar - self.mu) / (self.s**2 + sigma**2)

    def flow(self, xbar: Any, start: float, end: float) -> Any:
        """The exact solution of dx̄ = ε dσ at the level `end`, from x̄ at `start`."""
        return self.mu + (xbar - self.mu) * ((self.s**2 + end**2) / (self.s**2 + start**2)) ** 0.5


@dataclass(frozen=True)
class Mixture:
    """Data ½N(−m, s²) + ½N(m, s²), independent dimensions: two peaks, so the flow is not linear in x̄."""

    m: float = 0.6
    s: float = 0.3

    def eps(self, xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
        sigma = levels(sigma, xbar)
        v = self.s**2 + sigma**2
        return sigma / v * (xbar - self.m * torch.tanh(self.m * xbar / v))

    def flow(self, xbar: Tensor, start: float, end: float) -> Tensor:
        """In one dimension the flow keeps quantiles; the quantile at `end` is found by bisection."""
        q = self._cdf(xbar, start)
        reach = self.m + 12 * math.hypot(self.s, end)
        low, high = torch.full_like(xbar, -reach), torch.full_like(xbar, reach)
        for _ in range(200):
            middle = (low + high) / 2
            below = self._cdf(middle, end) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _cdf(self, xbar: Tensor, sigma: float) -> Tensor:
        spread = math.hypot(self.s, sigma)
        return (torch.special.ndtr((xbar - self.m) / spread) + torch.special.ndtr((xbar + self.m) / spread)) / 2


@dataclass
class AnalyticModel:
    """What `ddim.encode` and `ddim.decode` need of a `Model`, with an analytic ε; counts its evaluations."""

    problem: Gaussian | Mixture
    shape: tuple[int, int, int] = (1, 4, 4)
    schedule: Schedule = field(default_factory=Schedule.linear)
    state_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    evaluations: int = 0

    def eps(self, xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
        self.evaluations += 1
        return self.problem.eps(xbar, sigma)
