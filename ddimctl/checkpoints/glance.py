"""A model folder as its files tell of it, without torch, which takes longer to import than weights take to hash.

What is not plain (weights in halves, in pickles, under other names, or such as do not fit) is left to those who load it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import Checkpoint, Said, configs, diffusers, folders
from ddimctl.errors import FileError
from ddimctl.files import is_special
from ddimctl.network import Facts
from ddimctl.unet import shapes
from ddimctl.unet.config import UNetConfig

CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor of float32 in a safetensors file."""

    file: Path
    start: int
    shape: tuple[int, ...]

    def read(self) -> Iterator[bytes]:
        left = 4 * prod(self.shape)
        with self.file.open("rb") as f:
            f.seek(self.start)
            while left and (part := f.read(min(left, CHUNK))):
                left -= len(part)
                yield part


def look(folder: Path, said: Said) -> tuple[Checkpoint, Facts] | None:
    """The checkpoint in a folder but for its weights, and what is to be known of these; None if it takes loading them.

    The operations of an evaluation are not counted. Raises `FileError` as `diffusers.read`.
    """
    if not folders.recognises(folder):
        return None
    place = folders.find(folder)
    try:
        config = diffusers.read_settings(place.unet, said.config)
        names = {p.name for p in place.unet.iterdir() if p.is_file()}
        files, index = folders.choose_weights(names, place.unet)
        parts = folders.shards(configs.read_json(place.unet / index, folders.MAX_JSON), index) if index else files
        stored = {name: at for part in parts for name, at in _header(place.unet / part)}
    except (FileError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not stored or {k: at.shape for k, at in stored.items()} != shapes.weights(config):
        return None
    levels, guesses = diffusers.read_levels(place, said)
    found = Checkpoint(
        config, {}, levels.schedule, levels.prediction, levels.label_scale,
        diffusers.notes_of(place, files, index), guesses,
    )  # fmt: skip
    tensors = ((name, at.shape, "torch.float32", at.read()) for name, at in stored.items())
    name = digest(config, tensors, prediction=levels.prediction, label_scale=levels.label_scale)
    return found, Facts(name, sum(prod(at.shape) for at in stored.values()), flops=0)


def digest(
    config: UNetConfig,
    tensors: Iterable[tuple[str, tuple[int, ...], str, Iterable[Any]]],
    *,
    prediction: str,
    label_scale: float,
) -> str:
    """SHA-256 of the weights (name, shape, type, their bytes in parts) and of what else decides the output: see
    `UNetConfig.essence`."""
    h = hashlib.sha256(repr((config.essence(), prediction, float(label_scale))).encode())
    for name, shape, dtype, parts in sorted(tensors, key=lambda t: t[0]):
        h.update(f"{name} {shape} {dtype}".encode())
        for part in parts:
            h.update(part)
    return h.hexdigest()


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of a safetensors file. Raises anything where it is none, or holds other numbers than float32."""
    if file.suffix != ".safetensors" or is_special(file):
        raise ValueError(file)
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > folders.MAX_JSON:
            raise ValueError(length)
        header = json.loads(f.read(length))
    size = file.stat().st_size
    for name, about in header.items():
        if name == "__metadata__":
            continue
        shape, (start, end) = tuple(about["shape"]), about["data_offsets"]
        if not all(isinstance(n, int) for n in (*shape, start, end)):
            raise TypeError(name)
        at = 8 + length + start
        if about["dtype"] != "F32" or end - start != 4 * prod(shape) or not 8 + length <= at <= size - 4 * prod(shape):
            raise ValueError(name)
        yield name, Stored(file, at, shape)
