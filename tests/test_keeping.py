"""The path kept: decoding returns exactly, by any solver, at any guidance; edited it is direct inversion."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import AnalyticModel, Gaussian, Mixture
from torch import Tensor

from ddimctl import keeping, latent, ode
from ddimctl.errors import FileError, UsageError
from ddimctl.keeping import Keep
from ddimctl.model import NOTHING, Condition
from ddimctl.ode import Solution
from ddimctl.recipe import Recipe, Way
from ddimctl.roundtrip import measure
from ddimctl.schedule import Schedule
from ddimctl.solvers import SOLVERS

LINEAR = Schedule.linear()
G = torch.Generator().manual_seed(2)
NOISE = torch.randn((3, 1, 4, 4), generator=G, dtype=torch.float64)
X0 = torch.sign(NOISE) * 0.6 + 0.3 * NOISE.flip(0)
# Rounding of x_T to float32 is corrected, too; what is left is the second rounding of the last correction.
RETURNS = {"float32": 1e-12, "float16": 1e-6}


class Guided(AnalyticModel):
    """Two prompts: the peaks of a mixture, "up" and "down"; none is both."""

    def eps(self, condition: Condition = NOTHING) -> Any:
        g, m = condition.guidance, -0.6 if condition.prompt == "down" else 0.6

        def eps(xbar: Tensor, sigma: Any) -> Tensor:
            away = Mixture().eps(xbar, sigma)
            return away + (g if condition.prompt else 0) * (Gaussian(m, 0.3).eps(xbar, sigma) - away)

        return eps


MODEL: Any = Guided(Mixture())


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("precision", keeping.PRECISIONS)
@pytest.mark.parametrize("g", [1.0, 7.5])
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "adaptive"])
def test_it_returns_whatever_went_up_and_at_any_guidance(solver: str, g: float, precision: str) -> None:
    way, asked = Way(solver, "karras", 10, keep=Keep(precision)), Condition(prompt="up", guidance=g)
    solution = ode.encode(MODEL, X0, way, asked)
    xT = solution.x.float()
    back = ode.decode(MODEL, xT, way, asked, corrections=solution.corrections).x
    assert apart(back, X0) < RETURNS[precision]
    plain = ode.decode(MODEL, xT, replace(way, solver="ddim", keep=None), asked).x
    if solver != "exact":
        assert apart(plain, X0) > 1000 * RETURNS[precision], "there is something to correct"
    assert solution.returned is not None
    assert max(solution.returned) < RETURNS[precision]


def test_the_corrections_are_what_a_step_misses() -> None:
    """The equation, transcribed: from each state on the way down to the state that encoding visited below it."""
    path, eps = LINEAR.path(7), Mixture().eps
    states = [X0]
    for s, t in pairwise(path):
        states.append(states[-1] + (t - s) * eps(states[-1], s))
    solution = ode.encode(MODEL, X0, Way("ddim", "karras", 7, keep=Keep()))
    assert solution.corrections is not None
    x = solution.x.float().double() * LINEAR.scale(path[-1])
    for i in reversed(range(7)):
        down = x + (path[i] - path[i + 1]) * eps(x, path[i + 1])
        c = (states[i] - down).float().double()
        torch.testing.assert_close(solution.corrections[:, i + 1].double(), c, rtol=1e-6, atol=1e-9)
        x = down + c
    torch.testing.assert_close(solution.corrections[:, 0].double(), X0 - x, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("K", [1, 3, 10])
def test_a_few_corrections_return_as_well(K: int) -> None:
    way, asked = Way("ab2", "karras", 10, keep=Keep(steps=K)), Condition(prompt="up", guidance=5.0)
    solution = ode.encode(MODEL, X0, way, asked, batch_size=2)
    assert solution.corrections is not None
    assert solution.corrections.shape == (3, K + 1, 1, 4, 4)
    for size in (1, 2, 3):
        back = ode.decode(MODEL, solution.x.float(), way, asked, corrections=solution.corrections, batch_size=size).x
        assert apart(back, X0) < 1e-12
    some = solution.select([2, 0])
    assert some.corrections is not None
    back = ode.decode(MODEL, some.x.float(), way, asked, corrections=some.corrections).x
    assert apart(back, X0[[2, 0]]) < 1e-12


def test_under_another_prompt_the_same_corrections_are_added() -> None:
    """Direct inversion, step by step; and what it gives is the other prompt's."""
    way = Way("ddim", "karras", 10, keep=Keep())
    up, down = (Condition(prompt=p, guidance=2.0) for p in ("up", "down"))
    start = X0.abs()  # all of it "up"
    solution = ode.encode(MODEL, start, way, up)
    assert solution.corrections is not None
    got = ode.decode(MODEL, solution.x.float(), way, down, corrections=solution.corrections).x
    path = LINEAR.path(10)
    x, eps = solution.x.float().double() * LINEAR.scale(path[-1]), MODEL.eps(down)
    for i in reversed(range(10)):
        x = x + (path[i] - path[i + 1]) * eps(x, path[i + 1]) + solution.corrections[:, i + 1].double()
    x = x + solution.corrections[:, 0].double()
    torch.testing.assert_close(got, x)
    assert float(got.mean()) < 0 < float(start.mean())


