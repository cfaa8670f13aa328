"""The library as a notebook uses it: ways by name, what is said of wrong arrays, files, and one-line reprs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ddimctl
from ddimctl import engines, ode
from ddimctl.errors import UsageError
from ddimctl.model import Model
from ddimctl.recipe import Way

X0 = torch.linspace(-1, 1, 2 * 16 * 16).view(2, 1, 16, 16)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    found = ddimctl.load(str(model_folder), "cpu")
    return found.with_network(engines.make(found.network.module, "torch"))


@pytest.mark.parametrize("function", [ddimctl.encode, ddimctl.decode])
def test_a_way_by_name_is_the_way(function: Callable[..., ode.Solution], model: Model) -> None:
    by_name = function(model, X0, steps=7, solver="ddim", spacing="log").x
    assert torch.equal(by_name, function(model, X0, Way("ddim", "log", 7)).x)
    other = function(model, X0, Way("ddim", "log", 3), steps=7).x
    assert torch.equal(by_name, other)
    along = function(model, X0, Way("ddim").along(Way(steps=3).path(model.schedule)), spacing="log", steps=7).x
    assert torch.equal(by_name, along)
    assert len(inspect.signature(function).parameters) <= 8
    with pytest.raises(UsageError, match="solver"):
        function(model, X0, solver="nothing")


def test_arrays_come_back_as_they_came(model: Model) -> None:
    found = ddimctl.encode(model, X0.numpy(), steps=3).x
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, ddimctl.encode(model, X0, steps=3).x.numpy())


@pytest.mark.parametrize(
    ("wrong", "said", "hint"),
    [
        (X0[0], r"takes images \(N, 1, 16, 16\), this is a single one \(1, 16, 16\)", r"x\[None\]"),
        (X0.permute(0, 2, 3, 1), "channels last", "to_tensor"),
        (X0.expand(2, 3, 16, 16), r"not \(2, 3, 16, 16\)", "open"),
        (X0[:, :, :8], r"not \(2, 1, 8, 16\)", "open"),
        ((X0 * 100).to(torch.uint8), "not of torch.uint8", "to_tensor"),
        ("a.png", "not str", "tensor"),
    ],
)
def test_wrong_shapes_are_told_in_words_of_images(wrong: Any, said: str, hint: str, model: Model) -> None:
    with pytest.raises(UsageError, match=said) as e:
        ddimctl.encode(model, wrong)
    assert hint.replace("\\", "") in e.value.hint
    assert "channels_last" not in str(e.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_encoded_can_be_saved_opened_and_decoded(suffix: str, model: Model, tmp_path: Path) -> None:
    made = ddimctl.encode(model, X0, steps=9, spacing="log")
    ddimctl.save(tmp_path / f"x{suffix}", made)
    found = ddimctl.open(tmp_path / f"x{suffix}")
    assert torch.equal(found.xT, made.x.float())
    assert (found.recipe.way.spacing, found.recipe.way.steps) == ("log", 9)
    same = ddimctl.decode(model, made.x.float(), steps=9, spacing="log").x
    assert torch.equal(ddimctl.decode(model, found).x, same)
    ddimctl.save(tmp_path / f"again{suffix}", found)
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"x{suffix}").read_bytes()


def test_another_models_latent_is_refused(model: Model, tmp_path: Path) -> None:
    ddimctl.save(tmp_path / "x.pt", ddimctl.encode(model, X0, steps=2))
    module = model.network.module
    facts = replace(module.facts, digest="0" * 64)
    other = model.with_network(replace(model.network, module=replace(module, describe=lambda: facts)))
    with pytest.raises(UsageError, match="another model"):
        ddimctl.decode(other, ddimctl.open(tmp_path / "x.pt"))


def test_images_are_saved_and_opened(model: Model, tmp_path: Path) -> None:
    levels = ddimctl.to_tensor(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))
    for image in (levels, levels[0], levels.numpy()):
        ddimctl.save(tmp_path / "x.png", image)
        assert torch.equal(ddimctl.open(tmp_path / "x.png", model), levels)
    for wrong, said in (
        (X0, "one image"),
        (ddimctl.encode(model, X0, steps=2), "is a latent"),
        (levels.to(torch.uint8), "not torch.uint8"),
    ):
        with pytest.raises(UsageError, match=said):
            ddimctl.save(tmp_path / "y.png", wrong)
    with pytest.raises(UsageError, match="know how they were made"):
        ddimctl.save(tmp_path / "y.pt", X0)
    with pytest.raises(UsageError, match="fit a model"):
        ddimctl.open(tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_values_show_themselves_in_one_line(model: Model, tmp_path: Path) -> None:
    made = ddimctl.encode(model, X0, steps=5)
    ddimctl.save(tmp_path / "x.pt", made)
    file = ddimctl.open(tmp_path / "x.pt")
    back = ddimctl.decode(model, file)
    assert repr(model) == "Model('tiny', images 1 × 16 × 16, epsilon, T = 1000, torch float32 on cpu)"
    assert repr(made) == "Solution(2 × 1 × 16 × 16, 5 evaluations an image)"
    assert repr(file) == "Latent(2 × 1 × 16 × 16 of 'tiny', ab2, karras, 5 steps)"
    for value in (model, made, file, back):
        html = value._repr_html_()
        assert 'src="data:image/png;base64,' in html
        assert "\n" not in html
    from base64 import b64decode

    from ddimctl.images import reading

    png = b64decode(back._repr_html_().split("base64,")[1].split('"')[0])
    assert reading.read(png, 1, (112, 226))[0].shape == (112, 226, 1)  # two images of 7 times 16 pixels, and a gap
