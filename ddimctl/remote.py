"""Files by URL, such as ``s3://bucket/a.png``: whatever fsspec (extra `remote`) has a driver for.

fsspec and its drivers are imported when a URL is named, and never else. An object store has no rename: what is written
there is written by one put, which is whole or not at all.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import refuse_special, sha256

URL = re.compile(r"[a-z][a-z0-9+.-]+://")
MAX_BYTES = 1 << 29  # of an image or a latent


def is_url(text: str) -> bool:
    return URL.match(text) is not None


def url_of(path: Path) -> str | None:
    """The URL that a path was made of, as ``s3:/bucket/a`` was of ``s3://bucket/a``; None if it is one of here."""
    scheme, colon, rest = path.as_posix().partition(":/")
    if not colon or not is_url(f"{scheme}://") or "/" in scheme or Path(f"{scheme}:").exists():
        return None
    return f"{scheme}://{rest}"


@dataclass(frozen=True)
class Remote:
    """A file by its URL, and its caption where that was asked for."""

    url: str
    caption: str | None = None

    @property
    def name(self) -> str:
        return self.url

    def read(self) -> bytes:
        """Raises `UsageError` if there is none, `FileError` if it cannot be read."""
        return read_bytes(self.url, MAX_BYTES)


def read_bytes(url: str, limit: int) -> bytes:
    """The whole of a file. Raises `UsageError` if there is none, `FileError` if it is larger or cannot be read."""
    with opened(url) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise FileError(f"{url} is larger than the {limit / 2**20:,.0f} MiB that are read")
    return data


def check(url: str) -> None:
    """Raises `UsageError` where the driver is missing, `DDIMError` where it cannot be used."""
    _system(url)


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """A file to read, by its path or its URL. What goes wrong while it is open is told as it is of any file."""
    if not is_url(name):
        refuse_special(Path(name))
        try:
            with Path(name).open("rb") as f:
                yield f
        except FileNotFoundError as e:
            raise UsageError(f"there is no file {name}") from e
        except OSError as e:
            raise FileError(f"cannot read {name}: {e.strerror or e}") from e
        return
    system, path = _system(name)
    with _told(name), system.open(path, "rb") as f:
        yield f


def open_url(url: str) -> BinaryIO:
    """A file that its taker closes, or nobody."""
    system, path = _system(url)
    with _told(url):
        file: BinaryIO = system.open(path, "rb")
        return file


def size(url: str) -> int | None:
    """Bytes; None where there is no such file."""
    system, path = _system(url)
    with _told(url):
        try:
            about = system.info(path)  # one question, where isfile and size are two
        except FileNotFoundError:
            return None
        return int(about["size"]) if about["type"] == "file" else None


def write_bytes(url: str, data: bytes) -> None:
    """One put. Raises `DDIMError` where the store refuses."""
    system, path = _system(url)
    parent, root = path.rpartition("/")[0], path[: path.find("/", 1)]
    try:
        try:
            system.pipe_file(path, data)
        except FileNotFoundError:
            if not system.exists(root):  # a bucket that is not there is a typing error, and no folder to make
                raise
            system.makedirs(parent, exist_ok=True)
            system.pipe_file(path, data)
    except Exception as e:  # each driver raises its own
        raise DDIMError(f"cannot write {url}: {_reason(e)}") from e


def gather(url: str, suffixes: Collection[str]) -> list[tuple[str, str]]:
    """(URL, name below it) of the files that a URL stands for: itself, what a pattern matches, or what a folder holds."""
    system, path = _system(url)
    protocol = url.partition("://")[0]
    with _told(url):
        magic = any(c in path for c in "*?[") and not protocol.startswith("http")
        if not magic and not url.endswith("/") and system.isfile(path):
            return [(url, PurePosixPath(path).name)]
        if not magic and PurePosixPath(path).suffix.lower() in suffixes and not system.exists(path):
            raise FileNotFoundError(path)
        start = path if not magic else path[: min(path.find(c) for c in "*?[" if c in path)].rpartition("/")[0]
        found = system.glob(path) if magic else system.find(path)
    start = start.strip("/")
    out = []
    for file in sorted(str(f) for f in found):
        below = file.strip("/").removeprefix(start).lstrip("/")
        hidden = any(part.startswith(".") for part in PurePosixPath(below).parts)
        if PurePosixPath(file).suffix.lower() in suffixes and not hidden:
            out.append((f"{protocol}://{file.lstrip('/') if protocol != 'file' else file}", below))
    if not out:
        raise UsageError(f"{url} holds nothing to work on", hint=f"looked for {' '.join(sorted(suffixes))}")
    return out


def top(url: str) -> str:
    """The folder that a pattern begins in, and anything else itself."""
    magic = [i for i, c in enumerate(url) if c in "*?["]
    return f"{url[: magic[0]].rpartition('/')[0]}/" if magic and not url.startswith("http") else url


def below(folder: str, suffixes: Collection[str]) -> dict[str, str]:
    """Name → URL of the files with these suffixes in a folder; empty where there are none."""
    try:
        return {name: url for url, name in gather(folder, suffixes)}
    except UsageError:
        return {}


def stamp(url: str) -> str:
    """What changes when a file does, or one of those in a folder or of a pattern: all that the store says of them."""
    system, path = _system(url)
    with _told(url):
        if any(c in path for c in "*?["):
            found = system.glob(path, detail=True)
        else:
            found = {path: system.info(path)} if system.isfile(path) else system.find(path, detail=True)
    said = sorted((name, sorted((k, repr(v)) for k, v in about.items())) for name, about in found.items())
    return sha256(repr(said).encode())


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises `UsageError` where a driver is missing."""
    protocol = url.partition("://")[0]
    try:
        core: Any = importlib.import_module("fsspec.core")
    except ImportError as e:
        raise UsageError(f"{url} needs fsspec", hint="pip install 'ddimctl[remote]'") from e
    try:
        system, path = core.url_to_fs(url)
    except ImportError as e:
        missing = str(e).strip().splitlines()[0]
        raise UsageError(
            f"{protocol}:// needs a driver that is not installed: {missing}", hint=_driver(protocol)
        ) from e
    except ValueError as e:
        raise UsageError(f"{url}: {_reason(e)}", hint="such as s3://, gs://, hf:// or https://") from e
    except Exception as e:  # a driver that finds no credentials, no network, …
        raise DDIMError(f"cannot reach {url}: {_reason(e)}") from e
    return system, str(path)


def _driver(protocol: str) -> str:
    known = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "hf": "huggingface-hub"}
    return f"pip install {known[protocol]}" if protocol in known else ""


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turns whatever a driver raises into one line."""
    try:
        yield
    except (UsageError, FileError):
        raise
    except FileNotFoundError as e:
        raise UsageError(f"there is no file {url}") from e
    except IsADirectoryError as e:
        raise UsageError(f"{url} is a folder", hint="name a file, or end it with /") from e
    except Exception as e:  # each driver raises its own
        raise FileError(f"cannot read {url}: {_reason(e)}") from e


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
