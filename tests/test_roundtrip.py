"""The measurement of a round trip against encode and decode by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import AnalyticModel, Gaussian, Mixture, in_a_network
from torch import Tensor

from ddimctl import metrics, ode, roundtrip
from ddimctl.errors import DDIMError, UsageError
from ddimctl.model import Condition
from ddimctl.recipe import Way
from ddimctl.roundtrip import ON_ARRAYS, REFERENCE, REPORTS, measure
from ddimctl.solvers import SOLVERS

SHAPE = (1, 12, 12)  # SSIM needs 11 × 11
X0 = torch.rand(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
WAYS = [Way(solver, steps=6) for solver in SOLVERS]


def model() -> Any:
    return AnalyticModel(Mixture(), SHAPE)


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.solver)
def test_it_is_encode_and_decode_by_hand(way: Way) -> None:
    """Every figure, of float32 latents as a file holds them, image by image."""
    (trip,) = measure(model(), [X0], [way], reports=REPORTS, keep=3)
    up = ode.encode(model(), X0, way)
    xT = up.x.float()
    down = ode.decode(model(), xT, way)
    assert trip.way == way.along(way.path(model().schedule))
    assert trip.encode_evaluations == up.evaluations
    assert trip.decode_evaluations == down.evaluations
    assert trip.evaluations == up.mean_evaluations + down.mean_evaluations
    assert trip.residuals == (up.residuals or [])
    assert trip.unconverged == len(up.unconverged)
    assert torch.equal(torch.stack(trip.shown), down.x[:3])
    assert trip.seconds > 0

    def rms(x: Tensor) -> list[float]:
        return [math.sqrt(float((image.double() ** 2).mean())) for image in x]

    path = model().schedule.path(6)
    truth = ode.encode(model(), X0, Way("adaptive", tolerance=1e-5).along((path[0], path[-1]))).x
    again = ode.encode(model(), down.x, way).x
    expected = {name: f(X0, down.x).tolist() for name, f in metrics.METRICS.items()}
    expected |= {"norm": rms(xT), "latent_error": rms(xT - truth), "xT_error": rms(again - xT)}
    expected |= {"autoencoder_mse": [0.0] * len(X0), "state_error": ode.relative(down.x, X0.double())}
    assert trip.values.keys() == expected.keys() == set(REPORTS)
    for name, values in expected.items():
        assert trip.values[name] == pytest.approx(values, rel=1e-9, abs=1e-12), name
        one = {"wrong_pixels": sum, "max_abs": max}.get(name, lambda v: sum(v) / len(v))(values)
        assert trip.total(name) == pytest.approx(one, rel=1e-9, abs=1e-12)


def test_each_way_is_compared_with_the_exact_one_between_its_own_ends() -> None:
    """`leading` ends below σ(T), though it starts where others do."""
    ways = [Way(spacing="trailing", steps=6), Way(spacing="leading", steps=6)]
    together = measure(model(), [X0], ways, reports=["latent_error"])
    alone = [measure(model(), [X0], [way], reports=["latent_error"])[0] for way in ways]
    assert [trip.values for trip in together] == [trip.values for trip in alone]


def test_batches_are_put_together() -> None:
    whole = measure(model(), [X0], WAYS, reports=REPORTS, keep=4)
    parts = measure(model(), iter(X0.split(2)), WAYS, reports=REPORTS, keep=4)
    for a, b in zip(whole, parts, strict=True):
        assert (a.way, a.encode_evaluations, a.decode_evaluations) == (
            b.way,
            b.encode_evaluations,
            b.decode_evaluations,
        )
        assert len(a.shown) == len(b.shown) == 4
        for name in REPORTS:
            assert a.values[name] == pytest.approx(b.values[name], rel=1e-6, abs=1e-9)


def test_all_ways_see_a_batch_before_the_next_is_read() -> None:
    """So a folder of any size can be measured: no more than one batch is held."""
    analytic = model()
    seen: list[int] = []

    def batches() -> Iterator[Tensor]:
        for part in X0.split(2):
            seen.append(analytic.evaluations)
            yield part

    measure(analytic, batches(), [Way("ddim", steps=3), Way("heun", steps=4)])
    assert seen == [0, 2 * (3 + 8), 4 * (3 + 8)]


def test_the_reference_is_made_once_for_each_first_level() -> None:
    cost = {}
    for reports in (("norm",), ("norm", "latent_error")):
        analytic = model()
        measure(
            analytic, [X0], [Way("ddim", "karras", 3), Way("ddim", "log", 4), Way("ddim", "linear", 5)], reports=reports
        )
        cost[reports] = analytic.evaluations
    assert cost["norm",] == 2 * (3 + 4 + 5)
    alone = model()
    for spacing in ("karras", "linear"):  # log starts where karras does
        path = alone.schedule.path(3, spacing)
        ode.encode(alone, X0, REFERENCE.along((path[0], path[-1])))
    assert cost["norm", "latent_error"] == cost["norm",] + alone.evaluations


@pytest.mark.parametrize("reports", [("mse",), ("mse", "xT_error")])
def test_progress_sees_the_steps_it_was_told_of(reports: tuple[str, ...]) -> None:
    ways = [Way("ddim", steps=3), Way("ab2", "log", 5), Way("exact", steps=4)]
    count = 0

    def progress(states: Iterable[Tensor]) -> Iterator[Tensor]:
        nonlocal count
        for state in states:
            count += 1
            yield state

    measure(model(), [X0], ways, reports=reports, progress=progress)
    assert count == roundtrip.steps(ways, reports)


def test_numpy_arrays_give_the_same() -> None:
    gaussian = AnalyticModel(Gaussian(), SHAPE)
    ways = [Way(steps=6), Way("exact", steps=6)]
    tensors = measure(gaussian, [X0], ways, reports=ON_ARRAYS)  # type: ignore[arg-type]
    arrays = measure(gaussian, [X0.numpy()], ways, reports=ON_ARRAYS, keep=1)  # type: ignore[arg-type]
    for a, b in zip(tensors, arrays, strict=True):
        assert isinstance(b.shown[0], np.ndarray)
        assert a.encode_evaluations == b.encode_evaluations
        for name in ON_ARRAYS:
            assert a.values[name] == pytest.approx(b.values[name], rel=1e-9, abs=1e-12)


def test_the_condition_reaches_every_evaluation() -> None:
    asked: list[Condition] = []

    def embed(condition: Condition) -> dict[str, Any]:
        asked.append(condition)
        return {}

    net = replace(in_a_network(Gaussian(), SHAPE), embed=embed)
    measure(net, [X0], [Way(steps=2)], reports=REPORTS, condition=Condition(3))
    assert len(asked) == 4  # the reference, up, down and up again
    assert set(asked) == {Condition(3)}


def test_what_makes_no_sense() -> None:
    analytic = model()
    with pytest.raises(UsageError, match="unknown report 'lpips'"):
        measure(analytic, [X0], WAYS, reports=("mse", "lpips"))
    with pytest.raises(UsageError, match="1001 steps"):
        measure(analytic, [X0], [Way(), Way(steps=1001)])
    assert analytic.evaluations == 0


def test_values_that_are_not_finite_are_an_error() -> None:
    net = in_a_network(Gaussian(mu=math.nan), SHAPE)
    with pytest.raises(DDIMError, match="the model analytic gives values that are not finite"):
        measure(net, [X0], [Way(steps=2)])
