"""WebDataset's tars: what shares a name up to its first dot is one sample, such as ``0001.png`` and ``0001.txt``.

Only headers are read to list them; an image is fetched where it lies. Only the standard library reads them.
"""

from __future__ import annotations

import json
import os
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
MAX_MORE = 4096  # bytes of a header that says more of the next file
DECIDE = (b"path=", b"size=", b"GNU.", b"hdrcharset=")  # of what it may say; a time, for one, decides nothing


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
    folder, slash, name = file.rpartition("/")
    unusual = PurePosixPath(file) if "//" in file or "/./" in file or not name else None
    stem, _, extension = (unusual.name if unusual else name).partition(".")
    return (unusual.parent / stem).as_posix() if unusual else f"{folder}{slash}{stem}", extension.lower()


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
    end = f.seek(0, os.SEEK_END)
    begin = at = f.seek(0)
    while (found := plain(f.read(BLOCK))) is not None:
        name, size, more = found
        if more and (size > MAX_MORE or _decides(f.read(size))):
            break
        at += BLOCK
        if not more and not name.startswith(".", name.rfind("/") + 1):
            yield name.removeprefix("./"), at, size
        at = f.seek(at + -(-size // BLOCK) * BLOCK)
        if at > end:
            raise damaged
        if not more:
            begin = at
    f.seek(begin)
    try:
        with tarfile.open(fileobj=f, mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # else all of them are kept
                if member.size < 0:
                    raise damaged
                if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                    f.seek(tar.offset)
            f.seek(tar.offset)
            if f.read(BLOCK) != bytes(BLOCK):  # what is whole ends with zeros
                raise damaged
    except (tarfile.TarError, EOFError, ValueError) as e:
        raise damaged from e


def plain(block: bytes) -> tuple[str, int, bool] | None:
    """What the header of an ordinary file says: (name, bytes, whether these say more of the next file).

    As nearly all headers are; tarfile, which takes several times as long, reads what is None here.
    """
    if len(block) < BLOCK or block[156] not in b"0x\0" or block[345]:
        return None
    name, size = block[:100].partition(b"\0")[0], _octal(block[124:136])
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if checksum != _octal(block[148:156]) or size < 0 or not name.isascii() or name.endswith(b"/") or not name:
        return None
    return name.decode(), size, block[156] == ord("x")


def _decides(said: bytes) -> bool:
    """Whether what a header says of the next file is about its name, its place or its size."""
    return any(key in said for key in DECIDE)


def _octal(digits: bytes) -> int:
    """A number of a header; −1 for what is none, or a larger one, written otherwise."""
    found = digits.strip(b"\0 ")
    return int(found, 8) if found.isdigit() and not found.strip(b"01234567") else -1


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
