"""translate: the exact bridge between two known laws, and the command between classes, prompts and models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from PIL import Image
from problems import Gaussian, Mixture, in_a_network
from torch import Tensor

import ddimctl
from ddimctl import ode
from ddimctl.errors import FileError, UsageError
from ddimctl.images import metadata
from ddimctl.keeping import Keep
from ddimctl.model import Condition
from ddimctl.recipe import Way
from ddimctl.translation import Side, translate

Invoke = Callable[..., Result]
CLASSES = Path(__file__).parent / "fixtures" / "models" / "classes"
X0 = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 0.5 + 0.3


def become(source: Side, x: Tensor, target: Side, way: Way) -> Tensor:
    out: list[Tensor] = []
    translate(source, x, [target], way=way, batch_size=2, each=lambda _, y: out.append(y))
    return out[0]


def test_the_bridge_between_two_gaussians_is_exact() -> None:
    """N(μ, s²) → N(ν, r²): both flows are known; what comes out is where the second brings the first's x_T."""
    a, b = Gaussian(0.3, 0.5), Gaussian(-0.2, 0.2)
    top, low = ddimctl.Schedule.linear().sigmas[-1], ddimctl.Schedule.linear().sigma(1)
    want = b.flow(a.flow(X0, low, top), top, low)
    got = become(Side(in_a_network(a)), X0, Side(in_a_network(b)), Way("ab2", "karras", 400))
    assert float((got - want).abs().max()) < 1e-3
    assert float(want.mean()) < 0 < float(X0.mean())


def test_what_becomes_itself_comes_back() -> None:
    side = Side(in_a_network(Mixture()))
    assert float((become(side, X0, side, Way("exact", steps=20)) - X0).abs().max()) < 1e-3
    assert float((become(side, X0, side, Way("ddim", steps=10, keep=Keep())) - X0).abs().max()) < 1e-6


def test_each_target_is_given_as_it_is_done() -> None:
    sides = [Side(in_a_network(Gaussian(m, 0.4))) for m in (0.1, 0.2, 0.3)]
    seen: list[tuple[Side, float]] = []
    found = translate(sides[0], X0, sides[1:], way=Way(steps=50), each=lambda s, x: seen.append((s, float(x.mean()))))
    assert [s for s, _ in seen] == sides[1:]
    assert seen[0][1] < seen[1][1]
    np.testing.assert_allclose(found.x, ode.encode(sides[0].model, X0, Way(steps=50)).x)


def test_models_of_other_shapes_share_nothing() -> None:
    a, b = Side(in_a_network(Gaussian())), Side(in_a_network(Gaussian(), (1, 4, 5)))
    with pytest.raises(FileError, match="has states"):
        become(a, X0, b, Way(steps=2))
    with pytest.raises(UsageError, match="takes no class"):
        become(a, X0, Side(a.model, Condition(1)), Way(steps=2))


# The command


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "c.png"
    path.write_bytes((CLASSES / "held-out" / "002.png").read_bytes())
    return path


def test_class_to_class(invoke: Invoke, picture: Path, tmp_path: Path) -> None:
    net = ddimctl.load(str(CLASSES), "cpu")
    asked = ("c.png", "-m", CLASSES, "--class", 2, "--steps", 4)
    done = invoke("translate", *asked, "--to-class", 0, "--json").ok()
    record = json.loads(done.out)
    assert record["files"] == ["c.translated.png"]
    assert record["results"][0]["to"] == "class 0"
    x0 = ddimctl.open(picture, net)
    xT = ddimctl.encode(net, x0, condition=Condition(2), steps=4).x
    want = ddimctl.to_pixels(ddimctl.decode(net, xT.float(), condition=Condition(0), steps=4).x)[0]
    found = np.asarray(Image.open(tmp_path / "c.translated.png")).reshape(want.shape)
    assert np.abs(found.astype(int) - want).max() <= 1
    rms = float(((ddimctl.decode(net, xT.float(), condition=Condition(0), steps=4).x - x0) / 2).square().mean().sqrt())
    assert record["results"][0]["rms"][0] == pytest.approx(rms, rel=1e-3)
    made = invoke("info", "c.translated.png").ok().out
    assert "translate" in made
    assert "class 0" in made
    sheet = invoke("translate", *asked, "--to-class", "0,1", "-o", "sheet.png").ok()
    assert sheet.out.split() == ["sheet.png"]
    plain = invoke("translate", *asked, "--to-class", "0,1", "-o", "plain.png", "--no-labels").ok()
    assert plain.out.split() == ["plain.png"]
    with Image.open(tmp_path / "sheet.png") as big, Image.open(tmp_path / "plain.png") as small:
        assert big.width > small.width
        assert small.width > 2 * small.height
    invoke("translate", *asked, "--to-class", "0,1", "-o", "each").ok()
    assert sorted(p.name for p in (tmp_path / "each").iterdir()) == ["c.1.png", "c.2.png"]


