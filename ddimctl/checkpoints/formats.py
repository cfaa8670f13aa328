"""The one way in: a folder or a file → a `Checkpoint`, by the format whose marks its tensors bear.

A format is a module with ``MARKS``, names of tensors that all its networks have, and ``read(state, said, name)``. What
wrappers and training loops put around a network is taken off before; no code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddimctl.checkpoints import (
    NOTHING_SAID,
    Checkpoint,
    Said,
    configs,
    ddim,
    diffusers,
    folders,
    identify,
    openai,
    scheduler,
    unwrap,
    weights,
)
from ddimctl.errors import FileError, choose


class Format(Protocol):
    """What a module of a bare format offers."""

    @property
    def MARKS(self) -> tuple[str, ...]: ...

    def read(self, state: Mapping[str, Tensor], said: Said, name: str) -> Checkpoint: ...


def read(path: Path, said: Said = NOTHING_SAID) -> Checkpoint:
    """Reads whatever `path` is. Raises `FileError`, which names what it is if it is not a checkpoint we read."""
    if path.is_dir():
        if folders.recognises(path):
            return _float32(diffusers.read(path, said))
        if diffusers.near(path) is None or not any(chosen := folders.choose_weights(_names(path), path)):
            raise diffusers.explain(path)
        state, notes = diffusers.read_state(path, *chosen)
        return _float32(diffusers.read_weights(path / (chosen[1] or chosen[0][0]), state, said, notes=notes))
    content = weights.load(path)
    marks = {"diffusers": diffusers.MARKS, **{name: form.MARKS for name, form in FORMATS.items()}}
    found = unwrap.network(content, marks, path)
    if found is None:
        raise identify.content(path, content)
    network, notes = found
    if network.form == "diffusers":
        return _float32(diffusers.read_weights(path, network.state, said, notes=notes))
    made = FORMATS[network.form].read(network.state, said, path.stem)
    return _float32(replace(made, notes=[*notes, *made.notes]))


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_file()}


def read_config(reference: str) -> dict[str, Any]:
    """A configuration from a JSON or YAML file, or the preset of that name. Raises `UsageError` if there is neither."""
    path = Path(reference)
    if path.suffix.lower() in (".json", *configs.YAML) or path.is_file():
        return configs.read(path)
    if path.is_dir() and (path / folders.CONFIG).is_file():
        return configs.read_json(path / folders.CONFIG)
    return dict(choose(openai.PRESETS, reference, "configuration"))


def read_schedule(reference: str) -> dict[str, Any]:
    """A scheduler's fields: from a JSON or YAML file, a model's or scheduler's folder, or said in words.

    Words are a schedule's name, a prediction's, and FIELD=VALUE, with commas between them: "linear,v_prediction",
    "cosine,num_train_timesteps=4000". Raises `UsageError` where they are none of these, `FileError` as `configs.read`.
    """
    path = Path(reference)
    if path.suffix.lower() in (".json", *configs.YAML) or path.is_file():
        return configs.flat(configs.read(path), scheduler.KNOWN)[0]
    if path.is_dir():
        file = folders.around(path).scheduler
        if file is None:
            raise FileError(f"{path} has no {folders.SCHEDULER}", hint="name the file, or the folder that it lies in")
        return {"_class_name": "DDPMScheduler", **configs.read_json(file)}
    return scheduler.words(reference)


def _float32(checkpoint: Checkpoint) -> Checkpoint:
    """Computes in float32 whatever the precision of the file."""
    kinds = {str(w.dtype).removeprefix("torch.") for w in checkpoint.weights.values()} - {"float32"}
    if not kinds:
        return checkpoint
    odd = sorted(kinds - {"float16", "bfloat16", "float64"})
    if odd:
        raise FileError(f"the weights are {odd[0]}, which ddimctl does not implement")
    note = f"weights in {', '.join(sorted(kinds))}, computed in float32"
    weights32 = {k: w.to(torch.float32) for k, w in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights32, notes=[*checkpoint.notes, note])


FORMATS: dict[str, Format] = {"ddim": ddim, "openai": openai}
