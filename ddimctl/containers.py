"""The two containers of latent files, as bytes: torch's zip and safetensors, both without torch, read without trust.

Both hold tensors of float32 or float16 and texts by name. Neither notices a flipped byte by itself: `latent` adds a digest.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddimctl.arrays import to_numpy
from ddimctl.errors import FileError, UsageError

MAX_HEADER = 100_000_000  # safetensors' own limit
LAYOUT = "latent-1/"  # the folder in our zips: the same name means the same bytes for the same content
NO_HINT = "make it again with: ddimctl encode"
BARE_HINT = "a tensor of another program's is decoded with -m MODEL, and --steps, --solver, --spacing"


class NotOurs(FileError):
    """A file that is whole, as far as it was looked at, and no latent of ddimctl's."""


def check_head(head: bytes, size: int, name: str) -> None:
    """Refuses what cannot be a latent by its first 8 bytes and its size."""
    if head[:2] == b"PK":
        return
    if head[:6] == b"\x93NUMPY":
        raise NotOurs(f"{name} is not a ddimctl latent", hint=BARE_HINT)
    if len(head) < 8 or not 2 <= int.from_bytes(head, "little") <= min(size - 8, MAX_HEADER):
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT)


def array(x: Any, kind: str = "<f4") -> np.ndarray:
    """A tensor or an array as float32, or as `kind`, in the order of memory."""
    return np.ascontiguousarray(to_numpy(x), kind)


def values(x: np.ndarray) -> memoryview:
    """The bytes of an array that `array` made."""
    return x.reshape(-1).view(np.uint8).data


def could_be(data: bytes) -> bool:
    """Whether content of unknown origin begins as one of the containers, rather than as a picture."""
    try:
        check_head(data[:8], len(data), "")
    except FileError:
        return False
    return True