def test_arrays_of_numpy_keep_their_path_too() -> None:
    way = Way("ab2", steps=6, keep=Keep("float16"))
    tensors = ode.encode(AnalyticModel(Gaussian()), X0, way)  # type: ignore[arg-type]
    arrays = ode.encode(AnalyticModel(Gaussian()), X0.numpy(), way)  # type: ignore[arg-type]
    assert tensors.corrections is not None
    assert isinstance(arrays.corrections, np.ndarray)
    assert arrays.corrections.dtype == np.float16
    np.testing.assert_allclose(arrays.corrections, tensors.corrections, rtol=2e-3, atol=1e-6)
    back = ode.decode(AnalyticModel(Gaussian()), arrays.x, way, corrections=arrays.corrections).x  # type: ignore[arg-type]
    np.testing.assert_allclose(back, X0, atol=1e-4)


def test_the_round_trip_is_measured_with_it() -> None:
    kept, plain = measure(MODEL, [X0], [Way("ab2", steps=5, keep=Keep()), Way("ab2", steps=5)])
    assert kept.total("mse") < 1e-16 < plain.total("mse")
    assert kept.encode_evaluations == [10] * 3


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (Way("adaptive", keep=Keep()), "no path to keep"),
        (Way("ab2", steps=5, keep=Keep(steps=6)), "6 of 5"),
        (Way("ab2", steps=5, keep=Keep(steps=0)), "0 of 5"),
        (Way("ab2", steps=5, keep=Keep("float8")), "unknown precision"),
    ],
)
def test_what_cannot_be_kept(way: Way, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ode.encode(MODEL, X0, way)


@pytest.mark.parametrize("shape", [(3, 7, 1, 4, 4), (2, 6, 1, 4, 4), (3, 6, 1, 4, 5), (3,), (3, 1, 1, 4, 4)])
def test_corrections_that_do_not_belong(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="do not belong"):
        ode.decode(MODEL, X0, Way("ddim", steps=5), corrections=torch.zeros(shape))


# The file


def a_latent(precision: str = "float32", n: int = 2) -> latent.Latent:
    from ddimctl.families import load

    net = load("fashion-mnist", "cpu")
    way = Way("ab2", steps=3, keep=Keep(precision))
    corrections = torch.randn((n, 4, 1, 28, 28), generator=torch.Generator().manual_seed(1)).to(
        getattr(torch, precision)
    )
    solution = Solution(None, [6] * n, returned=[0.0] * n)
    about = latent.provenance(net, Recipe.of(net, way), solution, records=[{"name": f"{i}.png"} for i in range(n)])
    return latent.Latent(torch.randn(n, 1, 28, 28), about, corrections)


@pytest.mark.parametrize("precision", keeping.PRECISIONS)
@pytest.mark.parametrize("suffix", latent.SUFFIXES)
def test_a_file_holds_them(suffix: str, precision: str, tmp_path: Path) -> None:
    one, path = a_latent(precision), tmp_path / f"a{suffix}"
    latent.save(path, one)
    found = latent.load(path)
    assert torch.equal(found.xT, one.xT)
    assert found.corrections is not None
    assert found.corrections.dtype == getattr(torch, precision)
    assert torch.equal(found.corrections, one.corrections)
    assert found.recipe.way.keep == Keep(precision, 3)
    assert found.provenance["decoder"] == "ddim"
    theirs = torch.load(path, weights_only=True) if suffix == ".pt" else None
    if theirs is not None:
        assert torch.equal(theirs["corrections"], one.corrections)
    both = tmp_path / f"both{suffix}"
    latent.merge([path, path], both)
    found = latent.load(both)
    assert torch.equal(found.corrections, torch.cat([one.corrections] * 2))
    assert torch.equal(found.xT, torch.cat([one.xT] * 2))


@pytest.mark.parametrize("suffix", latent.SUFFIXES)
def test_a_flipped_bit_of_a_correction_is_noticed(suffix: str) -> None:
    one = a_latent("float16")
    data = bytearray(latent.to_bytes(one, suffix))
    at = data.index(latent.array(one.corrections, "<f2").tobytes()[:64])
    data[at + 7] ^= 1
    with pytest.raises(FileError, match="damaged"):
        latent.from_bytes(bytes(data), "a")


def test_corrections_that_a_file_does_not_tell_of_are_refused() -> None:
    one = a_latent()
    assert one.corrections is not None
    without = {k: v for k, v in one.provenance.items() if k != "keep_path"}
    for about, corrections in [
        (one.provenance, None),
        (without, one.corrections),
        (one.provenance, one.corrections[:, :2]),
        (one.provenance, one.corrections[:1]),
        (one.provenance, one.corrections.half()),
        ({**one.provenance, "keep_path": {"precision": "float32", "steps": 4}}, one.corrections),
    ]:
        with pytest.raises(FileError, match="corrections"):
            latent.to_bytes(latent.Latent(one.xT, about, corrections), ".pt")


@pytest.mark.parametrize("lost", ["corrections", "keep_path"])
def test_a_hostile_file_without_the_one_or_the_other(lost: str, tmp_path: Path) -> None:
    one = a_latent()
    about = {k: v for k, v in one.provenance.items() if k != lost}
    kept = None if lost == "corrections" else one.corrections
    text = json.dumps(about, sort_keys=True)
    content = {
        "format": latent.FORMAT, "version": "2", "provenance": text, "sha256": latent.digest(one.xT, text, kept),
        "xT": one.xT, **({} if kept is None else {"corrections": kept}),
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(FileError, match="corrections"):
        latent.load(tmp_path / "a.pt")


def test_what_is_too_large_for_float16_is_not_written() -> None:
    one = a_latent("float16")
    assert one.corrections is not None
    one.corrections[0, 0, 0, 0, 0] = torch.inf
    with pytest.raises(FileError, match="too large") as caught:
        latent.to_bytes(one, ".pt")
    assert "float32" in caught.value.hint
