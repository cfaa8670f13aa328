"""`exact` under guidance: what comes back is checked, and what cannot is named with its level, its residual and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from problems import AnalyticModel, Gaussian, Mixture, levels
from torch import Tensor

from ddimctl import implicit, ode
from ddimctl.model import NOTHING, Condition
from ddimctl.ode import integrate
from ddimctl.recipe import Way, spacing_under
from ddimctl.schedule import Schedule
from ddimctl.solvers import Failure

LINEAR = Schedule.linear()
G = torch.Generator().manual_seed(5)


@dataclass(frozen=True)
class Guided:
    """ε = ε_u + g (ε_c − ε_u): one peak of a mixture's two is asked for."""

    g: float
    m: float = 0.6
    s: float = 0.3

    def eps(self, xbar: Tensor, sigma: Any) -> Tensor:
        away = Mixture(self.m, self.s).eps(xbar, sigma)
        return away + self.g * (Gaussian(self.m, self.s).eps(xbar, sigma) - away)

    def derivative(self, xbar: Tensor, sigma: float) -> Tensor:
        """∂ε/∂x̄, by hand."""
        v = self.s**2 + sigma**2
        of_mixture = sigma / v * (1 - self.m**2 / v / torch.cosh(self.m * xbar / v) ** 2)
        return of_mixture + self.g * (sigma / v - of_mixture)

    def data(self, n: int = 3) -> Tensor:
        x = torch.randn((n, 1, 4, 4), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return torch.sign(x) * self.m + self.s * x.flip(0)


@dataclass
class GuidedModel(AnalyticModel):
    """A model whose one prompt is the peak at m."""

    def eps(self, condition: Condition = NOTHING) -> Any:
        problem = Guided(condition.guidance)

        def eps(xbar: Tensor, sigma: Any) -> Tensor:
            self.evaluations += len(xbar)
            return problem.eps(xbar, sigma)

        return eps


@pytest.mark.parametrize("g", [1.0, 3.0, 7.5])
@pytest.mark.parametrize(("s", "t"), [(0.3, 0.5), (1.0, 2.0), (0.1, 0.9)])
def test_the_smallest_eigenvalue_of_a_step(s: float, t: float, g: float) -> None:
    """Independent dimensions: the Jacobian is diagonal, and known."""
    problem = Guided(g)
    x = torch.linspace(-0.5, 0.7, 9, dtype=torch.float64).view(1, 1, 3, 3)
    want = float((1 - (t - s) * problem.derivative(x, t)).min())
    assert implicit.smallest_eigenvalue(problem.eps, x, s, t=t) == pytest.approx(want, abs=2e-3 * (1 + abs(want)))


def test_a_rotation_has_no_real_eigenvalue_and_no_number_none_at_all() -> None:
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    x = torch.ones(1, 2, dtype=torch.float64)
    assert math.isnan(implicit.smallest_eigenvalue(lambda v, _: v @ turn.T, x, 1.0, t=2.0))
    assert math.isnan(implicit.smallest_eigenvalue(lambda v, _: v * math.nan, x, 1.0, t=2.0))


def test_arrays_of_numpy_have_eigenvalues_too() -> None:
    x = torch.ones(1, 4, dtype=torch.float64).numpy()
    assert implicit.smallest_eigenvalue(lambda v, _: 3 * v, x, 1.0, t=2.0) == pytest.approx(-2.0, abs=1e-6)


def test_without_guidance_a_perfect_networks_steps_never_fold() -> None:
    """σ ∂ε/∂x̄ is 1 less a covariance over σ², so DDIM's step keeps at least s/t of every direction."""
    x = torch.linspace(-2, 2, 16, dtype=torch.float64).view(1, 1, 4, 4)
    for s, t in ((0.05, 0.4), (0.5, 5.0), (20.0, 150.0)):
        assert implicit.smallest_eigenvalue(Guided(1.0).eps, x, s, t=t) >= s / t - 1e-3


def test_what_cannot_be_inverted_is_named_with_its_level_and_why() -> None:
    problem, path = Guided(7.5, m=1.0, s=0.1), LINEAR.path(20, "log")
    solution = integrate(problem.eps, problem.data(), path, "exact")
    assert solution.unconverged
    assert solution.failures is not None
    assert solution.residuals is not None
    for i, failure in enumerate(solution.failures):
        assert (failure is not None) == (i in solution.unconverged)
        if failure is not None:
            assert failure.level in path
            assert 1e-5 < failure.residual <= solution.residuals[i]
    folds = [f for f in solution.failures if f is not None and f.fold]
    assert folds, "such guidance folds DDIM's steps"
    for fold in folds:
        said = str(fold)
        assert "folds" in said
        assert f"σ = {fold.level:.3g}" in said
        assert f"{fold.residual:.1e}" in said
        # And it does: DDIM's step down from there, over a line of states, falls somewhere.
        i = path.index(fold.level)
        line = torch.linspace(-3, 3, 2001, dtype=torch.float64).view(-1, 1)
        down = line - (path[i] - path[i - 1]) * problem.eps(line, path[i])
        assert float(down.diff(dim=0).min()) < 0


def test_a_failure_that_is_no_fold_is_not_called_one() -> None:
    assert "fold" not in str(Failure(2.0, 1e-3, 0.2))
    assert "fold" not in str(Failure(2.0, 1e-3, math.nan))


@pytest.mark.parametrize("g", [1.0, 3.0])
def test_with_guidance_what_is_encoded_is_decoded_to_see(g: float) -> None:
    model, x0 = GuidedModel(Mixture()), Guided(g).data()
    way, asked = Way("exact", steps=20, tolerance=1e-8), Condition(guidance=g)
    solution = ode.encode(model, x0, way, asked)  # type: ignore[arg-type]
    assert sum(solution.evaluations) == model.evaluations, "the check counts, too"
    if g == 1:
        assert solution.returned is None
        return
    assert solution.returned is not None
    assert solution.lost == []
    back = ode.decode(model, solution.x.float(), replace(way, solver="ddim", tolerance=None), asked)  # type: ignore[arg-type]
    for said, a, b in zip(solution.returned, back.x, x0, strict=True):
        assert said == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-9)
    parts = ode.encode(model, x0, way, asked, batch_size=2)  # type: ignore[arg-type]
    assert parts.returned == pytest.approx(solution.returned, rel=1e-6)
    assert parts.select([1]).returned == [parts.returned[1]]


