"""What the paper proves, checked on the code that rests on it: the family's marginals, the bound, DDIM as Euler's method.

With ε = (x̄ − x_0)/σ, a network that knows x_0, the steps of eq. 12 are draws from q_σ(x_t | x_s, x_0) (eq. 7): any spread
ν(s, t) from 0 to t is a member of the family.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Gaussian, Mixture
from torch import Tensor

from ddimctl.ode import integrate
from ddimctl.sampling import Spread, dial, eq_12, hat
from ddimctl.schedule import SPACINGS, Schedule

SCHEDULE = Schedule.linear()
N = 200_000


def all_new(s: float, t: float) -> tuple[float, float]:
    """The family's other end, σ_t² = 1 − α_(t−1): x_(t−1) forgets x_t and knows x_0 alone."""
    return t, t


def uneven(s: float, t: float) -> tuple[float, float]:
    """A member with another share of the noise at every step, sometimes none."""
    nu = t * abs(math.sin(7 * s)) if s > 1 else 0.0
    return nu, nu


FAMILY: dict[str, Spread] = {
    "ddim": dial(0.0),
    "half": dial(0.5),
    "ddpm": dial(1.0),
    "all new": all_new,
    "uneven": uneven,
}


@pytest.mark.parametrize("name", FAMILY)
@given(s=st.floats(1e-3, 200), ratio=st.floats(0, 1, exclude_max=True))
def test_a_step_keeps_the_marginal_exactly(name: str, s: float, ratio: float) -> None:
    """Lemma 1: if x̄_s ~ N(x_0, s²) then x̄_t ~ N(x_0, t²), since (√(t²−ν²)/s)² s² + ν² = t²."""
    t = s * ratio
    along, nu = FAMILY[name](s, t)
    assert ((t**2 - along**2) / s**2) * s**2 + nu**2 == pytest.approx(t**2, rel=1e-12, abs=1e-300)


def deviations(spread: Spread, x0: float, seed: int) -> list[tuple[float, float]]:
    """A chain of q_σ from x_T down, drawn N times: how many standard errors x_t's mean and variance are off, a pair a t."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(N, generator=generator, dtype=torch.float64)

    def eps(xbar: Tensor, sigma: Any) -> Tensor:
        return (xbar - x0) / sigma

    path = SCHEDULE.path(10, "linear")[::-1]
    alpha = [1 / (1 + s * s) for s in path]
    x = math.sqrt(alpha[0]) * x0 + math.sqrt(1 - alpha[0]) * draw()  # q(x_T | x_0)
    out = []
    for a, xbar in zip(alpha[1:-1], eq_12(eps, x / math.sqrt(alpha[0]), path, spread=spread, draw=draw), strict=False):
        xt, variance = xbar * math.sqrt(a), 1 - a
        mean_error, variance_error = math.sqrt(variance / N), variance * math.sqrt(2 / N)
        out.append((float(xt.mean() - math.sqrt(a) * x0) / mean_error, float(xt.var() - variance) / variance_error))
    return out


@pytest.mark.parametrize("x0", [-0.7, 0.0, 1.0])
@pytest.mark.parametrize("name", FAMILY)
def test_every_member_keeps_the_marginals(name: str, x0: float) -> None:
    """q(x_t | x_0) = N(√α_t x_0, 1 − α_t) at every t, by 200,000 chains: 4.5 standard errors, 54 numbers a member."""
    found = deviations(FAMILY[name], x0, seed=4)
    assert len(found) == 9
    assert max(abs(d) for pair in found for d in pair) < 4.5


def test_the_check_above_can_tell() -> None:
    """The larger variance σ̂ is no member: more noise than its direction leaves room for. Nor is noise without room."""
    assert max(v for _, v in deviations(hat(SCHEDULE.sigma(1)), 0.5, seed=4)) > 50
    assert max(v for _, v in deviations(lambda s, t: (0.0, 0.1 * t), 0.5, seed=4)) > 3


def test_the_last_step_of_every_member_is_the_prediction() -> None:
    """At α_0 = 1 there is no room for noise: x_0 itself."""
    for spread in (dial(0.0), dial(0.5), dial(1.0)):
        start = torch.tensor([3.0], dtype=torch.float64)
        (x,) = eq_12(lambda x, s: (x - 0.4) / s, start, (2.0, 0.0), spread=spread, draw=lambda: torch.ones(1))
        assert float(x) == pytest.approx(0.4, rel=1e-12)


@pytest.mark.parametrize("t", [2, 10, 500, 1000])
def test_eta_1_is_ddpm(t: int) -> None:
    """Its q_σ is the posterior of the Markov chain (Ho et al., eq. 7), mean and variance; σ̂² is the chain's β_t."""
    a, b = SCHEDULE.alpha[t], SCHEDULE.alpha[t - 1]
    beta = 1 - a / b
    along, nu = dial(1.0)(SCHEDULE.sigma(t), SCHEDULE.sigma(t - 1))
    assert nu**2 * b == pytest.approx((1 - b) / (1 - a) * beta, rel=1e-9)
    of_xt = math.sqrt(SCHEDULE.sigma(t - 1) ** 2 - along**2) * math.sqrt(b) / math.sqrt(1 - a)  # x_t's coefficient
    assert of_xt == pytest.approx(math.sqrt(1 - beta) * (1 - b) / (1 - a), rel=1e-9)
    of_x0 = math.sqrt(b) - of_xt * math.sqrt(a)
    assert of_x0 == pytest.approx(math.sqrt(b) * beta / (1 - a), rel=1e-6)
    assert hat(SCHEDULE.sigma(1))(SCHEDULE.sigma(t), SCHEDULE.sigma(t - 1))[1] ** 2 * b == pytest.approx(beta, rel=1e-9)


