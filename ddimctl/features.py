"""Feature vectors of images, for the Fréchet distance: of a small classifier that comes with a model, or of Inception.

A model may bring `features.safetensors`: the weights of a `Classifier`, the mean and covariance of its features over the
model's training images, and a JSON that says what was trained on what, and how well. `examples/features.py` makes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import read_bytes, write_bytes
from ddimctl.frechet import Statistics
from ddimctl.images.levels import signed

FILE = "features.safetensors"
MAX_BYTES = 64 << 20
MAX_LAYERS, MAX_WIDTH = 12, 4096  # of a classifier in a file
BATCH = 250
KINDS = ("classifier", "bottleneck", "inception")
INCEPTION_SIZE = 2048


class Classifier(nn.Module):
    """3 × 3 convolutions, each halving the image for the next; the mean over space is the feature vector."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
            layers += [nn.MaxPool2d(2)] if i else []
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [−1, 1] → (B, d)."""
        mean: Tensor = self.body(images).mean((-2, -1))
        return mean

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [−1, 1] → (B, classes), unnormalised log probabilities."""
        scores: Tensor = self.head(self.features(images))
        return scores


class Pixels(Protocol):
    """uint8 images (N, C, H, W) that may lie elsewhere than in memory: a tensor, or what can be cut as one."""

    def __len__(self) -> int: ...

    def split(self, size: int, /) -> Iterable[Tensor]: ...


@dataclass(frozen=True)
class Extractor:
    """Where feature vectors come from. `call` takes uint8 (B, C, H, W) and returns (B, d).

    `reference` are the statistics that came with it, None for Inception; `about` is what its file says of itself.
    """

    name: str
    dimension: int
    call: Callable[[Tensor], Tensor]
    about: dict[str, Any]
    reference: Statistics | None = None

    def parts(self, pixels: Pixels) -> Iterator[np.ndarray]:
        """The features of uint8 (N, C, H, W) in parts (at most 250, d) of float64, for `frechet.statistics`."""
        with torch.inference_mode():
            for part in pixels.split(BATCH):
                yield self.call(part).double().cpu().numpy()


def save_classifier(path: Path, network: Classifier, reference: Statistics, *, about: dict[str, Any]) -> None:
    """Writes the file of a classifier. `about` must hold what `Classifier` takes and the images' size (H, W)."""
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors["mean"], tensors["cov"] = torch.from_numpy(reference.mean), torch.from_numpy(reference.cov)
    said = {**about, "reference_images": reference.n}
    write_bytes(path, save(tensors, metadata={"ddimctl": json.dumps(said, ensure_ascii=False)}))


def save_statistics(path: Path, reference: Statistics, about: dict[str, Any]) -> None:
    """Writes a file of statistics alone: the features are a model's own, see `bottleneck`."""
    tensors = {"mean": torch.from_numpy(reference.mean), "cov": torch.from_numpy(reference.cov)}
    said = {**about, "reference_images": reference.n}
    write_bytes(path, save(tensors, metadata={"ddimctl": json.dumps(said, ensure_ascii=False)}))


def load_statistics(path: Path) -> tuple[dict[str, Any], Statistics]:
    """(what the file says, its statistics) of a file that `save_statistics` wrote. Raises as `load_classifier`."""
    read_bytes(path, MAX_BYTES)
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {})["ddimctl"])
            mean, cov = (f.get_tensor(name).double().numpy() for name in ("mean", "cov"))
        d, n = len(mean), about["reference_images"]
        if about["kind"] != "bottleneck" or not isinstance(about["features"], str) or type(n) is not int or n < 2:
            raise ValueError("it is none of a model's own features")
        if mean.shape != (d,) or cov.shape != (d, d) or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("its mean and covariance do not fit")
        about["floor"] = _floor(about)
        json.dumps(about, allow_nan=False)
    except (
        SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError
    ) as e:  # fmt: skip
        raise FileError(f"{path} is not a file of features, or damaged: {e}") from e
    return about, Statistics(mean, cov, n)


def kind_of(path: Path) -> str:
    """Whose features a file is about: a classifier's in it, or a model's own. Raises `UsageError` if there is none."""
    read_bytes(path, MAX_BYTES)
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {})["ddimctl"])
        return "bottleneck" if about.get("kind") == "bottleneck" else "classifier"
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RecursionError):
        return "classifier"  # whose reader says what is wrong with it


