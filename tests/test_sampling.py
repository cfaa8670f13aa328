"""Sampling against an independent transcription of the paper, against diffusers, and on data whose law is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from problems import AnalyticModel, Gaussian, Mixture
from torch import Tensor

import ddimctl
from ddimctl import ode, seeds
from ddimctl.errors import UsageError
from ddimctl.recipe import Way
from ddimctl.sampling import Noising, dial, hat, sample
from ddimctl.schedule import SPACINGS, Schedule
from ddimctl.solvers import SOLVERS, TOLERANCES

SHAPE = (1, 4, 4)
SCHEDULE = Schedule.linear()


def noising(solver: str = "ab2", spacing: str = "karras", steps: int = 20, **how: Any) -> Noising:
    return Noising(Way(solver, spacing, steps, how.pop("tolerance", None)), **how)


def draws(seed: int, k: int, count: int, shape: Sequence[int] = SHAPE) -> list[Tensor]:
    """What image k of a seed uses: x_T, then the noise of each step."""
    generator = torch.Generator().manual_seed(seeds.mix(seed, k))
    return [torch.randn(tuple(shape), generator=generator).double() for _ in range(count)]


def eq_12(
    problem: Gaussian | Mixture, seed: int, k: int, tau: Sequence[int], eta: float, sigma_hat: bool = False
) -> Tensor:
    """Image k as the paper writes it, in x_t and α_t. tau is 0 = τ_0 < τ_1 < … < τ_S = T."""
    xT, *zs = draws(seed, k, len(tau))
    x = xT
    for (before, now), z in zip(reversed(list(pairwise(tau))), zs, strict=True):
        a, b = SCHEDULE.alpha[now], SCHEDULE.alpha[before]  # α_τi, α_τ(i−1)
        e = problem.eps(x / math.sqrt(a), math.sqrt((1 - a) / a))
        f = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        sigma = (1.0 if sigma_hat else eta) * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)  # eq. 16
        noise = math.sqrt(1 - a / b) if sigma_hat else sigma
        if sigma_hat and now == 1:  # the authors' code leaves it out there
            noise = 0.0
        x = math.sqrt(b) * f + math.sqrt(1 - b - sigma**2) * e + noise * z
    return x


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
@pytest.mark.parametrize(
    "how", [{"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}, {"sigma_hat": True}], ids=["0", "0.5", "1", "hat"]
)
def test_the_papers_equation(how: dict[str, float], spacing: str, steps: int) -> None:
    path = SCHEDULE.path(steps, spacing)
    tau = [SCHEDULE.sigmas.index(s) for s in path]
    problem = Mixture()
    got = sample(AnalyticModel(problem), 3, noising("ddim", spacing, steps, **how), seed=5, first=2).x  # type: ignore[arg-type]
    want = torch.stack([eq_12(problem, 5, k, tau, how.get("eta", 0.0), "sigma_hat" in how) for k in (2, 3, 4)])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_the_last_noise_of_the_larger_variance() -> None:
    """√(1−α_τ1) in a step to the clean image, which the image shows; none from t = 1; for η never any."""
    spread = hat(SCHEDULE.sigma(1))
    assert spread(SCHEDULE.sigma(100), 0.0) == (0.0, pytest.approx(math.sqrt(1 - SCHEDULE.alpha[100])))
    assert spread(SCHEDULE.sigma(1), 0.0) == (0.0, 0.0)
    assert spread(SCHEDULE.sigma(2), SCHEDULE.sigma(1))[1] > 0
    assert dial(1.0)(SCHEDULE.sigma(100), 0.0) == (0.0, 0.0)


@given(s=st.floats(1e-4, 1e3), ratio=st.floats(0, 1, exclude_max=True), eta=st.floats(0, 1), more=st.floats(0, 1))
def test_the_dial_is_the_papers_and_grows(s: float, ratio: float, eta: float, more: float) -> None:
    t = s * ratio
    a, b = 1 / (1 + s * s), 1 / (1 + t * t)
    # 1 − a/b and 1 − b without cancellation
    sigma = eta * math.sqrt((t * t * b) / (s * s * a)) * math.sqrt((s * s - t * t) * a)
    along, nu = dial(eta)(s, t)
    assert along == nu
    assert nu == pytest.approx(sigma / math.sqrt(b), rel=1e-6, abs=1e-12)
    assert 0 <= nu <= t  # so that the direction's root is real
    assert nu <= dial(min(1.0, eta + more))(s, t)[1]
    if s > 0.01:
        ours, hats = dial(1.0)(s, t), hat(0.01)(s, t)
        assert hats[0] == ours[0]
        assert hats[1] >= ours[1] * (1 - 1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [5, 20, 100])
def test_diffusers(steps: int, eta: float) -> None:
    """Their trailing grid is our linear one where S divides T, and ends at the clean image too."""
    theirs = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    path = SCHEDULE.path(steps, "linear")
    assert [SCHEDULE.sigmas[int(t) + 1] for t in theirs.timesteps] == list(path[:0:-1])
    problem = Mixture()
    x, *zs = (z[None] for z in draws(7, 0, steps + 1))
    for t, z in zip(theirs.timesteps, zs, strict=True):
        sigma = SCHEDULE.sigma(int(t) + 1)
        e = problem.eps(x * math.sqrt(1 + sigma**2), sigma)
        x = theirs.step(e, int(t), x, eta=eta, variance_noise=z).prev_sample
    got = sample(AnalyticModel(problem), 1, noising("ddim", "linear", steps, eta=eta), seed=7).x  # type: ignore[arg-type]
    torch.testing.assert_close(got, x, rtol=0, atol=2e-4)  # their α are float32


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_at_eta_0_it_is_decode_of_noise_exactly(solver: str, spacing: str) -> None:
    way = Way(solver, spacing, 10, 1e-4 if solver in TOLERANCES else None)
    got = sample(AnalyticModel(Mixture()), 5, Noising(way), seed=3, first=1, batch_size=2)  # type: ignore[arg-type]
    xT = seeds.noise(SHAPE, 6, 3)[1:]
    want = ode.decode(AnalyticModel(Mixture()), xT, way, batch_size=2)  # type: ignore[arg-type]
    assert torch.equal(got.x, want.x)
    assert (got.evaluations, got.residuals, got.tolerance) == (want.evaluations, want.residuals, want.tolerance)


@pytest.mark.parametrize("how", [{"eta": 0.0}, {"eta": 0.7}, {"sigma_hat": True}], ids=str)
@given(n=st.integers(0, 5), first=st.integers(0, 4), batch_size=st.integers(1, 6), seed=st.integers(0, 2**40))
def test_image_k_of_a_seed_is_the_same_whatever_is_made_beside_it(
    how: dict[str, float], n: int, first: int, batch_size: int, seed: int
) -> None:
    noising_ = noising(steps=4, **how)
    model = AnalyticModel(Mixture())
    all_ = sample(model, 9, noising_, seed=seed).x  # type: ignore[arg-type]
    torch.randn(3)  # nor does the global generator matter
    some = sample(model, n, noising_, seed=seed, first=first, batch_size=batch_size)  # type: ignore[arg-type]
    assert some.x.shape == (n, *SHAPE)
    assert some.x.dtype == torch.float64
    assert torch.equal(some.x, all_[first : first + n])
    assert some.evaluations == [4] * n
    assert len({float(x.sum()) for x in all_}) == 9


def test_images_and_seeds_and_steps_share_no_noise() -> None:
    """Of a point mass at 0 the images are noise alone, nearly all of it the last step's."""
    model = AnalyticModel(Gaussian(0.0, 1e-9), (1, 10, 10))
    x = torch.cat([sample(model, 10, noising(steps=3, eta=1.0), seed=seed).x.flatten(1) for seed in (0, 1)])
    xT = torch.cat([seeds.noise((1, 10, 10), 10, seed).double().flatten(1) for seed in (0, 1)])
    correlation = torch.corrcoef(torch.cat([x, xT])) - torch.eye(40)
    assert float(correlation.abs().max()) < 0.5  # 780 pairs of 100 numbers: 5 standard deviations


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}, {"sigma_hat": True}], ids=str)
def test_gaussian_data_comes_out_with_its_mean_and_variance(how: dict[str, float]) -> None:
    """With the exact ε, which is not the exact reverse law at a finite step: that is what T steps are for.

    Every chain here is affine in Gaussian noise, so its result is Gaussian, and its mean and variance have the standard
    errors s/√N and s²√(2/N).
    """
    mu, s, n = 0.3, 0.5, 400
    model = AnalyticModel(Gaussian(mu, s))
    x = sample(model, n, noising("ddim", "linear", 1000, **how), seed=11, batch_size=n).x  # type: ignore[arg-type]
    numbers = n * math.prod(SHAPE)
    assert float(x.mean()) == pytest.approx(mu, abs=4.5 * s / math.sqrt(numbers) + 1e-3)
    assert float(x.var()) == pytest.approx(s * s, abs=4.5 * s * s * math.sqrt(2 / numbers) + 4e-3)


