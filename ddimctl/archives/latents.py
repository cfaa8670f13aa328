"""Latents packed by the thousand: tars that WebDataset opens, parquet files that `datasets` opens.

A sample is x_T (``KEY.npy``, or the columns ``xT`` and ``shape``) and the texts of a latent file (``KEY.json``, or columns
of their names). It is read as the bytes of a latent file, whose digest is checked there. A summary says what a whole
file is of, so that a run that goes on need not read it: its name begins with ``__``, which both libraries skip.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from ddimctl.archives import columns, tars
from ddimctl.archives.member import Member, checked
from ddimctl.containers import from_npy, safetensors_header, to_npy, values
from ddimctl.errors import FileError, UsageError
from ddimctl.remote import opened

SUMMARY = "__ddimctl__"
TEXTS = ("format", "version", "provenance", "sha256")
COLUMNS = ("xT", "shape", *TEXTS)
ROWS = 256  # of a parquet file that are held, and written together
MAX_SUMMARY = 1 << 26  # bytes
TAIL = 1 << 16  # bytes at a tar's end among which its summary is looked for first


class Writer(Protocol):
    """A packed file that is being written."""

    def add(self, key: str, xT: np.ndarray, texts: Mapping[str, str]) -> None:
        """x_T (C, H, W), and what a latent file says beside it."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """The end, without which no file is whole."""


class Tar:
    """WebDataset's: no dates, no owners, so the same latents are the same bytes."""

    def __init__(self, f: BinaryIO):
        self._tar = tarfile.open(fileobj=f, mode="w")  # noqa: SIM115 (closed with its summary)

    def add(self, key: str, xT: np.ndarray, texts: Mapping[str, str]) -> None:
        name = key.replace("%", "%25").replace(".", "%2E")  # a sample's name ends at its first dot
        self._put(f"{name}.npy", to_npy(xT))
        self._put(f"{name}.json", json.dumps(dict(texts)).encode())

    def close(self, summary: Mapping[str, Any]) -> None:
        self._put(SUMMARY, json.dumps(dict(summary)).encode())
        self._tar.close()

    def _put(self, name: str, data: bytes) -> None:
        about = tarfile.TarInfo(name)
        about.size = len(data)
        self._tar.addfile(about, io.BytesIO(data))
        cast(Any, self._tar).members.clear()  # else all of them are kept


class Parquet:
    """A row for each latent."""

    def __init__(self, f: BinaryIO):
        self._f, self._rows = f, list[dict[str, Any]]()
        self._writer: Any = None
        self._arrow = columns.pyarrow()

    def add(self, key: str, xT: np.ndarray, texts: Mapping[str, str]) -> None:
        self._rows.append({columns.KEY: key, "xT": xT.reshape(-1), "shape": list(xT.shape), **texts})
        if len(self._rows) >= ROWS:
            self._write()

    def close(self, summary: Mapping[str, Any]) -> None:
        self._write()
        self._writer.add_key_value_metadata({SUMMARY: json.dumps(dict(summary))})
        self._writer.close()

    def _write(self) -> None:
        if not self._rows:
            return
        arrow, rows = self._arrow, self._rows
        n = len(rows[0]["xT"])
        flat = arrow.array(np.concatenate([row["xT"] for row in rows]), arrow.float32())
        whole = {
            columns.KEY: arrow.array([row[columns.KEY] for row in rows], arrow.string()),
            "xT": arrow.FixedSizeListArray.from_arrays(flat, n),
            "shape": arrow.array([row["shape"] for row in rows], arrow.list_(arrow.int32())),
            **{k: arrow.array([row[k] for row in rows], arrow.string()) for k in TEXTS},
        }
        table = arrow.table(whole)
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._f, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows = []


