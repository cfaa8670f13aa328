"""Features: the file that comes with fashion-mnist, what it promises, and what else is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from rounding import NETWORK, apart
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddimctl import features, frechet
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets

SHIPPED = Path(__file__).parent.parent / "models" / "fashion-mnist" / features.FILE


def small(path: Path, seed: int = 0) -> features.Extractor:
    """A random classifier of grey 16 × 16 images, as a file and loaded from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = features.Classifier(1, (4, 6), 3).eval()
        pixels = torch.randint(0, 256, (100, 1, 16, 16), dtype=torch.uint8)
    own = features.Extractor("classifier", 6, lambda p: network.features(p.float() / 127.5 - 1), {})
    about = {"channels": 1, "size": [16, 16], "widths": [4, 6], "classes": 3}
    features.save_classifier(path, network, frechet.statistics(own.parts(pixels)), about=about)
    return features.load_classifier(path)


@pytest.fixture(scope="module")
def shipped() -> features.Extractor:
    return features.load_classifier(SHIPPED)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return datasets.load_dataset(SHIPPED.parent / "held-out", 1, (28, 28))


def test_the_shipped_file_is_small_and_says_what_it_is(shipped: features.Extractor) -> None:
    assert SHIPPED.stat().st_size <= 2 * 2**20
    about = shipped.about
    assert 0.92 <= about["test_accuracy"] < 1
    assert about["data"] == "Fashion-MNIST"
    assert about["license"] == "MIT"
    assert (about["channels"], about["size"]) == (1, [28, 28])
    assert shipped.reference is not None
    assert shipped.reference.n == 60_000
    assert shipped.dimension == 64 == len(shipped.reference.mean)


def test_the_shipped_reference_is_a_covariance_of_full_rank(shipped: features.Extractor) -> None:
    assert shipped.reference is not None
    cov = shipped.reference.cov
    assert np.array_equal(cov, cov.T)
    assert np.linalg.eigvalsh(cov).min() > 0


def test_the_shipped_floor_falls_with_the_number_of_images(shipped: features.Extractor) -> None:
    test = [shipped.about["floor"]["test"][n] for n in ("500", "1000", "2000", "5000", "10000")]
    assert test == sorted(test, reverse=True)
    assert 0 < shipped.about["floor"]["halves"] < test[-1]