def test_it_returns_to_itself_with_the_path_kept(invoke: Invoke, picture: Path, tmp_path: Path) -> None:
    asked = ("c.png", "-m", CLASSES, "--class", 2, "--to-class", 2, "--steps", 4)
    invoke("translate", *asked, "--keep-path", "-o", "same.png").ok()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "same.png")), np.asarray(Image.open(picture)))


def test_model_to_model(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    image = model_folder / "held-out" / "001.png"
    asked = ("translate", image, "-m", model_folder, "--to-model", other, "--steps", 3, "-o", "out.png")
    assert "out.png" in invoke(*asked).ok().out
    invoke("encode", image, "-m", model_folder, "--steps", 3, "-o", "x.pt").ok()
    invoke("decode", "x.pt", "-m", other, "--force", "-o", "by-hand.png").ok()
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out.png")), np.asarray(Image.open(tmp_path / "by-hand.png"))
    )
    assert "has states" in invoke(
        "translate", image, "-m", model_folder, "--to-model", "fashion-mnist", "-o", "no.png"
    ).failed(3)


def test_prompt_to_prompt(invoke: Invoke, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import write_stable_diffusion

    folder = write_stable_diffusion(tmp_path_factory.mktemp("sd") / "model")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    asked = ("-m", folder, "--prompt", "a red square", "--steps", 3, "--to-prompt", "a grey dog")
    more = ("--to-prompt", "a circle", "--to-guidance", 4, "-o", "sheet.png", "--json")
    record: dict[str, Any] = json.loads(invoke("translate", "a.png", "b.png", *asked, *more).ok().out)
    assert [r["to"] for r in record["results"]] == ["a grey dog, guidance 4", "a circle, guidance 4"]
    assert [len(r["rms"]) for r in record["results"]] == [2, 2]
    one, other = (r["rms"][0] for r in record["results"])
    assert one != other
    (tmp_path / "words.txt").write_text("a circle\n")
    done = invoke(
        "translate", "a.png", *asked[:-2], "--to-prompt", "@words.txt", "--to-negative", "@words.txt", "-o", "-"
    )
    said = metadata.find_in(done.ok().stdout, "it") or {}
    assert said["prompt"] == said["negative"] == "a circle"
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "what the images become"),
        (("--to-class", "0", "--to-prompt", "a"), "two things"),
        (("--to-class", "zero"), "whole numbers"),
        (("--to-class", "7"), "no class 7"),
        (("--to-prompt", "a dog"), "takes no text"),
        (("--to-class", "0,1"), "several pictures"),
        (("--to-class", "0", "-o", "a.txt"), ""),
        (("--to-class", "0", "--solver", "adaptive", "--keep-path"), "no path"),
    ],
)
def test_what_makes_no_sense(args: tuple[str, ...], said: str, invoke: Invoke, picture: Path, tmp_path: Path) -> None:
    assert said in invoke("translate", "c.png", "-m", CLASSES, "--class", 2, "--steps", 2, *args).failed(2)
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_a_folder_of_pictures_is_looked_at_before_any_work(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    """Whether one exists is told before the first is written."""
    images = [model_folder / "held-out" / f"00{i}.png" for i in range(2)]
    asked = ("translate", *images, "-m", model_folder, "--to-model", model_folder, "--steps", 2, "-o", "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001.png").write_bytes(b"mine")
    assert "001.png exists already" in invoke(*asked).failed(2)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["001.png"]
    invoke(*asked, "--force").ok()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000.png", "001.png"]


def test_what_cannot_be_read_of_a_folder_is_named_and_left_out(
    invoke: Invoke, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("000", "001"):
        (tmp_path / f"photos/{name}.png").write_bytes((model_folder / f"held-out/{name}.png").read_bytes())
    asked = ("-m", model_folder, "--to-model", model_folder, "--steps", 2)
    invoke("translate", "photos", *asked, "-o", "all").ok()
    (tmp_path / "photos/0.png").write_bytes(b"no picture")
    done = invoke("translate", "photos", *asked, "-o", "out", "--json")
    assert done.failed(4) == "1 of 3 images could not be read"
    assert "failed: photos/0.png" in done.err
    record = json.loads(done.out)
    assert (record["images"], record["failed"]) == (2, 1)
    assert record["files"] == ["out/000.png", "out/001.png"]
    for name in ("000", "001"):
        assert (tmp_path / f"out/{name}.png").read_bytes() == (tmp_path / f"all/{name}.png").read_bytes()
    invoke("translate", "photos/0.png", "photos/001.png", *asked, "-o", "sheet.png").failed(4)
    with Image.open(tmp_path / "sheet.png") as sheet:  # a sheet even so: the picture beside what it becomes
        assert sheet.width > 2 * 112
    (tmp_path / "photos/1.png").write_bytes(b"neither")
    assert "none of 2" in invoke("translate", "photos/0.png", "photos/1.png", *asked, "-o", "s.png").failed(4)
    assert "photos/0.png" in invoke("translate", "photos/0.png", *asked, "-o", "one.png").failed(3)
    assert not (tmp_path / "one.png").exists()
