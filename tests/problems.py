"""Analytic ε(x̄, σ) with their exact flows: what a perfect network would predict, for data whose law is known.

For any data law, ε*(x̄, σ) = −σ ∇log p_σ(x̄), where p_σ is the law blurred by N(0, σ²). They run on torch and numpy alike
where only arithmetic is needed, and stand in for a `Model` through `AnalyticModel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddimctl.model import NOTHING, About, Condition, Model, Pixels
from ddimctl.network import Facts, Module, Network
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
    """What `ode` and `sampling` need of a `Model`, with an analytic ε in float64; counts its evaluations."""

    problem: Gaussian | Mixture
    state_shape: tuple[int, int, int] = (1, 4, 4)
    schedule: Any = field(default_factory=Schedule.linear)
    autoencoder: Any = field(default_factory=Pixels)
    evaluations: int = 0
    name: str = "analytic"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.state_shape

    @property
    def network(self) -> Any:
        return SimpleNamespace(module=SimpleNamespace(state_device="cpu"))

    def eps(self, condition: Condition = NOTHING) -> Any:
        assert condition == NOTHING

        def eps(xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
            self.evaluations += 1
            return self.problem.eps(xbar, sigma)

        return eps


@dataclass(frozen=True)
class Flow(Schedule):
    """The levels of a VP schedule as a flow has them: x_t = (1−t) x_0 + t ε, t = σ/(1+σ), which is the label."""

    def scale(self, sigma: float) -> float:
        return 1 + sigma

    def label(self, sigma: float) -> float:
        return sigma / (1 + sigma)


def in_a_network(
    problem: Gaussian | Mixture, shape: tuple[int, int, int] = (1, 4, 4), *, prediction: str = "epsilon"
) -> Model:
    """A real `Model` whose network predicts what a perfect one would, in float64, of x_t and labels alone.

    Like any network it knows no level below σ(1), but for a flow.
    """
    flow = prediction == "flow"
    schedule = Flow(Schedule.linear().alpha) if flow else Schedule.linear()

    def sigma(label: float) -> float:
        """The level of a label; between trained ones log σ is linear."""
        if flow:
            return label / (1 - label)
        i, part = int(label) + 1, label % 1
        low, high = (schedule.sigmas[min(t, schedule.T)] for t in (i, i + 1))
        return low * (high / low) ** part

    def call(x: Any, labels: Sequence[float], embedded: Any) -> Any:
        sigmas = [sigma(label) for label in labels]
        s = levels(sigmas[0] if len(sigmas) == 1 else sigmas, x)
        xbar = x * (1 + s) if flow else x * (1 + s * s) ** 0.5
        eps = problem.eps(xbar, sigmas[0] if len(sigmas) == 1 else sigmas)
        x0 = xbar - s * eps
        return {
            "epsilon": lambda: eps,
            "v_prediction": lambda: (eps - s * x0) / (1 + s * s) ** 0.5,
            "sample": lambda: x0,
            "flow": lambda: eps - x0,
        }[prediction]()

    module = Module(shape, "cpu", lambda: None, lambda: Facts("analytic", 0, 0), dtype="float64")
    network = Network(module, "analytic", "float32", call)
    return Model(network, schedule, shape, About("analytic"), prediction)
