"""What is written about images beside them: a line of ``metadata.jsonl`` or ``captions.txt``, or a ``NAME.txt``.

A line of ``captions.txt`` is a file's name and its words, with a tab between (Flickr30k has ``#0`` after the name), or with
a comma under the heading ``image,caption`` (Flickr8k). The first caption of an image counts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ddimctl import remote
from ddimctl.errors import FileError
from ddimctl.files import read_bytes

TABLE, LINES = "metadata.jsonl", "captions.txt"
FIELDS = ("text", "caption", "prompt")  # a line's caption is the first that it has
LIMIT, TABLE_LIMIT = 1 << 16, 1 << 30  # bytes that a caption and a table may have


def read(folder: Path, files: Sequence[Path]) -> list[str | None]:
    """The caption of each of `files`, which lie below `folder`; None where there is none.

    A file beside the image goes before the tables. Raises `FileError` on what is not readable as either.
    """
    table = {**_lines(_here(folder / LINES)), **_table(_here(folder / TABLE))}
    return [_beside(file) or table.get(file.relative_to(folder).as_posix()) for file in files]


def by_url(files: Mapping[str, str], folder: str) -> dict[str, str | None]:
    """The caption of each of `files`, name below the `folder` → URL, by its URL; as `read` does of those here."""
    there = remote.below(folder, (".txt", ".jsonl"))
    table = {**_lines(there.get(LINES)), **_table(there.get(TABLE))}

    def beside(name: str) -> str | None:
        url = there.get(PurePosixPath(name).with_suffix(".txt").as_posix())
        return " ".join(_text(url, LIMIT).split()) or None if url is not None else None

    return {url: beside(name) or table.get(name) for name, url in files.items()}


def of_files(files: Sequence[Path], folders: Sequence[Path]) -> list[str | None]:
    """The caption of each file, by the table of the folder among `folders` that it lies below, else of its own."""
    tops = [next((f for f in folders if file.is_relative_to(f)), file.parent) for file in files]
    found: dict[Path, str | None] = {}
    for top in dict.fromkeys(tops):
        below = [file for file, its in zip(files, tops, strict=True) if its == top]
        found |= dict(zip(below, read(top, below), strict=True))
    return [found[file] for file in files]


def _beside(file: Path) -> str | None:
    path = file.with_suffix(".txt")
    return " ".join(_text(path, LIMIT).split()) or None if path.is_file() else None


def _here(path: Path) -> Path | None:
    return path if path.is_file() else None


def _table(path: Path | str | None) -> dict[str, str]:
    if path is None:
        return {}
    captions = {}
    for number, line in enumerate(_text(path, TABLE_LIMIT).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise FileError(f"{path}, line {number} is not JSON: {e}") from e
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise FileError(f"{path}, line {number} names no file", hint='{"file_name": "a.png", "text": "red heart"}')
        text = next((row[f] for f in FIELDS if isinstance(row.get(f), str)), None)
        if text and text.strip():
            captions[row["file_name"]] = " ".join(text.split())
    return captions


def _lines(path: Path | str | None) -> dict[str, str]:
    if path is None:
        return {}
    rows = _text(path, TABLE_LIMIT).splitlines()
    commas = bool(rows) and rows[0].replace(" ", "").lower() == "image,caption"
    captions: dict[str, str] = {}
    for number, row in enumerate(
        csv.reader(rows[1:]) if commas else (r.split("\t", 1) for r in rows), 2 if commas else 1
    ):
        if not row or not "".join(row).strip():
            continue
        if len(row) < 2:
            raise FileError(f"{path}, line {number} has no caption", hint="NAME, a tab, and the words")
        name, words = row[0].partition("#")[0].strip(), " ".join(",".join(row[1:]).split())
        if words:
            captions.setdefault(name, words)
    return captions


def _text(path: Path | str, limit: int) -> str:
    """Of a file here, or by its URL."""
    data = remote.read_bytes(path, limit) if isinstance(path, str) else read_bytes(path, limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FileError(f"{path} is not text in UTF-8") from e
