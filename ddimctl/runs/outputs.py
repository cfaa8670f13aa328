"""Where results lie: files of this machine, or files of a store by URL, where one put writes each whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddimctl import files, remote
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.latent import Latent


def shown(target: Path) -> str:
    """What a result is called."""
    return remote.url_of(target) or str(target)


def check(output: Path | None) -> None:
    """Raises `UsageError` or `DDIMError` where that is by URL, and the store has no driver or cannot be reached."""
    if output is not None and (url := remote.url_of(output)) is not None:
        remote.check(url)


def there(target: Path) -> bool:
    url = remote.url_of(target)
    return os.path.lexists(target) if url is None else remote.size(url) is not None


def digest(target: Path) -> str | None:
    """SHA-256 of the file; None where there is none."""
    data = read(target)
    return files.digest(target) if data is None else files.sha256(data)


def read(target: Path) -> bytes | None:
    """What a store has there; None where there is nothing, or the target is a file of here."""
    url = remote.url_of(target)
    return remote.read_bytes(url, remote.MAX_BYTES) if url is not None and remote.size(url) is not None else None


def refuse_existing(target: Path, *, force: bool, makes_folder: bool = False) -> None:
    """As `files.refuse_existing`."""
    if remote.url_of(target) is None:
        files.refuse_existing(target, force, makes_folder)
    elif not force and there(target):
        raise UsageError(f"{shown(target)} exists already", hint="name another file; --force writes over it")


def make_folder(folder: Path) -> None:
    """As `files.make_folder`; stores have no folders."""
    if remote.url_of(folder) is None:
        files.make_folder(folder)


def write(target: Path, data: bytes) -> None:
    """Writes a file, whole or not at all. Raises `DDIMError` where that is refused."""
    url = remote.url_of(target)
    if url is None:
        files.write_bytes(target, data)
    else:
        remote.write_bytes(url, data)


def save(target: Path, value: Latent) -> None:
    """As `latent.save`."""
    from ddimctl import latent

    latent.check_suffix(target)
    write(target, latent.to_bytes(value, target.suffix))


def load(target: Path) -> Latent:
    """As `latent.load`."""
    from ddimctl import latent

    data = read(target)
    return latent.load(target) if data is None else latent.from_bytes(data, shown(target))
