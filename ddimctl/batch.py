"""Many files at once: planned, read ahead, done in fixed batches, resumed, and written down in a manifest.

A run is a list of items in a fixed order, cut into batches by position. A batch is computed whole or not at all, even if
some of its outputs are there already: so the result of a run that was killed and started again is, byte for byte, that
of one that was not. An output is skipped only if it is whole and says of itself that it was made from the same source,
by the same model, in the same way. An item that cannot be read is counted and never stops a run; a disk that is full
does. Memory does not grow with the number of items, but for their names.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import atomic_file, clean, find, is_special, make_folder, refuse_special, sha256, write_bytes

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.ddim import Solution
    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.latent import Latent
    from ddimctl.model import Model

T = TypeVar("T")
U = TypeVar("U")

MANIFEST = "manifest.jsonl"
READERS = 4  # threads that read ahead
MAX_LINE = 1 << 20  # bytes of a manifest's line; a longer one is nobody's
DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Item:
    """A file to work on, and what its outputs are called: a relative name, without suffix."""

    source: str
    name: str


@dataclass(frozen=True)
class Outcome:
    """What became of an item: DONE, SKIPPED because its outputs were whole and the same, or FAILED and why."""

    item: Item
    status: str
    targets: tuple[Path, ...] = ()
    failure: DDIMError | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the manifest


# Plans


def gather(arguments: Sequence[str], suffixes: Collection[str]) -> list[Item]:
    """The items that files, folders and patterns stand for. What is in a folder keeps its place relative to it.

    A pattern matches no pipes and no devices. Raises `UsageError` where there is nothing, if one of those is named, and
    on an empty name, which would be the folder one is in.
    """
    items = []
    for argument in arguments:
        if not argument:
            raise UsageError("one of the names is empty", hint="is a variable of the shell not set?")
        place = _search(argument, suffixes)
        if place is None:
            if argument != "-":
                refuse_special(Path(argument))
            items.append(Item(argument, _name(PurePath(Path(argument).name))))
            continue
        start, found = place
        if not found:
            path = Path(argument)
            what = f"{path} holds nothing to work on" if path.is_dir() else f"nothing matches {argument}"
            raise UsageError(what, hint=f"looked for {' '.join(suffixes)}")
        items += [Item(str(p), _name(p.relative_to(start))) for p in found]
    return items


def left_out(arguments: Sequence[str], suffixes: Collection[str], like: Collection[str]) -> Counter[str]:
    """How many files of folders and patterns `gather` leaves out though they are `like` those it takes, by suffix."""
    others = {s for s in like if s not in suffixes}
    found = (_search(argument, others) for argument in arguments if argument)
    return Counter(p.suffix.lower() for place in found if place for p in place[1])


def _search(argument: str, suffixes: Collection[str]) -> tuple[Path, list[Path]] | None:
    """(where it starts, the files there) of a folder or a pattern; None for what is a file's name."""
    path = Path(argument)
    if path.is_dir():
        return path, find(path, suffixes)
    if not glob.has_magic(argument) or os.path.lexists(path):
        return None
    start = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    matches = (p for p in start.glob(str(PurePath(*path.parts[len(start.parts) :]))) if p.suffix.lower() in suffixes)
    return start, sorted(p for p in matches if not p.is_dir() and not is_special(p))


def listed(lines: Iterable[str]) -> list[Item]:
    """The items that a list names, a path a line. Outputs keep a relative path; others only their last part."""
    items = []
    for line in lines:
        source = line.rstrip("\r\n")
        if source:
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


# The manifest


