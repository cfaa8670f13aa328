"""The noise schedule: labels and levels against independent transcriptions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddimctl.checkpoints import scheduler
from ddimctl.errors import UsageError
from ddimctl.schedule import SPACINGS, Schedule

LINEAR = Schedule.linear()


def short(T: int) -> Schedule:
    """A schedule of T steps that ends about as noisy as the usual one (while β stays below 1)."""
    return Schedule.linear(T, min(0.1 / T, 0.5), min(20 / T, 0.9))


def test_alpha_is_the_cumulative_product() -> None:
    alpha = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    np.testing.assert_allclose(LINEAR.alpha, alpha, rtol=1e-12)
    assert LINEAR.T == 1000
    np.testing.assert_allclose(LINEAR.sigmas[1:], np.sqrt(1 / alpha[1:] - 1), rtol=1e-9)
    assert LINEAR.sigma(0) == 0
    assert LINEAR.sigma(1) == pytest.approx(0.01, rel=1e-4)  # √(β/(1−β)) for β = 1e-4
    assert LINEAR.sigma(1000) == pytest.approx(157.4, rel=1e-3)


CONFIGS: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "linear", "num_train_timesteps": 200, "beta_start": 5e-4, "beta_end": 0.1},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000},
    {"trained_betas": [0.1, 0.2, 0.4]},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_alpha_is_that_of_diffusers(config: dict[str, Any]) -> None:
    """They compute in float32: every factor 1 − β is rounded, and rounding adds up over the T factors."""
    found = scheduler.read(config)
    schedule, prediction = found.schedule, found.prediction
    theirs = DDIMScheduler(**config).alphas_cumprod.double().numpy()
    assert prediction == "epsilon"
    assert len(theirs) == schedule.T
    np.testing.assert_allclose(schedule.alpha[1:], theirs, rtol=2**-24 * schedule.T)


@pytest.mark.parametrize(
    "alpha", [(1.0,), (0.9, 0.5), (1.0, 0.5, 0.5), (1.0, 0.5, 0.6), (1.0, 0.5, 0.0), (1.0, math.nan)]
)
def test_a_schedule_that_does_not_fall_is_refused(alpha: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fall strictly"):
        Schedule(alpha)


def test_label_is_exact_at_trained_levels() -> None:
    """Paper time t is label t − 1: the most common bug of the field."""
    assert [LINEAR.label(LINEAR.sigma(t)) for t in range(1, 1001)] == list(range(1000))


@given(label=st.floats(0, 999))
def test_label_is_linear_in_log_sigma(label: float) -> None:
    labels, sigmas = np.arange(1000), np.array(LINEAR.sigmas[1:])
    sigma = math.exp(np.interp(label, labels, np.log(sigmas)))
    assert LINEAR.label(min(sigma, LINEAR.sigmas[-1])) == pytest.approx(label, abs=1e-8)


@given(sigma=st.floats(0, LINEAR.sigma(1000)), factor=st.floats(1, 1.001))
def test_label_is_continuous_and_never_falls(sigma: float, factor: float) -> None:
    higher = min(sigma * factor, LINEAR.sigmas[-1])
    difference = LINEAR.label(higher) - LINEAR.label(sigma)
    # Near σ(T) trained levels are 1 % apart in σ, the closest ones about 0.3 %: 0.1 % is less than half a label.
    assert 0 <= difference < 0.5


@pytest.mark.parametrize("sigma", [0.0, 1e-9, 0.005, LINEAR.sigma(1)])
def test_levels_below_the_first_trained_one_have_its_label(sigma: float) -> None:
    assert LINEAR.label(sigma) == 0


def test_levels_and_times_out_of_range_are_refused() -> None:
    top = LINEAR.sigma(1000)
    assert LINEAR.label(top * (1 + 1e-12)) == 999  # rounding is forgiven
    for sigma in (top * 1.001, math.inf, math.nan, -0.01):
        with pytest.raises(ValueError, match="noise level"):
            LINEAR.label(sigma)
    for t in (-1, 1001):
        with pytest.raises(ValueError, match=f"time {t} "):
            LINEAR.sigma(t)


@pytest.mark.parametrize("spacing", SPACINGS)
@given(T=st.integers(1, 1200), data=st.data())
def test_every_path_has_exactly_s_rising_steps_up_to_the_noisiest_level(
    spacing: str, T: int, data: st.DataObject
) -> None:
    S = data.draw(st.integers(1, T))
    schedule = short(T)
    # Where there is only one trained level there is no way up from it.
    if T == 1 and spacing in ("karras", "log", "arsinh", "guided"):
        with pytest.raises(UsageError, match="1 steps are not possible"):
            schedule.path(S, spacing)
        return
    path = schedule.path(S, spacing)
    assert len(path) == S + 1
    assert all(s < t for s, t in zip(path, path[1:], strict=False))
    top = 1 + (T // S > 1) + (S - 1) * (T // S) if spacing == "leading" else T  # the first is diffusers' habit
    assert path[-1] == schedule.sigma(top)
    assert all(isinstance(s, float) and 0 <= schedule.label(s) <= T - 1 for s in path)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_impossible_numbers_of_steps_are_refused(spacing: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps are not possible") as error:
        LINEAR.path(steps, spacing)
    assert "1 to 1000" in error.value.hint


def test_unknown_spacing_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown spacing 'karas'") as error:
        LINEAR.path(10, "karas")
    assert all(name in error.value.hint for name in SPACINGS)
    assert "did you mean karras" in error.value.hint


def test_log_is_even_in_log_sigma() -> None:
    path = np.array(LINEAR.path(20, "log"))
    np.testing.assert_allclose(np.diff(np.log(path)), np.log(path[-1] / path[0]) / 20)
    assert path[0] == LINEAR.sigma(1)


@pytest.mark.parametrize("S", [1, 3, 7, 10, 30, 334, 999, 1000])
def test_the_papers_spacings(S: int) -> None:
    """τ_i = ⌊c·i⌋ and ⌊c·i²⌋ with τ_S = T, in exact integers; where S does not divide T as well (appendix D.2)."""
    assert LINEAR.path(S, "linear") == tuple(LINEAR.sigma(math.floor(i * 1000 / S + 1e-9)) for i in range(S + 1))
    tau = [math.floor(1000 * (i / S) ** 2 + 1e-9) for i in range(S + 1)]
    if S <= 30:  # with more, the first ones coincide and are moved apart
        assert LINEAR.path(S, "quadratic") == tuple(LINEAR.sigma(t) for t in tau)


@pytest.mark.parametrize("S", [2, 20, 1000])
def test_karras_is_even_in_the_seventh_root(S: int) -> None:
    path = np.array(LINEAR.path(S, "karras"))
    assert path[0] == LINEAR.sigma(1)
    roots = path ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / S, rtol=1e-9)


@pytest.mark.parametrize("S", [2, 20, 1000])
def test_arsinh_is_even_in_arsinh_of_ten_sigma(S: int) -> None:
    path = np.array(LINEAR.path(S, "arsinh"))
    assert (path[0], path[-1]) == (LINEAR.sigma(1), LINEAR.sigma(1000))
    u = np.arcsinh(10 * path)
    np.testing.assert_allclose(np.diff(u), (u[-1] - u[0]) / S, rtol=1e-9)


@pytest.mark.parametrize("S", [2, 20, 1000])
def test_guided_is_even_in_log_sigma_and_six_noises(S: int) -> None:
    path = np.array(LINEAR.path(S, "guided"))
    assert (path[0], path[-1]) == (LINEAR.sigma(1), LINEAR.sigma(1000))
    u = np.log(path) + 6 * path / np.sqrt(1 + path**2)
    np.testing.assert_allclose(np.diff(u), (u[-1] - u[0]) / S, rtol=1e-9)
    if S >= 20:  # narrowest about 1/√2
        narrowest = np.argmin(np.diff(np.log(path)))
        assert path[narrowest] <= math.sqrt(0.5) * 1.4
        assert path[narrowest + 1] >= math.sqrt(0.5) / 1.4


def test_digest_names_the_schedule() -> None:
    assert LINEAR.digest == Schedule.linear().digest
    assert len({LINEAR.digest, Schedule.linear(999).digest, Schedule.linear(1000, 1e-4, 0.02 + 1e-12).digest}) == 3


def test_alpha_is_plain_floats() -> None:
    assert all(type(a) is float for a in LINEAR.alpha)
    assert not any(isinstance(s, torch.Tensor) for s in LINEAR.sigmas)
