"""Sampling away from a worse model: ε_worse + w (ε − ε_worse), Karras et al. 2024."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from PIL import Image
from rounding import apart

from ddimctl.errors import UsageError
from ddimctl.families import load
from ddimctl.images import levels, metadata
from ddimctl.recipe import Way
from ddimctl.sampling import Noising, sample

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def worse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same images as the tiny model, of other weights and channels."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "worse", seed=5, block_out_channels=(4, 8))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0, -0.5])
def test_what_two_models_disagree_about_is_taken_further(w: float, model_folder: Path, worse_folder: Path) -> None:
    model, worse = load(str(model_folder), "cpu"), load(str(worse_folder), "cpu")
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    for sigma in (0.1, [1.0, 30.0]):
        a, b = model.eps()(x, sigma), worse.eps()(x, sigma)
        assert apart(model.away_from(worse, w).eps()(x, sigma), w * a + (1 - w) * b) < 1e-12
    assert apart(a, b) > 0.1


def test_models_that_have_too_little_in_common_are_refused(
    model_folder: Path, worse_folder: Path, tmp_path: Path
) -> None:
    model, worse = load(str(model_folder), "cpu"), load(str(worse_folder), "cpu")
    other = load(str(write_tiny_model(tmp_path / "other", in_channels=3, out_channels=3)), "cpu")
    with pytest.raises(UsageError, match="same kind of images"):
        model.away_from(other, 2.0)
    with pytest.raises(UsageError, match="knows less noise"):
        model.away_from(replace(worse, schedule=worse.schedule.until(2.0)), 2.0)
    with pytest.raises(UsageError, match="makes no sense"):
        model.away_from(worse, math.nan)


def test_the_command_makes_what_the_library_makes(
    invoke: Invoke, model_folder: Path, worse_folder: Path, tmp_path: Path
) -> None:
    model, worse = load(str(model_folder), "cpu"), load(str(worse_folder), "cpu")
    command = ("sample", "-m", model_folder, "--worse", worse_folder, "-n", 3, "--steps", 4, "--engine", "torch")
    out = json.loads(invoke(*command, "--weight", 2, "-o", "two", "--json").ok().out)
    said = {"name": worse.name, "digest": worse.digest}
    assert (out["worse"], out["weight"]) == (said, 2.0)
    made = metadata.find(tmp_path / "two" / "000.png")
    assert made is not None
    assert (made["worse"], made["weight"], made["model"]["digest"]) == (said, 2.0, model.digest)
    invoke(*command, "-o", "three").ok()
    how = Noising(Way("ab2", "karras", 4))
    for folder, w in (("two", 2.0), ("three", 3.0)):  # three is what nobody names
        wanted = levels.to_pixels(sample(model.away_from(worse, w), 3, how).x)[..., 0]
        found = np.stack([pixels(tmp_path / folder / f"{k:03}.png") for k in range(3)])
        assert np.abs(found.astype(int) - wanted).max() <= 1
    assert not np.array_equal(pixels(tmp_path / "two" / "000.png"), pixels(tmp_path / "three" / "000.png"))
    assert "there already: 3" in invoke(*command, "-o", "three").ok().err
    assert "not what this would make" in invoke(*command, "--weight", 2, "-o", "three").failed(2)


def test_noise_on_the_way_is_led_too(invoke: Invoke, model_folder: Path, worse_folder: Path, tmp_path: Path) -> None:
    command = ("sample", "-m", model_folder, "-n", 2, "--steps", 3, "--eta", 1)
    invoke(*command, "-o", "plain").ok()
    invoke(*command, "--worse", worse_folder, "-o", "led").ok()
    invoke(*command, "--worse", worse_folder, "--weight", 1, "-o", "one").ok()
    plain, led, one = (pixels(tmp_path / name / "000.png").astype(int) for name in ("plain", "led", "one"))
    assert np.abs(plain - one).max() <= 1
    assert np.abs(plain - led).max() > 1


def test_what_is_saved_beside_says_that_it_is_noise_alone(
    invoke: Invoke, model_folder: Path, worse_folder: Path
) -> None:
    command = ("sample", "-m", model_folder, "--worse", worse_folder, "-n", 2, "--steps", 2, "--save-noise", "x.pt")
    assert "decode leads away from no other model" in invoke(*command, "-o", "s.png").ok().err


def test_what_makes_no_sense_is_one_line(
    invoke: Invoke, model_folder: Path, worse_folder: Path, tmp_path: Path
) -> None:
    command = ("sample", "-m", model_folder, "-n", 1, "--steps", 2, "-o", "x.png")
    assert "a weight is of a worse model" in invoke(*command, "--weight", 2).failed(2)
    assert "makes no sense" in invoke(*command, "--worse", worse_folder, "--weight", "nan").failed(2)
    assert "same kind of images" in invoke(*command, "--worse", "fashion-mnist").failed(2)
    invoke(*command, "--worse", tmp_path / "nothing").failed(2)
    assert not (tmp_path / "x.png").exists()
