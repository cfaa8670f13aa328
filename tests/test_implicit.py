"""The exact solver against the closed form of the implicit step, and what it says when there is no solution."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Gaussian, Mixture
from rounding import apart
from torch import Tensor

from ddimctl import implicit
from ddimctl.errors import UsageError
from ddimctl.ode import integrate
from ddimctl.schedule import SPACINGS, Schedule

LINEAR = Schedule.linear()
G = torch.Generator().manual_seed(3)
X0 = torch.randn((4, 2, 6, 6), generator=G, dtype=torch.float64)
# Three widths: the iteration, like a Krylov method, ends after as many steps as the Jacobian has different eigenvalues.
SPREAD = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)[torch.randint(0, 3, (1, 2, 6, 6), generator=G)]


def closed_form(problem: Gaussian, x: Tensor, path: tuple[float, ...]) -> Tensor:
    """x̄_t = x̄_s + (t−s) t (x̄_t−μ)/(s²+t²), solved by hand at every step."""
    for s, t in pairwise(path):
        c = (t - s) * t / (problem.s**2 + t**2)
        x = (x - c * problem.mu) / (1 - c)
    return x


@pytest.mark.parametrize("S", [5, 20, 100])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_closed_form_of_the_gaussian(spacing: str, S: int) -> None:
    problem, path = Gaussian(0.2, SPREAD), LINEAR.path(S, spacing)
    solution = integrate(problem.eps, X0, path, "exact", tolerance=1e-10)
    assert solution.unconverged == []
    want = closed_form(problem, X0, path)
    assert apart(solution.x, want) < 1e-8


@pytest.mark.parametrize("problem", [Gaussian(0.2, SPREAD), Mixture()])
def test_ddim_brings_it_back(problem: Any) -> None:
    path = LINEAR.path(20)
    for tolerance in (1e-3, 1e-6, 1e-9):
        latent = integrate(problem.eps, X0, path, "exact", tolerance=tolerance)
        back = integrate(problem.eps, latent.x, path[::-1], "ddim").x
        assert float((back - X0).square().mean().sqrt()) < 10 * tolerance
    assert latent.mean_evaluations < 120


def test_decoding_with_it_is_ddim() -> None:
    path = LINEAR.path(20)[::-1]
    ours, ddim = (integrate(Mixture().eps, X0 * 150, path, s) for s in ("exact", "ddim"))
    assert torch.equal(ours.x, ddim.x)
    assert ours.evaluations == [20] * 4


def test_an_image_does_not_depend_on_its_batch() -> None:
    problem, path = Mixture(), LINEAR.path(20)
    x = X0 * torch.tensor([0.01, 1.0, 3.0, 0.3]).view(-1, 1, 1, 1)
    together = integrate(problem.eps, x, path, "exact", tolerance=1e-6)
    alone = [integrate(problem.eps, v[None], path, "exact", tolerance=1e-6) for v in x]
    assert together.evaluations == [a.evaluations[0] for a in alone]
    assert len(set(together.evaluations)) > 1, "a converged image should leave the batch"
    torch.testing.assert_close(together.x, torch.cat([a.x for a in alone]), rtol=1e-10, atol=1e-10)


def test_the_evaluations_counted_are_those_made() -> None:
    rows = 0

    def eps(x: Tensor, sigma: float) -> Tensor:
        nonlocal rows
        rows += len(x)
        return Mixture().eps(x, sigma)

    assert sum(integrate(eps, X0, LINEAR.path(20), "exact", tolerance=1e-5).evaluations) == rows


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_the_residual_reported_is_about_the_true_one(tolerance: float) -> None:
    """Also of a solution that was accepted before it was evaluated."""
    problem, s, t = Mixture(), 0.3, 0.9
    solved = implicit.solve(problem.eps, X0, X0, s=s, t=t, tolerance=tolerance)
    true = implicit.rms(X0 + (t - s) * problem.eps(solved.x, t) - solved.x)
    for said, is_ in zip(solved.residuals, true, strict=True):
        assert said <= tolerance
        assert is_ / math.sqrt(1 + t * t) / implicit.weight(t) <= 6 * tolerance


def test_where_nothing_converges_the_best_is_kept_and_said() -> None:
    """ε = −9x/h turns the iteration into x ← base − 9x, which has a solution; ε = 1 + x/h into one that has none."""
    s, t = 1.0, 2.0
    easy = implicit.solve(lambda x, _: -9 * x, X0, X0, s=s, t=t, tolerance=1e-10)
    torch.testing.assert_close(easy.x, X0 / 10)
    none = implicit.solve(lambda x, _: 1 + x - X0, X0, X0, s=s, t=t, tolerance=1e-3)
    assert none.evaluations == [implicit.LIMIT] * 4
    assert all(0.4 < r * implicit.weight(t) < 0.5 for r in none.residuals)  # 1/√5, whatever x
    assert torch.isfinite(none.x).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_breaks_down_is_reported_and_spoils_nobody_else(bad: float) -> None:
    def eps(x: Tensor, sigma: float) -> Tensor:
        out = Mixture().eps(x, sigma)
        out[x[:, 0, 0, 0] > 100] = bad
        return out

    x = X0.clone()
    x[2, 0, 0, 0] = 200.0
    solution = integrate(eps, x, LINEAR.path(3), "exact", tolerance=1e-6)
    assert solution.unconverged == [2]
    others = [0, 1, 3]
    clean = integrate(Mixture().eps, x[others], LINEAR.path(3), "exact", tolerance=1e-6)
    torch.testing.assert_close(solution.x[others], clean.x, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_combine_is_the_least_squares_of_each_image(m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = [(rng.normal(size=(3, 12)), rng.normal(size=(3, 12))) for _ in range(m)]
    r = rng.normal(size=(3, 12))
    dx, rest = implicit.combine(changes, r)
    for i in range(3):
        a = np.stack([c[1][i] for c in changes], 1)
        gamma = np.linalg.lstsq(a, r[i], rcond=None)[0]
        np.testing.assert_allclose(rest[i], r[i] - a @ gamma, atol=1e-6)
        np.testing.assert_allclose(dx[i], -np.stack([c[0][i] for c in changes], 1) @ gamma, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1e-3, math.nan])
def test_a_tolerance_that_makes_no_sense(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        integrate(Mixture().eps, X0, LINEAR.path(3), "exact", tolerance=tolerance)


def test_explicit_solvers_take_no_tolerance() -> None:
    with pytest.raises(UsageError, match="takes no tolerance"):
        integrate(Mixture().eps, X0, LINEAR.path(3), "ab2", tolerance=1e-3)
