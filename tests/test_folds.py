"""Steps that fold: the state beyond the fold is found, and DDIM's step brings it down to where it should."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddimctl import folds, implicit, ode
from ddimctl.ode import integrate
from ddimctl.schedule import Schedule
from ddimctl.solvers import Care

S, T = 1.0, 2.0  # of a single step
V = torch.nn.functional.normalize(torch.randn((1, 60), generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def down(x: Tensor) -> Tensor:
    """A step down that folds along V, twice each way: onto, and nowhere else than there not injective."""
    along = (x * V).sum(-1, keepdim=True)
    return 0.6 * x + 2 * torch.sin(along) * V


def eps(x: Tensor, t: Any) -> Tensor:
    return (x - down(x)) / (T - S)


def test_a_state_beyond_the_fold_is_found() -> None:
    """The near side reaches 0.6 a + 2 sin a at its greatest, cos a = −0.3; the state that is asked for lies higher."""
    top = math.acos(-0.3)
    base = 0.1 * torch.randn((1, 60), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    base = base + (0.6 * top + 2 * math.sin(top) + 0.3 - float((base * V).sum())) * V
    near = top * V
    about, spent = folds.across(eps, base, near, f=eps(near, T), s=S, t=T)
    assert about is not None
    assert spent <= folds.BUDGET
    assert float((about * V).sum()) > 2 * math.pi - top, "on the far side, where the step rises again"
    solved = implicit.solve(eps, base, about, s=S, t=T, tolerance=1e-10, sure=True)
    assert solved.residuals[0] <= 1e-10
    torch.testing.assert_close(down(solved.x), base, rtol=1e-8, atol=1e-8)


def test_arrays_of_numpy_go_across_too() -> None:
    v = V.numpy()

    def of_arrays(x: Any, t: Any) -> Any:
        return (x - 0.6 * x - 2 * np.sin((x * v).sum(-1, keepdims=True)) * v) / (T - S)

    top = math.acos(-0.3)
    base = (0.6 * top + 2 * math.sin(top) + 0.3) * v
    about, _ = folds.across(of_arrays, base, top * v, f=of_arrays(top * v, T), s=S, t=T)
    assert about is not None
    assert float((about * v).sum()) > 2 * math.pi - top


def test_where_there_is_no_state_at_all_the_best_is_kept() -> None:
    """ε = x − 1 turns F into 1 everywhere."""
    base = torch.zeros((2, 8), dtype=torch.float64)
    solved = folds.solve(lambda x, _: (x - 1) / (T - S), base, base, s=S, t=T, tolerance=1e-6)
    assert all(r > 1e-3 for r in solved.residuals)
    assert all(n <= implicit.LIMIT + folds.BUDGET + implicit.LIMIT_SURE for n in solved.evaluations)


def test_what_broyden_learned_of_a_linear_map_is_its_inverse() -> None:
    a = torch.randn((12, 12), generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 4
    a = a @ a.T + torch.eye(12, dtype=torch.float64)
    inverse, w = folds.Inverse(60), V[:, :12]
    x = torch.zeros_like(w)
    for _ in range(40):
        step = inverse(w - x @ a.T)
        inverse.learn(step, step @ a.T)
        x = x + step
    torch.testing.assert_close(x @ a.T, w, rtol=1e-8, atol=1e-8)


CLASSES, WIDTH = 4, 0.3
MEANS = torch.randn((CLASSES, 96), generator=torch.Generator().manual_seed(4), dtype=torch.float64) / 2


def guided(g: float, k: int) -> Any:
    """A law of classes N(μ, s²), of which one is asked for: ε = ε_u + g (ε_c − ε_u), exact."""

    def toward(mean: Tensor, x: Tensor, t: float) -> Tensor:
        return t * (x - mean) / (WIDTH**2 + t**2)

    def at(x: Tensor, t: Any) -> Tensor:
        shares = (-((x[:, None] - MEANS) ** 2).sum(-1) / 2 / (WIDTH**2 + t**2)).softmax(1)
        away = toward(shares @ MEANS, x, t)
        return away + g * (toward(MEANS[k], x, t) - away)

    return at


@pytest.mark.parametrize("g", [3.0, 5.0])
def test_exact_returns_under_guidance_that_folds(g: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    whole = folds.across

    def across(*args: Any, **more: Any) -> Any:
        out = whole(*args, **more)
        found.append(out[0] is not None)
        return out

    monkeypatch.setattr(folds, "across", across)
    path = Schedule.linear().path(20, "log")
    errors: list[float] = []
    for k in range(CLASSES):
        noise = torch.randn((4, 96), generator=torch.Generator().manual_seed(10 + k), dtype=torch.float64)
        x0 = MEANS[k] + WIDTH * noise
        up = integrate(guided(g, k), x0, path, "exact", care=Care(sure=True))
        back = integrate(guided(g, k), up.x, path[::-1], "ddim").x
        errors += ode.relative(back, x0)
    assert up.unconverged == []
    assert sum(found) >= 3, "steps that fold"
    assert max(errors) < 6e-5