def test_what_does_not_come_back_is_lost() -> None:
    """A small residual does not promise it: at a loose tolerance every step is solved, and the state is far off."""
    model, x0, asked = GuidedModel(Mixture()), Guided(5.0).data(), Condition(guidance=5.0)
    solution = ode.encode(model, x0, Way("exact", steps=20, tolerance=0.5), asked)  # type: ignore[arg-type]
    assert solution.unconverged == []
    assert solution.returned is not None
    assert solution.lost == [0, 1, 2] == [i for i, e in enumerate(solution.returned) if e > ode.RETURNS]


def test_memory_is_deep_from_the_fourth_iteration_on_but_for_large_states(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = implicit.combine

    def combine(changes: Any, r: Any) -> Any:
        seen.append(len(changes))
        return whole(changes, r)

    monkeypatch.setattr(implicit, "combine", combine)
    rough = lambda x, _: 1.5 * torch.sin(3 * x)  # noqa: E731
    x = torch.randn((1, 60), generator=G, dtype=torch.float64)
    implicit.solve(rough, x, x, s=1.0, t=2.0, tolerance=1e-14)
    assert seen[:4] == [0, 1, 2, 3]
    assert max(seen) == implicit.DEPTH_DIFFICULT
    seen.clear()
    monkeypatch.setattr(implicit, "LARGE", 10)
    implicit.solve(rough, x, x, s=1.0, t=2.0, tolerance=1e-14)
    assert max(seen) == implicit.DEPTH_LARGE


def test_levels_broadcast() -> None:
    """The problem here takes a level for each image, as solvers may ask."""
    x = Guided(2.0).data()
    torch.testing.assert_close(Guided(2.0).eps(x, [0.5] * 3), Guided(2.0).eps(x, 0.5))
    assert levels([0.5] * 3, x).shape == (3, 1, 1, 1)


def test_what_rounding_leaves_is_enough() -> None:
    """ε that is known to so many digits has a floor, where iteration ends soon; unless told that, it goes on."""
    floor, problem = 1e-6, Guided(3.0)
    x = problem.data().flatten(1)
    ends: dict[str, Any] = {"s": 0.8, "t": 1.0, "sure": True}

    def rounded(x: Tensor, sigma: Any) -> Tensor:
        return problem.eps(x, sigma) + floor * torch.sin(1e9 * x)

    on = implicit.solve(rounded, x, x, **ends, tolerance=1e-8)
    soon = implicit.solve(rounded, x, x, **ends, tolerance=1e-5)
    assert max(soon.evaluations) < min(on.evaluations) == implicit.LIMIT_SURE
    assert max(soon.residuals) < 10 * floor
    fine = implicit.solve(problem.eps, x, x, **ends, tolerance=1e-5)
    assert max(fine.residuals) <= 1e-5 / implicit.STRICTER, "where there is none, it is not taken for one"


@pytest.mark.parametrize(
    ("guidance", "solver", "named", "wanted"),
    [
        (5.0, "exact", None, "guided"), (5.0, "exact", "log", "log"), (1.0, "exact", None, "log"),
        (5.0, "ab2", None, ""), (-1.0, "exact", None, "guided"), (0.5, "exact", None, "log"),
    ],
)  # fmt: skip
def test_guidance_has_a_spacing_of_its_own(guidance: float, solver: str, named: str | None, wanted: str) -> None:
    assert Way(solver, spacing_under(Condition(guidance=guidance), solver, named)).spacing == wanted
