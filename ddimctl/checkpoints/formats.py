"""The one way in: a folder or a file → a `Checkpoint`, by the first format that recognises it.

A format is a module with ``recognises(content)`` and ``read(content, config, name)``. The content of a folder is its
path, that of a file what it holds, loaded without running code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ddimctl.checkpoints import Checkpoint, ddim, diffusers, identify, openai, weights
from ddimctl.errors import FileError, choose


class Format(Protocol):
    """What a format's module offers."""

    def recognises(self, content: Any) -> bool: ...

    def read(self, content: Any, config: Mapping[str, Any] | None, name: str) -> Checkpoint: ...


def read(path: Path, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Reads whatever `path` is; `config` says what the format does not.

    Raises `FileError`, which names what `path` is if it is not a checkpoint we read.
    """
    content: Any = path
    if not path.is_dir():
        content = weights.load(path)
        if diffusers.is_unet(content) and diffusers.recognises(path.parent):  # the folder says the rest
            return _float32(diffusers.read(path.parent, config, file=path))
    for form in FORMATS.values():
        if form.recognises(content):
            return _float32(form.read(content, config, path.stem))
    raise diffusers.explain(path) if path.is_dir() else identify.content(path, content)


def read_config(reference: str) -> dict[str, Any]:
    """A configuration from a JSON file, or the preset of that name. Raises `UsageError` if there is neither."""
    path = Path(reference)
    if path.suffix == ".json" or path.is_file():
        return diffusers.read_json(path)
    return dict(choose(openai.PRESETS, reference, "configuration"))


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


FORMATS: dict[str, Format] = {
    "diffusers": diffusers,
    "ddim": ddim,
    "openai": openai,
}
