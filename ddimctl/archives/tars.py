"""WebDataset's tars: what shares a name up to its first dot is one sample, such as ``0001.png`` and ``0001.txt``.

Only headers are read to list them; an image is fetched where it lies. Only the standard library reads them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from ddimctl.archives.member import Member, checked
from ddimctl.errors import FileError
from ddimctl.remote import opened

MAX_MEMBER, MAX_CAPTION = 1 << 29, 1 << 16  # bytes
CAPTIONS = ("txt", "caption", "text")
FIELDS = ("text", "caption", "prompt")
BLOCK = 512


def members(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    """The files of a tar with one of these suffixes, in its order.

    Raises `FileError` if it is no tar, cut short, or holds names that lead elsewhere.
    """
    waiting: dict[str, list[Member]] = {}  # of the sample that is being read
    texts: dict[str, str] = {}
    with opened(archive) as f:
        for file, offset, size in headers(f, archive):
            key, extension = split(file)
            if f".{extension.rpartition('.')[2]}" in suffixes:
                more = extension.rpartition(".")[0]  # 0001.left.png
                name = checked(f"{key}.{more}" if more else key, archive)
                found = Member(archive, name, fetch, (offset, size), f".{extension.rpartition('.')[2]}")
                if not captions:
                    yield found
                    continue
                waiting.setdefault(key, []).append(found)
            elif captions and (text := _caption(f, archive, extension, at=(offset, size))):
                texts.setdefault(key, text)
            for done in [k for k in waiting if k != key]:  # a sample's files lie side by side
                yield from (_with(m, texts.get(done)) for m in waiting.pop(done))
            for old in [k for k in texts if k != key and k not in waiting]:
                del texts[old]
    for key, rest in waiting.items():
        yield from (_with(m, texts.get(key)) for m in rest)


def split(file: str) -> tuple[str, str]:
    """("a/0001.left.png") → ("a/0001", "left.png"), in lower case what follows the dot."""
    path = PurePosixPath(file)
    stem, _, extension = path.name.partition(".")
    return (path.parent / stem).as_posix(), extension.lower()


def fetch(archive: str, where: tuple[int, ...]) -> bytes:
    offset, size = where
    if size > MAX_MEMBER:
        raise FileError(f"{archive} holds a file of {size:,} bytes, more than are read")
    with opened(archive) as f:
        f.seek(offset)
        data = f.read(size)
    if len(data) != size:
        raise FileError(f"{archive} is cut short")
    return data


def headers(f: BinaryIO, archive: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of each file. Raises `FileError` if it is no tar, or not a whole one."""
    damaged = FileError(f"{archive} is no tar, damaged or cut short", hint="a packed one (.tar.gz) is unpacked first")
    try:
        with tarfile.open(fileobj=f, mode="r:") as tar:
            while (found := tar.next()) is not None:
                cast(Any, tar).members.clear()  # else all of them are kept
                if found.size < 0:
                    raise damaged
                if found.isreg() and not PurePosixPath(found.name).name.startswith("."):
                    yield found.name.removeprefix("./"), found.offset_data, found.size
                    f.seek(tar.offset)
            f.seek(tar.offset)
            if f.read(BLOCK) != bytes(BLOCK):  # what is whole ends with zeros
                raise damaged
    except (tarfile.TarError, EOFError, ValueError) as e:
        raise damaged from e


def _caption(f: BinaryIO, archive: str, extension: str, *, at: tuple[int, int]) -> str | None:
    if extension not in (*CAPTIONS, "json") or at[1] > MAX_CAPTION:
        return None
    f.seek(at[0])
    try:
        text = f.read(at[1]).decode("utf-8-sig")
        if extension == "json":
            row = json.loads(text)
            text = next((row[k] for k in FIELDS if isinstance(row.get(k), str)), "") if isinstance(row, dict) else ""
    except (ValueError, RecursionError) as e:
        raise FileError(f"{archive} holds a caption that is no text: {e}") from e
    return " ".join(text.split()) or None


def _with(member: Member, caption: str | None) -> Member:
    return replace(member, caption=caption)
