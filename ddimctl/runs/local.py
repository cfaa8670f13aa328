"""Images → latents, a file each, wherever the work between is done; and what may be written where."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.errors import FileError, UsageError
from ddimctl.files import Held, clean, is_special, refuse_source, sha256
from ddimctl.recipe import of_image
from ddimctl.runs import outputs, work
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.reading import Loaded, read_ahead
from ddimctl.runs.where import Job, Where, here
from ddimctl.runs.work import Encoding

if TYPE_CHECKING:
    import numpy as np

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
    where: Where = here,
) -> Iterator[Outcome]:
    """Encodes each item into a file of its own, and yields what became of it.

    `before` is what `read_manifest` says of earlier runs, where the files do not say it themselves. Raises `DDIMError`
    where the system refuses to write.
    """

    def load(item: Item) -> _Image:
        image = _Image(targets.of(item.name))
        if not targets.single and outputs.there(image.target):
            refuse_link(image.target)
            image.ready = is_there(
                item, image.target, [source_record(item.opens, encoding)], encoding=encoding, before=before
            )
            if not image.ready and not targets.force:
                raise differs(image.target)
        if not image.ready:
            image.pixels, image.record = read(item, encoding)
        return image

    def jobs() -> Iterator[tuple[list[Loaded[_Image]], Job[Solution] | None]]:
        for batch in read_ahead(items, load, batch_size):
            yield batch, None if targets.dry_run else _job(batch, encoding)

    cleaned: set[Path] = set()
    for batch, solution in where(jobs()):
        yield from _save(batch, solution, targets, encoding=encoding, cleaned=cleaned)


def _job(batch: Sequence[Loaded[_Image]], encoding: Encoding) -> Job[Solution] | None:
    """The encoding of a batch, all of it where any of it is to be done; None where nothing is."""
    if not any(b.value and not b.value.ready for b in batch):
        return None
    for b in batch:
        if b.value and b.value.pixels is None:
            try:
                b.value.pixels, b.value.record = read(b.item, encoding)
            except (FileError, UsageError) as e:
                b.value, b.failure = None, e
    return partial(work.encode, [b.value.pixels for b in batch if b.value and b.value.pixels is not None], encoding)


def _save(
    batch: Sequence[Loaded[_Image]],
    solution: Solution | None,
    targets: Targets,
    *,
    encoding: Encoding,
    cleaned: set[Path],
) -> Iterator[Outcome]:
    """Writes what a batch came to; in folders that are not yet `cleaned`, what a killed run left is removed."""
    from ddimctl import lossless

    row = -1
    for b in batch:
        if b.value is None:
            yield Outcome(b.item, FAILED, failure=b.failure)
            continue
        row += 1
        image = b.value
        image.pixels = None
        if image.ready or solution is None:
            yield Outcome(b.item, SKIPPED if image.ready else DONE, (image.target,))
            continue
        part = solution.select([row])
        if part.checks and part.checks[0].wrong:
            yield Outcome(b.item, FAILED, failure=lossless.complaint(b.item.source, part.checks[0]))
            continue
        if not targets.single and image.target.parent not in cleaned:
            outputs.make_folder(image.target.parent)
            clean(image.target.parent)
            cleaned.add(image.target.parent)
        try:
            outputs.save(image.target, work.latent_of(part, encoding, [image.record]))
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
    entry, found = before.get(item.name, {}), outputs.digest(target)
    return found is not None and {"key": encoding_key(records, encoding), "sha256": found}.items() <= entry.items()


def vouching(target: Path, records: Sequence[Mapping[str, Any]], encoding: Encoding) -> dict[str, Any]:
    """What a manifest says of a file that does not say it itself."""
    from ddimctl import latent

    if target.suffix.lower() != latent.BARE:
        return {}
    return {"key": encoding_key(records, encoding), "sha256": outputs.digest(target)}


def encoding_key(records: Sequence[Mapping[str, Any]], encoding: Encoding) -> str:
    """What a manifest knows x_T by: another key for anything else that decides about it."""
    return sha256(json.dumps([repr(encoding.recipe), *map(of_image, records)]).encode())


def is_whole_and_same(target: Path, records: Sequence[Mapping[str, Any]], encoding: Encoding) -> bool:
    """Whether `target` is a whole latent file of the same images, made by the same recipe."""
    try:
        found = outputs.load(target)
    except (FileError, UsageError):
        return False
    same_images = [of_image(r) for r in found.images] == [of_image(r) for r in records]
    return same_images and found.recipe == encoding.recipe


def differs(target: Path) -> UsageError:
    """The one error for an output that is there and is something else."""
    return UsageError(
        f"{outputs.shown(target)} exists already and is not what this would make",
        hint="name another place with -o; --force writes over it",
    )


def refuse_link(target: Path) -> None:
    """In a folder that is filled by name, a link could lead a writer anywhere, and a pipe stop it. Raises `UsageError`."""
    if target.is_symlink():
        raise UsageError(f"{target} is a link and is left alone", hint="remove it")
    if is_special(target):
        raise UsageError(f"{target} is a pipe or a device and is left alone", hint="remove it")


def put(target: Path, data: bytes, targets: Targets, *, sources: Collection[str] = ()) -> str:
    """The digest of an output that now holds `data`. Raises `UsageError` where something else is there, or a source."""
    found, wanted = outputs.digest(target), sha256(data)
    if found != wanted:
        refuse_source(target, sources)
    if targets.single:
        outputs.write(target, data)
        return wanted
    if found == wanted:
        return wanted
    if outputs.there(target) and not targets.force:
        from ddimctl.images import writing

        if not writing.is_same(outputs.read(target) or target, data):
            raise differs(target)
        return found or wanted
    outputs.make_folder(target.parent)
    outputs.write(target, data)
    return wanted
