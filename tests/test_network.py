"""A network is a value made of a module that waits, and an analytic one in a real `Model` gives the exact ε."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import Gaussian, Mixture, in_a_network
from torch import Tensor

from ddimctl import ode
from ddimctl.errors import UsageError
from ddimctl.model import Condition, Model
from ddimctl.network import Facts, Module, Network
from ddimctl.ode import integrate
from ddimctl.predictions import PREDICTIONS
from ddimctl.recipe import Way
from ddimctl.solvers import SOLVERS

SHAPE = (1, 4, 4)
X0 = torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, *SHAPE)
TIMES = (1, 30, 500, 1000)


def identity(x: Any, labels: Sequence[float], embedded: Any) -> Any:
    return x


# Modules and networks


def test_a_module_is_loaded_and_described_when_it_is_first_needed_and_once() -> None:
    done: list[str] = []

    def load() -> torch.nn.Module:
        done.append("loaded")
        return torch.nn.Identity()

    def describe() -> Facts:
        done.append("described")
        return Facts("d", 1, 2)

    module = Module(SHAPE, "cpu", load, describe)
    network = Network(module, "torch", "float32", identity)
    model = Model(network, in_a_network(Gaussian()).schedule, SHAPE)
    model.eps()(X0, 1.0)
    assert done == []
    assert module.torch is module.torch
    assert (model.digest, module.facts.parameters, module.facts.flops) == ("d", 1, 2)
    assert done == ["loaded", "described"]


@pytest.mark.parametrize(
    ("device", "kind", "state"), [("cpu", "cpu", "cpu"), ("cuda:1", "cuda", "cuda:1"), ("mps:0", "mps", "cpu")]
)
def test_where_the_state_lives(device: str, kind: str, state: str) -> None:
    module = Module(SHAPE, device, object, lambda: Facts("d", 0, 0))
    assert (module.kind, module.state_device) == (kind, state)  # MPS has no float64


@pytest.mark.parametrize(
    ("precision", "weights", "dtype"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float16", "float16"),
        ("bf16", "float32", "bfloat16"),
        ("fp16", "float32", "float16"),
    ],
)
def test_what_it_computes_in(precision: str, weights: str, dtype: str) -> None:
    module = Module(SHAPE, "cpu", object, lambda: Facts("d", 0, 0), dtype=weights)
    assert Network(module, "torch", precision, identity).dtype == dtype


def test_replacing_its_call_leaves_the_first_as_it_was() -> None:
    """So what stands around a network, a clock or a counter, is another network."""
    model = in_a_network(Mixture())
    asked: list[int] = []

    def counted(x: Tensor, labels: Sequence[float], embedded: Any) -> Any:
        asked.append(len(x))
        return model.network(x, labels, embedded)

    watched = model.with_network(replace(model.network, call=counted))
    sigma = model.schedule.sigma(500)
    assert torch.equal(watched.eps()(X0, sigma), model.eps()(X0, sigma))
    assert asked == [4]
    assert watched.network.module is model.network.module
    assert watched.digest == model.digest
    with pytest.raises(FrozenInstanceError):
        model.network.call = counted  # type: ignore[misc]
    assert [replace(model.network, engine=e).needs_torch for e in ("torch", "compile", "openvino")] == [
        True,
        True,
        False,
    ]


# The analytic network: ε(x̄, σ) through scaling, labels and predictions


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_exact_eps(prediction: str) -> None:
    """x_t, the label, what the network predicts of them, and back: ε is the problem's own, in float64."""
    problem = Mixture()
    eps = in_a_network(problem, prediction=prediction).eps()
    schedule = in_a_network(problem).schedule
    each = [schedule.sigma(t) for t in TIMES]
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(eps(X0 * 3, each), problem.eps(X0 * 3, each), **close)
    for sigma in each:
        torch.testing.assert_close(eps(X0 * 3, sigma), problem.eps(X0 * 3, sigma), **close)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_numpy_arrays_give_the_same(prediction: str) -> None:
    eps = in_a_network(Gaussian(), prediction=prediction).eps()
    schedule = in_a_network(Gaussian()).schedule
    for sigma in (schedule.sigma(500), [schedule.sigma(t) for t in TIMES]):
        found = eps(X0.numpy(), sigma)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, eps(X0, sigma).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_encode_is_the_integral_of_the_problem(prediction: str, solver: str) -> None:
    """The whole way through a `Model`, for VP schedules and flows: x̄ of the problem's own ODE over the scale."""
    problem, model = Mixture(), in_a_network(Mixture(), prediction=prediction)
    levels = [model.schedule.sigma(t) for t in (1, 50, 200, 400, 600, 800, 1000)]
    way = Way(solver).along(levels)
    xbar = integrate(problem.eps, X0, levels, solver)
    found = ode.encode(model, X0, way)
    scale = 1 + levels[-1] if prediction == "flow" else (1 + levels[-1] ** 2) ** 0.5
    assert found.evaluations == xbar.evaluations
    torch.testing.assert_close(found.x, xbar.x / scale, rtol=1e-8, atol=1e-8)
    back = integrate(problem.eps, found.x * scale, levels[::-1], solver)
    torch.testing.assert_close(ode.decode(model, found.x, way).x, back.x, rtol=1e-8, atol=1e-8)


