"""Flow matching: the schedule's formulas, and an exact Gaussian flow, which has an answer for everything."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddimctl import ode
from ddimctl.checkpoints import flows
from ddimctl.errors import FileError, UsageError
from ddimctl.model import Model
from ddimctl.network import Facts, Module, Network
from ddimctl.recipe import Way
from ddimctl.schedule import SPACINGS, FlowSchedule

MU, S = 0.3, np.array([[0.1, 0.3], [0.5, 0.9]])  # of the data, by pixel


def gaussian_flow(schedule: FlowSchedule) -> Model:
    """The v = ε − x_0 that a network would learn of data N(μ, s²), in numpy: labels are t times 1000."""

    def v(x: np.ndarray, labels: list[float], embedded: object) -> np.ndarray:
        t = np.asarray(labels).reshape(-1, 1, 1, 1) / 1000
        # x = (1−t) x_0 + t ε is a Gaussian too; ε − x_0 given x is linear in it.
        variance = ((1 - t) * S) ** 2 + t**2
        found: np.ndarray = -MU + (t - (1 - t) * S**2) / variance * (x - (1 - t) * MU)
        return found

    module = Module((1, 2, 2), "cpu", lambda: None, lambda: Facts("gaussian flow", 0, 0))
    return Model(Network(module, "torch", "float32", v), schedule, (1, 2, 2), prediction="flow", label_scale=1000.0)


def images() -> np.ndarray:
    return MU + S * np.random.default_rng(0).standard_normal((4, 1, 2, 2))


def exact_xT(x0: np.ndarray, sigma: float) -> np.ndarray:
    """x_t where x̄(σ) = μ + (x̄(0) − μ) √(s²+σ²)/s."""
    out: np.ndarray = (MU + (x0 - MU) * np.sqrt(S**2 + sigma**2) / S) / (1 + sigma)
    return out


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


@pytest.mark.parametrize("t", [1e-6, 0.1, 0.5, 0.99, 1 - 1e-8])
def test_sigma_label_and_scale_are_those_of_a_flow(t: float) -> None:
    flow, sigma = FlowSchedule(shift=3.0), t / (1 - t)
    assert flow.label(sigma) == pytest.approx(t, rel=1e-12)
    assert flow.scale(sigma) == pytest.approx(1 / (1 - t), rel=1e-12)


@pytest.mark.parametrize("spacing", [s for s in SPACINGS if s != "leading"])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_paths_rise_to_the_end(spacing: str, shift: float) -> None:
    path = FlowSchedule(shift).path(10, spacing)
    assert len(path) == 11
    assert path[-1] == 100
    assert all(a < b for a, b in zip(path, path[1:], strict=False))


def test_a_shift_moves_the_levels_as_diffusers_does() -> None:
    """t → s t / (1 + (s − 1) t) is σ → s σ."""
    inner = FlowSchedule(3.0).path(8, "trailing")[1:-1]
    for i, sigma in enumerate(inner, start=1):
        t = i / 8
        assert sigma / (1 + sigma) == pytest.approx(3 * t / (1 + 2 * t))


def test_there_are_no_leading_levels() -> None:
    with pytest.raises(UsageError, match="no leading levels"):
        FlowSchedule().path(10, "leading")


def test_too_many_trailing_steps_are_told_what_to_do() -> None:
    with pytest.raises(UsageError, match="beyond noise of 100") as error:
        FlowSchedule(3.0).path(60, "trailing")
    assert "--sigma-max 2e+03" in error.value.hint
    assert FlowSchedule(3.0, 2e3).path(60, "trailing")[-1] == 2e3


def test_the_digest_is_of_what_labels_mean() -> None:
    assert FlowSchedule(3.0).digest == FlowSchedule(1.0, 1e4).digest


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1e9, math.nan, math.inf])
def test_an_end_that_makes_no_sense(sigma: float) -> None:
    with pytest.raises(UsageError, match="not possible"):
        FlowSchedule().up_to(sigma)


def test_the_shift_grows_with_the_image() -> None:
    """Flux's: e^0.5 for 256 tokens, e^1.15 for 4096."""
    flow, scale = flows.read({"use_dynamic_shifting": True}, 2)
    assert scale == 1000
    assert flow.at(32, 32).shift == pytest.approx(math.exp(0.5))
    assert flow.at(128, 128).shift == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler"}, {"invert_sigmas": True}, {"shift": -1}, {"shift": "3"}, {"shift": math.inf},
        {"num_train_timesteps": 0}, {"time_shift_type": "linear"}, {"use_dynamic_shifting": True, "max_shift": 1e3},
        {"use_dynamic_shifting": True, "base_image_seq_len": 4096}, {"use_dynamic_shifting": True, "base_shift": None},
    ],
)  # fmt: skip
def test_flows_that_make_no_sense(config: dict[str, object]) -> None:
    with pytest.raises(FileError):
        flows.read(config, 2)


def test_epsilon_is_the_gaussians() -> None:
    """ε*(x̄, σ) = σ (x̄ − μ)/(s² + σ²), through label, scale and prediction."""
    eps, xbar = gaussian_flow(FlowSchedule()).eps(), images() * 3
    for sigma in (0.0, 1e-3, 1.0, 50.0):
        np.testing.assert_allclose(eps(xbar, sigma), sigma * (xbar - MU) / (S**2 + sigma**2), rtol=1e-9, atol=1e-12)


def test_up_to_the_default_end_there_and_back() -> None:
    """Seen: 3e-3, 2e-5 and 3e-5 there and back; `exact` inverts DDIM, whose own x_T is another."""
    model, x0 = gaussian_flow(FlowSchedule()), images()
    for way, most, off in ((Way("ab2"), 1e-2, 5e-2), (Way("ab2", steps=100), 1e-3, 1e-2), (Way("exact"), 1e-3, 0.5)):
        xT = ode.encode(model, x0, way).x
        assert rms(xT - exact_xT(x0, 100.0)) < off
        assert rms(ode.decode(model, xT, way).x - x0) < most


def test_the_trap_at_infinity() -> None:
    """A residual relative to √(1+σ²) alone would let one step from σ = 9 to 10⁶ leave ten times what x̄ is there."""
    for end in (100.0, 1e6):
        model, x0 = gaussian_flow(FlowSchedule(sigma_max=end)), images()
        way = Way("exact", "trailing", steps=10)
        up = ode.encode(model, x0, way)
        assert not up.unconverged
        assert rms(ode.decode(model, up.x, way).x - x0) < 1e-3  # seen: 2e-5; before it was relative to both ends, 0.1
