"""The two containers of latent files, as bytes: torch's zip and safetensors, written without torch, read without trust.

Both hold a tensor of float32 and texts by name. Neither notices a flipped byte by itself: `latent` adds a digest.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import zipfile
from typing import Any

import numpy as np

from ddimctl.arrays import to_numpy
from ddimctl.errors import FileError, UsageError

MAX_HEADER = 100_000_000  # safetensors' own limit
GLOBALS = {
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "collections OrderedDict",
}  # all that a tensor needs
LAYOUT = "latent-1/"  # the folder in our zips: the same name means the same bytes for the same content
NO_HINT = "make it again with: ddimctl encode"


def check_head(head: bytes, size: int, name: str) -> None:
    """Refuses what cannot be a latent by its first 8 bytes and its size."""
    if head[:2] == b"PK":
        return
    if len(head) < 8 or not 2 <= int.from_bytes(head, "little") <= min(size - 8, MAX_HEADER):
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT)


def array(xT: Any) -> np.ndarray:
    """x_T, a tensor or an array, as float32 in the order of memory."""
    return np.ascontiguousarray(to_numpy(xT), "<f4")


def values(xT: Any) -> memoryview:
    return array(xT).reshape(-1).view(np.uint8).data


def to_zip(text: dict[str, str], xT: np.ndarray) -> bytes:
    """What ``torch.save({**text, "xT": xT})`` makes: a zip of a pickle and the values; without its unchecked padding."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        members = {
            "data.pkl": _pickle(text, xT.shape),
            "byteorder": b"little",
            "data/0": values(xT),
            "version": b"3\n",
        }
        for name, content in members.items():
            z.writestr(zipfile.ZipInfo(LAYOUT + name), bytes(content))  # a ZipInfo of its own has no date of today
    return out.getvalue()


def _pickle(text: dict[str, str], shape: tuple[int, ...]) -> bytes:
    """The dictionary of `text` and of "xT", a tensor of that shape whose values are in ``data/0``: pickle protocol 2."""

    def string(value: str) -> bytes:
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + len(data).to_bytes(4, "little") + data

    def integer(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little")  # LONG1

    def several(*parts: bytes) -> bytes:
        return b"(" + b"".join(parts) + b"t"

    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    storage = several(
        string("storage"), b"ctorch\nFloatStorage\n", string("0"), string("cpu"), integer(math.prod(shape))
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + several(
        storage + b"Q", integer(0), several(*map(integer, shape)), several(*map(integer, strides)),
        b"\x89", b"ccollections\nOrderedDict\n)R",
    )  # fmt: skip
    items = b"".join(string(k) + string(v) for k, v in text.items())
    return b"\x80\x02}(" + items + string("xT") + tensor + b"Ru."


def safetensors_header(text: dict[str, str], shape: tuple[int, ...]) -> bytes:
    """Length and header of a safetensors file. (Its own library writes the metadata in an order of the day.)"""
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}
    header = json.dumps({"__metadata__": text, "xT": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise UsageError("a safetensors file cannot name so many images", hint="split the run with --shard")
    return len(header).to_bytes(8, "little") + header


def read_safetensors(data: bytes, name: str) -> tuple[dict[str, Any], Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load as load_safetensors

    try:
        tensors = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e
    return text, tensors.get("xT")


def read_zip(data: bytes, name: str) -> tuple[dict[str, Any], Any]:
    """The dictionary in torch's zip, and the tensor in it.

    Python's zip reader checks sizes and checksums, the pickle may name nothing but what a tensor needs, and torch gets a
    fresh zip of just that: two readers may disagree about what a hostile zip holds.
    """
    import torch

    try:
        clean = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(clean, "w") as out:
            members = z.infolist()
            if sum(m.file_size for m in members) > len(data) or any(m.compress_type for m in members):
                raise FileError(f"{name} unpacks to more than it holds and was refused")
            for m in members:
                content = z.read(m)
                if m.filename.endswith("data.pkl"):
                    _check_pickle(content, name)
                out.writestr(m.filename, content)
        clean.seek(0)
        loaded = torch.load(clean, weights_only=True, map_location="cpu")
    except FileError:
        raise
    except Exception as e:  # torch.load documents no exceptions, and hostile bytes reach deep
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e
    if not isinstance(loaded, dict):
        raise FileError(f"{name} is not a ddimctl latent", hint=NO_HINT)
    return loaded, loaded.get("xT")


def _check_pickle(content: bytes, name: str) -> None:
    """Raises `FileError` if the pickle calls anything but what a tensor needs. Runs nothing."""
    for op, argument, _ in pickletools.genops(content):
        if op.name == "GLOBAL" and argument not in GLOBALS:
            raise FileError(f"{name} would call {str(argument).replace(' ', '.')[:80]} and was refused")
        if op.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"):
            raise FileError(f"{name} would make objects and was refused")