# Guidance, and one condition for all of an integration


def guided(asked: list[str], *, prediction: str = "epsilon") -> Model:
    """A network whose prediction is a number for each prompt; it notes which it is asked for."""
    known = {"": 1.0, "a dog": 3.0, "blurred": -2.0}

    def call(x: Tensor, labels: Sequence[float], embedded: Any) -> Tensor:
        asked.append(embedded["prompt"])
        return torch.full_like(x, known[embedded["prompt"]])

    base = in_a_network(Gaussian(), prediction=prediction)
    return replace(base.with_network(replace(base.network, call=call)), embed=lambda c: {"prompt": c.prompt or ""})


@pytest.mark.parametrize(
    ("condition", "expected", "asked"),
    [
        (Condition(prompt="a dog"), 3.0, ["a dog"]),  # one evaluation, for 1 needs no second
        (Condition(prompt="a dog", guidance=7.5), 1 + 7.5 * 2, ["a dog", ""]),
        (Condition(prompt="a dog", guidance=0.0), 1.0, ["a dog", ""]),
        (Condition(prompt="a dog", guidance=-1.0), 1 - 2.0, ["a dog", ""]),
        (Condition(prompt="a dog", negative="blurred", guidance=2.0), -2 + 2 * 5.0, ["a dog", "blurred"]),
        (Condition(prompt="a dog", negative="blurred"), 3.0, ["a dog"]),
    ],
)
def test_guidance_leads_from_the_null_condition(condition: Condition, expected: float, asked: list[str]) -> None:
    """ε = ε_u + g (ε_c − ε_u) (Ho and Salimans 2022)."""
    found: list[str] = []
    out = guided(found).eps(condition)(X0, 1.0)
    assert torch.equal(out, torch.full_like(X0, expected))
    assert found == asked


def test_a_condition_is_refused_before_anything_is_evaluated() -> None:
    model = in_a_network(Gaussian())
    for condition in (Condition(0), Condition(prompt="a dog"), Condition(negative=""), Condition(guidance=2.0)):
        with pytest.raises(UsageError, match="takes no class, prompt or guidance"):
            model.eps(condition)


def test_a_condition_for_each_row_would_go_astray() -> None:
    """Solvers that iterate drop the rows that are done, and those below move up: so an integration has one condition.

    Rows want a condition of their own here, by position as the network would see them: images come out other than alone.
    """
    means = [0.0, 0.9, -0.9]
    x = torch.stack([torch.zeros(SHAPE).double(), X0[1], X0[2]])
    levels = [0.05, 1.0, 5.0]
    sizes: set[int] = set()

    def by_position(rows: Sequence[float]) -> Any:
        def eps(xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
            sizes.add(len(xbar))
            s = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1, 1)
            mu = torch.tensor(rows[: len(xbar)], dtype=torch.float64).reshape(-1, 1, 1, 1)
            return s * (xbar - mu) / (0.25 + s * s)

        return eps

    together = integrate(by_position(means), x, levels, "exact", tolerance=1e-9)
    assert 3 in sizes
    assert 2 in sizes  # the first, where nothing changes, is done before the others
    alone = [
        integrate(by_position([m]), x[i : i + 1], levels, "exact", tolerance=1e-9).x[0] for i, m in enumerate(means)
    ]
    torch.testing.assert_close(together.x[0], alone[0])
    assert any(float((together.x[i] - alone[i]).abs().max()) > 0.01 for i in (1, 2))
    same = integrate(by_position([0.9] * 3), x, levels, "exact", tolerance=1e-9)  # one for all goes right
    for i in range(3):
        one = integrate(by_position([0.9]), x[i : i + 1], levels, "exact", tolerance=1e-9).x[0]
        torch.testing.assert_close(same.x[i], one, rtol=1e-7, atol=1e-7)
