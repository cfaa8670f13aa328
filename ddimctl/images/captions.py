"""What is written about images beside them: a line of ``metadata.jsonl`` each, or ``NAME.txt`` beside ``NAME.png``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ddimctl.errors import FileError
from ddimctl.files import read_bytes

TABLE = "metadata.jsonl"
FIELDS = ("text", "caption", "prompt")  # a line's caption is the first that it has
LIMIT, TABLE_LIMIT = 1 << 16, 1 << 30  # bytes that a caption and a table may have


def read(folder: Path, files: Sequence[Path]) -> list[str | None]:
    """The caption of each of `files`, which lie below `folder`; None where there is none.

    A file beside the image goes before the table. Raises `FileError` on what is not readable as either.
    """
    table = _table(folder / TABLE)
    return [_beside(file) or table.get(file.relative_to(folder).as_posix()) for file in files]


def _beside(file: Path) -> str | None:
    path = file.with_suffix(".txt")
    return " ".join(_text(path, LIMIT).split()) or None if path.is_file() else None


def _table(path: Path) -> dict[str, str]:
    if not path.is_file():
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


def _text(path: Path, limit: int) -> str:
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FileError(f"{path} is not text in UTF-8") from e
