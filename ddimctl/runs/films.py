"""Films on this machine: every frame of an animation or a film → the latents of one file, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.errors import FileError, UsageError
from ddimctl.files import make_folder, refuse_special
from ddimctl.ode import Progress
from ddimctl.runs import work
from ddimctl.runs.local import Targets, differs, is_there, made, refuse_link, vouching
from ddimctl.runs.plan import DONE, FAILED, SKIPPED, Item, Outcome
from ddimctl.runs.work import Decoding, Encoding

if TYPE_CHECKING:
    from ddimctl.latent import Latent

FPS = 10.0  # of latents that were no film


def encode(
    items: Sequence[Item],
    targets: Targets,
    encoding: Encoding,
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    progress: Progress = iter,
) -> Iterator[Outcome]:
    """Encodes all frames of each item into one file, and yields what became of it.

    A film whose every frame is there already is skipped; `before` as in `local.encode`. Raises `DDIMError` where the system
    refuses to write.
    """
    for item in items:
        try:
            yield _encode(item, targets, encoding, batch_size=batch_size, before=before, progress=progress)
        except (FileError, UsageError) as e:
            yield Outcome(item, FAILED, failure=e)


def _encode(
    item: Item,
    targets: Targets,
    encoding: Encoding,
    *,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> Outcome:
    from ddimctl import latent, lossless
    from ddimctl.images import films

    target, model = targets.of(item.name), encoding.model
    if item.held is not None:
        raise UsageError(f"{item.source} is no film of its own", hint="--all-frames takes films that are files here")
    if item.source != "-":
        refuse_special(Path(item.source))
    film = films.read(item.source, model.channels, model.size, how=encoding.how)
    if not targets.single and os.path.lexists(target):
        refuse_link(target)
        if is_there(item, target, film.records, encoding=encoding, before=before):
            return Outcome(item, SKIPPED, (target,))
        if not targets.force:
            raise differs(target)
    if targets.dry_run:
        return Outcome(item, DONE, (target,))
    solution = work.encode(list(film.pixels), encoding, batch_size=batch_size, progress=progress)
    wrong = next((check for check in solution.checks or [] if check.wrong), None)
    if wrong is not None:
        return Outcome(item, FAILED, failure=lossless.complaint(item.source, wrong))
    make_folder(target.parent)
    latent.save(target, work.latent_of(solution, encoding, film.records))
    notes: dict[str, Any] = {"frames": len(film.pixels), "image": film.records[0]}
    notes |= vouching(target, film.records, encoding)
    if solution.residuals is not None:
        notes["converged"] = not solution.unconverged
    if solution.returned is not None:
        notes["comes_back"] = not solution.lost
    return Outcome(item, DONE, (target,), notes=notes, solution=solution)


def decode(
    item: Item, file: Latent, decoding: Decoding, *, target: Path, batch_size: int, progress: Progress = iter
) -> int:
    """Decodes all latents of a file into one film, each shown for as long as its frame was; how many there are.

    Raises `DDIMError` where the film cannot be made.
    """
    from ddimctl.images import animation, films, levels

    images = work.decode(
        file.xT, decoding, dithers=file.dithers, corrections=file.corrections, batch_size=batch_size, progress=progress
    )
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
