"""Many images → packed shards of latents, each written whole or not at all: a run that was killed goes on with the next.

Tars are WebDataset's, parquet files those of `datasets`: see `archives.latents`. A shard that is there is compared by its
summary with the images as they are now, without decoding any.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ddimctl import latent, lossless, remote
from ddimctl.archives import SUFFIXES
from ddimctl.archives import latents as packing
from ddimctl.containers import array, read_safetensors
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import atomic_file, make_folder
from ddimctl.recipe import of_image
from ddimctl.runs import work
from ddimctl.runs.local import differs, notes, read, source_record
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.reading import batched, read_ahead
from ddimctl.runs.where import Job, Where, here
from ddimctl.runs.work import Encoding

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.ode import Solution
    from ddimctl.runs.reading import Loaded

    _Batch = list[Loaded[tuple[np.ndarray, dict[str, Any]]]]

NO_NOTES: Mapping[str, Any] = {}
FIELD = re.compile(r"\{shard(:0?\d+d?)?\}")


@dataclass(frozen=True)
class Shards:
    """Where shards go: `pattern` has ``{shard:05}`` where their number stands; one shard of all has none.

    Of several machines that share a run by --shard I/N, this one is the `first` of `machines`, and numbers its own apart.
    """

    pattern: str
    per: int
    force: bool = False
    dry_run: bool = False
    first: int = 0
    machines: int = 1

    def of(self, i: int) -> str:
        """The path or URL of shard i."""
        return self.pattern.format(shard=i * self.machines + self.first)


def check(pattern: str, per: int | None) -> None:
    """Raises `UsageError` unless `pattern` names shards, one at least."""
    rest = FIELD.sub("", pattern)
    if Path(pattern).suffix.lower() not in SUFFIXES:
        raise UsageError(f"{pattern} is no name for shards", hint=f"use a suffix of {' '.join(SUFFIXES)}")
    if "{" in rest or "}" in rest or len(FIELD.findall(pattern)) > 1:
        raise UsageError(f"{pattern} is no pattern of shards", hint="such as latents/{shard:05}.tar")
    if per is not None and rest == pattern:
        raise UsageError("--per-shard makes several files of one name", hint="such as -o latents/{shard:05}.tar")


def encode(
    items: Sequence[Item], shards: Shards, encoding: Encoding, *, batch_size: int, where: Where = here
) -> Iterator[Outcome]:
    """Encodes `shards.per` items into each shard, in their order, and yields what became of each.

    Images that cannot be read are left out. A shard that is there must be what this would make, unless forced: else
    `UsageError`. Raises `DDIMError` where the system refuses to write.
    """

    def jobs() -> Iterator[tuple[_Part, Job[Solution] | None]]:
        for number, group in enumerate(batched(items, shards.per)):
            target = shards.of(number)
            known = _known(group, target, shards, encoding=encoding, batch_size=batch_size)
            if known is not None:
                yield _Part(target, known=known), None
                continue
            left = len(group)
            for batch in read_ahead(group, lambda item: read(item, encoding), batch_size):
                left -= len(batch)
                pixels = [b.value[0] for b in batch if b.value is not None]
                yield _Part(target, batch, last=not left), partial(work.encode, pixels, encoding) if pixels else None

    done = where(jobs())
    for part, solution in done:
        if part.known is not None:
            yield from part.known
        else:
            yield from _write(part.target, _to_the_last(chain([(part, solution)], done)), encoding)


@dataclass(frozen=True)
class _Part:
    """A batch of a shard's items; or what is known of them all already."""

    target: str
    batch: _Batch = field(default_factory=list)
    last: bool = True
    known: list[Outcome] | None = None


def _to_the_last(parts: Iterable[tuple[_Part, Solution | None]]) -> Iterator[tuple[_Batch, Solution | None]]:
    """The batches of one shard."""
    for part, solution in parts:
        yield part.batch, solution
        if part.last:
            return


def _known(
    group: Sequence[Item], target: str, shards: Shards, *, encoding: Encoding, batch_size: int
) -> list[Outcome] | None:
    """What becomes of the items of a shard that is there, or that is not to be made; None of one that is."""
    if _exists(target):
        outcomes = _held(group, target, encoding, batch_size=batch_size)
        if outcomes is not None:
            return outcomes
        if not shards.force:
            raise differs(Path(target))
    return [Outcome(item, DONE, (Path(target),)) for item in group] if shards.dry_run else None


