"""Many images → one latent file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import latent, lossless
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import make_folder
from ddimctl.recipe import of_image
from ddimctl.runs import work
from ddimctl.runs.local import differs, is_whole_and_same, notes, read
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.reading import Loaded, read_ahead
from ddimctl.runs.where import Job, Where, here
from ddimctl.runs.work import Encoding

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.ode import Solution

    _Loaded = Loaded[tuple[np.ndarray, dict[str, Any]]]


def encode(
    items: Sequence[Item],
    target: Path,
    encoding: Encoding,
    *,
    batch_size: int,
    force: bool = False,
    dry_run: bool = False,
    where: Where = here,
) -> Iterator[Outcome]:
    """Encodes all items into the one latent file `target`, in their order, and yields what became of each.

    While the run lasts, every batch is a file of its own in a hidden folder beside it, which is how a run that was killed
    goes on. Images that cannot be read are left out. A file that is there must be what this would make, unless `force`:
    else `UsageError`. Raises `DDIMError` where the system refuses to write.
    """
    held = _held(target, encoding) if os.path.lexists(target) and not force else None
    folder = target.with_name(f".{target.name}.parts")

    def jobs() -> Iterator[tuple[tuple[Path, list[_Loaded], str], Job[Solution] | None]]:
        for number, batch in enumerate(read_ahead(items, lambda item: read(item, encoding), batch_size)):
            good = [b for b in batch if b.value is not None]
            part = folder / f"{number:08}.safetensors"
            if held is not None:
                for b in good:
                    if held and of_image(_record(b)) == held[0]:
                        held.popleft()
                    elif encoding.lossless:
                        b.failure = DDIMError(f"{b.item.source} is not in {target}, as it was not lossless")
                    else:
                        raise differs(target)
                yield (part, batch, SKIPPED), None
            elif not good or dry_run:
                yield (part, batch, DONE), None
            elif is_whole_and_same(part, [_record(b) for b in good], encoding):
                yield (part, batch, SKIPPED), None
            else:
                yield (part, batch, DONE), partial(work.encode, [b.value[0] for b in good if b.value], encoding)

    parts: list[Path] = []
    for (part, batch, status), solution in where(jobs()):
        said: dict[int, dict[str, Any]] = {}
        good = [b for b in batch if b.value is not None]
        if solution is not None:
            said |= _save_part(part, good, solution, encoding=encoding)
        if not (held is not None or dry_run) and any(b.failure is None for b in good):
            parts.append(part)
        for b in batch:
            if b.failure is not None:
                yield Outcome(b.item, FAILED, failure=b.failure)
            else:
                yield Outcome(b.item, status, (target,), notes=said.get(id(b), {"image": _record(b)}))
    if held:
        raise differs(target)
    if parts:
        latent.merge(parts, target)
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()


def _held(target: Path, encoding: Encoding) -> deque[Mapping[str, Any]]:
    """What decides about each image in a file that is there, and was made by the same recipe."""
    try:
        found = latent.load(target)
    except FileError as e:
        raise UsageError(f"{target} exists already and is no latent file", hint="name another") from e
    if found.recipe != encoding.recipe:
        raise differs(target)
    return deque(of_image(record) for record in found.images)


def _save_part(
    part: Path, good: Sequence[_Loaded], solution: Solution, *, encoding: Encoding
) -> dict[int, dict[str, Any]]:
    """Writes a batch into a file of its own. An image that is not lossless fails and is left out.

    Returns what a manifest says of each that iterates, by its identity.
    """
    for b, check in zip(good, solution.checks or [], strict=False):
        if check.wrong:
            b.failure = lossless.complaint(b.item.source, check)
    rows = [i for i, b in enumerate(good) if b.failure is None]
    if rows:
        make_folder(part.parent)
        latent.save(part, work.latent_of(solution.select(rows), encoding, [_record(good[i]) for i in rows]))
    if solution.residuals is None:
        return {}
    return {id(good[i]): notes(_record(good[i]), solution.select([i])) for i in rows}


def _record(loaded: _Loaded) -> dict[str, Any]:
    return loaded.value[1] if loaded.value is not None else {}
