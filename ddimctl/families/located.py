"""Where the model of a latent is now: by its digest among the models that are here, then where it was.

A latent names its model as it was named on the command line, perhaps a path that was right in another folder. Its digest
is right everywhere: the bundled models have theirs in `catalogue`, models that were used before are remembered with theirs,
and those in the folders of ``DDIMCTL_MODELS`` are looked at. Nothing is opened by its digest because a file says where.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl import catalogue
from ddimctl.checkpoints import folders
from ddimctl.errors import DDIMError
from ddimctl.files import exists

MODELS = "DDIMCTL_MODELS"  # folders of models, separated as in PATH


@dataclass(frozen=True)
class Located:
    """What `families.load` takes, if the model was found, and where was looked."""

    reference: str | None
    tried: tuple[str, ...]


def locate(about: Mapping[str, Any], beside: Path | None = None) -> Located:
    """The model that a provenance is `about`; `beside` is the folder of the latent file, for what is relative to it."""
    digest, recorded = str(about["digest"]), str(about["reference"])
    tried = ["the bundled models"]
    for name in catalogue.bundled():
        if catalogue.DIGESTS.get(name) == digest or (name == recorded and name not in catalogue.DIGESTS):
            return Located(name, tuple(tried))
    tried.append("those used before")
    used = catalogue.used(digest)
    if used is not None:
        return Located(str(used), tuple(tried))
    tried.append("the hub's cache")
    for name, folder in catalogue.downloaded():
        if catalogue.remembered(folder) == digest or name == recorded:
            return Located(str(folder), tuple(tried))
    tried.append(MODELS if os.environ.get(MODELS) else f"{MODELS}, which is not set")
    for folder in sorted(_candidates(), key=lambda f: (f.name != about.get("name"), f.name)):
        if _digest(folder) == digest:
            return Located(str(folder), tuple(tried))
    path = Path(recorded)
    places = [path] if path.is_absolute() else [path, *([beside / path] if beside is not None else [])]
    for place in dict.fromkeys(places):
        tried.append(str(place))
        if exists(place):
            return Located(str(place), tuple(tried))
    return Located(recorded if recorded in catalogue.bundled() else None, tuple(tried))


def _candidates() -> Iterator[Path]:
    """The models in the folders of `MODELS`, which may be models themselves."""
    for part in os.environ.get(MODELS, "").split(os.pathsep):
        root = Path(part).expanduser() if part else None
        if root is None or not root.is_dir():
            continue
        if folders.recognises(root):
            yield root
            continue
        try:
            yield from (p for p in sorted(root.iterdir()) if p.is_dir() and folders.recognises(p))
        except OSError:
            continue


def _digest(folder: Path) -> str | None:
    """The digest of the model in a folder, which is loaded unless it is known; None if it is none that can be used."""
    from ddimctl.families import load

    known = catalogue.remembered(folder)
    if known is None:
        try:
            known = load(str(folder), "cpu").digest
        except DDIMError:
            return None
        catalogue.remember(folder, known)
    return known
