"""Latent health: the figures against numpy, and whether noise, and what is none, is called what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddimctl import health
from ddimctl.health import FIGURES, Figure, examine, verdict
from ddimctl.seeds import noise, noise_array

SHAPE = (3, 28, 28)
OTHERS = 1000  # a seed that `examine` does not draw its reference with


def numpy_figures(x: np.ndarray) -> dict[str, float]:
    """Every figure of one latent (C, H, W), pair by pair and patch by patch."""
    mean = x.sum() / x.size
    variance = ((x - mean) ** 2).sum() / (x.size - 1)
    out = {
        "mean": mean,
        "std": math.sqrt(variance),
        "norm/√d": math.sqrt((x**2).sum() / x.size),
        "kurtosis": (((x - mean) / math.sqrt(variance)) ** 4).sum() / x.size,
    }
    channels, height, width = x.shape
    for lag in (1, 2):
        beside, below = [], []
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if j + lag < width:
                        beside.append((x[c, i, j] - mean) * (x[c, i, j + lag] - mean))
                    if i + lag < height:
                        below.append((x[c, i, j] - mean) * (x[c, i + lag, j] - mean))
        out[f"autocorrelation, lag {lag}"] = (np.mean(beside) + np.mean(below)) / 2 / ((x - mean) ** 2).mean()
    low = []
    for c in range(channels):
        for i in range(0, height - 3, 4):
            for j in range(0, width - 3, 4):
                low.append(x[c, i : i + 4, j : j + 4].var(ddof=1) < 0.4)
    out["low-variance patches"] = float(np.mean(low))
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 7), (2, 4, 13)])
def test_the_figures(shape: tuple[int, int, int]) -> None:
    xT = noise(shape, 3, OTHERS).double() * torch.tensor([1.0, 0.6, 2.0]).view(3, 1, 1, 1) + 0.1
    for i, figures in enumerate(examine(xT)):
        want = numpy_figures(xT[i].numpy())
        assert [f.name for f in figures] == list(FIGURES) == list(want)
        for f in figures:
            assert f.value == pytest.approx(want[f.name], rel=1e-10, abs=1e-12), f.name


def test_what_noise_gives() -> None:
    """The expected values are those that theory has, and the ranges those that hold 98 % of draws."""
    (figures,) = examine(noise(SHAPE, 1, OTHERS))
    d = math.prod(SHAPE)
    expected = {f.name: f for f in figures}
    for name, value, spread in (
        ("mean", 0, 1 / d**0.5),
        ("std", 1, 1 / (2 * d) ** 0.5),
        ("norm/√d", 1, 1 / (2 * d) ** 0.5),
        ("kurtosis", 3, (24 / d) ** 0.5),
        ("autocorrelation, lag 1", 0, 1 / (2 * d) ** 0.5),
        ("autocorrelation, lag 2", 0, 1 / (2 * d) ** 0.5),
    ):
        f = expected[name]
        assert f.expected == pytest.approx(value, abs=0.3 * spread), name
        assert (f.high - f.low) / (2 * 2.326) == pytest.approx(spread, rel=0.2), name
    chi2 = np.random.default_rng(0).chisquare(15, 200_000)
    assert expected["low-variance patches"].expected == pytest.approx(float((chi2 < 15 * 0.4).mean()), rel=0.1)


@pytest.mark.parametrize("shape", [(1, 28, 28), SHAPE, (3, 16, 48), (1, 4, 4)])
def test_noise_is_called_like_noise(shape: tuple[int, int, int]) -> None:
    said = [verdict(figures) for figures in examine(noise(shape, 100, OTHERS))]
    assert sum(s.startswith("like noise") for s in said) >= 80
    # Of those that are not, most are so in one figure or two.
    assert sum(s.startswith(("like", "unlike noise in 1 ", "unlike noise in 2 ")) for s in said) >= 97


def smooth(x: Tensor) -> Tensor:
    """Blurred, at unit variance again."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)
    return blurred / blurred.std((1, 2, 3), keepdim=True)


def flat_part(x: Tensor) -> Tensor:
    """A quarter of it without variation, as a uniform background leaves it."""
    x = x.clone()
    x[..., :14, :14] *= 0.2
    return x


def sharpened(x: Tensor) -> Tensor:
    """Every value less a part of its neighbours', at unit variance again."""
    out = x - 0.1 * sum(x.roll(by, axis) for by in (-1, 1) for axis in (-1, -2))
    return out / out.std((1, 2, 3), keepdim=True)


def checkerboard(x: Tensor) -> Tensor:
    i = torch.arange(28)
    board = ((i[:, None] + i) % 2 * 2 - 1).double()
    return (x + 0.5 * board) / 1.25**0.5


