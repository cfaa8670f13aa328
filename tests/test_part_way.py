"""A part of the way: paths that end below σ(T), exactly where they were asked to, and back from there."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from ddimctl import latent, load, ode
from ddimctl.errors import UsageError
from ddimctl.images import writing
from ddimctl.images.levels import to_pixels, to_tensor
from ddimctl.recipe import Way
from ddimctl.schedule import SPACINGS, Schedule

SCHEDULE = Schedule.linear()


@pytest.mark.parametrize("spacing", [s for s in SPACINGS if s != "leading"])
@pytest.mark.parametrize("sigma", [0.5, SCHEDULE.sigma(400), 1.0, 20.0, SCHEDULE.sigma(1000)])
def test_every_spacing_ends_at_the_level(spacing: str, sigma: float) -> None:
    path = Way(spacing=spacing, steps=10, to=sigma).path(SCHEDULE)
    assert len(path) == 11
    assert path == tuple(sorted(path))
    assert path[-1] == pytest.approx(sigma, rel=1e-12)
    assert path[0] == SCHEDULE.path(10, spacing)[0]


def test_leading_levels_end_at_no_level_that_is_asked_for() -> None:
    with pytest.raises(UsageError, match="leading"):
        Way(spacing="leading", steps=10, to=1.0).path(SCHEDULE)


def test_until_a_trained_level_is_the_schedule_cut_there() -> None:
    assert SCHEDULE.until(SCHEDULE.sigma(300)).alpha == SCHEDULE.alpha[:301]
    assert SCHEDULE.until(SCHEDULE.sigma(1000)) == SCHEDULE


@pytest.mark.parametrize("sigma", [0.0, -1.0, SCHEDULE.sigma(1), 200.0, math.nan, math.inf])
def test_what_is_no_level_of_the_way_is_refused(sigma: float) -> None:
    with pytest.raises(UsageError, match="no part of the way"):
        SCHEDULE.until(sigma)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.1, math.nan])
def test_a_strength_is_a_share(strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        SCHEDULE.sigma_of(strength)


def test_gaussian_data_is_where_it_must_be_at_that_level() -> None:
    """x̄(σ) = μ + (x̄(0) − μ) √(s² + σ²)/s, the exact flow of N(μ, s²)."""
    from ddimctl.ode import integrate

    mu, s = 0.3, 0.5
    path = Way(spacing="karras", steps=200, to=2.0).path(SCHEDULE)
    start = np.array([[-0.7], [0.1], [0.9]])
    found = integrate(lambda x, sigma: sigma * (x - mu) / (s * s + sigma * sigma), start, path, "heun").x
    exact = mu + (start - mu) * math.sqrt(s * s + 4) / math.sqrt(s * s + path[0] ** 2)
    assert np.abs(found - exact).max() < 1e-3


def image(path: Path, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    writing.save_image(path, pixels)
    return pixels[..., 0]


def test_a_latent_says_where_its_path_ends_and_is_decoded_from_there(
    invoke: Callable[..., Result], tame_folder: Path, tmp_path: Path
) -> None:
    original = image(tmp_path / "a.png", 0)
    common = ("encode", "a.png", "-m", tame_folder, "--steps", 6)
    invoke(*common, "--strength", 0.5, "-o", "half.pt").ok()
    half = latent.load(tmp_path / "half.pt")
    assert half.path[-1] == SCHEDULE.sigma(500) == half.recipe.way.to
    assert len(half.path) == 7
    assert "part of the way" in invoke("info", "half.pt").ok().out
    invoke(*common, "--to-level", SCHEDULE.sigma(500), "-o", "same.pt").ok()
    assert (tmp_path / "same.pt").read_bytes() == (tmp_path / "half.pt").read_bytes()
    invoke(*common, "--strength", 0.5, "--lossless", "-o", "exact.pt").ok()
    invoke("decode", "exact.pt", "-o", "back.png").ok()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), original)
    invoke("decode", "exact.pt", "-o", "other.png", "--steps", 40, "--solver", "ab2").ok()  # still from σ(500)
    model, way = load(str(tame_folder), "cpu"), Way("ab2", steps=40, to=SCHEDULE.sigma(500))
    there = ode.decode(model, latent.load(tmp_path / "exact.pt").xT, way).x
    off = np.asarray(Image.open(tmp_path / "other.png")).astype(int) - to_pixels(there)[0, ..., 0]
    assert np.abs(off).max() <= 1
    invoke(*common, "--strength", 1, "-o", "whole.pt").ok()
    assert "to_level" not in latent.load(tmp_path / "whole.pt").provenance


def test_part_and_whole_are_not_mixed_and_images_go_as_far_as_the_latents(
    invoke: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    image(tmp_path / "b.png", 1)
    pixels = image(tmp_path / "a.png", 0)
    invoke("encode", "a.png", "-m", model_folder, "--steps", 4, "-o", "a.pt").ok()
    invoke("encode", "b.png", "-m", model_folder, "--steps", 4, "--to-level", 2, "-o", "b.pt").ok()
    assert "levels to 2" in invoke("interpolate", "a.pt", "b.pt", "--frames", 3, "-o", "x.gif").failed(3)
    told = invoke("interpolate", "b.pt", "a.png", "--frames", 2, "-o", "frames", "--zoom", 1).ok()
    assert "too weak" not in told.err
    last = sorted((tmp_path / "frames").iterdir())[-1]
    model, way = load(str(model_folder), "cpu"), Way(steps=4, to=2.0)
    there = ode.decode(model, ode.encode(model, to_tensor(pixels[None, ..., None]), way).x, way).x
    off = np.asarray(Image.open(last)).astype(int) - to_pixels(there)[0, ..., 0]
    assert np.abs(off).max() <= 1


def test_wrong_ends_are_told(invoke: Callable[..., Result], model_folder: Path, tmp_path: Path) -> None:
    image(tmp_path / "a.png", 0)
    common = ("encode", "a.png", "-m", model_folder, "--steps", 4)
    assert "no part of the way" in invoke(*common, "--to-level", 0).failed(2)
    assert "two ways" in invoke(*common, "--to-level", 1, "--strength", 0.1).failed(2)
    assert "strength" in invoke(*common, "--strength", 0).failed(2)
    invoke("reconstruct", "a.png", "-m", model_folder, "--strength", 7).failed(2)
    half = invoke("reconstruct", "a.png", "-m", model_folder, "--steps", 5, "--strength", 0.3, "--json").ok().out
    whole = invoke("reconstruct", "a.png", "-m", model_folder, "--steps", 5, "--json").ok().out
    assert half != whole
