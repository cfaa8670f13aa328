"""Encode and decode, on models whose right answer is known."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from problems import AnalyticModel, Gaussian, Mixture
from torch import Tensor

from ddimctl.ode import decode, encode, integrate
from ddimctl.recipe import Way
from ddimctl.schedule import SPACINGS, Schedule
from ddimctl.seeds import noise
from ddimctl.solvers import SOLVERS, TOLERANCES

SHAPE = (1, 4, 4)
X0 = torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, *SHAPE)


def test_encode_is_the_exact_flow_in_the_papers_scale() -> None:
    """x_T = √α_T x̄(σ(T)): for Gaussian data exactly (x_0 − μ)/s · √(α_T s² + 1 − α_T), plus √α_T μ."""
    model = AnalyticModel(Gaussian(0.3, 0.5))
    xT = encode(model, X0, Way(steps=500)).x
    alpha = model.schedule.alpha[-1]
    exact = (X0 - 0.3) / 0.5 * math.sqrt(alpha * 0.25 + 1 - alpha) + math.sqrt(alpha) * 0.3
    torch.testing.assert_close(xT, exact, rtol=0, atol=1e-3)


def test_decode_of_noise_has_the_datas_law() -> None:
    """The other way: N(0, 1) becomes N(μ, s²), number by number."""
    model = AnalyticModel(Gaussian(0.3, 0.5))
    xT = noise(SHAPE, 50, seed=0)
    x0 = decode(model, xT, Way(steps=500)).x
    torch.testing.assert_close(x0, 0.3 + 0.5 * xT.double(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_round_trip(solver: str, spacing: str) -> None:
    model = AnalyticModel(Mixture())
    errors = []
    for steps in (20, 200):
        tolerance = 1e-9 if solver in TOLERANCES else None  # else its error is the tolerance's, whatever S
        way = Way(solver, spacing, steps, tolerance)
        xT = encode(model, X0, way).x
        back = decode(model, xT, way).x
        assert xT.dtype == back.dtype == torch.float64
        assert xT.shape == back.shape == X0.shape
        assert 0.3 < xT.std() < 2  # of the size of noise
        errors.append(float((back - X0).abs().max()))
    assert errors[1] < 0.1
    assert errors[1] < (1e-3 if solver in TOLERANCES else max(errors[0] / 3, 1e-4))


def test_the_default_path_is_twenty_karras_steps() -> None:
    model = AnalyticModel(Gaussian())
    way = Way("ab2", "karras", 20)
    assert torch.equal(encode(model, X0).x, encode(model, X0, way).x)
    assert torch.equal(decode(model, X0).x, decode(model, X0, way).x)
    levels = Way("ab2").along(model.schedule.path(20, "karras"))
    assert torch.equal(encode(model, X0).x, encode(model, X0, levels).x)


def test_nothing_is_clipped() -> None:
    """Neither the prediction of x_0 on the way nor the result: both are far outside [−1, 1] here."""
    model = AnalyticModel(Gaussian(mu=5.0, s=2.0))
    way = Way(steps=200)
    xT = torch.full((1, *SHAPE), 1.5)
    x0 = decode(model, xT, way).x
    torch.testing.assert_close(x0, torch.full_like(x0, 5 + 2 * 1.5), rtol=1e-2, atol=0)
    back = encode(model, x0, way).x
    torch.testing.assert_close(back, xT.double(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_the_batch_size_changes_nothing(solver: str, batch_size: int) -> None:
    model = AnalyticModel(Mixture())
    one = encode(model, X0, Way(solver), batch_size=2)
    other = encode(model, X0, Way(solver), batch_size=batch_size)
    torch.testing.assert_close(one.x, other.x, rtol=1e-12, atol=1e-12)
    assert one.evaluations == other.evaluations
    assert len(one.evaluations) == 4


def test_no_images() -> None:
    solution = encode(AnalyticModel(Gaussian()), X0[:0])
    assert solution.x.shape == (0, *SHAPE)
    assert solution.evaluations == []


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_does_not_grow_with_the_number_of_steps(solver: str, direction: str) -> None:
    """Counts the states and predictions that are alive whenever the network is asked."""

    def most_alive(steps: int) -> int:
        seen: list[weakref.ref[Tensor]] = []
        most = 0

        def eps(xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
            nonlocal most
            out = Gaussian().eps(xbar, sigma if isinstance(sigma, float) else torch.tensor(sigma).view(-1, 1, 1, 1))
            seen.extend((weakref.ref(xbar), weakref.ref(out)))
            most = max(most, len({id(t) for r in seen if (t := r()) is not None}))
            return out

        path = Schedule.linear().path(steps)
        integrate(eps, X0.clone(), path if direction == "encode" else path[::-1], solver)
        return most

    assert most_alive(200) <= most_alive(20)
    assert most_alive(200) <= 20  # `seen` itself holds nothing, so this counts what the solver holds


def test_progress_sees_every_step_of_every_batch() -> None:
    model = AnalyticModel(Gaussian())
    seen: list[int] = []

    def progress(states: Iterable[Tensor]) -> Iterator[Tensor]:
        n = 0
        for state in states:
            assert state.shape[1:] == SHAPE
            n += 1
            yield state
        seen.append(n)

    encode(model, X0, Way(steps=7), batch_size=3, progress=progress)
    assert seen == [7, 7]


def test_one_condition_an_integration() -> None:
    """Solvers that iterate drop the images that are done: rows move up, so a condition for each row would go astray."""
    asked: list[int] = []

    def eps(xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
        asked.append(len(xbar))
        return Mixture().eps(xbar, sigma)

    x = X0.clone()
    x[0] = 0  # at the middle of the mixture, where nothing changes: done at once
    integrate(eps, x, Schedule.linear().path(10), "exact", tolerance=1e-10)
    assert max(asked) == len(x)
    assert min(asked) < len(x)  # and which rows were left, the network is not told
