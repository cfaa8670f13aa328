"""Files and folders that hold many images, as people keep data sets: `ARCHIVES`.

An item of one is a `Member`, which is fetched where it lies; its name is its key. The libraries that some of them need are
imported when one is named, and never else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ddimctl.archives.member import Member
from ddimctl.errors import UsageError
from ddimctl.files import exists
from ddimctl.remote import is_url

SUFFIXES = (".tar", ".parquet")  # those that are found in a folder which holds nothing else


@dataclass(frozen=True)
class Kind:
    """Whether a path or URL is one, and what it holds."""

    recognises: Callable[[str], bool]
    members: Callable[..., Iterator[Member]]  # (archive, suffixes, captions=…)
    numbered: bool  # whether names are only numbers, which several archives share


def kind_of(name: str) -> Kind | None:
    """What sort of archive a path or a URL is; None if it is none. Raises `UsageError` for one that is packed."""
    if name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise UsageError(f"{name} is packed", hint="images are fetched where they lie: unpack it to a .tar first")
    return next((kind for kind in ARCHIVES.values() if kind.recognises(name)), None)


def members(name: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    """The images of an archive, in its order, or the latents, if it is these that the suffixes are of.

    Raises `FileError` if it is damaged, `UsageError` if it is no archive.
    """
    if ".safetensors" in suffixes:
        from ddimctl.archives import latents

        return latents.members(name)
    kind = kind_of(name)
    if kind is None:
        raise UsageError(f"{name} is no file of many images")
    return kind.members(name, suffixes, captions=captions)


def prefix(name: str) -> str:
    """What an archive's name makes of the names in it, where several share them."""
    return PurePosixPath(name.rstrip("/")).stem


def _tars(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    from ddimctl.archives import tars

    return tars.members(archive, suffixes, captions=captions)


def _columns(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    from ddimctl.archives import columns

    return columns.members(archive, suffixes, captions=captions)


def _idx(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    from ddimctl.archives import binaries

    return binaries.idx(archive, suffixes, captions=captions)


def _cifar(archive: str, suffixes: Collection[str], *, captions: bool = False) -> Iterator[Member]:
    from ddimctl.archives import binaries

    return binaries.cifar(archive, suffixes, captions=captions)


def _ends(suffix: str) -> Callable[[str], bool]:
    return lambda name: name.lower().endswith(suffix) and (is_url(name) or not Path(name).is_dir())


def _saved(name: str) -> bool:
    return any(exists(Path(name, f)) for f in ("state.json", "dataset_dict.json")) and not is_url(name)


def _is_idx(name: str) -> bool:
    path = Path(name)
    likely = path.suffix.lower() in ("", ".gz", ".idx", ".idx3-ubyte") or "idx3" in path.name
    if is_url(name) or not likely or not exists(path) or not path.is_file():
        return False
    from ddimctl.archives import binaries

    return binaries.is_idx(path)


def _is_cifar(name: str) -> bool:
    if is_url(name) or not name.lower().endswith(".bin") or not exists(Path(name)):
        return False
    from ddimctl.archives import binaries

    return binaries.is_cifar(Path(name))


ARCHIVES = {
    "WebDataset": Kind(_ends(".tar"), _tars, False),
    "parquet": Kind(_ends(".parquet"), _columns, True),
    "save_to_disk": Kind(_saved, _columns, True),
    "IDX": Kind(_is_idx, _idx, True),
    "CIFAR": Kind(_is_cifar, _cifar, True),
}