class Manifest:
    """A JSON-lines file that grows: a line that describes the run, then one for each item.

    While a run lasts its lines go to a hidden journal beside it, `.NAME.journal`; `close` puts the two together, whole or
    not at all. What a killed run left there is taken over by the next, but for a line it did not finish. Nothing is ever
    opened or written because a manifest says so.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]):
        self.path, self.journal = path, journal_of(path)
        if path.is_symlink():
            raise DDIMError(f"cannot write {path}: it is a link")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.journal, flags, 0o666), "r+b")
            end = self._file.seek(0, os.SEEK_END)
            tail = min(end, MAX_LINE)
            self._file.seek(end - tail)
            self._file.truncate(end - tail + self._file.read(tail).rfind(b"\n") + 1)
        except OSError as e:
            raise DDIMError(f"cannot write {path}: {e.strerror or e}") from e
        self._append([{"run": run}])

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Appends what became of some items. Raises `DDIMError` where the system refuses."""
        lines = []
        for o in outcomes:
            line = {"name": o.item.name, "source": o.item.source, "status": o.status, **o.notes}
            if o.failure is not None:
                line["reason"] = str(o.failure)
            lines.append(line)
        self._append(lines)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(text.encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
        except OSError as e:
            raise DDIMError(f"cannot write {self.path}: {e.strerror or e}") from e

    def close(self) -> None:
        """Publishes the lines. Raises `DDIMError` where the system refuses; they are kept, then."""
        with self._file, atomic_file(self.path) as f:
            if self.path.exists():
                with self.path.open("rb") as before:
                    shutil.copyfileobj(before, f)
            self._file.seek(0)
            shutil.copyfileobj(self._file, f)
        self.journal.unlink(missing_ok=True)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The last line about each item, by name, also of a run that was killed; empty if there is no manifest.

    Raises `FileError` if it is none.
    """
    return {**_read_lines(path), **_read_lines(journal_of(path))}


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    try:
        with path.open("rb") as f:
            number = 0
            while line := f.readline(MAX_LINE):
                number += 1
                if not line.endswith(b"\n") and len(line) < MAX_LINE:
                    break  # what a killed run left
                entry = json.loads(line)
                if "run" not in entry:
                    name = PurePath(entry["name"])
                    if name.is_absolute() or ".." in name.parts:
                        raise ValueError("a name that leads out of the folder")
                    last[entry["name"]] = entry
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FileError(f"{path} is not a manifest (line {number}: {e})", hint="remove it") from e
    return last


# The run


@dataclass
class Loaded(Generic[T]):
    """An item with what was read of it, or why that failed."""

    item: Item
    value: T | None = None
    failure: DDIMError | None = None


def read_ahead(
    items: Iterable[Item], load: Callable[[Item], T], size: int, readers: int = READERS
) -> Iterator[list[Loaded[T]]]:
    """Batches of loaded items, in order, the next batch being read by threads meanwhile.

    A `FileError` or `UsageError` of `load` belongs to its item; anything else is raised.
    """

    def attempt(item: Item) -> Loaded[T]:
        try:
            if item.source != "-":
                refuse_special(Path(item.source))  # a thread that waits for a pipe could not be interrupted
            return Loaded(item, load(item))
        except (FileError, UsageError) as e:
            return Loaded(item, failure=e)

    pool = ThreadPoolExecutor(readers)
    ahead: deque[list[Future[Loaded[T]]]] = deque()
    try:
        for batch in batched(items, size):
            ahead.append([pool.submit(attempt, item) for item in batch])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batched(items: Iterable[U], size: int) -> Iterator[list[U]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


@dataclass(frozen=True)
class Encoding:
    """How images become latents. `about(solution, records)` is the provenance that goes into a file."""

    model: Model
    path: Sequence[float]
    solver: str
    tolerance: float | None
    how: Preprocessing
    about: Callable[[Solution, list[dict[str, Any]]], dict[str, Any]]
    lossless: bool = False  # checked, and tightened until every 8-bit value comes back
    tensors: bool = True  # whether the model computes on tensors; else on numpy arrays


def identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a provenance that decides what the latents are: two files with the same hold the same."""
    same = ("schedule", "solver", "spacing", "path", "tolerance", "dtype")
    image = ("sha256", "fit", "background", "frame", "value_range", "pixels")
    out: dict[str, Any] = {k: provenance.get(k) for k in same}
    made_by = provenance.get("model", {})
    out["model"], out["class"] = made_by.get("digest"), made_by.get("class")
    out["lossless"] = provenance.get("lossless") is not None
    out["images"] = [{k: record.get(k) for k in image} for record in provenance.get("images", [])]
    return json.loads(json.dumps(out))  # type: ignore[no-any-return]  # tuples become lists, as in a file


@dataclass
class _Image:
    """An image that was read, or whose latent is there already and which then is read only if its batch needs it."""

    target: Path
    ready: bool = False
    pixels: np.ndarray | None = None
    record: dict[str, Any] = field(default_factory=dict)


def encode(
    items: Sequence[Item],
    folder: Path,
    suffix: str,
    encoding: Encoding,
    batch_size: int,
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Encodes each item into `folder`/NAME`suffix`, and yields what became of it.

    With `force` an output that is there and not the same is overwritten; without, its item fails. `dry_run` writes
    nothing and encodes nothing. Raises `DDIMError` where the system refuses to write.
    """
    from ddimctl import ddim, latent, lossless
    from ddimctl.images import reading

    model, how = encoding.model, encoding.how

    def read(item: Item) -> tuple[np.ndarray, dict[str, Any]]:
        return reading.read(item.source, model.channels, model.size, how)

    def load(item: Item) -> _Image:
        image = _Image(folder / f"{item.name}{suffix}")
        if os.path.lexists(image.target):
            refuse_link(image.target)
            image.ready = is_whole_and_same(image.target, [source_record(item.source, encoding)], encoding)
            if not image.ready and not force:
                raise UsageError(
                    f"{image.target} exists already and is not what this would make",
                    hint="add --force to overwrite it",
                )
        if not image.ready:
            image.pixels, image.record = read(item)
        return image

    cleaned: set[Path] = set()
    for batch in read_ahead(items, load, batch_size):
        solution = None
        if not dry_run and any(b.value and not b.value.ready for b in batch):
            for b in batch:
                if b.value and b.value.pixels is None:
                    try:
                        b.value.pixels, b.value.record = read(b.item)
                    except (FileError, UsageError) as e:
                        b.value, b.failure = None, e
            solution = solve([b.value.pixels for b in batch if b.value and b.value.pixels is not None], encoding)
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
            if image.target.parent not in cleaned:
                make_folder(image.target.parent)
                clean(image.target.parent)
                cleaned.add(image.target.parent)
            try:
                latent.save(image.target, latent.Latent(ddim.as_stored(part.x), encoding.about(part, [image.record])))
            except FileError as e:  # not finite
                yield Outcome(b.item, FAILED, failure=e)
                continue
            yield Outcome(b.item, DONE, (image.target,), notes=notes(image.record, part))


def solve(pixels: Sequence[np.ndarray], encoding: Encoding) -> Solution:
    """x_T of some images, in one batch."""
    import numpy as np

    from ddimctl import ddim, lossless
    from ddimctl.images import levels

    convert: Callable[[np.ndarray], Any] = levels.to_tensor if encoding.tensors else levels.to_array
    x0 = convert(np.stack(pixels))
    if encoding.lossless:
        return lossless.encode(encoding.model, x0, encoding.path, encoding.tolerance, len(x0))
    return ddim.encode(encoding.model, x0, encoding.path, encoding.solver, encoding.tolerance, len(x0))


def nothing(encoding: Encoding) -> Solution:
    """The solution of no images, which says how they would be encoded."""
    from ddimctl import lossless
    from ddimctl.ddim import Solution, bind

    tolerance = bind(encoding.solver, encoding.tolerance)[1]
    if encoding.lossless and encoding.tolerance is None:
        tolerance = lossless.TOLERANCES[0]
    return Solution(None, [], tolerance=tolerance, checks=[] if encoding.lossless else None)


def notes(record: Mapping[str, Any], solution: Solution) -> dict[str, Any]:
    """What a manifest says of an encoded image."""
    out = {"image": dict(record), "evaluations": solution.evaluations[0]}
    if solution.residuals is not None:
        out |= {"residual": solution.residuals[0], "converged": not solution.unconverged}
    return out


def source_record(source: str, encoding: Encoding) -> dict[str, Any]:
    """What `reading.read` would record that decides about the result, without decoding the image."""
    from ddimctl.images import preprocessing, reading

    choices = preprocessing.choices(encoding.how)
    return {**choices, "sha256": reading.digest(source), "pixels": [*encoding.model.size, encoding.model.channels]}


def is_whole_and_same(target: Path, records: list[dict[str, Any]], encoding: Encoding) -> bool:
    """Whether `target` is a whole latent file of the same images, by the same model, made in the same way."""
    from ddimctl import latent

    try:
        found = latent.load(target).provenance
    except (FileError, UsageError):
        return False
    return identity(found) == identity(encoding.about(nothing(encoding), records))


def refuse_link(target: Path) -> None:
    """In a folder that is filled by name, a link could lead a writer anywhere, and a pipe stop it. Raises `UsageError`."""
    if target.is_symlink():
        raise UsageError(f"{target} is a link and is left alone", hint="remove it")
    if is_special(target):
        raise UsageError(f"{target} is a pipe or a device and is left alone", hint="remove it")


def pack(
    items: Sequence[Item],
    target: Path,
    encoding: Encoding,
    batch_size: int,
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Encodes all items into the one latent file `target`, in their order, and yields what became of each.

    While the run lasts, every batch is a file of its own in a hidden folder beside `target`, which is how a run that was
    killed goes on. Images that cannot be read are left out. A `target` that is there must be what this would make,
    unless `force`: else `UsageError`. Raises `DDIMError` where the system refuses to write.
    """
    from ddimctl import ddim, latent, lossless
    from ddimctl.images import reading

    model = encoding.model
    differs = UsageError(f"{target} exists already and is not what this would make", hint="add --force to overwrite it")
    held: deque[Any] | None = None
    if os.path.lexists(target) and not force:
        try:
            found = identity(latent.load(target).provenance)
        except FileError as e:
            raise UsageError(f"{target} exists already and is no latent file", hint="name another, or --force") from e
        held = deque(found["images"])
        if {**found, "images": []} != identity(encoding.about(nothing(encoding), [])):
            raise differs

    def read(item: Item) -> tuple[np.ndarray, dict[str, Any]]:
        return reading.read(item.source, model.channels, model.size, encoding.how)

    folder = target.with_name(f".{target.name}.parts")
    parts: list[Path] = []
    for number, batch in enumerate(read_ahead(items, read, batch_size)):
        good = [b for b in batch if b.value is not None]
        status = DONE
        if held is not None:
            status = SKIPPED
            for b in good:
                if held and identity({"images": [_record(b)]})["images"][0] == held[0]:
                    held.popleft()
                elif encoding.lossless:
                    b.failure = DDIMError(f"{b.item.source} is not in {target}, as it was not lossless")
                else:
                    raise differs
        elif good and not dry_run:
            part = folder / f"{number:08}.safetensors"
            if is_whole_and_same(part, [_record(b) for b in good], encoding):
                status = SKIPPED
            else:
                solution = solve([b.value[0] for b in good if b.value is not None], encoding)
                for b, check in zip(good, solution.checks or [], strict=False):
                    if check.wrong:
                        b.failure = lossless.complaint(b.item.source, check)
                rows = [i for i, b in enumerate(good) if b.failure is None]
                if rows:
                    kept, records = solution.select(rows), [_record(good[i]) for i in rows]
                    make_folder(folder)
                    latent.save(part, latent.Latent(ddim.as_stored(kept.x), encoding.about(kept, records)))
            if any(b.failure is None for b in good):
                parts.append(part)
        for b in batch:
            if b.failure is not None:
                yield Outcome(b.item, FAILED, failure=b.failure)
            else:
                yield Outcome(b.item, status, (target,), notes={"image": _record(b)})
    if held:
        raise differs
    if parts:
        latent.merge(parts, target)
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()


def _record(loaded: Loaded[tuple[np.ndarray, dict[str, Any]]]) -> dict[str, Any]:
    return loaded.value[1] if loaded.value is not None else {}


@dataclass
class _Latent:
    """A latent file that was read, and the images it becomes."""

    file: Latent
    model: Model
    path: tuple[float, ...]
    solver: str
    targets: list[Path]
    key: str
    ready: bool


def decode(
    items: Sequence[Item],
    folder: Path,
    suffix: str,
    way: Callable[[Latent, str], tuple[Model, Sequence[float], str]],
    tolerance: float | None,
    batch_size: int,
    before: Mapping[str, Mapping[str, Any]],
    force: bool = False,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Decodes each latent file into `folder`/NAME`suffix`, or NAME-0…, NAME-1… if it holds several.

    `way(latent, name)` gives model, levels and solver, or raises `FileError`. `before` is what `read_manifest` says of
    earlier runs: outputs that it vouches for, and that are still the same, are skipped. Any other output that is there
    is compared with what is decoded; if it differs, its item fails unless `force`. So does one of values not finite.
    """
    from ddimctl import ddim, latent
    from ddimctl.images import levels, writing

    names = {item.name for item in items}

    def load(item: Item) -> _Latent:
        file = latent.load(Path(item.source))
        model, path, solver = way(file, item.source)
        n = len(file.xT)
        stems = [item.name] if n == 1 else [f"{item.name}-{i:0{len(str(n - 1))}}" for i in range(n)]
        if n > 1 and not names.isdisjoint(stems):
            raise UsageError(f"{item.source} and another file would write the same image", hint="rename one")
        targets = [folder / f"{stem}{suffix}" for stem in stems]
        for target in targets:
            refuse_link(target)
        made = [file.provenance, model.digest, path, solver, tolerance, suffix, model.dtype]
        key = sha256((latent.digest(file.xT, "") + json.dumps(made, sort_keys=True)).encode())
        entry = before.get(item.name, {})
        ready = entry.get("key") == key and entry.get("sha256") == [_digest(t) for t in targets]
        return _Latent(file, model, tuple(path), solver, targets, key, ready)

    def write(target: Path, data: bytes) -> str:
        digest = sha256(data)
        if _digest(target) == digest:
            return digest
        if os.path.lexists(target) and not force:
            raise UsageError(
                f"{target} exists already and is not what this would make", hint="add --force to overwrite it"
            )
        make_folder(target.parent)
        write_bytes(target, data)
        return digest

    def run(group: list[tuple[Item, _Latent]]) -> Iterator[Outcome]:
        """Decodes files that are decoded alike, together: several of one image each, or one of many."""
        import torch

        if dry_run or all(v.ready for _, v in group):
            for item, v in group:
                yield Outcome(item, SKIPPED if v.ready else DONE, tuple(v.targets), notes=_decoded(v, before, item))
            return
        v = group[0][1]
        digests: list[str] = []
        failures: dict[int, DDIMError] = {}
        targets = [t for _, v in group for t in v.targets]
        for part in torch.cat([v.file.xT for _, v in group]).split(batch_size):
            for x0 in ddim.decode(v.model, part, v.path, v.solver, tolerance, len(part)).x:
                try:
                    levels.check_finite(x0, v.model.name)
                    data = writing.to_bytes(levels.to_pixels(x0), suffix)
                except DDIMError as e:  # not a disk that is full, which stops the run
                    failures[len(digests)] = e
                    digests.append("")
                    continue
                try:
                    digests.append(write(targets[len(digests)], data))
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
            made = {"key": v.key, "sha256": [digests[i] for i in mine]}
            yield Outcome(item, SKIPPED if v.ready else DONE, tuple(v.targets), notes=made)

    for batch in read_ahead(items, load, batch_size):
        groups: dict[Any, list[tuple[Item, _Latent]]] = {}
        for b in batch:
            if b.value is None:
                yield Outcome(b.item, FAILED, failure=b.failure)
            elif len(b.value.targets) > 1:
                groups[b.item.name] = [(b.item, b.value)]
            else:
                groups.setdefault((b.value.path, b.value.solver), []).append((b.item, b.value))
        for group in groups.values():
            yield from run(group)


def _decoded(value: _Latent, before: Mapping[str, Mapping[str, Any]], item: Item) -> dict[str, Any]:
    """What the next manifest says of outputs that were skipped: what the last one did."""
    return {"key": value.key, "sha256": before[item.name]["sha256"]} if value.ready else {}


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's content; None if it cannot be read."""
    try:
        return sha256(path.read_bytes())
    except OSError:
        return None
