"""Columns of images: parquet files, and what `datasets` wrote with ``save_to_disk``; pyarrow reads them (extra `parquet`).

A column of images holds the bytes of image files, or ``{bytes, path}`` of them. A path alone is never followed: a file
from anybody names no file here.
"""

from __future__ import annotations

import bisect
import functools
import importlib
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddimctl.archives import streams
from ddimctl.archives.member import Member, checked
from ddimctl.errors import FileError, UsageError
from ddimctl.files import read_bytes
from ddimctl.remote import is_url, open_url

NAMES = ("image", "img", "jpg", "png", "webp", "jpeg", "picture", "bytes")  # the first of several columns that is there
CAPTIONS = ("text", "caption", "prompt")
KEY = "__key__"  # WebDataset's column of names
MAX_GROUP = 1 << 31  # bytes of images that are unpacked at once
MAX_CAPTION = 1 << 16  # characters
_one = threading.Lock()  # readers share what is open


def members(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    """The rows of a parquet file, or of a `save_to_disk` folder, named by ``__key__`` or by their number."""
    del suffixes  # a row has none
    before = 0
    for part in parts(archive):
        with told(part):
            rows = opened(part)
            column, n = image_column(rows.schema, archive), rows.rows
            keys = rows.texts(KEY) if KEY in rows.schema.names else None
            text = next((c for c in CAPTIONS if c in rows.schema.names), None) if captions else None
            words = rows.texts(text) if text else None
            fetch = functools.partial(_fetch, (part, column))
            for i in range(n):
                named = next(keys) if keys else None
                key = f"{before + i:08}" if named is None else checked(named, archive)
                said = next(words) if words else None
                yield Member(archive, key, fetch, (i,), caption=said)
        before += n


def parts(archive: str) -> list[str]:
    """The files that hold the rows."""
    if is_url(archive) or not Path(archive).is_dir():
        return [archive]
    folder = Path(archive)
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        raise UsageError(f"{archive} holds several data sets", hint=f"name one of them: {_listed(archive, splits)}")
    files = _json(folder / "state.json").get("_data_files")
    names = [f.get("filename") for f in files if isinstance(f, dict)] if isinstance(files, list) else []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise FileError(f"{folder / 'state.json'} names no files of rows")
    return [str(folder / str(n)) for n in names]


def image_column(schema: Any, archive: str) -> str:
    """The column that holds images. Raises `FileError` if none does, or if that cannot be told."""
    arrow = pyarrow()
    found = []
    for field in schema:
        kind = field.type
        if arrow.types.is_struct(kind):
            inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            kind = inner.get("bytes", kind)
        if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
            found.append(field.name)
    if len(found) == 1:
        return str(found[0])
    if named := next((n for n in NAMES if n in found), None):
        return named
    what = f"several columns of bytes: {', '.join(found)}" if found else "no column of images"
    raise FileError(f"{archive} has {what}", hint=f"its columns: {', '.join(schema.names)}; one is called image")


def pyarrow() -> Any:
    """The library. Raises `UsageError` where it is not installed."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as e:
        raise UsageError("parquet needs pyarrow", hint="pip install 'ddimctl[parquet]'") from e


class Opened:
    """A file of rows; of parquet, one group of rows is held at a time, and an Arrow stream lies where it is."""

    def __init__(self, path: str):
        arrow = pyarrow()
        self.path = path
        self._group: tuple[Any, int, Any] = ((), -1, None)
        source: Any = open_url(path) if is_url(path) else path
        size = source.seek(0, 2) if is_url(path) else Path(path).stat().st_size
        if path.endswith(".arrow"):
            if streams.unpacked(arrow, path) > MAX_GROUP:
                raise FileError(
                    f"{path} unpacks to more than {MAX_GROUP / 2**30:.0f} GiB", hint="do not trust this file"
                )
            self._table = arrow.ipc.open_stream(arrow.memory_map(path)).read_all()
            self.schema, self.rows, self._file = self._table.schema, self._table.num_rows, None
            self._check_rows(size)
            self._table.validate(full=True)
            return
        plain = arrow.parquet.ParquetFile(source)
        self.schema, self.rows = plain.schema_arrow, plain.metadata.num_rows
        self._check_rows(size)
        # What a file says once stays once in memory: a value of a megabyte may be that of every row.
        leaves = [plain.schema.column(i) for i in range(len(plain.schema))]
        once = [c.path for c in leaves if c.physical_type == "BYTE_ARRAY" and c.converted_type in ("NONE", "UTF8")]
        self._file = arrow.parquet.ParquetFile(source, metadata=plain.metadata, read_dictionary=once)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        if any(group.total_byte_size > MAX_GROUP for group in groups):
            raise FileError(f"{path} has groups of rows of more than {MAX_GROUP / 2**30:.0f} GiB")

    def _check_rows(self, size: int) -> None:
        if self.rows > size:
            hint = "do not trust this file"
            raise FileError(f"{self.path} announces {self.rows:,} rows in {size:,} bytes", hint=hint)

    def texts(self, column: str) -> Iterator[str | None]:
        """A column of words, row by row."""
        if self._file is None:
            batches = self._table.select([column]).to_batches()
        else:
            batches = self._file.iter_batches(columns=[column])
        for batch in batches:
            for value in (scalar.as_py() for scalar in batch.column(0)):
                short = isinstance(value, str) and len(value) <= MAX_CAPTION
                yield " ".join(value.split()) or None if short else None

    def row(self, columns: tuple[str, ...], row: int) -> dict[str, Any]:
        """What a row holds in some columns, as pyarrow has it."""
        if self._file is None:
            return {c: self._table.column(c)[row] for c in columns}
        group = bisect.bisect_right(self._starts, row) - 1
        if self._group[:2] != (columns, group):
            self._group = ((), -1, None)  # never two of them
            self._group = (columns, group, self._file.read_row_group(group, columns=list(columns)))
        return {c: self._group[2].column(c)[row - self._starts[group]] for c in columns}


def opened(path: str) -> Opened:
    """A file of rows, opened once as long as it is the same."""
    about = Path(path).stat() if not is_url(path) else None
    return _opened(path, (about.st_mtime_ns, about.st_size) if about is not None else ())


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: tuple[int, ...]) -> Opened:
    return Opened(path)


def table(path: str) -> Opened:
    """As `opened`. Raises `FileError` if it is damaged, `UsageError` if there is none."""
    with told(path):
        return opened(path)


def row(path: str, columns: tuple[str, ...], number: int) -> dict[str, Any]:
    """A row of a file, as pyarrow has it. Raises `FileError` if it is damaged."""
    with _one, told(path):
        return opened(path).row(columns, number)


def metadata(path: str) -> dict[bytes, bytes]:
    """What a parquet file says beside its rows."""
    with told(path):
        return dict(pyarrow().parquet.read_metadata(open_url(path) if is_url(path) else path).metadata or {})


def _fetch(of: tuple[str, str], archive: str, where: tuple[int, ...]) -> bytes:
    part, column = of
    value = row(part, (column,), where[0])[column].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    path = value.get("path") if isinstance(value, dict) else None
    said = f" but the name of one, {str(path)[:80]!r}, which is not followed" if path else ""
    raise FileError(f"row {where[0]} of {part} holds no image{said}", hint="embed the images in it" if path else "")


@contextmanager
def told(path: str) -> Iterator[None]:
    """Turns whatever pyarrow raises about a file into one line."""
    try:
        yield
    except (FileError, UsageError):
        raise
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {path}") from e
    except Exception as e:  # damaged bytes reach deep
        raise FileError(f"{path} is damaged or cut short: {' '.join(str(e).split())[:160]}") from e


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path, 1 << 24))
    except (ValueError, RecursionError) as e:
        raise FileError(f"{path} is not JSON: {e}") from e
    return found if isinstance(found, dict) else {}


def _listed(archive: str, splits: Any) -> str:
    names = [s for s in splits if isinstance(s, str)] if isinstance(splits, list) else []
    return ", ".join(f"{archive}/{n}" for n in names[:8])
