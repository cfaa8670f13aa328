"""Runs of samples: noise by seed → pictures in a folder. The same command again makes what is not there yet.

A picture is known by its draw, the seed and its number, and by the way; the folder's manifest vouches for the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import digest, refuse_existing, sha256
from ddimctl.runs.local import refuse_link

Draw = tuple[int, int]  # seed, number
NUMBERED = re.compile(r"(seed-\d+-)?\d{3,}\.png")


@dataclass(frozen=True)
class Picture:
    """A sample and its file."""

    name: str  # in the folder, without suffix
    target: Path
    made: Mapping[str, Any]  # how, as it says of itself
    key: str  # what the manifest knows it by

    @classmethod
    def of(cls, folder: Path, name: str, made: Mapping[str, Any], more: Sequence[Any]) -> Picture:
        """`more` is what decides about the pixels besides what a picture says of itself."""
        text = json.dumps([made, *more], sort_keys=True)
        return cls(name, folder / f"{name}.png", json.loads(json.dumps(made)), sha256(text.encode()))

    def is_in(self, before: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether an earlier run made it, and the file is as it left it."""
        entry = before.get(self.name, {})
        return entry.get("key") == self.key and entry.get("sha256") == digest(self.target)


def names(draws: Sequence[Draw], lengths: Sequence[int]) -> list[list[str]]:
    """For each number of steps, what its pictures are called: by their number, and by their seed where there are several."""
    width = max(3, len(str(max(k for _, k in draws))))
    several = len({seed for seed, _ in draws}) > 1
    stems = [f"seed-{seed}-{k:0{width}}" if several else f"{k:0{width}}" for seed, k in draws]
    return [[f"steps-{s}/{stem}" if len(lengths) > 1 else stem for stem in stems] for s in lengths]


def check(pictures: Sequence[Picture], *, force: bool) -> None:
    """Looks at what is there, before any work; with `force`, removes what an older run left besides what this one makes.

    Raises `UsageError` where something else is in the place of a picture, or, unless `force`, pictures of another run are
    in its folder. Those of the same run with later numbers stay: they are what they would be.
    """
    places: dict[Path, dict[str, Picture]] = {}
    for p in pictures:
        if p.target.is_dir():
            refuse_existing(p.target, force)
        refuse_link(p.target)
        places.setdefault(p.target.parent, {})[p.target.name] = p
    replaced, left = [], []
    for place, wanted in places.items():
        one = next(iter(wanted.values()))
        run, seed = _run_of(one.made), _seed_of(one.target, one.made)
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if not NUMBERED.fullmatch(file.name) or file.is_symlink():
                continue
            said = _said(file)
            if file.name in wanted:
                if {**said, "ddimctl": ""} != {**wanted[file.name].made, "ddimctl": ""}:  # whichever version made it
                    replaced.append(file)
            elif said.get("command") == "sample" and (_run_of(said), _seed_of(file, said)) != (run, seed):
                left.append(file)
    others = [*replaced, *left]
    if others and not force:
        n = len(others)
        what = f"{others[0]} and {n - 1} more exist already and are" if n > 1 else f"{others[0]} exists already and is"
        does = " and ".join([f"writes over {len(replaced)}"] * bool(replaced) + [f"removes {len(left)}"] * bool(left))
        raise UsageError(
            f"{what} not what this would make", hint=f"name another folder with -o; --force {does} of them"
        )
    for file in left:
        file.unlink()


def _seed_of(file: Path, made: Mapping[str, Any]) -> Any:
    """The seed that all pictures of the run share; None where the names tell it."""
    return None if file.name.startswith(f"seed-{made.get('seed')}-") else made.get("seed")


def _said(path: Path) -> dict[str, Any]:
    """What a picture says of itself, if anything."""
    from ddimctl.images import metadata

    try:
        return metadata.find(path) or {}
    except DDIMError:
        return {}


def _run_of(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the pictures of one run have in common besides their seed."""
    return {k: v for k, v in made.items() if k not in ("ddimctl", "number", "seed")}