def _exists(target: str) -> bool:
    return remote.size(target) is not None if remote.is_url(target) else os.path.lexists(target)


def _held(group: Sequence[Item], target: str, encoding: Encoding, *, batch_size: int) -> list[Outcome] | None:
    """What a shard that is there makes of the items; None if it is not what they would make."""
    said = packing.summary(target)
    if said is None:
        return None
    left = {*said["left"]} if isinstance(said.get("left"), list) else set()

    def load(item: Item) -> Mapping[str, Any]:
        if item.name in left:  # it could not be encoded then
            return read(item, encoding)[1]
        return source_record(item.opens, encoding)

    outcomes, key, path = [], _Key(encoding), Path(target)
    for batch in read_ahead(group, load, batch_size):
        for b in batch:
            if b.value is None:
                outcomes.append(Outcome(b.item, FAILED, failure=b.failure))
            elif b.item.name in left:
                if not encoding.lossless:
                    return None
                failure = DDIMError(f"{b.item.source} is not in {target}, as it was not lossless")
                outcomes.append(Outcome(b.item, FAILED, failure=failure))
            else:
                key.add(b.item.name, b.value)
                outcomes.append(Outcome(b.item, SKIPPED, (path,)))
    return outcomes if said.get("key") == key.end() else None


class _Key:
    """What a shard is known by: another key for anything else that decides about it. Of a JSON list, which is not held."""

    def __init__(self, encoding: Encoding):
        self.n = 0
        self._hash = hashlib.sha256(f"[{json.dumps(repr(encoding.recipe))}".encode())

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        self.n += 1
        self._hash.update(f", {json.dumps([name, of_image(record)])}".encode())

    def end(self) -> str:
        self._hash.update(b"]")
        return self._hash.hexdigest()


class _NothingError(Exception):
    """No item of a shard could be encoded: no file is made."""


def _write(target: str, batches: Iterable[tuple[_Batch, Solution | None]], encoding: Encoding) -> Iterator[Outcome]:
    """Writes a shard, and only then says what became of its items; until then, their notes are held as text."""
    outcomes: list[tuple[Outcome, str]] = []
    key, path = _Key(encoding), Path(target)
    try:
        with _written(target) as f:
            writer: packing.Writer = packing.WRITERS[path.suffix.lower()](f)
            for batch, solution in batches:
                for outcome, record in _batch(batch, solution, path, encoding=encoding, writer=writer):
                    outcomes.append((replace(outcome, notes=NO_NOTES), json.dumps(outcome.notes)))
                    if outcome.status == DONE:
                        key.add(outcome.item.name, record)
            if not key.n:
                raise _NothingError
            left = [o.item.name for o, _ in outcomes if o.status == FAILED]
            writer.close({"key": key.end(), "n": key.n, "left": left})
    except _NothingError:
        pass
    for outcome, said in outcomes:
        yield replace(outcome, notes=json.loads(said))


def _batch(
    batch: _Batch, solution: Solution | None, target: Path, *, encoding: Encoding, writer: packing.Writer
) -> Iterator[tuple[Outcome, dict[str, Any]]]:
    """Puts a batch into a shard."""
    row = -1
    for b in batch:
        if b.value is None or solution is None:
            yield Outcome(b.item, FAILED, failure=b.failure), {}
            continue
        row += 1
        part, record = solution.select([row]), b.value[1]
        if part.checks and part.checks[0].wrong:
            yield Outcome(b.item, FAILED, failure=lossless.complaint(b.item.source, part.checks[0])), {}
            continue
        made = work.latent_of(part, encoding, [record])
        try:
            texts = read_safetensors(latent.to_bytes(made, ".safetensors"), b.item.name)[0]
        except FileError as e:  # not finite
            yield Outcome(b.item, FAILED, failure=e), {}
            continue
        writer.add(b.item.name, array(made.xT)[0], texts)
        yield Outcome(b.item, DONE, (target,), notes=notes(record, part)), record


@contextmanager
def _written(target: str) -> Iterator[BinaryIO]:
    """A file that becomes `target`, whole or not at all; an object store gets it in one put."""
    if not remote.is_url(target):
        path = Path(target)
        make_folder(path.parent)
        with atomic_file(path) as f:
            yield f
        return
    with tempfile.TemporaryFile() as temporary:
        yield temporary
        temporary.seek(0)
        remote.write_bytes(target, temporary.read())
