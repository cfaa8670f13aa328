"""Parts of diffusers' layout that our own networks have no use for: autoencoders, text encoders, tokenizers, the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ddimctl.checkpoints.diffusers import VERSION, WEIGHTS
from ddimctl.errors import FileError
from ddimctl.files import make_folder, read_bytes, write_bytes

MOST = 1 << 34  # bytes that a file of weights may have
PRIVATE = ("_use_default_values", "_name_or_path")  # what a configuration says of the object, not of the network


def write_part(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, name: str = WEIGHTS, half: bool = False
) -> None:
    """A network's folder: ``config.json`` and its weights. Each file atomic."""
    make_folder(folder)
    kind = torch.float16 if half else None
    own = {
        k: w.detach().to("cpu", kind if w.is_floating_point() else None).contiguous().clone()
        for k, w in weights.items()
    }
    write_json(folder / "config.json", config)
    write_bytes(folder / name, save(own, metadata={"format": "pt"}))


def config_of(network: Any) -> dict[str, Any]:
    """The configuration of a network of diffusers', as its own ``save_pretrained`` writes it."""
    about = {"_class_name": type(network).__name__, "_diffusers_version": VERSION}
    return about | {k: v for k, v in network.config.items() if k not in PRIVATE}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    make_folder(path.parent)
    write_bytes(path, (json.dumps(value, indent=2, default=list) + "\n").encode())


def write_index(folder: Path, pipeline: str, parts: Mapping[str, tuple[str | None, str | None]], **more: Any) -> None:
    """``model_index.json``: which class of which library each part is of."""
    named = {k: list(v) for k, v in parts.items()}
    write_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": VERSION, **named, **more})


def read_part(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and weights of the part in `folder`, which must be a `kind`. Raises `FileError`."""
    path, weights = folder / "config.json", folder / WEIGHTS
    for p in (path, weights):
        if not p.is_file():
            raise FileError(f"there is no {p}")
    try:
        config = json.loads(read_bytes(path, 1 << 20))
        state = load(read_bytes(weights, MOST))
    except (ValueError, SafetensorError) as e:
        raise FileError(f"{folder} is damaged: {e}") from e
    if not isinstance(config, dict) or config.get("_class_name") != kind:
        raise FileError(f"{path} is not of a {kind}")
    return config, {k: w.float() for k, w in state.items()}
