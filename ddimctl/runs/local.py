"""Runs on this machine: files → latents, one file each, and latents → image files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import Held, clean, digest, is_special, make_folder, refuse_source, sha256, write_bytes
from ddimctl.ode import Progress
from ddimctl.recipe import of_image
from ddimctl.runs import names, work
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.reading import read_ahead
from ddimctl.runs.work import Decoding, Encoding

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.latent import Latent
    from ddimctl.ode import Solution


@dataclass(frozen=True)
class Targets:
    """Where results go: `folder`/NAME`suffix`, and what happens to what is there.

    Of many files, an output that is there and the same is skipped, and one that is not the same fails its item, or is
    overwritten with `force`. A single file that a command names is written without a look: see `files.refuse_existing`.
    `dry_run` computes and writes nothing. `beside` is that nobody named the folder: no name is a recorded source's then.
    """

    folder: Path
    suffix: str
    force: bool = False
    dry_run: bool = False
    single: bool = False
    beside: bool = False
    one: Path | None = None  # the single file, where its name is not all that there is to it

    def of(self, name: str) -> Path:
        return self.one or self.folder / f"{name}{self.suffix}"


@dataclass
class _Image:
    """An image that was read, or whose latent is there already and which then is read only if its batch needs it."""

    target: Path
    ready: bool = False
    pixels: np.ndarray | None = None
    record: dict[str, Any] = field(default_factory=dict)


def encode(
    items: Sequence[Item],
    targets: Targets,
    encoding: Encoding,
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    progress: Progress = iter,
) -> Iterator[Outcome]:
    """Encodes each item into a file of its own, and yields what became of it.

    `before` is what `read_manifest` says of earlier runs, where the files do not say it themselves. Raises `DDIMError`
    where the system refuses to write.
    """
    from ddimctl import latent, lossless

    def load(item: Item) -> _Image:
        image = _Image(targets.of(item.name))
        if not targets.single and os.path.lexists(image.target):
            refuse_link(image.target)
            image.ready = is_there(
                item, image.target, [source_record(item.opens, encoding)], encoding=encoding, before=before
            )
            if not image.ready and not targets.force:
                raise differs(image.target)
        if not image.ready:
            image.pixels, image.record = read(item, encoding)
        return image

    cleaned: set[Path] = set()
    for batch in read_ahead(items, load, batch_size):
        solution = None
        if not targets.dry_run and any(b.value and not b.value.ready for b in batch):
            for b in batch:
                if b.value and b.value.pixels is None:
                    try:
                        b.value.pixels, b.value.record = read(b.item, encoding)
                    except (FileError, UsageError) as e:
                        b.value, b.failure = None, e
            pixels = [b.value.pixels for b in batch if b.value and b.value.pixels is not None]
            solution = work.encode(pixels, encoding, progress=progress)
        row = -1
        for b in batch:
            if b.value is None:
                yield Outcome(b.item, FAILED, failure=b.failure)
                continue
            row += 1
            image = b.value
            if image.ready or solution is None:
                yield Outcome(b.item, SKIPPED if image.ready else DONE, (image.target,))
                continue
            part = solution.select([row])
            if part.checks and part.checks[0].wrong:
                yield Outcome(b.item, FAILED, failure=lossless.complaint(b.item.source, part.checks[0]))
                continue
            if not targets.single and image.target.parent not in cleaned:
                make_folder(image.target.parent)
                clean(image.target.parent)
                cleaned.add(image.target.parent)
            try:
                latent.save(image.target, work.latent_of(part, encoding, [image.record]))
            except FileError as e:  # not finite
                yield Outcome(b.item, FAILED, failure=e)
                continue
            said = {**notes(image.record, part), **vouching(image.target, [image.record], encoding)}
            yield Outcome(b.item, DONE, (image.target,), notes=said, solution=part)


def read(item: Item, encoding: Encoding) -> tuple[np.ndarray, dict[str, Any]]:
    """An item's image, made to fit, and the record of what was done to it."""
    from ddimctl.images import reading

    model = encoding.model
    return reading.read(item.opens, model.channels, model.size, how=encoding.how)


def notes(record: Mapping[str, Any], solution: Solution) -> dict[str, Any]:
    """What a manifest says of an encoded image."""
    out = {"image": dict(record), "evaluations": solution.evaluations[0]}
    if solution.residuals is not None:
        out |= {"residual": solution.residuals[0], "converged": not solution.unconverged}
    if solution.failures is not None and solution.failures[0] is not None:
        out["failure"] = str(solution.failures[0])
    if solution.returned is not None:
        out |= {"returned": solution.returned[0], "comes_back": not solution.lost}
    return out


def source_record(source: str | Held, encoding: Encoding) -> dict[str, Any]:
    """What `read` would record that decides about the result, without decoding the image."""
    from ddimctl.images import preprocessing, reading

    model = encoding.model
    pixels = [*model.size, model.channels]
    return {**preprocessing.choices(encoding.how), "sha256": reading.digest(source), "pixels": pixels}


