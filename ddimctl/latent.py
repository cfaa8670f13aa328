"""The latent file: x_T with everything that decoding it needs.

Two containers with the same content, chosen by suffix: ``.pt`` (torch's zip, loadable with ``weights_only=True``) and
``.safetensors``. The content is a format name and version, the float32 tensor x_T (N, C, H, W), a provenance as one JSON
text, and a SHA-256 over all of these, since neither container notices a flipped byte itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ddimctl.errors import FileError, UsageError
from ddimctl.files import write_bytes

FORMAT = "ddimctl-latent"
VERSION = 1
SUFFIXES = (".pt", ".safetensors")
MAX_BYTES = 1 << 32  # a latent file larger than this is refused unread
NO_HINT = "make it again with: ddimctl encode"


@dataclass(frozen=True)
class Latent:
    """x_T, float32 (N, C, H, W), and its provenance: what made it, from what, and how to decode it."""

    xT: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> list[float]:
        """The rising noise levels that it was encoded along."""
        return [float(s) for s in self.provenance["path"]]

    @property
    def images(self) -> list[dict[str, Any]]:
        """One record for each of the N images: name, size, digest, preprocessing."""
        records: list[dict[str, Any]] = self.provenance.get("images", [])
        return records


def digest(xT: Tensor, provenance: str) -> str:
    """SHA-256 of format, shape, values and provenance."""
    h = hashlib.sha256(f"{FORMAT} {VERSION} {tuple(xT.shape)} ".encode())
    h.update(xT.numpy().tobytes())
    h.update(provenance.encode())
    return h.hexdigest()


def check_suffix(path: Path) -> None:
    """Raises `UsageError` unless `path` names one of the two containers."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is no name for a latent", hint=f"use a suffix of {' '.join(SUFFIXES)}")


def to_bytes(latent: Latent, suffix: str) -> bytes:
    """The file's content: the same for the same latent, byte for byte. Raises `FileError` for NaN and infinities."""
    xT = latent.xT.detach().to("cpu", torch.float32).contiguous().clone()  # a view would save its whole storage
    if not torch.isfinite(xT).all():
        raise FileError("the latent holds NaN or infinity and was not written")
    provenance = json.dumps(latent.provenance, sort_keys=True, allow_nan=False)
    text = {"format": FORMAT, "version": str(VERSION), "sha256": digest(xT, provenance), "provenance": provenance}
    if suffix.lower() == ".safetensors":
        return save_safetensors({"xT": xT}, metadata=text)
    out = io.BytesIO()
    torch.save({**text, "xT": xT}, out)
    return out.getvalue()


def save(path: Path, latent: Latent) -> None:
    """Writes `latent` to `path`, whole or not at all; the suffix is the container."""
    check_suffix(path)
    write_bytes(path, to_bytes(latent, path.suffix))


def load(path: Path) -> Latent:
    """Reads a latent file. Runs no code from it. Raises `UsageError` if there is none, `FileError` if it is not whole."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(f"{path} is too large for a latent")
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except IsADirectoryError as e:
        raise UsageError(f"{path} is a folder") from e
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    return from_bytes(data, str(path))


def from_bytes(data: bytes, name: str) -> Latent:
    """The latent in `data`; `name` is for messages. Raises `FileError` if it is not whole or not a latent."""
    text, xT = _read_zip(data, name) if data[:2] == b"PK" else _read_safetensors(data, name)
    if text.get("format") != FORMAT:
        raise FileError(f"{name} is not a ddimctl latent", hint=NO_HINT)
    if text.get("version") != str(VERSION):
        raise FileError(f"{name} has format version {text.get('version')!r}; this ddimctl knows {VERSION}")
    provenance = text.get("provenance")
    if not isinstance(xT, Tensor) or xT.dtype != torch.float32 or xT.ndim != 4 or not isinstance(provenance, str):
        raise FileError(f"{name} is damaged: its tensor is not float32 (N, C, H, W)", hint=NO_HINT)
    xT = xT.contiguous()
    if digest(xT, provenance) != text.get("sha256"):
        raise FileError(f"{name} is damaged: its checksum does not match", hint=NO_HINT)
    if not torch.isfinite(xT).all():
        raise FileError(f"{name} holds NaN or infinity", hint=NO_HINT)
    try:
        record = json.loads(provenance)
    except (ValueError, RecursionError) as e:
        raise FileError(f"{name} is damaged: its provenance is not JSON", hint=NO_HINT) from e
    return Latent(xT, record)


def _read_safetensors(data: bytes, name: str) -> tuple[dict[str, Any], Any]:
    try:
        tensors = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e
    return text, tensors.get("xT")


def _read_zip(data: bytes, name: str) -> tuple[dict[str, Any], Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:  # torch stores; a compressed or overlapping member is a bomb
            if sum(i.file_size for i in z.infolist()) > len(data):
                raise FileError(f"{name} unpacks to more than it holds and was refused")
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except FileError:
        raise
    except Exception as e:  # torch.load documents no exceptions, and hostile bytes reach deep
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e
    if not isinstance(content, dict):
        raise FileError(f"{name} is not a ddimctl latent", hint=NO_HINT)
    return content, content.get("xT")
