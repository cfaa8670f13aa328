"""What became of each item: a JSON-lines file that grows, and survives a run that is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from ddimctl.errors import DDIMError, FileError
from ddimctl.files import atomic_file
from ddimctl.runs.plan import Outcome

MANIFEST = "manifest.jsonl"
MAX_LINE = 1 << 20  # bytes of a manifest's line; a longer one is nobody's


class Manifest:
    """A JSON-lines file that grows: a line that describes the run, then one for each item.

    While a run lasts its lines go to a hidden journal beside it, `.NAME.journal`; `close` puts the two together, whole or
    not at all. What a killed run left there is taken over by the next, but for a line it did not finish. Nothing is ever
    opened or written because a manifest says so.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]):
        self.path, self.journal = path, journal_of(path)
        if path.is_symlink():
            raise DDIMError(f"cannot write {path}: it is a link")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.journal, flags, 0o666), "r+b")
            end = self._file.seek(0, os.SEEK_END)
            tail = min(end, MAX_LINE)
            self._file.seek(end - tail)
            self._file.truncate(end - tail + self._file.read(tail).rfind(b"\n") + 1)
        except OSError as e:
            raise DDIMError(f"cannot write {path}: {e.strerror or e}") from e
        self._append([{"run": run}])

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Appends what became of some items. Raises `DDIMError` where the system refuses."""
        lines = []
        for o in outcomes:
            line = {"name": o.item.name, "source": o.item.source, "status": o.status, **o.notes}
            if o.failure is not None:
                line["reason"] = str(o.failure)
            lines.append(line)
        self._append(lines)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(text.encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
        except OSError as e:
            raise DDIMError(f"cannot write {self.path}: {e.strerror or e}") from e

    def close(self) -> None:
        """Publishes the lines. Raises `DDIMError` where the system refuses; they are kept, then."""
        with self._file, atomic_file(self.path) as f:
            if self.path.exists():
                with self.path.open("rb") as before:
                    shutil.copyfileobj(before, f)
            self._file.seek(0)
            shutil.copyfileobj(self._file, f)
        self.journal.unlink(missing_ok=True)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The last line about each item, by name, also of a run that was killed; empty if there is no manifest.

    Raises `FileError` if it is none.
    """
    return {**_read_lines(path), **_read_lines(journal_of(path))}


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    try:
        with path.open("rb") as f:
            number = 0
            while line := f.readline(MAX_LINE):
                number += 1
                if not line.endswith(b"\n") and len(line) < MAX_LINE:
                    break  # what a killed run left
                entry = json.loads(line)
                if "run" not in entry:
                    name = PurePath(entry["name"])
                    if name.is_absolute() or ".." in name.parts:
                        raise ValueError("a name that leads out of the folder")
                    last[entry["name"]] = entry
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FileError(f"{path} is not a manifest (line {number}: {e})", hint="remove it") from e
    return last
