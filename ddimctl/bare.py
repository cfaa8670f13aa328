"""Bare tensors as x_T: what other programs save, without a word of how it was made.

A tensor or array alone, or the only one in its file: torch's zip, any safetensors key, .npy, .npz; (C, H, W) or (N, C, H, W)
and of any floating type. Whoever decodes it names the model and the way. No code from a file is run.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import PurePath
from typing import Any

import numpy as np

from ddimctl import containers, latent, ode
from ddimctl.errors import FileError
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Recipe, Way

NPY = b"\x93NUMPY"
HINT = "save x_T alone, (C, H, W) or (N, C, H, W), as .npy, .safetensors or .pt"


def load(content: tuple[str, bytes], model: Model, way: Way, *, condition: Condition = NOTHING) -> latent.Latent:
    """The tensor in a file, (its name, its bytes), as a latent of `model`, to be decoded `way`. Raises `FileError` if it
    cannot be one."""
    import torch

    name, data = content
    xT = torch.from_numpy(read(data, name))
    records = [{"name": PurePath(name).name} for _ in xT]
    found = ode.Solution(xT, [0] * len(xT), None, way.used_tolerance)
    return latent.Latent(xT, latent.provenance(model, Recipe.of(model, way, condition), found, records=records))


def read(data: bytes, name: str) -> np.ndarray:
    """The only tensor in `data`, float32 (N, C, H, W). Raises `FileError` unless there is one, and finite."""
    tensors = {k: v for k, v in _tensors(data, name).items() if getattr(v, "ndim", 0) in (3, 4)}
    if len(tensors) != 1:
        held = ", ".join(map(repr, list(tensors)[:4])) or "none"
        raise FileError(f"{name} does not hold one tensor that could be x_T, but {held}", hint=HINT)
    (value,) = tensors.values()
    if value.dtype.kind != "f":
        raise FileError(f"{name} holds {value.dtype}, not floating numbers", hint=HINT)
    with np.errstate(over="ignore"):
        xT = np.ascontiguousarray(value, np.float32)
    if xT.size == 0 or not np.isfinite(xT).all():
        raise FileError(f"{name} holds {'no numbers' if xT.size == 0 else 'NaN or infinity'}")
    return xT if xT.ndim == 4 else xT[None]


def _tensors(data: bytes, name: str) -> dict[str, Any]:
    """All that `data` holds, by name."""
    if data[: len(NPY)] == NPY:
        return {"": containers.from_npy(data, name, HINT)}
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as z:
                members = z.infolist()
                if members and all(m.filename.endswith(".npy") for m in members):
                    if sum(m.file_size for m in members) > latent.MAX_BYTES // 4:
                        raise FileError(f"{name} unpacks to more than is read")
                    return {
                        m.filename.removesuffix(".npy"): containers.from_npy(z.read(m), name, HINT) for m in members
                    }
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as e:
            raise FileError(f"{name} is damaged", hint=HINT) from e
        held = containers.unzip(data, name)
        found = held if isinstance(held, dict) else {"": held}
    else:
        text, tensors = containers.read_safetensors(data, name)
        found = {**text, **tensors}
    if "provenance" in found or "sha256" in found:
        raise FileError(f"{name} is damaged: it was a ddimctl latent", hint=containers.NO_HINT)
    return found
