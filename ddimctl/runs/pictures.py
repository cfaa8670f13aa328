"""Latents → image files, wherever the work between is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import Held, sha256
from ddimctl.runs import names, outputs, work
from ddimctl.runs.local import Targets, put, refuse_link
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.reading import Loaded, read_ahead
from ddimctl.runs.where import Job, Where, here
from ddimctl.runs.work import Decoding

if TYPE_CHECKING:
    from ddimctl.latent import Latent


@dataclass
class _Latent:
    """A latent file that was read, and the images it becomes."""

    file: Latent
    decoding: Decoding
    targets: list[Path]
    key: str
    ready: bool


@dataclass
class _Group:
    """Files that are decoded alike, together, several of one image each, or one of many; and what became of them so far.

    Or only what became of items, where nothing is to be decoded.
    """

    of: Sequence[tuple[Item, _Latent]] = ()
    known: Sequence[Outcome] = ()
    jobs: int = 0  # that it was cut into and that have not come back
    digests: list[str] = field(default_factory=list)  # of the images so far
    failures: dict[int, DDIMError] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[tuple[Path, Collection[str]]]:
        """Of each image: where it goes, and the sources that it must not write over."""
        return [(t, v.file.sources) for _, v in self.of for t in v.targets]

    @cached_property
    def origins(self) -> list[dict[str, Any]]:
        """What each says of itself."""
        return [m for item, v in self.of for m in made(item, v.file, v.decoding)]


def decode(
    items: Sequence[Item],
    targets: Targets,
    way_back: Callable[[Latent, str], Decoding],
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    where: Where = here,
    opener: Callable[[str | Held], Latent] | None = None,
) -> Iterator[Outcome]:
    """Decodes each latent file into an image file; one of several images into a file each, as `names.of_images` says.

    `opener` reads a file, if `latent.load` shall not.
    `way_back(latent, name)` says how, or raises `FileError`. `before` is what `read_manifest` says of earlier runs:
    outputs that it vouches for, and that are still the same, are skipped. Any other output that is there is compared with
    what is decoded; if it differs, its item fails unless forced. So does one of values not finite.
    """
    taken = {item.name for item in items}

    def load(item: Item) -> _Latent:
        from ddimctl import latent

        file = opener(item.opens) if opener else latent.load(Path(item.source))
        stems = names.of_images(file, item.name, alone=len(items) == 1, beside=targets.beside)
        if len(stems) > 1 and not taken.isdisjoint(stems):
            raise UsageError(f"{item.source} and another file would write the same image", hint="rename one")
        made = [targets.of(stem) for stem in stems]
        if not targets.single:
            for target in made:
                refuse_link(target)
        decoding = way_back(file, item.source)
        key = decoding_key(file, decoding, targets.suffix)
        entry = before.get(item.name, {})
        ready = entry.get("key") == key and entry.get("sha256") == [outputs.digest(t) for t in made]
        return _Latent(file, decoding, made, key, ready)

    def jobs() -> Iterator[tuple[_Group, Job[Any] | None]]:
        for batch in read_ahead(items, load, batch_size):
            failed = [Outcome(b.item, FAILED, failure=b.failure) for b in batch if b.value is None]
            if failed:
                yield _Group(known=failed), None
            for group in _alike(batch):
                if targets.dry_run or all(v.ready for _, v in group):
                    status = [SKIPPED if v.ready else DONE for _, v in group]
                    known = [
                        Outcome(item, s, tuple(v.targets), notes=_decoded(v, before, item))
                        for (item, v), s in zip(group, status, strict=True)
                    ]
                    yield _Group(known=known), None
                else:
                    yield from _cut(_Group(group), batch_size)

    for group, images in where(jobs()):
        if images is not None:
            group.jobs -= 1
            _save_images(group, images, targets)
        if not group.jobs:
            yield from group.known or _became(group)


def _alike(batch: Sequence[Loaded[_Latent]]) -> Iterator[list[tuple[Item, _Latent]]]:
    """The files of a batch that can be decoded together: an integration has one model, one way and one condition."""
    groups: dict[Any, list[tuple[Item, _Latent]]] = {}
    for b in batch:
        if b.value is not None and len(b.value.targets) > 1:
            groups[b.item.name] = [(b.item, b.value)]
        elif b.value is not None:
            decoding = b.value.decoding
            tile = decoding.model.autoencoder.tile
            same = (decoding.model.digest, tile, decoding.way, decoding.condition)
            groups.setdefault(same, []).append((b.item, b.value))
    yield from groups.values()


def decoding_key(file: Latent, decoding: Decoding, suffix: str) -> str:
    """What a manifest knows an output by: another key for anything else that decides about the image."""
    from ddimctl import latent
    from ddimctl.recipe import read_condition

    model = decoding.model
    way = decoding.way.on(model.schedule)
    made: list[Any] = [
        file.provenance, model.digest, way.levels, way.solver, way.tolerance, suffix, model.network.dtype, *way.mix
    ]  # fmt: skip
    if decoding.condition != read_condition(file.provenance):
        made.append(repr(decoding.condition))
    if (tile := model.autoencoder.tile) != file.recipe.tile:
        made.append({"tile": tile})
    kept = file.corrections if way.keep is not None else None
    return sha256((latent.digest(file.xT, "", kept) + json.dumps(made, sort_keys=True)).encode())


def _cut(group: _Group, batch_size: int) -> Iterator[tuple[_Group, Job[Any]]]:
    """The decoding of a group, in batches."""
    import torch

    decoding = group.of[0][1].decoding
    noise = [d for _, v in group.of for d in v.file.dithers or [None] * len(v.file.xT)]
    xT, kept = torch.cat([v.file.xT for _, v in group.of]), None
    if decoding.way.keep is not None:
        kept = torch.cat([v.file.corrections for _, v in group.of if v.file.corrections is not None])
    starts = range(0, len(xT), batch_size)
    group.jobs = len(starts)
    for start in starts:
        rows = slice(start, start + batch_size)
        part = None if kept is None else kept[rows]
        yield group, partial(work.decode, xT[rows], decoding, dithers=noise[rows], corrections=part)


def _save_images(group: _Group, images: Any, targets: Targets) -> None:
    """Writes the next images of a group."""
    from ddimctl.images import levels, writing

    name, digests, failures = group.of[0][1].decoding.model.name, group.digests, group.failures
    for x0 in images:
        try:
            levels.check_finite(x0, name)
            data = writing.to_bytes(levels.to_pixels(x0), targets.suffix, made=group.origins[len(digests)])
        except DDIMError as e:  # not a disk that is full, which stops the run
            failures[len(digests)] = e
            digests.append("")
            continue
        try:
            target, sources = group.places[len(digests)]
            digests.append(put(target, data, targets, sources=sources))
        except UsageError as e:
            failures[len(digests)] = e
            digests.append("")


def _became(group: _Group) -> Iterator[Outcome]:
    """What became of the files of a group whose images are all written."""
    start = 0
    for item, v in group.of:
        mine = range(start, start + len(v.targets))
        start = mine.stop
        failure = next((group.failures[i] for i in mine if i in group.failures), None)
        if failure is not None:
            yield Outcome(item, FAILED, failure=failure)
            continue
        said = {"key": v.key, "sha256": [group.digests[i] for i in mine]}
        yield Outcome(item, SKIPPED if v.ready else DONE, tuple(v.targets), notes=said)


def made(item: Item, file: Latent, decoding: Decoding) -> list[dict[str, Any]]:
    """How the image of each latent in a file is made, as the image says of itself."""
    from ddimctl import origin

    of, source = decoding.model, origin.parent(item.source)
    way = decoding.way.on(of.schedule)
    out = []
    for i, record in enumerate(file.images):
        more: dict[str, Any] = {"latent": i} if len(file.xT) > 1 else {}
        drawn = record.get("noise")
        more |= dict(drawn) if isinstance(drawn, Mapping) else {"image": origin.image(record)}
        out.append(origin.of("decode", of, way, decoding.condition, parents=[source], more=more))
    return out


def _decoded(value: _Latent, before: Mapping[str, Mapping[str, Any]], item: Item) -> dict[str, Any]:
    """What the next manifest says of outputs that were skipped: what the last one did."""
    return {"key": value.key, "sha256": before[item.name]["sha256"]} if value.ready else {}
