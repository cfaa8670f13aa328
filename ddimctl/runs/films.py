"""Films: every frame of an animation or a film → the latents of one file, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.errors import FileError, UsageError
from ddimctl.files import refuse_special
from ddimctl.runs import outputs, work
from ddimctl.runs.local import Targets, differs, is_there, refuse_link, vouching
from ddimctl.runs.pictures import made
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.where import Job, Where, here
from ddimctl.runs.work import Decoding, Encoding

if TYPE_CHECKING:
    from ddimctl.images.films import Film
    from ddimctl.latent import Latent
    from ddimctl.ode import Solution

FPS = 10.0  # of latents that were no film


def encode(
    items: Sequence[Item],
    targets: Targets,
    encoding: Encoding,
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    where: Where = here,
) -> Iterator[Outcome]:
    """Encodes all frames of each item into one file, and yields what became of it.

    A film whose every frame is there already is skipped; `before` as in `local.encode`. Raises `DDIMError` where the system
    refuses to write.
    """

    def jobs() -> Iterator[tuple[Outcome | tuple[Item, Film], Job[Solution] | None]]:
        for item in items:
            try:
                found = _read(item, targets, encoding, before=before)
            except (FileError, UsageError) as e:
                found = Outcome(item, FAILED, failure=e)
            if isinstance(found, Outcome):
                yield found, None
            else:
                yield (item, found), partial(work.encode, list(found.pixels), encoding, batch_size=batch_size)

    for found, solution in where(jobs()):
        if isinstance(found, Outcome) or solution is None:
            if isinstance(found, Outcome):
                yield found
            continue
        item, film = found
        try:
            yield _save(item, film, solution, targets=targets, encoding=encoding)
        except (FileError, UsageError) as e:
            yield Outcome(item, FAILED, failure=e)


def _read(
    item: Item, targets: Targets, encoding: Encoding, *, before: Mapping[str, Mapping[str, Any]]
) -> Outcome | Film:
    """The film, or what became of it where there is nothing to be done."""
    from ddimctl.images import films

    target, model = targets.of(item.name), encoding.model
    if item.held is not None:
        raise UsageError(f"{item.source} is no film of its own", hint="--all-frames takes films that are files here")
    if item.source != "-":
        refuse_special(Path(item.source))
    film = films.read(item.source, model.channels, model.size, how=encoding.how)
    if not targets.single and outputs.there(target):
        refuse_link(target)
        if is_there(item, target, film.records, encoding=encoding, before=before):
            return Outcome(item, SKIPPED, (target,))
        if not targets.force:
            raise differs(target)
    if targets.dry_run:
        return Outcome(item, DONE, (target,))
    return film


def _save(item: Item, film: Film, solution: Solution, *, targets: Targets, encoding: Encoding) -> Outcome:
    """Writes the latents of a film."""
    from ddimctl import lossless

    target = targets.of(item.name)
    wrong = next((check for check in solution.checks or [] if check.wrong), None)
    if wrong is not None:
        return Outcome(item, FAILED, failure=lossless.complaint(item.source, wrong))
    outputs.make_folder(target.parent)
    outputs.save(target, work.latent_of(solution, encoding, film.records))
    notes: dict[str, Any] = {"frames": len(film.pixels), "image": film.records[0]}
    notes |= vouching(target, film.records, encoding)
    if solution.residuals is not None:
        notes["converged"] = not solution.unconverged
    if solution.returned is not None:
        notes["comes_back"] = not solution.lost
    return Outcome(item, DONE, (target,), notes=notes, solution=solution)


def decode(item: Item, file: Latent, decoding: Decoding, *, target: Path, batch_size: int, where: Where = here) -> int:
    """Decodes all latents of a file into one film, each shown for as long as its frame was; how many there are.

    Raises `DDIMError` where the film cannot be made.
    """
    from ddimctl.images import animation, films, levels

    job: Job[Any] = partial(
        work.decode, file.xT, decoding, dithers=file.dithers, corrections=file.corrections, batch_size=batch_size
    )
    images: Any = next(found for _, found in where([(None, job)]))
    levels.check_finite(images, decoding.model.name)
    origin = made(item, file, decoding)[0]
    origin = {k: v for k, v in origin.items() if k != "latent"} | {"frames": len(file.xT)}
    times = films.times_of(file.images)
    animation.save_frames(target, levels.to_pixels(images), FPS, times=times, made=origin)
    return len(file.xT)


def slowed(target: Path, file: Latent) -> str:
    """What to tell of a film whose frames were shown for less time than `target`'s format can; empty if there is nothing."""
    from ddimctl.images import animation, films

    times = films.times_of(file.images)
    return animation.slowed(target, 1000 / min(times)) if times else ""


def check_size(target: Path, n: int, size: tuple[int, int]) -> None:
    """Raises `UsageError` if `target` cannot hold a film of `n` frames of that size, before any work."""
    from ddimctl.images import animation, formats

    animation.check_frames(target, n, size)
    formats.check_memory(n, size, 3)