def to_zip(text: dict[str, str], tensors: Mapping[str, np.ndarray]) -> bytes:
    """What ``torch.save({**text, **tensors})`` makes: a zip of a pickle and the values; without its unchecked padding."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        members: dict[str, Any] = {"data.pkl": _pickle(text, tensors), "byteorder": b"little"}
        members |= {f"data/{i}": values(x) for i, x in enumerate(tensors.values())}
        for name, content in {**members, "version": b"3\n"}.items():
            z.writestr(zipfile.ZipInfo(LAYOUT + name), bytes(content))  # a ZipInfo of its own has no date of today
    return out.getvalue()


def _pickle(text: dict[str, str], tensors: Mapping[str, np.ndarray]) -> bytes:
    """The dictionary of `text` and of tensors whose values are in ``data/0``, ``data/1``, …: pickle protocol 2."""

    def string(value: str) -> bytes:
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + len(data).to_bytes(4, "little") + data

    def integer(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little")  # LONG1

    def several(*parts: bytes) -> bytes:
        return b"(" + b"".join(parts) + b"t"

    def tensor(key: int, x: np.ndarray) -> bytes:
        strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
        kind = f"ctorch\n{STORAGES[x.dtype.str]}\n".encode()
        storage = several(string("storage"), kind, string(str(key)), string("cpu"), integer(x.size))
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + several(
            storage + b"Q", integer(0), several(*map(integer, x.shape)), several(*map(integer, strides)),
            b"\x89", b"ccollections\nOrderedDict\n)R",
        ) + b"R"  # fmt: skip

    items = b"".join(string(k) + string(v) for k, v in text.items())
    items += b"".join(string(k) + tensor(i, x) for i, (k, x) in enumerate(tensors.items()))
    return b"\x80\x02}(" + items + b"u."


def to_npy(xT: np.ndarray) -> bytes:
    """x_T alone, which says nothing of how it was made."""
    out = io.BytesIO()
    np.save(out, xT, allow_pickle=False)
    return out.getvalue()


def from_npy(data: bytes, name: str, hint: str = "") -> np.ndarray:
    """An array of numbers, which takes no more memory than its file does. Raises `FileError`."""
    f = io.BytesIO(data)
    try:
        major = np.lib.format.read_magic(f)[0]
        head = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = head(f)
    except (ValueError, SyntaxError, RecursionError, TypeError, MemoryError) as e:
        raise FileError(f"{name} is damaged: no header of an array", hint=hint) from e
    rest = len(data) - f.tell()
    if dtype.hasobject or dtype.kind == "V" or not rest or math.prod(shape) * dtype.itemsize != rest:
        raise FileError(f"{name} is damaged, or holds more than numbers", hint=hint)
    return np.frombuffer(data, dtype, offset=f.tell()).reshape(shape, order="F" if by_columns else "C")


def safetensors_header(text: dict[str, str], tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Length and header of a safetensors file of tensors, (kind, shape) each, whose values follow one after the other.

    (Its own library writes the metadata in an order of the day.)
    """
    entries: dict[str, Any] = {"__metadata__": text}
    end = 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + np.dtype(kind).itemsize * math.prod(shape)
        entries[name] = {"dtype": SAFETENSORS[kind], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise UsageError("a safetensors file cannot name so many images", hint="split the run with --shard")
    return len(header).to_bytes(8, "little") + header


def read_safetensors(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The texts of a safetensors file, and its tensors as arrays, but for those of kinds that are none."""
    from safetensors import SafetensorError, deserialize

    read: Any = deserialize  # which says nothing of its types
    try:
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        tensors = {
            key: _as_floats(np.frombuffer(t["data"], KINDS[t["dtype"]]), t["dtype"]).reshape(t["shape"])
            for key, t in read(data)
            if t["dtype"] in KINDS
        }
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError) as e:
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e
    return text, tensors


def read_zip(data: bytes, name: str) -> dict[str, Any]:
    """The dictionary in torch's zip. Raises as `unzip`, and `NotOurs` if it holds no dictionary."""
    loaded = unzip(data, name)
    if not isinstance(loaded, dict):
        raise NotOurs(f"{name} is not a ddimctl latent", hint=BARE_HINT)
    return loaded


def unzip(data: bytes, name: str) -> Any:
    """What is in torch's zip, with arrays for tensors.

    Python's zip reader checks sizes and checksums. The pickle may name nothing but what a tensor needs, and what it names
    is never imported: functions of this module stand for it. Raises `NotOurs` if it is numpy's zip.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            members = z.infolist()
            if members and all(m.filename.endswith(".npy") for m in members):
                raise NotOurs(f"{name} is not a ddimctl latent", hint=BARE_HINT)
            if sum(m.file_size for m in members) > len(data) or any(m.compress_type for m in members):
                raise FileError(f"{name} unpacks to more than it holds and was refused")
            contents = {m.filename: z.read(m) for m in members}
        (record,) = (n for n in contents if n.endswith("/data.pkl"))
        _check_pickle(contents[record], name)
        return _Unpickler(contents, record.removesuffix("data.pkl")).load()
    except FileError:
        raise
    except Exception as e:  # hostile bytes reach deep
        raise FileError(f"{name} is not a latent, or damaged", hint=NO_HINT) from e


class _Unpickler(pickle.Unpickler):
    """Makes of torch's pickle what it holds, with arrays for tensors."""

    def __init__(self, contents: Mapping[str, bytes], folder: str):
        super().__init__(io.BytesIO(contents[f"{folder}data.pkl"]))
        self.contents, self.folder = contents, folder
        self.big = contents.get(f"{folder}byteorder") == b"big"

    def find_class(self, module: str, name: str) -> Any:
        return STANDS_FOR[f"{module} {name}"]

    def persistent_load(self, about: Any) -> np.ndarray:
        _, kind, key, _, n = about
        kind_of = KINDS[kind].newbyteorder(">") if self.big else KINDS[kind]
        values = np.frombuffer(self.contents[f"{self.folder}data/{key}"], kind_of)
        if len(values) != n:
            raise ValueError("a storage of another size than it says")
        return _as_floats(values, kind)


def _as_floats(values: np.ndarray, kind: str) -> np.ndarray:
    """As they are; but bfloat16, which numpy lacks, as float32, of which it is the upper half."""
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else values


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: object
) -> np.ndarray:
    """The view of a storage that a tensor is. Raises `ValueError` if it reaches out of it."""
    size = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min([offset, *shape, *strides]) < 0 or (size and last >= len(storage)):
        raise ValueError("a tensor that is larger than its storage")
    if size > len(storage):  # an expanded one announces more than there is
        raise ValueError("a tensor of more values than there are")
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, [storage.itemsize * stride for stride in strides])


KINDS: dict[str, np.dtype[Any]] = {  # of numbers, as safetensors calls them
    "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "U8": np.dtype("<u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
}  # fmt: skip
STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage"}  # of what is written
SAFETENSORS = {"<f4": "F32", "<f2": "F16"}
STANDS_FOR: dict[str, Any] = {  # all that a tensor needs
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch FloatStorage": "F32",
    "torch DoubleStorage": "F64",
    "torch ByteStorage": "U8",
    "torch IntStorage": "I32",
    "torch LongStorage": "I64",
    "collections OrderedDict": dict,
}


def _check_pickle(content: bytes, name: str) -> None:
    """Raises `FileError` if the pickle calls anything but what a tensor needs. Runs nothing."""
    for op, argument, _ in pickletools.genops(content):
        if op.name == "GLOBAL" and argument not in STANDS_FOR:
            raise FileError(f"{name} would call {str(argument).replace(' ', '.')[:80]} and was refused")
        if op.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"):
            raise FileError(f"{name} would make objects and was refused")
