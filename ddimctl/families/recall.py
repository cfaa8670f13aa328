"""A model without PyTorch: where OpenVINO has a network in its cache, nothing else is needed to evaluate it.

`import torch` takes longer than encoding an image does. So what `families.load` finds out about a model folder is
remembered when its network is converted, under a digest of the folder's files; `recall` makes a `Model` of that whose
network takes numpy arrays. Should the module itself ever be needed, it is loaded then.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ddimctl import cache, engines, tuned
from ddimctl.catalogue import bundled
from ddimctl.checkpoints import folders
from ddimctl.engines import openvino
from ddimctl.errors import UsageError
from ddimctl.families.classes import embedder
from ddimctl.files import bundled_folder
from ddimctl.model import About, Model
from ddimctl.network import Facts, Module
from ddimctl.schedule import Schedule
from ddimctl.version import __version__

SUFFIXES = (".json", *folders.SUFFIXES)
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # where one of these is, torch is asked what can be used


def remember(model: Model) -> None:
    """Has `recall` know this model from now on, if it is a float32 network from a folder that OpenVINO evaluates."""
    network, about = model.network, model.about
    if about.config is not None or about.schedule is not None or about.guess or not folders.recognises(about.folder):
        return  # `recall` knows a folder that says everything itself
    if about.folder is None or network.engine != "openvino" or network.module.dtype != "float32":
        return
    if about.family != "pixel" or not isinstance(model.schedule, Schedule):
        return
    known = {
        "facts": asdict(network.module.facts),
        "shape": model.state_shape,
        "alpha": model.schedule.alpha,
        "endless": model.schedule.endless,
        "prediction": model.prediction,
        "label_scale": model.label_scale,
        "classes": about.classes,
        "notes": about.notes,
        "guesses": about.guesses,
    }
    cache.fetch(_name(about.folder), lambda: json.dumps(known).encode())


def recall(reference: str, device: str, *, precision: str = "float32") -> Model | None:
    """The model of that bundled name or folder, if it is remembered and its network is in the cache; else None."""
    if find_spec("openvino") is None or not (device == "cpu" or (device == "auto" and _has_no_gpu())):
        return None
    folder = bundled_folder() / reference if reference in bundled() else Path(reference)  # as `families.find`
    if not reference or not folder.is_dir() or not cache.is_there():
        return None
    found = cache.load(_name(folder))
    if found is None:
        return None
    known = json.loads(found)
    module = Module(tuple(known["shape"]), "cpu", lambda: _load(folder), lambda: Facts(**known["facts"]))
    if not cache.has(openvino.graph_name(module)):
        return None
    try:
        openvino.import_openvino()
    except UsageError:  # the model itself will say so, or take another engine
        return None
    about = About(
        folder.resolve().name, reference, folder=folder, classes=known["classes"],
        notes=tuple(known["notes"]), guesses=tuple(known["guesses"]),
    )  # fmt: skip
    schedule = Schedule(tuple(known["alpha"]), known.get("endless", False))
    return Model(
        engines.make(module, "openvino", precision),
        replace(schedule, paths=tuned.load(folder, schedule=schedule.digest)),
        image_shape=module.state_shape,
        about=about,
        prediction=known["prediction"],
        label_scale=known["label_scale"],
        embed=embedder(about.name, about.classes),
    )


def _load(folder: Path) -> Any:
    """The module itself, for whatever is not in the cache any more."""
    from ddimctl.families import load

    return load(str(folder), "cpu").network.module.torch


def _has_no_gpu() -> bool:
    return sys.platform == "linux" and not any(Path(p).exists() for p in GPUS)


def _name(folder: Path) -> str:
    """The cache's name for what is known of the files in a model folder."""
    h = sha256()
    places, files = [folder], []
    if folders.recognises(folder):
        place = folders.find(folder)
        places, files = [folder, place.unet], [place.scheduler] if place.scheduler else []
    files += [p for place in dict.fromkeys(places) for p in sorted(place.glob("*")) if p.suffix in SUFFIXES]
    for path in (p for p in files if p.is_file()):
        h.update(f"{path.parent.name}/{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
    return cache.name("model", 2, __version__, h.hexdigest())
