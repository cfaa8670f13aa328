"""What the images of a latent file are called: as they were when they were encoded, and never as what they were made from.

A name in a file may come from anybody: no more of it is used than the last part, without what a shell or a terminal reads
in its own way.
"""

from __future__ import annotations

from pathlib import PurePath

from ddimctl.latent import Latent

LONGEST = 200  # bytes of a name that is taken over; a suffix and a number have to fit behind it
RESERVED = frozenset('<>:"|?*')  # no file can be called that everywhere


def of_images(file: Latent, name: str, *, alone: bool = False, beside: bool = False) -> list[str]:
    """A relative name without suffix for each image of `file`, which itself is called `name`.

    One image is called as its file. Several are called as they were when encoded, `alone` or in a folder of their file's
    name; where two would share a name, or there is none to use, NAME-0, NAME-1, … `beside` their sources they would
    replace them: there they are NAME.decoded.
    """
    n = len(file.xT)
    recorded = [stem_of(image) for image in file.images]
    if n == 1:
        stems = [name]
    elif None in recorded or len({str(stem).casefold() for stem in recorded}) < n:
        stems = [f"{name}-{i:0{len(str(n - 1))}}" for i in range(n)]
    else:
        stems = [f"{stem}" if alone else f"{name}/{stem}" for stem in recorded]
    return [decoded(stem, file) for stem in stems] if beside else stems


def decoded(stem: str, file: Latent) -> str:
    """`stem`, or STEM.decoded if one of the file's sources is called that."""
    return f"{stem}.decoded" if PurePath(stem).name in {stem_of(image) for image in file.images} else stem


def stem_of(image: dict[str, object]) -> str | None:
    """What a recorded image is called, without suffix, if a file could be called that anywhere."""
    name = PurePath(str(image["name"]).rpartition("::")[2].replace("\\", "/")).name
    stem = PurePath(name).stem
    plain = bool(stem) and stem.isprintable() and not stem.startswith((".", "-")) and not RESERVED.intersection(stem)
    return stem if "noise" not in image and plain and len(stem.encode("utf-8", "replace")) <= LONGEST else None
