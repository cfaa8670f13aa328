"""What is to be done: the items that files, folders, patterns and lists stand for, and what became of each."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ddimctl import archives, remote
from ddimctl.archives.member import checked
from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import Held, exists, find, is_special, refuse_special, sha256

if TYPE_CHECKING:
    from ddimctl.ode import Solution

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Item:
    """A file to work on, and what its outputs are called: a relative name, without suffix.

    `held` is where it lies, if not in a file of its own here.
    """

    source: str
    name: str
    held: Held | None = None

    @property
    def opens(self) -> str | Held:
        """What is read."""
        return self.source if self.held is None else self.held


@dataclass(frozen=True)
class Outcome:
    """What became of an item: DONE, SKIPPED because its outputs were whole and the same, or FAILED and why."""

    item: Item
    status: str
    targets: tuple[Path, ...] = ()
    failure: DDIMError | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the manifest
    solution: Solution | None = None  # of the item alone, where it was just encoded


def gather(arguments: Sequence[str], suffixes: Collection[str]) -> list[Item]:
    """The items that files, folders and patterns stand for. What is in a folder keeps its place relative to it.

    A pattern matches no pipes and no devices. Of an archive, each image is an item. Raises `UsageError` where there is
    nothing, if one of those is named, and on an empty name, which would be the folder one is in.
    """
    items: list[Item] = []
    several = len(arguments) > 1
    for argument in arguments:
        if not argument:
            raise UsageError("one of the names is empty", hint="is a variable of the shell not set?")
        pattern = glob.has_magic(argument) and not exists(Path(argument))
        if argument != "-" and not pattern and archives.kind_of(argument) is not None:
            items += unpacked(argument, suffixes, several=several)
            continue
        if remote.is_url(argument) and not exists(Path(argument)):
            items += _by_url(argument, suffixes)
            continue
        place = _search(argument, suffixes)
        if place is None:
            if argument != "-":
                refuse_special(Path(argument))
            items.append(Item(argument, "image" if argument == "-" else _name(PurePath(Path(argument).name))))
            continue
        start, found = place
        if not found and (packed := (_search(argument, archives.SUFFIXES) or (start, []))[1]):
            for path in packed:
                items += unpacked(str(path), suffixes, several=len(packed) > 1)
            continue
        if not found:
            path = Path(argument)
            what = f"{path} holds nothing to work on" if path.is_dir() else f"nothing matches {argument}"
            raise UsageError(what, hint=f"looked for {' '.join(suffixes)}")
        items += [Item(str(p), _name(p.relative_to(start))) for p in found]
    return items


def unpacked(archive: str, suffixes: Collection[str], *, several: bool = False) -> Iterator[Item]:
    """An item for each image of an archive. Where they are only numbered, `several` of them keep their rows apart."""
    kind, images = archives.kind_of(archive), ".safetensors" not in suffixes
    apart = f"{archives.prefix(archive)}/" if several and kind is not None and kind.numbered and images else ""
    empty = True
    for member in archives.members(archive, suffixes):
        empty = False
        yield Item(member.name, f"{apart}{member.key}", member)
    if empty:
        raise UsageError(f"{archive} holds nothing to work on", hint=f"looked for {' '.join(suffixes)}")


def _by_url(url: str, suffixes: Collection[str]) -> list[Item]:
    """The items that a URL stands for."""
    found = remote.gather(url, (*suffixes, *archives.SUFFIXES))
    items = []
    for at, below in found:
        below = checked(below, url)  # a store's keys are anybody's, and may hold what no path does
        if at == url or PurePath(below).suffix.lower() not in archives.SUFFIXES:
            items.append(Item(at, _name(PurePath(below)), remote.Remote(at)))
        else:
            items += unpacked(at, suffixes, several=len(found) > 1)
    return items


def left_out(arguments: Sequence[str], suffixes: Collection[str], like: Collection[str]) -> Counter[str]:
    """How many files of folders and patterns `gather` leaves out though they are `like` those it takes, by suffix."""
    others = {s for s in like if s not in suffixes}
    found = (_search(argument, others) for argument in arguments if argument)
    return Counter(p.suffix.lower() for place in found if place for p in place[1])


def is_folder(argument: str) -> bool:
    """Whether it names a folder; - is standard input, whatever is called so."""
    return argument != "-" and Path(argument).is_dir()


def _search(argument: str, suffixes: Collection[str]) -> tuple[Path, list[Path]] | None:
    """(where it starts, the files there) of a folder or a pattern; None for what is a file's name."""
    path = Path(argument)
    if is_folder(argument):
        return path, find(path, suffixes)
    if not glob.has_magic(argument) or os.path.lexists(path):
        return None
    start = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    matches = (p for p in start.glob(str(PurePath(*path.parts[len(start.parts) :]))) if p.suffix.lower() in suffixes)
    return start, sorted(p for p in matches if not p.is_dir() and not is_special(p))


def listed(sources: Iterable[str]) -> list[Item]:
    """The items that a list names. Outputs keep a relative path; others only their last part."""
    items = []
    for source in sources:
        if source and remote.is_url(source):
            items.append(Item(source, _name(PurePath(PurePath(source).name)), remote.Remote(source)))
        elif source:
            path = PurePath(source)
            plain = not path.is_absolute() and ".." not in path.parts
            items.append(Item(source, _name(path if plain else PurePath(path.name))))
    return items


def _name(path: PurePath) -> str:
    return path.with_suffix("").as_posix() if path.name else "image"


def name_apart(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """(the items, those of them that share a name): of these the suffix becomes a part of the name.

    So x.jpg and x.png make x.jpg.pt and x.png.pt. Raises `UsageError` where two would write the same output even then.
    """
    out, kept = list(items), set[int]()
    while True:
        count = Counter(item.name for item in out)
        again = [i for i, item in enumerate(out) if count[item.name] > 1 and i not in kept]
        for i in again:
            out[i] = replace(out[i], name=out[i].name + PurePath(out[i].source).suffix)
        if not again:
            break
        kept.update(again)
    refuse_collisions(out)
    return out, [out[i] for i in sorted(kept)]


def refuse_collisions(items: Iterable[Item]) -> None:
    """Raises `UsageError` if two items would write the same output."""
    seen: dict[str, str] = {}
    pairs = []
    for item in items:
        if item.name in seen:
            pairs.append(f"{seen[item.name]} and {item.source}")
        else:
            seen[item.name] = item.source
    if pairs:
        shown = ", ".join(pairs[:3]) + (f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else "")
        raise UsageError(
            f"{shown} would write the same file",
            hint="rename one of each, or give each folder's files a folder of their own with -o",
        )


def shard(items: Sequence[Item], wanted: str) -> list[Item]:
    """The items of shard "i/n", i = 1 … n: by their names' digests, so machines that see different files still agree."""
    i, _, n = wanted.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UsageError(f"--shard {wanted!r} makes no sense", hint="such as 2/8, the second of eight")
    return [x for x in items if int(sha256(os.fsencode(x.name))[:15], 16) % int(n) == int(i) - 1]