# Theorem 1: the variational bound is the loss with weights


def gamma(t: int, sigma: float) -> float:
    """γ_t = (1−α_t)/(2 σ_t² α_t)."""
    a = SCHEDULE.alpha[t]
    return (1 - a) / (2 * sigma**2 * a)


def mean_of_q(xt: Any, x0: Any, t: int, sigma: float) -> Any:
    """The mean of q_σ(x_(t−1) | x_t, x_0), eq. 7."""
    a, b = SCHEDULE.alpha[t], SCHEDULE.alpha[t - 1]
    return math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * (xt - math.sqrt(a) * x0) / math.sqrt(1 - a)


def divergence(p: float, q: float, sigma: float) -> float:
    """KL(N(p, σ²) ‖ N(q, σ²)) by the trapezoidal rule on its definition."""
    x = np.linspace(min(p, q) - 12 * sigma, max(p, q) + 12 * sigma, 20_001)
    log_p, log_q = (-((x - m) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) for m in (p, q))
    return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), x))


def predictions(t: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x_0, ε, x_t, ε_θ, f) in d dimensions, ε_θ that of a perfect network for Gaussian data."""
    generator = np.random.default_rng(seed)
    x0, eps = 0.3 + 0.5 * generator.standard_normal(d), generator.standard_normal(d)
    a = SCHEDULE.alpha[t]
    xt = math.sqrt(a) * x0 + math.sqrt(1 - a) * eps
    theta = Gaussian(0.3, 0.5).eps(xt / math.sqrt(a), SCHEDULE.sigma(t))
    return x0, eps, xt, theta, (xt - math.sqrt(1 - a) * theta) / math.sqrt(a)


def room(t: int, sigma: float) -> float:
    """By how much the mean of q_σ moves when x_0 does."""
    return float(mean_of_q(0.0, 1.0, t, sigma))


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("t", [2, 10, 300, 1000])
def test_the_bounds_terms_are_the_weighted_loss(t: int, eta: float) -> None:
    """KL(q_σ(x_(t−1) | x_t, x_0) ‖ q_σ(x_(t−1) | x_t, f)) = γ_t k² ‖ε − ε_θ‖², summed over the d dimensions.

    k² = (∂mean/∂x_0)² stands here because it is there; the paper's proof, which takes ‖x_0 − f‖²/(2σ_t²) for the divergence,
    leaves it out. It depends on σ and t alone, so the theorem holds: for each member of the family there are weights.
    """
    sigma = dial(eta)(SCHEDULE.sigma(t), SCHEDULE.sigma(t - 1))[1] * math.sqrt(SCHEDULE.alpha[t - 1])
    x0, eps, xt, theta, f = predictions(t, 3)
    pairs = zip(mean_of_q(xt, x0, t, sigma), mean_of_q(xt, f, t, sigma), strict=True)
    kl = sum(divergence(p, q, sigma) for p, q in pairs)
    loss = float(np.sum((eps - theta) ** 2))
    assert kl == pytest.approx(gamma(t, sigma) * room(t, sigma) ** 2 * loss, rel=1e-5, abs=1e-12)
    # the step between, which is exact in x_0
    assert gamma(t, sigma) * loss == pytest.approx(float(np.sum((x0 - f) ** 2)) / (2 * sigma**2), rel=1e-9)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_at_t_1_the_weight_is_gamma_itself(sigma: float) -> None:
    """−log N(x_0; f(x_1), σ_1²) is γ_1 ‖ε − ε_θ‖² and a constant: here the mean is the predicted x_0, so k = 1."""
    x0, eps, _, theta, f = predictions(1, 3)
    negative_log = sum((x0 - f) ** 2 / (2 * sigma**2) + math.log(sigma * math.sqrt(2 * math.pi)))
    constant = 3 * math.log(sigma * math.sqrt(2 * math.pi))
    assert negative_log - constant == pytest.approx(gamma(1, sigma) * float(np.sum((eps - theta) ** 2)), rel=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_bound_ranks_networks_as_the_weighted_loss_does(eta: float) -> None:
    """J_σ(θ) − L_γk²(θ) is one number for every θ: here a family of wrong networks, over all t of a subset."""
    differences = []
    for wrong in (0.0, 0.1, -0.4):
        bound = loss = 0.0
        for t in (2, 50, 400, 1000):
            sigma = dial(eta)(SCHEDULE.sigma(t), SCHEDULE.sigma(t - 1))[1] * math.sqrt(SCHEDULE.alpha[t - 1])
            x0, eps, xt, theta, _ = predictions(t, 2, seed=t)
            theta = theta + wrong
            a = SCHEDULE.alpha[t]
            f = (xt - math.sqrt(1 - a) * theta) / math.sqrt(a)
            pairs = zip(mean_of_q(xt, x0, t, sigma), mean_of_q(xt, f, t, sigma), strict=True)
            bound += sum(divergence(p, q, sigma) for p, q in pairs)
            loss += gamma(t, sigma) * room(t, sigma) ** 2 * float(np.sum((eps - theta) ** 2))
        differences.append(bound - loss)
        assert bound > 1e-3
    assert max(differences) - min(differences) < 1e-6


# Section 4.3


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddim_is_eulers_method_in_sigma(steps: int, spacing: str) -> None:
    """The solver `ddim` is eq. 12 at σ_t = 0, to rounding, at every step."""
    path = SCHEDULE.path(steps, spacing)[::-1]
    xbar = torch.linspace(-2, 2, 32, dtype=torch.float64).view(2, 16) * math.sqrt(1 + path[0] ** 2)
    eps = Mixture().eps
    seen: list[Tensor] = []

    def keep(states: Any) -> Any:
        for state in states:
            seen.append(state)
            yield state

    integrate(eps, xbar, path, "ddim", progress=keep)
    for (_, t), euler, step in zip(
        pairwise(path), seen, eq_12(eps, xbar, path, spread=dial(0.0), draw=lambda: torch.zeros(2, 16)), strict=True
    ):
        torch.testing.assert_close(euler, step, rtol=0, atol=1e-12 * (1 + path[0]))
        assert t >= 0
    assert len(seen) == steps
