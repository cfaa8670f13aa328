"""A run over many files as a command shows it: a bar, a line for each failure, the manifest, a count at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli import options
from ddimctl.cli.console import Console
from ddimctl.cli.inputs import tell_of
from ddimctl.errors import DDIMError, SomeFailed, UsageError

if TYPE_CHECKING:
    from ddimctl.arrays import Array
    from ddimctl.ode import Solution
    from ddimctl.runs.plan import Item, Outcome
    from ddimctl.runs.reading import Loaded
    from ddimctl.runs.where import Where
    from ddimctl.runs.work import Encoding

FLUSH = 16  # outcomes between two writes to the manifest
SHOWN = 20  # failures that get a line of their own on stderr
MAX_LIST = 1 << 30  # bytes of a list of files


def items_of(
    arguments: Sequence[str],
    files: options.Listed,
    suffixes: Iterable[str],
    *,
    writes: bool = True,
    console: Console | None = None,
) -> list[Item]:
    """What a command is to work on: its arguments, and the lines of a list; the part of them that `files` asks for.

    `console` is told of files that share a name, where the command writes. Raises `UsageError` if there is
    nothing to work on, or if two of them would be written to the same name even so.
    """
    from ddimctl.files import read_bytes, read_stdin
    from ddimctl.runs import plan

    items = plan.gather(arguments, tuple(suffixes))
    from_file, null = files.from_file, files.null
    if from_file is not None:
        data = read_stdin(MAX_LIST) if from_file == "-" else read_bytes(Path(from_file), MAX_LIST)
        if b"\0" in data and not null:
            raise UsageError(f"the list {from_file} separates its names with NUL", hint="add -0")
        listed = data.split(b"\0") if null else (line.rstrip(b"\r") for line in data.split(b"\n"))
        items += plan.listed(name.decode("utf-8", "surrogateescape") for name in listed)
    elif null:
        raise UsageError("-0 says how a list ends its names", hint="name the list with --from-file")
    if not items:
        raise UsageError("nothing to work on", hint="name files or folders, or a list with --from-file")
    if len(items) > 1 and any(item.source == "-" for item in items):
        raise UsageError("standard input is one file", hint="name it alone, or a list of files with --from-file -")
    if writes:
        items, shared = plan.name_apart(items)
        if shared and console is not None:
            names = ", ".join(item.name for item in shared[:4]) + (", …" if len(shared) > 4 else "")
            console.notice(f"{len(shared)} files share a name: the suffix becomes a part of it in the output ({names})")
    shard = shard_of(files)
    return plan.shard(items, shard) if shard else items


def tell_left_out(arguments: Sequence[str], console: Console) -> None:
    """Says how many image files of folders and patterns are of kinds that are not read."""
    from ddimctl.images import plugins
    from ddimctl.images.formats import LIKE
    from ddimctl.runs import plan

    say_left_out(plan.left_out(arguments, plugins.readable(), LIKE), console)


def say_left_out(found: Mapping[str, int], console: Console) -> None:
    from ddimctl.images import plugins

    if found:
        console.notice(plugins.left_out(found))
        if hint := plugins.extras({*found}):
            console.notice(f"hint: {hint}")


def say_failures(failures: Sequence[DDIMError], total: int, console: Console) -> None:
    """Says which images of a data set could not be used, and why."""
    told: set[str] = set()
    for failure in failures[:SHOWN]:
        for line in _failed(failure, told):
            console.notice(line)
    if len(failures) > SHOWN:
        console.notice(f"… and {len(failures) - SHOWN} more failed")
    if failures:
        console.notice(f"{len(failures)} of {total} images cannot be used and are left out")


def shard_of(files: options.Listed) -> str | None:
    return files.shard if isinstance(files, options.Batch) else None


def is_single(arguments: Sequence[str], items: Sequence[Item], files: options.Listed) -> bool:
    """Whether the command line names one file, rather than something that happens to hold one."""
    one = len(arguments) == len(items) == 1 and files.from_file is None and shard_of(files) is None
    return one and arguments[0] == items[0].source


def stacked(
    group: Sequence[Loaded[Any]], single: bool, console: Console, *, tell: bool, convert: Callable[[Any], Any]
) -> Any:
    """The images of a batch that could be read, (N, C, H, W); the others are told of, or raised if there is but one.

    `convert` is `levels.to_tensor`, or `levels.to_array`.
    """
    import numpy as np

    good, records = [], []
    told: set[str] = set()
    for loaded in group:
        if loaded.value is None:
            if single and loaded.failure is not None:
                raise loaded.failure
            for line in _failed(loaded.failure, told):
                console.notice(line)
            continue
        pixels, record = loaded.value
        good.append(pixels)
        records.append(record)
    if tell or console.verbose:
        tell_of(records, console)
    return convert(np.stack(good)) if good else []


def manifest_path(folder: Path, shard: str | None) -> Path:
    """Where the manifest of a run into `folder` is: in it, or here where that is by URL."""
    from ddimctl import remote
    from ddimctl.runs.manifest import MANIFEST

    path = (folder if remote.url_of(folder) is None else Path()) / MANIFEST
    return path.with_stem(f"{path.stem}-{shard.replace('/', '-of-')}") if shard else path


def sharded(
    items: Sequence[Item], encoding: Encoding, files: options.Batch, *, per: int | None, size: int
) -> tuple[Path, Callable[[Where], Iterator[Outcome]]]:
    """Many images → shards, as -o names them: the manifest, and the work."""
    from itertools import takewhile

    from ddimctl import remote
    from ddimctl.runs import shards

    output = files.output or Path()
    url = remote.url_of(output)
    i, _, n = (files.shard or "1/1").partition("/")
    to = shards.Shards(url or str(output), per or max(len(items), 1), files.force, files.dry_run, int(i) - 1, int(n))
    folder = Path() if url else Path(*takewhile(lambda part: "{" not in part, output.parent.parts))
    manifest = manifest_path(folder, files.shard)
    if per is None and not url:
        manifest = manifest.with_name(f"{output.name}.{manifest.name}")
    return manifest, lambda where: shards.encode(items, to, encoding, batch_size=size, where=where)


@dataclass
class Tally:
    """What became of the items so far, and what is to be said of it at the end."""

    total: int
    files: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    adjusted: int = 0
    unconverged: int = 0
    lost: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    def add(self, outcome: Outcome, say: Callable[[str], None], *, verbose: bool) -> None:
        """Counts an outcome, and says what is wrong with it or, if `verbose`, what was done to the image."""
        from ddimctl.images.preprocessing import describe
        from ddimctl.runs import plan

        self.files += 1
        images = len(outcome.targets)  # where a file holds several
        self.done += images * (outcome.status == plan.DONE)
        self.skipped += images * (outcome.status == plan.SKIPPED)
        if outcome.status == plan.FAILED:
            self.failed += 1
            self.failures.append({"source": outcome.item.source, "reason": str(outcome.failure)})
            del self.failures[100:]
            if self.failed <= SHOWN:
                for line in _failed(outcome.failure, self.told):
                    say(line)
        if said := describe(outcome.notes["image"]) if outcome.notes.get("image") else "":
            self.adjusted += 1
            if verbose:
                say(said)
        self.unconverged += outcome.notes.get("converged") is False
        self.lost += outcome.notes.get("comes_back") is False

    def so_far(self) -> str:
        return f"{self.files}/{self.total}" + (f"  {self.failed} failed" if self.failed else "")

    def close(self, verb: str, manifest: Path, console: Console, *, dry_run: bool) -> None:
        """The notices at the end."""
        if self.failed > SHOWN:
            console.notice(f"… and {self.failed - SHOWN} more failed")
        if self.adjusted:
            console.notice(
                f"{self.adjusted} images were changed to fit the model; -v says how, and so does {manifest.name}"
            )
        if self.unconverged:
            console.notice(f"warning: {self.unconverged} did not converge; {manifest} says which")
        if self.lost:
            console.notice(f"warning: {self.lost} do not come back when they are decoded; {manifest} says which")
        would = "would be " if dry_run else ""
        console.notice(f"{would}{verb}: {self.done}, there already: {self.skipped}, failed: {self.failed}")


@contextmanager
def written(manifest: Path, about: dict[str, Any], *, dry_run: bool) -> Iterator[Callable[[Outcome], None]]:
    """Yields what writes an outcome into the manifest, some at a time; those before an error are written, too."""
    from ddimctl.files import make_folder
    from ddimctl.runs import plan
    from ddimctl.runs.manifest import Manifest

    if dry_run:
        yield lambda outcome: None
        return
    make_folder(manifest.parent)
    log = Manifest(manifest, about)
    pending: list[Outcome] = []

    def write(outcome: Outcome) -> None:
        if outcome.status != plan.SKIPPED:
            pending.append(outcome)
            if len(pending) >= FLUSH:
                log.add(pending)
                pending.clear()

    try:
        yield write
    except BaseException:
        with suppress(DDIMError):  # the first error is the one to tell
            log.add(pending)
            log.close()
        raise
    log.add(pending)
    log.close()


def run(
    work: Callable[[Where], Iterator[Outcome]],
    total: int,
    steps: int,
    *,
    manifest: Path,
    about: dict[str, Any],
    verb: str,
    console: Console,
    dry_run: bool,
) -> None:
    """Works through the outcomes of `work`, which takes about `steps` an item. Raises `SomeFailed` if some failed."""
    from ddimctl.runs import outputs, plan
    from ddimctl.runs.where import here

    tally = Tally(total)
    with (
        written(manifest, about, dry_run=dry_run) as write,
        console.meter(total * steps, verb, tally.so_far) as meter,
        console.watched(),
    ):

        def watched(states: Iterable[Array]) -> Iterator[Array]:
            for state in states:
                yield state
                meter.partly(len(state))

        for outcome in work(partial(here, progress=watched)):
            tally.add(outcome, meter.say, verbose=console.verbose)
            if dry_run and not console.json:
                print(_plan(outcome, verb))
            elif not console.json:
                for target in outcome.targets:
                    print(outputs.shown(target))
            meter.add(steps, free=outcome.status != plan.DONE)
            write(outcome)
    tally.close(verb, manifest, console, dry_run=dry_run)
    if console.json:
        counts = {"total": total, verb: tally.done, "skipped": tally.skipped, "failed": tally.failed}
        record = {**about, **counts, "failures": tally.failures, "manifest": None if dry_run else str(manifest)}
        console.data("", record)
    if tally.failed:
        raise SomeFailed(f"{tally.failed} of {total} failed", hint="" if dry_run else f"{manifest} says why")


def _failed(failure: DDIMError | None, told: set[str]) -> Iterator[str]:
    """The lines that tell of a failure: what is wrong, and what to do about it unless that was `told`."""
    yield f"failed: {failure}"
    if failure is not None and failure.hint and failure.hint not in told:
        told.add(failure.hint)
        yield f"hint: {failure.hint}"


def _plan(outcome: Outcome, verb: str) -> str:
    """What would be done with an item."""
    from ddimctl.runs import outputs

    if outcome.failure is not None:
        return f"fail\t{outcome.item.source}\t{' '.join(str(outcome.failure).split())}"
    does = {"done": verb.removesuffix("d"), "skipped": "skip"}[outcome.status]
    return "\n".join(f"{does}\t{outcome.item.source}\t{outputs.shown(target)}" for target in outcome.targets)


def tell_of_failures(source: str, solution: Solution, console: Console) -> None:
    """What did not converge, where and why; and whether states come back where that was looked at."""
    from ddimctl.keeping import PRECISIONS

    if solution.unconverged and solution.residuals:
        residual = max(solution.residuals)
        failure = next((f for f in solution.failures or [] if f is not None), None)
        why = "" if failure is None else f"; {failure}"
        console.notice(f"warning: {source} did not converge: residual {residual:.1e} > {solution.tolerance:.1e}{why}")
    if solution.returned is None:
        return
    worst = max(solution.returned)
    if solution.corrections is not None:
        steps, precision = solution.corrections.shape[1] - 1, str(solution.corrections.dtype).removeprefix("torch.")
        size = math.prod(solution.corrections.shape) * PRECISIONS[precision] / 1e6
        console.notice(f"kept: {steps} steps of {source}, {precision}, {size:.2g} MB; it returns within {worst:.1e}")
        return
    if not solution.lost:
        console.notice(f"checked: {source} comes back within {worst:.1e} of itself, before any autoencoder")
        return
    magnified = "" if solution.unconverged else ", though every step was solved: decoding magnifies what is left"
    console.notice(f"warning: {source} does not come back: decoded it is {worst:.1e} off, relative{magnified}")
    console.notice(f"hint: {KEEPS}")


KEEPS = "more --steps, less --guidance, or --keep-path, which always returns"