def summary(archive: str) -> dict[str, Any] | None:
    """What a packed file says that it is of; None if it is no whole one of ours. Raises `UsageError` if there is none."""
    try:
        text = _summary(archive)
        found = None if text is None else json.loads(text)
    except (FileError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _summary(archive: str) -> bytes | None:
    if archive.lower().endswith(".parquet"):
        found = columns.metadata(archive).get(SUMMARY.encode())
        return found if isinstance(found, bytes) and len(found) <= MAX_SUMMARY else None
    with opened(archive) as f:
        if (said := _at_the_end(f)) is not None:
            return said
        (last,) = deque(tars.headers(f, archive), maxlen=1) or [("", 0, 0)]  # of a tar that is whole
        if last[0] != SUMMARY or last[2] > MAX_SUMMARY:
            return None
        f.seek(last[1])
        return f.read(last[2])


def _at_the_end(f: BinaryIO) -> bytes | None:
    """The summary of a tar that `Tar` closed, without what lies before it; None where it is not among the last bytes."""
    end = f.seek(0, os.SEEK_END)
    f.seek(max(0, end - end % tars.BLOCK - TAIL))
    data = f.read()
    for at in range(0, len(data), tars.BLOCK):
        if data.startswith(SUMMARY.encode() + b"\0", at) and (found := tars.plain(data[at:][: tars.BLOCK])):
            text, rest = data[at + tars.BLOCK :][: found[1]], data[at + tars.BLOCK :][found[1] :]
            if end % tars.BLOCK == 0 and len(rest) >= 2 * tars.BLOCK and not rest.strip(b"\0"):
                return text
    return None


def members(archive: str) -> Iterator[Member]:
    """The latents in an archive: packed ones, and in a tar also latent files. Raises `FileError` if it is damaged."""
    if archive.lower().endswith(".parquet"):
        yield from _rows(archive)
        return
    if not archive.lower().endswith(".tar"):
        raise UsageError(f"{archive} holds images, not latents", hint="latents are packed in .tar and .parquet")
    halves: dict[str, dict[str, tuple[int, int]]] = {}
    with opened(archive) as f:
        for file, offset, size in tars.headers(f, archive):
            key, extension = tars.split(file)
            key = checked(key.replace("%2E", ".").replace("%25", "%"), archive)
            if extension in ("pt", "safetensors"):
                yield Member(archive, key, tars.fetch, (offset, size), f".{extension}")
            elif extension in ("npy", "json"):
                half = halves.setdefault(key, {})
                half[extension] = (offset, size)
                if len(half) == 2:
                    yield Member(archive, key, _of_tar, (*half["npy"], *half["json"]))
                    del halves[key]


def _rows(archive: str) -> Iterator[Member]:
    table = columns.table(archive)
    if not {*COLUMNS, columns.KEY} <= {*table.schema.names}:
        raise FileError(f"{archive} holds no latents", hint=f"their columns are {', '.join((columns.KEY, *COLUMNS))}")
    with columns.told(archive):
        for i, key in enumerate(table.texts(columns.KEY)):
            yield Member(archive, checked(key or "", archive), _of_row, (i,))


def _of_tar(archive: str, where: tuple[int, ...]) -> bytes:
    name = f"{archive}: a sample"
    try:
        texts = json.loads(tars.fetch(archive, where[2:]))
    except (ValueError, RecursionError) as e:
        raise FileError(f"{name} is damaged: {e}") from e
    return _file(name, from_npy(tars.fetch(archive, where[:2]), name), texts)


def _of_row(archive: str, where: tuple[int, ...]) -> bytes:
    row = columns.row(archive, COLUMNS, where[0])
    name = f"row {where[0]} of {archive}"
    try:
        xT = row["xT"].values.to_numpy(zero_copy_only=False).reshape(row["shape"].as_py())
        texts = {k: row[k].as_py() for k in TEXTS}
    except (AttributeError, ValueError, TypeError) as e:
        raise FileError(f"{name} is damaged: {e}") from e
    return _file(name, xT, texts)


def _file(name: str, xT: np.ndarray, texts: Any) -> bytes:
    """A latent file's bytes, which are checked when they are read as one."""
    whole = isinstance(texts, dict) and all(isinstance(texts.get(k), str) for k in TEXTS)
    if not whole or xT.dtype != np.float32 or xT.ndim != 3:
        raise FileError(f"{name} is no latent of ddimctl")
    return safetensors_header({k: texts[k] for k in TEXTS}, {"xT": (xT.dtype.str, (1, *xT.shape))}) + values(xT)


WRITERS: dict[str, type[Tar] | type[Parquet]] = {".tar": Tar, ".parquet": Parquet}