@pytest.mark.parametrize(("how", "exact"), [({"eta": 1.0}, False), ({"sigma_hat": True}, True)], ids=str)
@pytest.mark.parametrize("steps", [5, 20])
def test_the_variance_that_comes_out_of_gaussian_data_is_known_at_every_number_of_steps(
    how: dict[str, float], exact: bool, steps: int
) -> None:
    """x̄_t = c x̄_s + … + ν z, so Var x̄_t = c² Var x̄_s + ν²: few steps of η = 1 lose variance, of σ̂ gain it."""
    s0, n = 0.5, 1500
    path = SCHEDULE.path(steps, "linear")
    variance = 1 + path[-1] ** 2
    spread = hat(path[1] / 2) if exact else dial(1.0)
    for s, t in pairwise(path[::-1]):
        along, nu = spread(s, t)
        c = 1 + (math.sqrt(t * t - along**2) - s) * s / (s0**2 + s * s)
        variance = c * c * variance + nu**2
    assert (variance > s0**2) == exact
    x = sample(AnalyticModel(Gaussian(0.3, s0)), n, noising("ab2", "linear", steps, **how), seed=1, batch_size=n).x  # type: ignore[arg-type]
    error = variance * math.sqrt(2 / (n * math.prod(SHAPE)))
    assert float(x.var()) == pytest.approx(variance, abs=4.5 * error)
    assert abs(variance - s0**2) > 9 * error  # so that this test can tell


