"""Lossless encoding: its check is real, it tightens what is not back yet, and what it says about a failure is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from problems import AnalyticModel, Gaussian, Mixture, in_a_network
from rounding import apart
from torch import Tensor

from ddimctl import latent, lossless, ode
from ddimctl.errors import DDIMError
from ddimctl.families import bundled, load
from ddimctl.images import datasets, levels, reading
from ddimctl.metrics import max_abs, wrong_pixels
from ddimctl.model import Model
from ddimctl.ode import Check
from ddimctl.recipe import Way

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tame_folder: Path) -> Path:
    return tame_folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(str(folder), "cpu")


@pytest.fixture(scope="module")
def x0(folder: Path) -> Tensor:
    """The model's four images of uniform noise, an all-black one and an all-white one."""
    files = sorted((folder / "held-out").iterdir())
    pixels = [np.asarray(Image.open(f))[..., None] for f in files]
    return levels.to_tensor(np.stack([*pixels, np.zeros_like(pixels[0]), np.full_like(pixels[0], 255)]))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 20])
def test_every_value_comes_back_from_float32(model: Model, x0: Tensor, steps: int) -> None:
    way = Way("exact", steps=steps)
    solution = lossless.encode(model, x0, way)
    assert torch.equal(solution.x.float().double(), solution.x)  # float32 already: a file holds all of it
    back = ode.decode(model, solution.x.float(), Way("ddim", way.spacing, steps)).x
    np.testing.assert_array_equal(levels.to_pixels(back), levels.to_pixels(x0))
    assert solution.checks is not None
    for check, worst in zip(solution.checks, max_abs(x0, back).tolist(), strict=True):
        assert (check.wrong, check.where) == (0, [])
        assert check.worst == pytest.approx(worst, abs=1e-3)
        assert check.worst <= lossless.MARGIN
        assert check.tolerance in lossless.TOLERANCES


@pytest.mark.slow
def test_each_image_alone_gives_the_same(model: Model, x0: Tensor) -> None:
    """But for rounding, which ill-conditioned steps magnify: another batch size differs in float32's last digits."""
    way = Way("exact", steps=10)
    together = lossless.encode(model, x0, way)
    for i, image in enumerate(x0.split(1)):
        alone = lossless.encode(model, image, way)
        assert apart(alone.x[0], together.x[i]) < 1e-2
        assert alone.evaluations[0] == pytest.approx(together.evaluations[i], abs=2)


def test_no_images(model: Model, x0: Tensor) -> None:
    solution = lossless.encode(model, x0[:0], Way("exact", steps=10))
    assert solution.x.shape == (0, *model.state_shape)
    assert (solution.evaluations, solution.checks) == ([], [])


