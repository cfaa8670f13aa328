"""Every solver on problems whose exact flow is known: the order it converges with, both directions, every spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from problems import Gaussian, Mixture
from torch import Tensor

from ddimctl.errors import UsageError
from ddimctl.multistep import integral_log, weights
from ddimctl.ode import integrate
from ddimctl.schedule import SPACINGS, Schedule
from ddimctl.solvers import SOLVERS, TOLERANCES

ORDER = {
    "ddim": 1,
    "ab2": 2,
    "ab2mix": 2,
    "heun": 2,
    "exact": 1,
}  # `ab3` begins with another order than it goes on with
STEPPING = [s for s in SOLVERS if s != "adaptive"]  # which chooses its steps itself, whatever the path
EVALUATIONS = {"ddim": 1, "ab2": 1, "ab2mix": 1, "ab3": 1, "heun": 2}  # a step
LINEAR = Schedule.linear()
X0 = torch.linspace(-1.5, 1.5, 42, dtype=torch.float64).view(2, 1, 3, 7)
S_BY_DIMENSION = torch.linspace(0.1, 1.0, 21, dtype=torch.float64).view(1, 1, 3, 7)
PROBLEMS: dict[str, Gaussian | Mixture] = {
    "gaussian": Gaussian(),
    "gaussian-by-dimension": Gaussian(mu=-0.2, s=S_BY_DIMENSION),
    "mixture": Mixture(),
}


def refine(path: Sequence[float], n: int) -> list[float]:
    """Every step of `path` in n equal ones."""
    return [s + (t - s) * i / n for s, t in pairwise(path) for i in range(n)] + [path[-1]]


def error(solver: str, problem: Gaussian | Mixture, path: Sequence[float], direction: str) -> float:
    """The largest error at the end of `path`, relative to the size of x̄ there."""
    path = path if direction == "encode" else path[::-1]
    start = problem.flow(X0, 0.0, path[0])
    exact = problem.flow(X0, 0.0, path[-1])
    tolerance = 1e-12 if solver in TOLERANCES else None
    x = integrate(problem.eps, start, path, solver, tolerance=tolerance).x
    return float((x - exact).abs().max() / math.sqrt(1 + path[-1] ** 2))


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", [pytest.param(s, marks=pytest.mark.slow) if s in TOLERANCES else s for s in ORDER])
def test_order_of_convergence(solver: str, problem: str, spacing: str, direction: str) -> None:
    """The paths' steps are refined evenly in σ, the variable of integration.

    (With more steps of a path itself there is no order to see: σ(t) rises like √t at first, so the paper's spacings never
    refine their first steps as they do the others, and S = T is the end of it.)
    """
    path = LINEAR.path(20, spacing)
    # Two errors of ab2mix cancel in part as long as the steps are coarse.
    counts = (64, 256) if solver == "ab2mix" else (16, 64)
    coarse, fine = (error(solver, PROBLEMS[problem], refine(path, n), direction) for n in counts)
    order = math.log(coarse / fine, 4)
    expected = ORDER[solver]
    # log σ is slow to settle next to σ = 0: there the order is that of h² log h.
    slack = 0.35 if solver in ("ab2", "ab2mix") and spacing in ("linear", "quadratic", "trailing", "leading") else 0.1
    assert order > expected - slack, f"order {order:.2f}, not {expected}"
    assert order < expected + slack, f"order {order:.2f}: better than {expected}?"


# What the error of 250 steps must stay below: an error of order one, such as a wrong neighbour's, is far above.
LIMIT = {
    ("ddim", "karras"): 5e-2, ("ddim", "linear"): 6e-2, ("ddim", "quadratic"): 4e-2,
    ("ab2", "karras"): 1e-3, ("ab2", "linear"): 1e-2, ("ab2", "quadratic"): 3e-3,
    ("ddim", "log"): 5e-2, ("ab2", "log"): 1e-3, ("heun", "log"): 1e-3,
    ("ab2mix", "karras"): 1e-3, ("ab2mix", "linear"): 1e-2, ("ab2mix", "quadratic"): 3e-3, ("ab2mix", "log"): 1e-3,
    ("ddim", "arsinh"): 5e-2, ("ab2", "arsinh"): 1e-3, ("ab2mix", "arsinh"): 1e-3, ("heun", "arsinh"): 1e-3,
    ("heun", "karras"): 1e-3, ("heun", "linear"): 1e-3, ("heun", "quadratic"): 1e-3,
}  # fmt: skip


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", STEPPING)
def test_more_steps_come_closer_to_the_exact_flow(solver: str, spacing: str, direction: str) -> None:
    """On the paths that users get."""
    few, some, many = (error(solver, Gaussian(), LINEAR.path(S, spacing), direction) for S in (10, 50, 250))
    assert many < some < few or spacing == "leading"  # whose ends and widths change with S
    assert many < LIMIT.get((solver, spacing), 6e-2)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("S", [1, 10, 37, 1000])
def test_ddim_is_equation_12(S: int, direction: str) -> None:
    """Eq. 12 with σ_t = 0, in the paper's x_t and α_t, on its own subsequence τ; and the same formula run upwards."""
    alpha = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    tau = [math.floor(i * 1000 / S + 1e-9) for i in range(S + 1)]
    problem = Mixture()

    def eps_theta(x: Tensor, t: int) -> Tensor:
        """ε*(x_t, t) from its definition, −√(1−α_t) ∇log q(x_t), with q a mixture of N(±√α_t m, α_t s² + 1 − α_t)."""
        m, v = math.sqrt(alpha[t]) * problem.m, alpha[t] * problem.s**2 + 1 - alpha[t]
        log_q = torch.stack([-((x - m) ** 2) / (2 * v), -((x + m) ** 2) / (2 * v)])
        r = log_q.softmax(0)
        score = (r[0] * (m - x) + r[1] * (-m - x)) / v
        return -math.sqrt(1 - alpha[t]) * score

    times = list(pairwise(tau)) if direction == "encode" else list(pairwise(tau[::-1]))
    x = X0 if direction == "encode" else X0 * 2
    for t, t_next in times:
        e = eps_theta(x, t)
        predicted_x0 = (x - math.sqrt(1 - alpha[t]) * e) / math.sqrt(alpha[t])
        x = math.sqrt(alpha[t_next]) * predicted_x0 + math.sqrt(1 - alpha[t_next]) * e

    path = LINEAR.path(S, "linear")
    path = path if direction == "encode" else path[::-1]
    start = X0 if direction == "encode" else X0 * 2 * math.sqrt(1 + path[0] ** 2)
    xbar = integrate(problem.eps, start, path, "ddim").x
    torch.testing.assert_close(xbar / math.sqrt(1 + path[-1] ** 2), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_numpy_arrays_work_too(solver: str) -> None:
    path = LINEAR.path(20)
    problem = Gaussian()
    for p in (path, path[::-1]):
        tensors = integrate(problem.eps, X0, p, solver).x
        arrays = integrate(problem.eps, X0.numpy(), p, solver).x
        assert isinstance(arrays, np.ndarray)
        np.testing.assert_allclose(arrays, tensors.numpy(), rtol=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", EVALUATIONS)
def test_decoding_along_the_reversed_path_undoes_encoding(solver: str, spacing: str) -> None:
    problem = Mixture()

    def round_trip(S: int) -> float:
        path = LINEAR.path(S, spacing)
        latent = integrate(problem.eps, X0, path, solver).x
        return float((integrate(problem.eps, latent, path[::-1], solver).x - X0).abs().max())

    few, many = round_trip(25), round_trip(200)
    assert many < max(few / 2, 1e-6)
    assert many < 0.1


@pytest.mark.parametrize("path", [[], [0.5]])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_steps_change_nothing(solver: str, path: list[float]) -> None:
    assert torch.equal(integrate(Gaussian().eps, X0, path, solver).x, X0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_input_is_not_changed(solver: str) -> None:
    before = X0.clone()
    integrate(Gaussian().eps, X0, LINEAR.path(5), solver)
    assert torch.equal(before, X0)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", EVALUATIONS)
def test_evaluations(solver: str, spacing: str, direction: str) -> None:
    """S steps cost exactly what is stated, at the levels of the path and at no other."""
    path = LINEAR.path(17, spacing)
    asked: list[Any] = []

    def eps(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        asked.append(sigma)
        return torch.zeros_like(x)

    solution = integrate(eps, X0, path if direction == "encode" else path[::-1], solver)
    assert solution.evaluations == [17 * EVALUATIONS[solver]] * len(X0) == [len(asked)] * len(X0)
    assert set(asked) <= set(path)
    if EVALUATIONS[solver] == 1:  # ε at the level where the step starts: the ODE, both ways
        assert asked == list(path[:-1] if direction == "encode" else path[:0:-1])


@pytest.mark.parametrize("spacing", ["karras", "linear"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_adaptive_meets_the_exact_flow(problem: str, direction: str, spacing: str) -> None:
    """Its error follows the tolerance, whatever the path between the ends."""
    path = LINEAR.path(3, spacing)
    path = path if direction == "encode" else path[::-1]
    start, end = (PROBLEMS[problem].flow(X0, 0.0, p) for p in (path[0], path[-1]))
    errors = []
    for tolerance in (1e-4, 1e-7):
        solution = integrate(PROBLEMS[problem].eps, start, path, "adaptive", tolerance=tolerance)
        errors.append(float((solution.x - end).abs().max() / math.sqrt(1 + path[-1] ** 2)))
        assert solution.residuals is not None
        assert 0 < max(solution.residuals) <= tolerance
        assert errors[-1] < 60 * tolerance
    assert errors[1] < errors[0] / 50


def test_adaptive_gives_each_image_its_own_steps() -> None:
    """An image's result is the same to rounding in any company, and an easy image is not charged for a hard one."""
    easy, hard = Mixture(m=0.6, s=2.0), Mixture(m=0.6, s=0.02)
    path = LINEAR.path(20)

    def eps(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        return torch.stack([easy.eps(v[None], [t])[0] if v[0, 0, 0] > 0 else hard.eps(v[None], [t])[0]
                            for v, t in zip(x, sigma, strict=True)])  # fmt: skip

    x = torch.stack([X0[0].abs() + 0.1, -X0[0].abs() - 0.1])
    both = integrate(eps, x, path, "adaptive", tolerance=1e-6)
    alone = [integrate(eps, x[i : i + 1], path, "adaptive", tolerance=1e-6) for i in range(2)]
    assert both.evaluations == [a.evaluations[0] for a in alone]
    assert both.evaluations[0] < both.evaluations[1]
    torch.testing.assert_close(both.x, torch.cat([a.x for a in alone]), rtol=1e-12, atol=1e-12)


def test_ab2_is_exact_where_eps_is_linear_in_log_sigma() -> None:
    """Its definition: x̄ = ∫ log σ dσ, after a first step by Euler's method."""
    path = LINEAR.path(12)
    for p in (path, path[::-1]):
        x = integrate(lambda x, s: torch.full_like(x, math.log(s)), torch.zeros(1, 1).double(), p, "ab2").x
        euler = (p[1] - p[0]) * math.log(p[0])
        rest = (p[-1] * math.log(p[-1]) - p[-1]) - (p[1] * math.log(p[1]) - p[1])
        assert x.item() == pytest.approx(euler + rest, rel=1e-12)


def test_ab2mix_is_exact_where_eps_is_constant_and_at_sigma_zero_knows_one_variable() -> None:
    """Both extrapolations agree on a constant; from σ = 0 only √(1−α) is a variable, and integrated exactly."""
    for p in (LINEAR.path(12), LINEAR.path(12)[::-1]):
        x = integrate(lambda x, s: torch.ones_like(x), torch.zeros(1, 1).double(), p, "ab2mix").x
        assert x.item() == pytest.approx(p[-1] - p[0], rel=1e-12)
    path = (0.0, 0.5, 1.5)
    x = integrate(
        lambda x, s: torch.full_like(x, s / math.sqrt(1 + s * s)), torch.zeros(1, 1).double(), path, "ab2mix"
    ).x
    assert x.item() == pytest.approx(math.sqrt(1 + 1.5**2) - math.sqrt(1 + 0.5**2), rel=1e-12)


@pytest.mark.parametrize("path", [(0.3, 0.7, 1.9, 2.4), (5.0, 1.9, 0.7, 0.2), (0.01, 0.03, 0.04, 3.0)])
def test_ab3_is_exact_where_eps_is_a_parabola_in_log_sigma(path: tuple[float, ...]) -> None:
    """From the third step on, whichever way the levels run; ∫ u² dσ = σ (u² − 2u + 2), u = log σ."""

    def value(s: float) -> float:
        return 0.4 - 1.3 * math.log(s) + 0.7 * math.log(s) ** 2

    def integral(s: float) -> float:
        u = math.log(s)
        return s * (0.4 - 1.3 * (u - 1) + 0.7 * (u * u - 2 * u + 2))

    h, a, b = weights(path, order=3)[2]
    q, r, s, t = path
    step = h * value(s) + a * (value(s) - value(r)) + (b or 0.0) * (value(r) - value(q))
    assert step == pytest.approx(integral(t) - integral(s), rel=1e-9)


def test_ab3_with_no_part_of_the_third_order_is_ab2() -> None:
    for path in (LINEAR.path(9), LINEAR.path(9)[::-1], LINEAR.path(9, "linear")):
        parts = [0.1 * i for i in range(9)]
        rising = integrate(Gaussian().eps, X0, path, "ab3", mix=[*parts, *[0.0] * 9]).x
        assert torch.equal(rising, integrate(Gaussian().eps, X0, path, "ab2", mix=parts).x)
        plain = integrate(Gaussian().eps, X0, path, "ab3").x
        assert torch.equal(plain, integrate(Gaussian().eps, X0, path, "ab3", mix=[0.0] * 9 + [1.0] * 9).x)


def test_third_order_is_worth_its_while() -> None:
    """On the exact flow of Gaussian data, with as many evaluations."""
    second, third = (
        error(s, PROBLEMS["gaussian-by-dimension"], LINEAR.path(40, "log"), "encode") for s in ("ab2", "ab3")
    )
    assert third < second / 2


def test_ab2mix_is_the_mean_of_two_extrapolations() -> None:
    """One step after the first, transcribed: 0.3 in log σ and 0.7 in sin φ, where σ = tan φ (midpoint rule in φ)."""
    r, s, t = 0.4, 1.0, 2.5
    values = {r: 0.25, s: 1.0}
    got = integrate(
        lambda x, v: torch.full_like(x, values[v]), torch.zeros(1, 1).double(), (r, s, t), "ab2mix"
    ).x.item()
    edges = np.linspace(math.atan(s), math.atan(t), 100_001)
    phi = (edges[1:] + edges[:-1]) / 2
    sigma, width = np.tan(phi), np.diff(np.tan(edges))
    by_log = 1 + 0.75 * np.log(sigma / s) / math.log(s / r)
    by_sine = 1 + 0.75 * (np.sin(phi) - math.sin(math.atan(s))) / (math.sin(math.atan(s)) - math.sin(math.atan(r)))
    expected = (s - r) * 0.25 + np.sum((0.3 * by_log + 0.7 * by_sine) * width)
    assert got == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("s", "t"), [(1.0, 2.0), (2.0, 1.0), (0.01, 157.0), (3.0, 3.0), (2.0, 0.0)])
def test_integral_log(s: float, t: float) -> None:
    """Against the midpoint rule in u = √σ, which tames the singularity at 0."""
    u = np.linspace(math.sqrt(s), math.sqrt(t), 200_001)
    middle = (u[1:] + u[:-1]) / 2
    expected = np.sum(np.log(middle**2 / s) * 2 * middle * np.diff(u))
    assert integral_log(s, t) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_unknown_solver_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown solver 'ab4'") as caught:
        integrate(Gaussian().eps, X0, LINEAR.path(2), "ab4")
    assert all(name in caught.value.hint for name in SOLVERS)