def test_nothing_is_clipped() -> None:
    x = sample(AnalyticModel(Gaussian(5.0, 2.0)), 4, noising("ab2", "linear", 100, eta=1.0)).x
    assert float(x.max()) > 7


@pytest.mark.parametrize("spacing", ["karras", "log"])
def test_a_path_that_starts_above_zero_keeps_that_much_noise(spacing: str) -> None:
    """As for `decode`, its first level counts as clean: for a point mass x̄ is left with σ(1), 1.3 of 255 levels."""
    model = AnalyticModel(Gaussian(0.2, 1e-6), (1, 16, 16))
    x = sample(model, 50, noising("ab2", spacing, 20, eta=1.0)).x
    assert float(x.std()) == pytest.approx(SCHEDULE.sigma(1), rel=0.05)
    assert float(x.mean()) == pytest.approx(0.2, abs=1e-3)


def test_progress_sees_every_step_of_every_batch() -> None:
    seen: list[int] = []

    def progress(states: Iterable[Tensor]) -> Iterator[Tensor]:
        n = 0
        for state in states:
            assert state.shape[1:] == SHAPE
            n += 1
            yield state
        seen.append(n)

    model = AnalyticModel(Gaussian())
    sample(model, 4, noising(steps=7, eta=0.5), batch_size=3, progress=progress)
    assert seen == [7, 7]
    assert model.evaluations == 14


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"eta": -0.1}, "eta of -0.1"),
        ({"eta": 1.01}, "eta of 1.01"),
        ({"eta": math.nan}, "eta of nan"),
        ({"eta": 0.5, "sigma_hat": True}, "direction of eta 1, not 0.5"),
        ({"eta": 0.5, "tolerance": 1e-3}, "nothing iterates"),
        ({"sigma_hat": True, "solver": "exact", "tolerance": 1e-3}, "nothing iterates"),
        ({"tolerance": 1e-3}, "takes no tolerance"),
        ({"solver": "euler"}, "unknown solver"),
        ({"eta": 1.0, "solver": "euler"}, "unknown solver"),
        ({"n": -1}, "-1 images"),
    ],
    ids=str,
)
def test_what_makes_no_sense(how: dict[str, Any], said: str) -> None:
    how = dict(how)
    model = AnalyticModel(Gaussian())
    with pytest.raises(UsageError, match=said):
        sample(model, int(how.pop("n", 1)), noising(steps=3, **how))  # type: ignore[arg-type]
    assert model.evaluations == 0


def test_the_package_offers_it() -> None:
    assert ddimctl.sample is sample


# Noise


@given(n=st.integers(0, 4), first=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_noise_from_any_number_on(n: int, first: int, seed: int) -> None:
    part = seeds.noise(SHAPE, n, seed, first=first)
    assert part.shape == (n, *SHAPE)
    assert part.dtype == torch.float32
    assert torch.equal(part, seeds.noise(SHAPE, first + n, seed)[first:])
    for k, x in enumerate(part, first):
        assert torch.equal(x.double(), draws(seed, k, 1)[0])


@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (3, 5, 7), (3, 32, 32)])
def test_noise_is_what_torch_draws(shape: tuple[int, ...]) -> None:
    """Also where an image's numbers do not fill torch's vectors of 16."""
    got = seeds.draw(shape, generators := seeds.generators(seeds.draws(2, 9)))
    again = seeds.draw(shape, generators)
    for k in range(2):
        first, second = draws(9, k, 2, shape)
        assert torch.equal(got[k].double(), first)
        assert torch.equal(again[k].double(), second)


def test_known_noise() -> None:
    """Samples of a seed stay what they are from version to version."""
    found = seeds.noise((2,), 2, 0).flatten().tolist()
    np.testing.assert_allclose(found, [-0.0873634, 0.0904834, -1.0987163, 0.6432328], rtol=0, atol=1e-6)