def test_what_is_no_garment_is_far_away(shipped: features.Extractor, held_out: torch.Tensor) -> None:
    assert shipped.reference is not None

    def far(pixels: torch.Tensor) -> float:
        return frechet.distance(frechet.statistics(shipped.parts(pixels)), shipped.reference)  # type: ignore[arg-type]

    noise = torch.randint(0, 256, held_out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    softened = torch.nn.functional.avg_pool2d(held_out.float(), 3, 1, 1).byte()
    assert 3 * far(held_out) < far(255 - held_out)
    assert far(held_out) < far(softened) < far(noise)


def test_features_are_the_same_again_and_in_any_batch(shipped: features.Extractor, held_out: torch.Tensor) -> None:
    together = np.concatenate(list(shipped.parts(held_out)))
    again = np.concatenate(list(features.load_classifier(SHIPPED).parts(held_out)))
    alone = np.concatenate([next(shipped.parts(x[None])) for x in held_out])
    assert together.shape == (len(held_out), 64)
    assert together.dtype == np.float64
    assert np.array_equal(together, again)
    assert apart(alone, together) < NETWORK


def test_a_classifier_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    one = small(tmp_path / "one.safetensors")
    two = small(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert one.about == two.about
    assert one.reference is not None
    assert one.reference.n == 100
    assert (one.dimension, one.reference.cov.shape) == (6, (6, 6))


def test_every_damage_of_the_file_is_one_line_or_harmless(tmp_path: Path) -> None:
    """Cut anywhere, or with a byte of the header changed: refused, never an exception of another kind."""
    small(tmp_path / "f.safetensors")
    data = (tmp_path / "f.safetensors").read_bytes()
    rng = np.random.default_rng(0)
    broken = tmp_path / "broken.safetensors"
    for cut in [0, 1, 8, 9, 100, len(data) // 2, len(data) - 1]:
        broken.write_bytes(data[:cut])
        with pytest.raises(FileError):
            features.load_classifier(broken)
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.integers(0, 1200)] ^= 1 << rng.integers(0, 8)
        broken.write_bytes(bytes(changed))
        try:
            features.load_classifier(broken)
        except FileError:
            continue


@pytest.mark.parametrize("widths", [[4], [4, 7], [10**9, 6], ["a", 6], [-1, 6], 5])
def test_a_file_that_claims_another_architecture_is_refused(tmp_path: Path, widths: object) -> None:
    path = tmp_path / "f.safetensors"
    small(path)
    tensors = load_file(path)
    about = {"channels": 1, "size": [16, 16], "widths": widths, "classes": 3, "reference_images": 100}
    save_file(tensors, path, {"ddimctl": json.dumps(about)})
    with pytest.raises(FileError, match="not a file of features"):
        features.load_classifier(path)


def changed(path: Path, dtype: torch.dtype = torch.float32, **about: object) -> Path:
    """The file of `small`, which says something else of itself."""
    small(path)
    tensors = {k: v.to(dtype) if k == "network.head.weight" else v for k, v in load_file(path).items()}
    said = {"channels": 1, "size": [16, 16], "widths": [4, 6], "classes": 3, "reference_images": 100}
    save_file(tensors, path, {"ddimctl": json.dumps({**said, **about})})
    return path


def test_an_unchanged_file_is_read(tmp_path: Path) -> None:
    """So the tests below can fail."""
    assert features.load_classifier(changed(tmp_path / "f.safetensors", floor={"halves": 1})).dimension == 6


@pytest.mark.parametrize(
    "about",
    [
        {"widths": []},
        {"widths": [4] * 13},
        {"widths": [5000, 6]},
        {"widths": [4.0, 6]},
        {"channels": 10**400},
        {"channels": True},
        {"classes": None},
        {"size": [16]},
        {"size": [16, float("inf")]},
        {"size": [16, 10**400]},
        {"reference_images": float("inf")},
        {"reference_images": -1},
        {"floor": {"halves": 10**400}},
        {"floor": {"test": {"500": 10**400}}},
        {"floor": {"halves": float("nan")}},
        {"test_accuracy": float("nan")},
    ],
    ids=lambda about: f"{about}"[:40],
)
def test_what_a_file_says_of_itself_is_checked(tmp_path: Path, about: dict[str, object]) -> None:
    with pytest.raises(FileError, match="not a file of features"):
        features.load_classifier(changed(tmp_path / "f.safetensors", **about))


def test_millions_of_widths_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(tmp_path / "f.safetensors", widths=[1] * 1_000_000)
    monkeypatch.setattr(features, "Classifier", lambda *a: pytest.fail("it was built"))
    with pytest.raises(FileError, match="1 to 12 widths"):
        features.load_classifier(path)


def test_weights_are_finite_float32(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"head\.weight is not finite float32"):
        features.load_classifier(changed(tmp_path / "f.safetensors", torch.float16))
    path = changed(tmp_path / "f.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as f:
        said = f.metadata()
    tensors["network.head.bias"][0] = float("nan")
    save_file(tensors, path, said)
    with pytest.raises(FileError, match=r"head\.bias is not finite float32"):
        features.load_classifier(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        features.load_classifier(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match="not a file of features"):
        features.load_classifier(tmp_path / "x.safetensors")


def test_inception_without_the_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match="extra 'fid'") as caught:
        features.load_inception()
    assert "ddimctl[fid]" in caught.value.hint


def fake_fidelity(monkeypatch: pytest.MonkeyPatch, network: object) -> None:
    """Stands in for torch-fidelity, as far as it is used."""
    name = "torch_fidelity.feature_extractor_inceptionv3"
    module = SimpleNamespace(FeatureExtractorInceptionV3=network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]


def test_inception_whose_weights_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, wanted: list[str], verbose: bool) -> None:
        raise OSError("<urlopen error: no route to host>\nsecond line")

    fake_fidelity(monkeypatch, refuse)
    with pytest.raises(DDIMError, match=r"cannot get the weights of Inception: <urlopen error: no route to host>$"):
        features.load_inception()


def test_a_broken_torch_fidelity_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As with a torchvision for another torch, which raises a RuntimeError when it is imported."""
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_fidelity", raising=False)
    with pytest.raises(DDIMError, match="torch-fidelity cannot be loaded: operator nms does not exist"):
        features.load_inception()


def test_inception_gets_8_bit_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def __init__(self, name: str, wanted: list[str], verbose: bool):
            super().__init__()
            assert wanted == ["2048"]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            return (x.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)

    fake_fidelity(monkeypatch, Network)
    extractor = features.load_inception()
    for channels in (1, 3):
        (part,) = extractor.parts(torch.full((2, channels, 8, 8), 7, dtype=torch.uint8))
        assert part.shape == (2, extractor.dimension)
        assert (part == 7).all()
    assert extractor.reference is None