BROKEN = {
    "scaled up": (lambda x: 1.2 * x, "too strong"),
    "scaled down": (lambda x: 0.8 * x, "too weak"),
    "smooth": (smooth, "spatially correlated"),
    "flat in a corner": (flat_part, "flat in places"),
    "shifted up": (lambda x: x + 0.2, "off centre"),
    "shifted down": (lambda x: x - 0.2, "off centre"),
    "heavy tails": (lambda x: x.sign() * x.abs() ** 1.5 / 1.2640, "heavy-tailed"),
    "light tails": (lambda x: (torch.special.ndtr(x) - 0.5) * 12**0.5, "light-tailed"),
    "sharpened": (sharpened, "neighbours differ"),
    "a checkerboard": (checkerboard, "neighbours differ"),
    "all zeros": (lambda x: 0 * x, "too weak"),
    "all ones": (lambda x: 0 * x + 1, "flat in places"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_noise_is_told_why(name: str) -> None:
    spoil, why = BROKEN[name]
    for figures in examine(spoil(noise(SHAPE, 20, OTHERS).double())):
        said = verdict(figures)
        assert said.startswith("unlike noise in ")
        assert why in said
        n = int(said.split()[3])
        assert n == sum(not f.typical for f in figures) > 0


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("shifted up", ("strong", "weak", "correlated")),
        ("scaled up", ("centre", "correlated", "tailed")),
        ("scaled down", ("centre", "correlated", "tailed")),
        ("sharpened", ("centre", "strong", "weak", "structure")),
    ],
)
def test_and_not_for_what_is_right_about_it(name: str, absent: tuple[str, ...]) -> None:
    """In nine of ten: chance alone puts 2 % of draws outside any range."""
    said = [verdict(f) for f in examine(BROKEN[name][0](noise(SHAPE, 20, OTHERS).double()))]
    for word in absent:
        assert sum(word in s for s in said) <= 2, word


def test_every_odd_figure_has_words() -> None:
    """One figure at a time outside its range, on either side."""
    for name in FIGURES:
        for value in (-2.0, 2.0):
            figures = [Figure(n, value if n == name else 0.0, 0.0, -1.0, 1.0) for n in FIGURES]
            said = verdict(figures)
            assert said.startswith(f"unlike noise in 1 of {len(FIGURES)} figures: ")
            assert len(said.split(": ")[1]) > 5
    assert verdict([Figure(n, 0.0, 0.0, -1.0, 1.0) for n in FIGURES]).startswith("like noise")


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images_leave_out_what_they_have_not(side: int) -> None:
    examined = examine(noise((3, side, side), 50, OTHERS))
    assert [f.name for f in examined[0]] == ["mean", "std", "norm/√d", "kurtosis"]
    assert sum(verdict(f).startswith("like noise") for f in examined) >= 40


def test_a_latent_of_equal_values_has_no_kurtosis() -> None:
    (figures,) = examine(torch.zeros(1, *SHAPE))
    values = {f.name: f.value for f in figures}
    assert math.isnan(values["kurtosis"])
    assert math.isnan(values["autocorrelation, lag 1"])
    assert "tailed" not in verdict(figures)


def test_large_latents_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same verdicts and nearly the same ranges, with never more than so many values at once."""
    xT = noise(SHAPE, 5, OTHERS)
    whole = examine(xT)
    largest = 0

    def counted(shape: tuple[int, ...], n: int, seed: int) -> np.ndarray:
        nonlocal largest
        largest = max(largest, n * math.prod(shape))
        return noise_array(shape, n, seed)

    monkeypatch.setattr(health, "noise_array", counted)
    monkeypatch.setattr(health, "AT_ONCE", 50_000)
    parts = examine(xT)
    assert 0 < largest <= 50_000
    for p, q in zip(whole, parts, strict=True):
        for f, g in zip(p, q, strict=True):
            assert f.value == g.value
            assert f.low == pytest.approx(g.low, abs=0.5 * (f.high - f.low))


def test_the_same_latent_is_judged_the_same_whatever_is_beside_it() -> None:
    xT = noise(SHAPE, 3, OTHERS)
    for f, g in zip(examine(xT)[1], examine(xT[1:2])[0], strict=True):
        assert f.value == pytest.approx(g.value, rel=1e-12)
        assert (f.name, f.expected, f.low, f.high) == (g.name, g.expected, g.low, g.high)


def test_too_weak_is_what_one_draw_of_noise_in_a_hundred_is() -> None:
    """And agrees with what `examine` says of the norm."""
    draws = noise((1, 8, 8), 4000, seed=1)
    assert 0.006 < sum(health.too_weak(draws)) / 4000 < 0.015  # 0.01, five standard deviations each way
    latents = noise((3, 16, 16), 3, seed=5) * torch.tensor([0.9, 0.98, 1.1]).view(3, 1, 1, 1)
    said = [next(f for f in figures if f.name == "norm/√d") for figures in health.examine(latents)]
    assert health.too_weak(latents) == [f.value < f.low for f in said] == [True, False, False]
