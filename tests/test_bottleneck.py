"""A model's own features: what they are, that every model has them, and whose reference is whose."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from rounding import apart
from test_train import OPTIONS, pixels, write_idx

import ddimctl
from ddimctl import bottleneck, features, frechet, load
from ddimctl.dither import added, dithers_of
from ddimctl.errors import FileError, UsageError
from ddimctl.images import writing
from ddimctl.images.levels import signed
from ddimctl.model import Condition

Invoke = Callable[..., Result]
SHIPPED = Path(__file__).parent.parent / "models" / "emoji"
CLASSY = Path(__file__).parent / "fixtures/models/classes"
FEW = ("--steps", "2", "-n", 20, "--eta", "0")


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def folder_of(path: Path, n: int) -> Path:
    path.mkdir()
    for i, image in enumerate(images(n)):
        writing.save_image(path / f"{i:03}.png", image.permute(1, 2, 0).numpy())
    return path


def test_they_are_the_middle_of_the_network_at_a_tenth_of_the_time(model_folder: Path) -> None:
    """Against the same written out: x_t = (x + σ n)/√(1 + σ²) at label T/10 − 1, the mean over space of the middle."""
    model = load(str(model_folder), "cpu")
    own, x = bottleneck.extractor(model), signed(images(3).double())
    sigma = model.schedule.sigma(100)
    network, seen = model.network.module.torch, []
    noisy = (x + added(dithers_of(x, 0, (sigma,)), x)) / (1 + sigma**2) ** 0.5
    hook = network.mid_block.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.inference_mode():
        network(noisy.float(), torch.full((3,), 99.0))
    hook.remove()
    assert own.dimension == 16
    assert apart(torch.from_numpy(np.concatenate(list(own.parts(images(3))))), seen[0].double().mean((2, 3))) < 1e-5


def test_no_image_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network takes those that hardly vary by themselves, each image keeps its features, in its place."""
    monkeypatch.setattr("ddimctl.unet.network.LOUD_IF_HARD", 0.5)
    own, mixed = bottleneck.extractor(load(str(CLASSY), "cpu"), Condition(1)), images(9)[..., :8, :8].clone()
    mixed[[0, 3, 4]] = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None]
    together = np.concatenate(list(own.parts(mixed)))
    alone = np.concatenate([next(own.parts(mixed[i : i + 1])) for i in range(9)])
    assert together.shape == alone.shape
    assert apart(torch.from_numpy(together), torch.from_numpy(alone)) < 1e-5


def test_an_image_has_the_same_in_any_company(model_folder: Path) -> None:
    own = bottleneck.extractor(load(str(model_folder), "cpu"))
    together = np.concatenate(list(own.parts(images(5))))
    alone = np.concatenate([next(own.parts(images(5)[i : i + 1])) for i in range(5)])
    assert apart(torch.from_numpy(together), torch.from_numpy(alone)) < 1e-5


def test_a_model_without_a_file_is_evaluated_by_its_own(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "real", 24)
    done = invoke("evaluate", "-m", model_folder, *FEW, "--reference", "real", "--json").ok()
    assert "features: the model's own bottleneck, 16 numbers an image" in done.err
    record = json.loads(done.out)["features"]
    assert (record["name"], record["dimension"]) == ("bottleneck", 16)
    again = json.loads(invoke("evaluate", "-m", write_tiny_model(tmp_path / "m", seed=9), *FEW, "--reference", "real", "--json").ok().out)  # fmt: skip # noqa: E501
    assert again["features"]["digest"] != record["digest"]  # numbers of two models are never of the same features
    assert "--reference" in invoke("evaluate", "-m", model_folder, *FEW).err


def test_the_reference_beside_a_model_is_its_own(invoke: Invoke, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "mine", seed=3)
    net = load(str(model), "cpu")
    real, held_out = images(30), images(6, seed=1)
    made = bottleneck.write(model / features.FILE, net, real, held_out=held_out, about={"data": "noise"})
    assert made.reference is not None
    found = bottleneck.read(model / features.FILE, bottleneck.extractor(net))
    assert found is not None
    assert found.reference is not None
    assert np.array_equal(found.reference.mean, made.reference.mean)
    assert np.array_equal(found.reference.cov, made.reference.cov)
    assert found.reference.n == 30
    mine = frechet.statistics(made.parts(held_out))
    assert found.about["floor"]["test"] == {"6": pytest.approx(frechet.distance(mine, made.reference), rel=1e-9)}
    done = invoke("evaluate", "-m", model, *FEW).ok()
    assert "reference: the 30 training images of the model" in done.err
    other = write_tiny_model(tmp_path / "other", seed=4)
    words = ("evaluate", "-m", other, *FEW, "--features", model / features.FILE)
    assert "another model's features" in invoke(*words).failed(3)
    (other / features.FILE).write_bytes((model / features.FILE).read_bytes())
    assert "name images with --reference" in invoke("evaluate", "-m", other, *FEW).err  # it is not believed


def test_a_damaged_file_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "mine", seed=3)
    net, file = load(str(model), "cpu"), model / features.FILE
    bottleneck.write(file, net, images(30), held_out=images(6), about={})
    about, reference = features.load_statistics(file)
    for wrong in (
        {**about, "features": 3},
        {**about, "floor": {"test": {"x": 1}}},
        {**about, "kind": "bottleneck", "floor": 1},
    ):
        features.save_statistics(file, reference, wrong)
        invoke("evaluate", "-m", model, *FEW).failed(3)
    features.save_statistics(file, frechet.Statistics(reference.mean[:2], reference.cov, 30), about)
    with pytest.raises(FileError):
        features.load_statistics(file)
    with pytest.raises(UsageError, match="too few"):
        bottleneck.write(file, net, images(3), held_out=images(3), about={})


def test_a_training_keeps_them(invoke: Invoke, tmp_path: Path) -> None:
    write_idx(tmp_path / "squares.gz", pixels())
    words = ("train", "squares.gz", "-o", "mine", "--steps", 2, "--held-out", 0.25, "--float32", *OPTIONS)
    assert "features of 18 images" in invoke(*words, "--features").ok().err
    done = invoke("evaluate", "-m", "mine", *FEW).ok()
    assert "reference: the 18 training images of the model" in done.err
    words = ("train", "squares.gz", "-o", "ae", "--steps", 2, "--autoencoder", "--features")
    assert "models of pixels" in invoke(*words).failed(2)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="models/emoji is not in this checkout")
def test_the_colour_model_comes_with_a_reference() -> None:
    """Of the images that its card says, of full rank; and real images it was not trained on are near."""
    net = load("emoji", "cpu")
    own = bottleneck.read(SHIPPED / features.FILE, bottleneck.extractor(net))
    assert own is not None
    assert own.reference is not None
    assert (own.dimension, own.reference.n) == (128, 3720)
    assert np.linalg.eigvalsh(own.reference.cov)[0] > 0
    assert own.about["floor"]["halves"] < own.about["floor"]["test"]["196"]
    assert (own.about["data"], own.about["license"]) == ("Noto Color Emoji", "OFL-1.1")
    assert (SHIPPED / features.FILE).stat().st_size < 2**18


def test_no_hint_names_a_file_that_a_wheel_lacks() -> None:
    for path in Path(ddimctl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                said = ast.unparse(node.value)
                assert not any(f"{folder}/" in said for folder in ("examples", "benchmarks", "tests")), (path, said)