def test_only_what_is_not_back_goes_again_and_tighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tolerances in order; each round holds only the images that the round before did not bring back, and what is near."""
    model = AnalyticModel(Mixture())
    x0 = (torch.arange(80).view(5, 1, 4, 4) * 3).float() / 127.5 - 1
    needs = [1.0, 1.5e-5, 3.5e-5, 1e-9, 1.0]  # the fourth image's is never reached
    asked: list[tuple[float, int]] = []

    def fake(model: Any, x: Tensor, way: Way, *, near: Any, **more: Any) -> lossless.Trip:
        tolerance = way.tolerance
        assert tolerance is not None
        assert (way.solver, way.steps) == ("exact", 10)
        asked.append((tolerance, len(x)))
        which = [int(torch.nonzero((x0 == image).all((1, 2, 3)))[0]) for image in x.split(1)]
        assert near is None or [int(v) for v in near[0][0].flatten()] == which
        # Off by more than half a level where the tolerance is too loose, by less the tighter it is.
        off = torch.tensor([0.0 if tolerance <= needs[i] else 0.01 + tolerance for i in which]).view(-1, 1, 1, 1)
        trail = [(torch.tensor(which).view(-1, 1, 1, 1),) * 2] * 10
        return lossless.Trip(x + off, x + off, [15] * len(x), [tolerance / 2] * len(x), trail)

    monkeypatch.setattr(lossless, "returned", fake)
    solution = lossless.encode(model, x0, Way("exact", steps=10), batch_size=4)  # type: ignore[arg-type]
    assert asked == [(7e-5, 4), (3.5e-5, 3), (1.5e-5, 2), (6e-6, 1), (2e-6, 1), (7e-5, 1)]
    assert solution.evaluations == [15, 45, 30, 75, 15]
    assert solution.checks is not None
    assert [c.wrong for c in solution.checks] == [0, 0, 0, 16, 0]
    assert [c.tolerance for c in solution.checks] == [7e-5, 1.5e-5, 3.5e-5, 2e-6, 7e-5]
    assert solution.checks[3].worst == pytest.approx(127.5 * (0.01 + 2e-6), rel=1e-4)  # its best try is kept
    assert solution.residuals == pytest.approx([3.5e-5, 7.5e-6, 1.75e-5, 1e-6, 3.5e-5])
    # A tolerance of one's own comes first, and only tighter ones follow.
    asked.clear()
    lossless.encode(model, x0[:4], Way("exact", steps=10, tolerance=2e-5))  # type: ignore[arg-type]
    assert [t for t, _ in asked] == [2e-5, 1.5e-5, 6e-6, 2e-6]


def test_another_try_begins_where_the_decoder_was() -> None:
    """States and ε of the way down are the solver's first guess: where they are the solution, they cost nothing."""
    law = Gaussian(0.2, 0.5)
    model = in_a_network(law)
    x0 = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4)))
    first = lossless.returned(model, x0, Way("exact", steps=8, tolerance=1e-5))
    assert [len(x) for x, _ in first.trail] == [3] * 8
    again = lossless.returned(model, x0, Way("exact", steps=8, tolerance=1e-5), near=first.trail)
    assert again.evaluations == [8] * 3  # the check alone
    tighter = lossless.returned(model, x0, Way("exact", steps=8, tolerance=1e-7), near=first.trail)
    anew = lossless.returned(model, x0, Way("exact", steps=8, tolerance=1e-7))
    assert sum(tighter.evaluations) < sum(anew.evaluations)
    assert apart(tighter.xT, anew.xT) < 1e-6


def test_the_margin_is_below_half_a_level() -> None:
    """What is back by a hair here may not be on another machine, so it goes again."""
    assert 0.4 <= lossless.MARGIN < 0.5
    assert all(p > q for p, q in zip(lossless.TOLERANCES, lossless.TOLERANCES[1:], strict=False))


def test_compare_names_the_worst_values_with_their_places() -> None:
    image = torch.zeros(2, 3, 4, 5)
    back = image.clone()
    for (c, y, x), by in {(0, 1, 2): 3.0, (2, 3, 4): -7.25, (1, 0, 0): 0.75, (1, 2, 2): 1.5, (0, 0, 0): 0.25}.items():
        back[0, c, y, x] += by / 127.5
    # 0 is half way between two levels, so the rounding of the original itself matters: shift both off it.
    image, back = image + 0.5 / 127.5, back + 0.5 / 127.5
    first, second = lossless.compare(image, back, 1e-4)
    assert first.wrong == int(wrong_pixels(image, back)[0]) == 4
    assert first.where == [(2, 3, 4, -7.25), (0, 1, 2, 3.0), (1, 2, 2, 1.5)]
    assert first.worst == pytest.approx(7.25, rel=1e-5)
    assert second == Check(0, [], pytest.approx(0.0, abs=1e-6), 1e-4)  # type: ignore[arg-type]


def test_what_clipping_hides_is_not_wrong() -> None:
    """Below black is black: the saved image is the same, whatever the value was."""
    black = -torch.ones(1, 1, 2, 2)
    (check,) = lossless.compare(black, black - 3 / 127.5, 1e-4)
    assert (check.wrong, check.where) == (0, [])
    assert check.worst == pytest.approx(3, rel=1e-5)


def test_the_complaint() -> None:
    error = lossless.complaint("a.png", Check(9, [(0, 3, 4, -2.5), (0, 1, 2, 1.25)], 2.5, 1e-6))
    assert isinstance(error, DDIMError)
    assert error.exit_code == 1
    assert str(error) == (
        "a.png is not lossless: 9 values differ (-2.50 levels at row 3 column 4, +1.25 levels at row 1 column 2);"
        " worst 2.50 levels"
    )
    assert "--steps" in error.hint


