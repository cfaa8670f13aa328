"""Parts of diffusers' layout that our own networks have no use for: autoencoders, text encoders, tokenizers, the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ddimctl.checkpoints import identify, weights
from ddimctl.checkpoints.configs import read_json
from ddimctl.checkpoints.diffusers import VERSION
from ddimctl.checkpoints.folders import STEM, WEIGHTS
from ddimctl.errors import FileError
from ddimctl.files import make_folder, write_bytes

PRIVATE = ("_use_default_values", "_name_or_path")  # what a configuration says of the object, not of the network


def write_part(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], *, name: str = WEIGHTS, half: bool = False
) -> None:
    """A network's folder: ``config.json`` and its weights. Each file atomic."""
    make_folder(folder)
    kind = torch.float16 if half else None
    own = {
        k: w.detach().to("cpu", kind if w.is_floating_point() else None).contiguous().clone() for k, w in state.items()
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


def read_part(folder: Path, kind: str, *, stem: str = STEM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and weights, in float32, of the part in `folder`, which must be a `kind`. Raises `FileError`."""
    config = read_json(folder / "config.json")
    said = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if said != kind:
        raise FileError(f"{folder / 'config.json'} is of a {said}, not of a {kind}", identify.NOT_HERE)
    if "auto_map" in config:
        raise FileError(f"{folder} needs code of its own to load", identify.CODE)
    names = [f"{stem}{variant}.safetensors" for variant in ("", ".fp16", ".bf16")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileError(f"there is no {folder / names[0]}", hint="weights are read from safetensors alone")
    return config, {k: w.float() if w.is_floating_point() else w for k, w in weights.load_state(file).items()}
