"""Noise of σ(1) added first: another for each image, recorded, taken away again to the last 8-bit value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from rounding import apart

from ddimctl import dither, health, latent, load, ode
from ddimctl.errors import FileError, UsageError
from ddimctl.families import bundled
from ddimctl.images import reading, writing
from ddimctl.images.levels import to_array, to_tensor
from ddimctl.model import Model
from ddimctl.recipe import Way
from ddimctl.seeds import noise_array

FEW = Way(steps=4)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load(str(model_folder), "cpu")


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (n, 16, 16, 1), dtype=np.uint8)


def test_the_draw_is_the_images_own(model: Model) -> None:
    images, path = pixels(3), FEW.path(model.schedule)
    together = dither.dithers_of(to_tensor(images), 5, path)
    alone = [dither.dithers_of(to_array(images[i : i + 1]), 5, path)[0] for i in range(3)]
    assert together == alone
    assert len({d.draw for d in together if d}) == 3
    assert {(d.seed, d.sigma) for d in together if d} == {(5, path[0])}
    assert [d.draw for d in dither.dithers_of(to_tensor(images), 6, path) if d] == [d.draw for d in together if d]


def test_it_is_added_before_and_taken_away_after(model: Model) -> None:
    """Against the same written out: encode x + σ n, decode, take σ n away."""
    x = to_tensor(pixels(2)).double()
    path = FEW.path(model.schedule)
    marks = dither.dithers_of(x, 1, path)
    n = np.concatenate([noise_array((1, 16, 16), 1, 1, first=d.draw) for d in marks if d]).astype("float64")
    n = torch.from_numpy(path[0] * n)
    up = ode.encode(model, x, FEW, dithers=marks)
    assert up.dithers == marks
    assert up.select([1]).dithers == marks[1:]
    assert torch.equal(up.x, ode.encode(model, x + n, FEW).x)
    down = ode.decode(model, up.x, FEW, dithers=marks, batch_size=1).x
    assert apart(down, ode.decode(model, up.x, FEW, batch_size=1).x - n) < 1e-9


def test_where_the_way_goes_on_to_the_clean_image_the_network_takes_the_noise_away(model: Model) -> None:
    xT = ode.encode(model, to_tensor(pixels(1)), FEW).x
    marks: list[dither.Dither | None] = [dither.Dither(0, 1, FEW.path(model.schedule)[0])]
    further = Way(spacing="linear", steps=4)
    assert torch.equal(ode.decode(model, xT, further, dithers=marks).x, ode.decode(model, xT, further).x)  # not twice


def test_there_is_no_room_for_it_below_the_first_level(model: Model) -> None:
    with pytest.raises(UsageError, match="counts as clean"):
        dither.dithers_of(to_tensor(pixels(1)), 0, Way(spacing="linear").path(model.schedule))


def test_lossless_holds_against_the_image_without_it(
    invoke: Callable[..., Result], tame_folder: Path, tmp_path: Path
) -> None:
    for i, image in enumerate(pixels(2)):
        writing.save_image(tmp_path / f"{i}.png", image)
    common = ("-m", tame_folder, "--lossless", "--steps", 10)
    invoke("encode", "0.png", "1.png", "-o", "both.pt", "--dither", 3, *common).ok()
    about = latent.load(tmp_path / "both.pt")
    assert [d.seed for d in about.dithers if d] == [3, 3]
    invoke("decode", "both.pt", "-o", "back").ok()
    for i, image in enumerate(pixels(2)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / f"{i}.png")), image[..., 0])
    invoke("encode", "0.png", "-o", "plain.pt", *common).ok()
    one, two = latent.load(tmp_path / "plain.pt"), about
    assert (one.xT[0] - two.xT[0]).abs().max() > 1e-5  # it was there


def test_what_was_added_is_said_and_decides_about_the_latent(
    invoke: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    for name, image in zip("ab", pixels(2), strict=True):
        writing.save_image(tmp_path / f"{name}.png", image)
    common = ("encode", "a.png", "b.png", "-m", model_folder, "--steps", 3, "-o", "a.pt")
    invoke(*common, "--dither", 1).ok()
    assert "exists already" in invoke(*common, "--dither", 2).failed(2)
    assert "exists already" in invoke(*common).failed(2)
    invoke(*common, "--dither", 1).ok()
    assert "seed 1; decode takes it away" in invoke("info", "a.pt").ok().out
    other = latent.load(tmp_path / "a.pt").recipe
    assert other.dither == 1
    wrong = invoke("encode", "a.png", "-m", model_folder, "--spacing", "linear", "--dither", 1, "-o", "b.pt").failed(2)
    assert "counts as clean" in wrong


def test_a_file_whose_record_makes_no_sense_is_refused(
    invoke: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    writing.save_image(tmp_path / "a.png", pixels(1)[0])
    invoke("encode", "a.png", "-m", model_folder, "--steps", 2, "--dither", 1).ok()
    good = latent.load(tmp_path / "a.pt")
    for wrong in ([{"seed": 1, "draw": 2}], [{"seed": -1, "draw": 2, "sigma": 0.1}], [None, None], {}, [3]):
        with pytest.raises(FileError, match="dither"):
            latent.to_bytes(latent.Latent(good.xT, {**good.provenance, "dither": wrong}), ".pt")


@pytest.mark.skipif("emoji" not in bundled(), reason="the colour model is not here")
def test_latents_of_real_images_are_as_strong_as_noise_with_it() -> None:
    colour = load("emoji", "cpu")
    assert colour.about.folder is not None
    files = sorted((colour.about.folder / "held-out").iterdir())[:4]
    x = to_tensor(np.stack([reading.read(f, 3, (32, 32))[0] for f in files]))
    path = Way().path(colour.schedule)
    without, with_it = (
        float(health.norm(ode.encode(colour, x, dithers=marks).x.numpy()).mean())
        for marks in ((), dither.dithers_of(x, 0, path))
    )
    assert without < 0.95
    assert 0.97 < with_it < 1.03