@pytest.mark.slow
def test_no_number_is_never_lossless(model: Model, x0: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives NaN: every image is reported as wrong, none as done."""
    monkeypatch.setattr(Model, "eps", lambda self, condition: lambda x, sigma: x * float("nan"))
    solution = lossless.encode(model, x0[:2], Way("exact", steps=5))
    assert solution.checks is not None
    assert all(c.wrong for c in solution.checks)
    assert torch.isfinite(solution.x).all()


def test_encode_lossless_records_its_check(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    source = folder / "held-out" / "001.png"
    done = invoke("encode", source, "-o", "a.pt", "--lossless", "-m", folder).ok()
    assert done.out == "a.pt\n"
    found = latent.load(tmp_path / "a.pt")
    about = found.provenance
    assert (about["solver"], about["decoder"]) == ("exact", "ddim")
    (check,) = about["lossless"]
    assert (check["wrong"], check["where"]) == (0, [])
    assert 0 < check["worst"] <= lossless.MARGIN
    assert check["tolerance"] in lossless.TOLERANCES
    invoke("decode", "a.pt", "-o", "back.png").ok()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "back.png")), np.asarray(Image.open(source)))


def test_encode_without_it_records_none(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    invoke("encode", folder / "held-out" / "001.png", "-o", "a.pt", "--steps", 3, "-m", folder).ok()
    assert latent.load(tmp_path / "a.pt").provenance["lossless"] is None


def test_what_is_not_lossless_is_not_written(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complaint names pixels that really differ, by how much they do."""
    source = folder / "held-out" / "001.png"
    real = lossless.returned
    pixels = np.asarray(Image.open(source))

    def spoilt(*args: Any, **more: Any) -> lossless.Trip:
        trip = real(*args, **more)
        x = trip.back.clone()
        x[0, 0, 5, 7] += 4 / 127.5 if pixels[5, 7] < 128 else -4 / 127.5
        return replace(trip, back=x)

    monkeypatch.setattr(lossless, "returned", spoilt)
    said = invoke("encode", source, "-o", "a.pt", "--lossless", "--spacing", "karras", "-m", folder).failed(1)
    sign = "+" if pixels[5, 7] < 128 else "-"
    match = re.fullmatch(
        rf"{re.escape(str(source))} is not lossless: (\d+) values differ"
        rf" \(\{sign}(\d\.\d\d) levels at row 5 column 7[^()]*\); worst (\d\.\d\d) levels",
        said,
    )
    assert match, said
    assert int(match[1]) >= 1
    assert match[2] == match[3]
    assert float(match[2]) == pytest.approx(4, abs=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [("--solver", "ddim"), ("--solver", "heun"), ("--solver", "adaptive"), ("--tolerance", "0"), ("--tolerance", "2")],
)
def test_wrong_combinations(invoke: Invoke, folder: Path, tmp_path: Path, args: tuple[str, ...]) -> None:
    source = folder / "held-out" / "001.png"
    invoke("encode", source, "-o", "a.pt", "--lossless", "-m", folder, *args).failed(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [(), ("--solver", "exact"), ("--tolerance", "1e-5")])
def test_right_combinations(invoke: Invoke, folder: Path, args: tuple[str, ...]) -> None:
    source = folder / "held-out" / "001.png"
    command = ("encode", source, "-o", "a.pt", "--lossless", "-m", folder, "--steps", 8, "--json", *args)
    record = json.loads(invoke(*command).ok().out)
    assert record["solver"] == "exact"


@pytest.mark.slow
@pytest.mark.skipif("fashion-mnist" not in bundled(), reason="models/fashion-mnist is not in this checkout")
def test_bundled_models_are_lossless_on_their_held_out_images() -> None:
    for name in ("emoji", "fashion-mnist"):  # a model with an autoencoder promises no 8-bit values
        net = load(name, "cpu")
        files = datasets.find_images(net.about.folder / "held-out")[:16]  # type: ignore[operator]
        x0 = levels.to_tensor(np.stack([reading.read(f, net.channels, net.size)[0] for f in files]))
        solution = lossless.encode(net, x0, Way("exact"))
        back = ode.decode(net, solution.x.float(), Way("ddim", "log")).x
        np.testing.assert_array_equal(levels.to_pixels(back), levels.to_pixels(x0))
