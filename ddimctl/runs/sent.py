"""Jobs and what they give, as bytes for another process of this run: a model goes as a reference to it, with its digest.

A reference says where a model is found, which engine evaluates it in what precision, and what it must be: opened where it
arrives, a model of another digest is refused. Only bytes that a run's own processes made are ever unpacked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddimctl.arrays import is_tensor, to_numpy
from ddimctl.errors import DDIMError
from ddimctl.model import Model
from ddimctl.schedule import Levels


@dataclass(frozen=True)
class Reference:
    """Where a model is, and all that must be so of it."""

    name: str  # as messages say it
    reference: str  # a bundled name, an absolute path, or a hub id
    config: str | None
    said: str | None  # of its schedule
    guess: bool
    size: tuple[int, int]
    tile: int | None  # of its autoencoder
    schedule: Levels  # as resolved: its tuned paths and its end are part of it
    device: str
    engine: str
    precision: str
    halves: str | None  # what evaluates its autoencoder, if it is not torch
    must: tuple[Any, ...]  # what `identity` gives


def reference_to(model: Model) -> Reference:
    """What to send for `model`."""
    about, network = model.about, model.network
    return Reference(
        about.name, _place(about.reference, about.folder), _here(about.config), _here(about.schedule), about.guess,
        model.size, model.autoencoder.tile, model.schedule, network.module.kind, network.engine, network.precision,
        model.autoencoder.engine, identity(model),
    )  # fmt: skip


def identity(model: Model) -> tuple[Any, ...]:
    """What decides about a result beside levels, engine and precision."""
    return model.digest, model.autoencoder.digest, model.prediction, model.label_scale


def opened(reference: Reference) -> Model:
    """The model there, ready. Raises `DDIMError` if it cannot be opened, or is another."""
    from ddimctl import engines
    from ddimctl.families import load, resized
    from ddimctl.families.recall import recall, remember

    model = None
    plain = reference.config is None and reference.said is None and not reference.guess
    if reference.engine == "openvino" and plain:
        model = recall(reference.reference, reference.device, precision=reference.precision)
    if model is None or model.size != reference.size:
        model = load(
            reference.reference, reference.device,
            config=reference.config, schedule=reference.said, guess=reference.guess,
        )  # fmt: skip
        model = resized(model, reference.size)
        model = model.with_network(engines.make(model.network.module, reference.engine, reference.precision))
        remember(model)
    if identity(model) != reference.must:
        raise DDIMError(
            f"{reference.reference} is another model there (digest {model.digest[:12]}, not {reference.must[0][:12]})",
            hint="every machine needs the same files",
        )
    model = replace(model, schedule=reference.schedule, autoencoder=model.autoencoder.tiled(reference.tile))
    if reference.halves is None:
        return model
    from ddimctl.families.halves import evaluated

    return replace(model, autoencoder=evaluated(model, reference.halves))


def _place(reference: str, folder: Path | None) -> str:
    """A model's name, wherever the other process's working folder is."""
    from ddimctl.catalogue import bundled

    if reference in bundled():
        return reference
    path = Path(reference)
    return str(path.resolve()) if path.exists() else reference


def _here(said: str | None) -> str | None:
    return str(Path(said).resolve()) if said is not None and Path(said).is_file() else said


class _Pickler(pickle.Pickler):
    """A model becomes its reference, a tensor a numpy array: a part of one would take all of it along."""

    def persistent_id(self, value: Any) -> Any:
        return reference_to(value) if isinstance(value, Model) else None

    def reducer_override(self, value: Any) -> Any:
        if is_tensor(value) and value.dtype != _bfloat16():
            return _tensor, (to_numpy(value),)
        return NotImplemented


def _bfloat16() -> Any:
    """The one type that numpy has not."""
    import torch

    return torch.bfloat16


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(values)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, model_of: Callable[[Reference], Model]):
        super().__init__(io.BytesIO(data))
        self.model_of = model_of

    def persistent_load(self, reference: Any) -> Model:
        return self.model_of(reference)


def pack(value: Any) -> bytes:
    """A job, or what it gave."""
    out = io.BytesIO()
    _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(value)
    return out.getvalue()


def unpack(data: bytes, model_of: Callable[[Reference], Model] = opened) -> Any:
    """What was packed, with each model as `model_of` gives it."""
    return _Unpickler(data, model_of).load()
