"""What models are here: the bundled ones, and those that were downloaded from the hub. None is loaded, nor is torch.

A model's digest takes loading it: those of the bundled ones stand here, those of others are remembered once they were used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddimctl import cache
from ddimctl.checkpoints import folders
from ddimctl.files import bundled_folder

DIGESTS = {
    "emoji": "a0698415b23f53f791344cbda5c7359fb336c8429796d54f079335ee9ab78965",
    "emoji-large": "fb3e7aefcb0f20a0c8f2caa200be8a337110b21f645bdda697089ac4b45bbc30",
    "emoji-text": "42754d0f823a46232d4122342d18cae5a214afa7ce1d7b333e0a566407831adb",
    "fashion-mnist": "18a3b7001509263d9d064bdf11d1b99fb558e879b046a1250019576ce267738f",
}


@dataclass(frozen=True)
class Entry:
    """A model that is here, by what its files say."""

    name: str  # what -m takes
    folder: Path
    where: str  # "bundled", "hub"
    size: tuple[int, int] | None  # height and width of its images
    channels: int | None
    parameters: int | None
    licence: str | None
    digest: str | None


def bundled() -> list[str]:
    """The names of the bundled models."""
    folder = bundled_folder()
    return sorted(p.name for p in folder.iterdir() if folders.recognises(p)) if folder.is_dir() else []


def here() -> list[Entry]:
    """The bundled models, then those in the hub's cache."""
    entries = [_entry(name, bundled_folder() / name, "bundled", digest=DIGESTS.get(name)) for name in bundled()]
    return entries + [_entry(name, folder, "hub", digest=remembered(folder)) for name, folder in sorted(downloaded())]


def downloaded() -> Iterator[tuple[str, Path]]:
    """(id, folder) of the models in the hub's cache that are networks of ours, each as it was downloaded last."""
    for repo in hub_folder().glob("models--*--*"):
        snapshots = [s for s in repo.glob("snapshots/*") if folders.recognises(s)]
        current = repo / "refs/main"
        if snapshots:
            wanted = current.read_text().strip() if current.is_file() else ""
            folder = next((s for s in snapshots if s.name == wanted), max(snapshots, key=lambda s: s.stat().st_mtime))
            if folders.settings(folder).get("_class_name") in folders.NETWORKS:
                yield repo.name.removeprefix("models--").replace("--", "/", 1), folder


def hub_folder() -> Path:
    """Where huggingface-hub keeps what it downloads."""
    env = os.environ.get
    if said := env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE"):
        return Path(said)
    home = env("HF_HOME") or os.path.join(env("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")  # noqa: PTH111, PTH118 (no home is no error)
    return Path(home) / "hub"


def remember(place: Path, digest: str) -> None:
    """Has `remembered` and `used` know a model's folder, or file, from now on. The bundled ones are known anyway."""
    try:
        place = place.resolve()
        if place.parent == bundled_folder().resolve():
            return
        cache.fetch(_key(place), digest.encode)
        if used(digest) is None:
            cache.store(cache.name("place", digest), os.fsencode(place))
    except OSError:  # it is gone, or may not be read any more
        return


def used(digest: str) -> Path | None:
    """Where the model of that digest was when it was used last, if it is still there and the same."""
    found = cache.load(cache.name("place", digest))
    place = Path(os.fsdecode(found)) if found else None
    return place if place is not None and remembered(place) == digest else None


def remembered(folder: Path) -> str | None:
    """The digest of the model in a folder, or in a file, if it was loaded here since it last changed."""
    try:
        found = cache.load(_key(folder))
    except OSError:
        return None
    return found.decode("ascii", "replace") if found else None


def _key(folder: Path) -> str:
    place = folder.resolve()
    files = [place] if place.is_file() else sorted(p for p in folders.network(place).iterdir() if p.is_file())
    return cache.name("digest", *((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files))


def _entry(name: str, folder: Path, where: str, *, digest: str | None) -> Entry:
    sides, channels = folders.pixels(folder)
    size = (sides[0], sides[1]) if len(sides) == 2 else None
    return Entry(name, folder, where, size, channels, folders.parameters(folder), folders.licence(folder), digest)