def _floor(about: dict[str, Any]) -> dict[str, Any]:
    """How far real images are apart, as a file says; values from JSON can be anything."""
    given = about.get("floor", {})
    halves = {k: float(given[k]) for k in given if k == "halves"}
    return {**halves, "test": {str(int(k)): float(v) for k, v in given.get("test", {}).items()}}


def load_classifier(path: Path, device: str | torch.device = "cpu") -> Extractor:
    """The classifier in a file that `save_classifier` wrote. Raises `UsageError` if there is none, `FileError` if it
    is damaged or something else."""
    digest = hashlib.sha256(read_bytes(path, MAX_BYTES)).hexdigest()
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {})["ddimctl"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        check(about)
        mean, cov = tensors.pop("mean").double().numpy(), tensors.pop("cov").double().numpy()
        with torch.device("meta"):  # whatever sizes it claims, nothing is allocated for them
            network = Classifier(about["channels"], tuple(about["widths"]), about["classes"])
        known = network.state_dict()
        network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()}, assign=True)
        for name, w in network.state_dict().items():
            if w.dtype != known[name].dtype or not torch.isfinite(w).all():
                raise ValueError(f"{name} is not finite {str(known[name].dtype).removeprefix('torch.')}")
        d = about["widths"][-1]
        if mean.shape != (d,) or cov.shape != (d, d) or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("its mean and covariance do not fit")
        reference = Statistics(mean, cov, about["reference_images"])
        about["floor"] = _floor(about)
        json.dumps(about, allow_nan=False)  # as a report will repeat it
    except (
        SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError
    ) as e:  # fmt: skip
        raise FileError(f"{path} is not a file of features, or damaged: {e}") from e
    network.to(device).eval().requires_grad_(False)

    def call(pixels: Tensor) -> Tensor:
        return network.features(signed(pixels.to(device).float()))

    return Extractor("classifier", d, call, {**about, "digest": digest}, reference)


def check(about: Any) -> None:
    """Raises `ValueError` unless what a file says of its classifier makes sense; values from JSON can be anything."""

    def is_count(value: Any, limit: int) -> bool:
        return type(value) is int and 0 < value <= limit

    widths, size = about["widths"], about["size"]
    if not isinstance(widths, list) or not 0 < len(widths) <= MAX_LAYERS:
        raise ValueError(f"it has no 1 to {MAX_LAYERS} widths")
    if not all(is_count(n, MAX_WIDTH) for n in (*widths, about["channels"], about["classes"])):
        raise ValueError(f"a width, or its channels or classes, is no number from 1 to {MAX_WIDTH}")
    if not isinstance(size, list) or len(size) != 2 or not all(is_count(n, MAX_WIDTH) for n in size):
        raise ValueError("its size is no height and width")
    if not is_count(about["reference_images"], 1 << 53):
        raise ValueError("its reference_images is no number of images")


def load_inception(device: str | torch.device = "cpu") -> Extractor:
    """Inception's 2048 features, as FID wants them, by torch-fidelity (extra ``fid``), which downloads its weights.

    Raises `UsageError` without the extra, `DDIMError` if the weights cannot be had.
    """
    try:
        fidelity: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as e:
        raise UsageError(
            "the features of Inception need the extra 'fid'", hint="install it with: pip install 'ddimctl[fid]'"
        ) from e
    except Exception as e:  # a torchvision for another torch breaks in ways of its own
        raise DDIMError(f"torch-fidelity cannot be loaded: {_reason(e)}", hint="do torch and torchvision fit?") from e
    try:
        wanted = [str(INCEPTION_SIZE)]
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", wanted, verbose=sys.stderr.isatty())
    except Exception as e:  # no network, no disk, a damaged download: each with an exception of its own
        raise DDIMError(f"cannot get the weights of Inception: {_reason(e)}", hint="they are downloaded once") from e
    network.to(device).eval().requires_grad_(False)

    def call(pixels: Tensor) -> Tensor:
        colour = pixels.to(device).expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels.to(device)
        vectors: Tensor = network(colour)[0]
        return vectors

    return Extractor("inception", INCEPTION_SIZE, call, {})


def _reason(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