def is_there(
    item: Item,
    target: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    encoding: Encoding,
    before: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Whether `target` is what encoding `item` would make: it says so itself, or for x_T alone, an earlier manifest does."""
    from ddimctl import latent

    if target.suffix.lower() != latent.BARE:
        return is_whole_and_same(target, records, encoding)
    entry, found = before.get(item.name, {}), digest(target)
    return found is not None and {"key": encoding_key(records, encoding), "sha256": found}.items() <= entry.items()


def vouching(target: Path, records: Sequence[Mapping[str, Any]], encoding: Encoding) -> dict[str, Any]:
    """What a manifest says of a file that does not say it itself."""
    from ddimctl import latent

    if target.suffix.lower() != latent.BARE:
        return {}
    return {"key": encoding_key(records, encoding), "sha256": digest(target)}


def encoding_key(records: Sequence[Mapping[str, Any]], encoding: Encoding) -> str:
    """What a manifest knows x_T by: another key for anything else that decides about it."""
    return sha256(json.dumps([repr(encoding.recipe), *map(of_image, records)]).encode())


def is_whole_and_same(target: Path, records: Sequence[Mapping[str, Any]], encoding: Encoding) -> bool:
    """Whether `target` is a whole latent file of the same images, made by the same recipe."""
    from ddimctl import latent

    try:
        found = latent.load(target)
    except (FileError, UsageError):
        return False
    same_images = [of_image(r) for r in found.images] == [of_image(r) for r in records]
    return same_images and found.recipe == encoding.recipe


def differs(target: Path) -> UsageError:
    """The one error for an output that is there and is something else."""
    return UsageError(
        f"{target} exists already and is not what this would make",
        hint="name another place with -o; --force writes over it",
    )


def refuse_link(target: Path) -> None:
    """In a folder that is filled by name, a link could lead a writer anywhere, and a pipe stop it. Raises `UsageError`."""
    if target.is_symlink():
        raise UsageError(f"{target} is a link and is left alone", hint="remove it")
    if is_special(target):
        raise UsageError(f"{target} is a pipe or a device and is left alone", hint="remove it")


@dataclass
class _Latent:
    """A latent file that was read, and the images it becomes."""

    file: Latent
    decoding: Decoding
    targets: list[Path]
    key: str
    ready: bool


def decode(
    items: Sequence[Item],
    targets: Targets,
    way_back: Callable[[Latent, str], Decoding],
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    progress: Progress = iter,
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
        ready = entry.get("key") == key and entry.get("sha256") == [digest(t) for t in made]
        return _Latent(file, decoding, made, key, ready)

    for batch in read_ahead(items, load, batch_size):
        groups: dict[Any, list[tuple[Item, _Latent]]] = {}
        for b in batch:
            if b.value is None:
                yield Outcome(b.item, FAILED, failure=b.failure)
            elif len(b.value.targets) > 1:
                groups[b.item.name] = [(b.item, b.value)]
            else:  # one integration has one model, one way and one condition
                decoding = b.value.decoding
                same = (decoding.model.digest, decoding.way, decoding.condition)
                groups.setdefault(same, []).append((b.item, b.value))
        for group in groups.values():
            yield from _decode_alike(group, targets, before, batch_size=batch_size, progress=progress)


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
    kept = file.corrections if way.keep is not None else None
    return sha256((latent.digest(file.xT, "", kept) + json.dumps(made, sort_keys=True)).encode())


def _decode_alike(
    group: Sequence[tuple[Item, _Latent]],
    targets: Targets,
    before: Mapping[str, Mapping[str, Any]],
    *,
    batch_size: int,
    progress: Progress,
) -> Iterator[Outcome]:
    """Decodes files that are decoded alike, together: several of one image each, or one of many."""
    import torch

    from ddimctl.images import levels, writing

    if targets.dry_run or all(v.ready for _, v in group):
        for item, v in group:
            yield Outcome(item, SKIPPED if v.ready else DONE, tuple(v.targets), notes=_decoded(v, before, item))
        return
    decoding = group[0][1].decoding
    digests: list[str] = []
    failures: dict[int, DDIMError] = {}
    files = [(t, v.file.sources) for _, v in group for t in v.targets]
    origins = [m for item, v in group for m in made(item, v.file, v.decoding)]
    noise = [d for _, v in group for d in v.file.dithers or [None] * len(v.file.xT)]
    xT, kept = torch.cat([v.file.xT for _, v in group]), None
    if decoding.way.keep is not None:
        kept = torch.cat([v.file.corrections for _, v in group if v.file.corrections is not None])
    for start in range(0, len(xT), batch_size):
        rows = slice(start, start + batch_size)
        part = None if kept is None else kept[rows]
        for x0 in work.decode(xT[rows], decoding, dithers=noise[rows], corrections=part, progress=progress):
            try:
                levels.check_finite(x0, decoding.model.name)
                data = writing.to_bytes(levels.to_pixels(x0), targets.suffix, made=origins[len(digests)])
            except DDIMError as e:  # not a disk that is full, which stops the run
                failures[len(digests)] = e
                digests.append("")
                continue
            try:
                target, sources = files[len(digests)]
                digests.append(put(target, data, targets, sources=sources))
            except UsageError as e:
                failures[len(digests)] = e
                digests.append("")
    start = 0
    for item, v in group:
        mine = range(start, start + len(v.targets))
        start = mine.stop
        failure = next((failures[i] for i in mine if i in failures), None)
        if failure is not None:
            yield Outcome(item, FAILED, failure=failure)
            continue
        said = {"key": v.key, "sha256": [digests[i] for i in mine]}
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


def put(target: Path, data: bytes, targets: Targets, *, sources: Collection[str] = ()) -> str:
    """The digest of an output that now holds `data`. Raises `UsageError` where something else is there, or a source."""
    found, wanted = digest(target), sha256(data)
    if found != wanted:
        refuse_source(target, sources)
    if targets.single:
        write_bytes(target, data)
        return wanted
    if found == wanted:
        return wanted
    if os.path.lexists(target) and not targets.force:
        from ddimctl.images import writing

        if not writing.is_same(target, data):
            raise differs(target)
        return found or wanted
    make_folder(target.parent)
    write_bytes(target, data)
    return wanted


def _decoded(value: _Latent, before: Mapping[str, Mapping[str, Any]], item: Item) -> dict[str, Any]:
    """What the next manifest says of outputs that were skipped: what the last one did."""
    return {"key": value.key, "sha256": before[item.name]["sha256"]} if value.ready else {}
