"""A model without PyTorch: where OpenVINO has a network in its cache, nothing else is needed to evaluate it.

`import torch` takes longer than encoding an image does. So what `model.load` finds out about a model folder is remembered
when its network is converted, under a digest of the folder's files; `recall` gives a `Prepared`, which computes on numpy
arrays and does what a `Model` does. Should it ever need the network itself, it loads it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import cache, engines
from ddimctl.errors import UsageError
from ddimctl.files import bundled_folder
from ddimctl.implicit import Array
from ddimctl.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddimctl.model import Model

SUFFIXES = (".json", ".safetensors", ".bin")
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # where one of these is, torch is asked what can be used
REMEMBERED = ("digest", "parameters", "flops", "prediction", "label_scale", "class_label", "shape", "notes", "guesses")


class Cpu(str):
    """Stands for torch's device of that name."""

    type = "cpu"


@dataclass
class Prepared:
    """What commands need of a `Model`, with the same names, and numpy arrays where that has tensors."""

    folder: Path
    name: str
    schedule: Schedule
    digest: str
    parameters: int
    flops: int
    prediction: str
    label_scale: float
    class_label: int | None
    shape: tuple[int, int, int]
    notes: tuple[str, ...]
    guesses: tuple[str, ...]
    engine: str = "openvino"
    precision: str = "float32"
    device: Any = field(default_factory=lambda: Cpu("cpu"))

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[1:]

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.precision == "bf16" else "float32"

    @cached_property
    def network(self) -> Any:
        """The network itself, for whatever is not in the cache any more."""
        from ddimctl.model import load

        return load(str(self.folder), "cpu", self.class_label).network

    @cached_property
    def run(self) -> engines.Run:
        like: Any = self
        return engines.openvino(like)

    def eps(self, xbar: Array, sigma: float | Sequence[float]) -> Array:
        """As `Model.eps`."""
        like: Any = self
        return engines.eps(like, xbar, sigma)


def remember(model: Model) -> None:
    """Has `recall` know this model from now on, if it is a float32 network from a folder that OpenVINO evaluates."""
    if model.folder is None or model.engine != "openvino" or model.config.image_size is None:
        return
    if str(model.network.conv_in.weight.dtype) != "torch.float32":
        return
    about = {name: getattr(model, name) for name in REMEMBERED} | {"alpha": model.schedule.alpha}
    cache.fetch(_name(model.folder, model.class_label), lambda: json.dumps(about).encode())


def recall(reference: str, device: str, class_label: int | None) -> Prepared | None:
    """The model of that bundled name or folder, if it is remembered and its network is in the cache; else None."""
    if find_spec("openvino") is None or not (device == "cpu" or (device == "auto" and _has_no_gpu())):
        return None
    folder = next((p for p in (bundled_folder() / reference, Path(reference)) if p.is_dir()), None)
    if not reference or folder is None or not cache.is_there():
        return None
    found = cache.load(_name(folder, class_label))
    if found is None:
        return None
    about = json.loads(found)
    schedule = Schedule(tuple(about.pop("alpha")))
    for name in ("shape", "notes", "guesses"):
        about[name] = tuple(about[name])
    prepared = Prepared(folder=folder, name=folder.resolve().name, schedule=schedule, **about)
    like: Any = prepared
    if not cache.has(engines.graph_name(like, prepared.shape)):
        return None
    try:
        engines.import_openvino()
    except UsageError:  # the model itself will say so, or take another engine
        return None
    return prepared


def _has_no_gpu() -> bool:
    return sys.platform == "linux" and not any(Path(p).exists() for p in GPUS)


def _name(folder: Path, class_label: int | None) -> str:
    """The cache's name for what is known of the files in a model folder."""
    from ddimctl import __version__

    h = sha256()
    places = [folder / sub for sub in (".", "unet", "unet_ema", "scheduler")]
    if folder.name in ("unet", "unet_ema"):  # the network's own folder: its scheduler is beside it
        places.append(folder.absolute().parent / "scheduler")
    for path in (p for place in places for p in sorted(place.glob("*")) if p.suffix in SUFFIXES and p.is_file()):
        h.update(f"{path.parent.name}/{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
    return cache.name("model", __version__, class_label, h.hexdigest())
