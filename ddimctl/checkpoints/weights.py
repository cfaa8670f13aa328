"""Weights files to tensors: safetensors and torch's own. Memory-mapped where the file allows; never runs code.

Neither reader notices a flipped byte in the weights; `Model.digest` does.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddimctl.checkpoints import configs, folders, identify
from ddimctl.errors import FileError


def load(path: Path) -> Any:
    """The content of a weights file: a state dict, or whatever nest of them was saved.

    Raises `FileError` that names what the file is if it is not one.
    """
    identify.file(path)
    if _is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
            raise FileError(f"{path} is truncated or corrupt: {e}", hint="download or copy it again") from e
    zipped = zipfile.is_zipfile(path)  # as torch writes since 1.6; only then can it be mapped
    try:
        # weights_only: allowed types, no code. A file that this refuses is refused, never tried again without.
        with warnings.catch_warnings(action="ignore"):  # about pickles that are refused in the next moment
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as e:  # whatever a hostile pickle provokes: KeyError, struct.error, RecursionError, …
        raise identify.unloadable(path, e) from e


def load_parts(folder: Path, files: Sequence[str], index: str) -> Any:
    """The content of a folder's weights as `folders.choose_weights` names them: a file, shards, or the index of shards."""
    table: Mapping[str, Any] | None = None
    if index:
        table = configs.read_json(folder / index, limit=folders.MAX_JSON)
        files = folders.shards(table, folder / index)
    contents = []
    for file in files:
        if not (folder / file).is_file():
            raise FileError(f"{folder} lacks a part of its weights: {file}", hint="copy or download all shards")
        contents.append(load(folder / file))
    if table is None and len(contents) == 1:
        return contents[0]
    if odd := next((file for file, c in zip(files, contents, strict=True) if not isinstance(c, Mapping)), None):
        raise FileError(f"{folder / odd} is no part of a state dict", hint="copy or download all shards")
    whole = {k: w for content in contents for k, w in content.items()}
    return whole if table is None else {k: w for k, w in whole.items() if k in table["weight_map"]}


def load_state(path: Path) -> dict[str, Tensor]:
    """As `load`, for a file that must be a plain state dict."""
    content = load(path)
    if not isinstance(content, Mapping):
        raise identify.content(path, content)
    return state(content, str(path))


def state(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a state dict. Raises `FileError` if one is not what it seems.

    A few bytes can claim to be a tensor of any size by repeating themselves (stride 0); those are refused.
    """
    result = {}
    for name, w in content.items():
        if not isinstance(w, Tensor) or w.layout != torch.strided or w.device.type != "cpu" or w.is_quantized:
            raise FileError(f"{where}: {name} is not a plain tensor")
        if w.numel() * w.element_size() > w.untyped_storage().nbytes():
            raise FileError(
                f"{where}: {name} claims {w.numel():,} numbers but holds fewer", hint="do not trust this file"
            )
        result[name] = w.detach()
    return result


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then a JSON object."""
    with path.open("rb") as f:
        head = f.read(9)
    return len(head) == 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
