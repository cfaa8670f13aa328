"""The models that `reconstruct` measures, side by side where there are several: each with the images as it takes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli import batches, inputs, options, prompts
from ddimctl.cli.console import Console
from ddimctl.errors import DDIMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ddimctl.cli.sized import Captioned
    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.roundtrip import RoundTrip
    from ddimctl.runs.plan import Item
    from ddimctl.runs.where import Where

TOLD = 20  # of more images than that, what was done to each is not told without -v


@dataclass(frozen=True)
class Reading:
    """How images are read, for every model."""

    preprocessing: Preprocessing
    size: int  # of a batch
    keep: int  # images to keep, for the sheet and the page
    single: bool  # whether one file is named


@dataclass
class Subject:
    """A model, what it is measured on, and what came of it."""

    model: Model
    label: str = ""  # what it is called beside others
    quick: bool = False  # without torch
    ways: list[Way] = field(default_factory=list)
    parts: list[tuple[Condition, list[Item]]] = field(default_factory=list)  # what is encoded under what
    trips: list[RoundTrip] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of all images that could be read
    under: list[Condition] = field(default_factory=list)  # what each of them was encoded under
    failed: list[Item] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)  # the first few, as the model takes them

    @property
    def items(self) -> list[Item]:
        return [item for _, part in self.parts for item in part]

    @property
    def count(self) -> int:
        """Of the images that could be read."""
        return len(self.names)

    def steps(self, reports: Sequence[str], size: int) -> int:
        """How many steps `measure` takes, in batches of that `size`."""
        from ddimctl import roundtrip

        return roundtrip.steps(self.ways, reports) * sum(-(-len(part) // size) for _, part in self.parts)

    def measure(self, how: Reading, reports: Sequence[str], *, console: Console, where: Where) -> None:
        """Fills in `trips`, and what is known of the images then."""
        from ddimctl.runs import roundtrips

        read = self._batches(how, console)
        trips = roundtrips.measure_each(self.model, read, self.ways, reports=reports, keep=how.keep, where=where)
        self.trips = [replace(trip, of=self.label) for trip in trips]

    def _batches(self, how: Reading, console: Console) -> Iterator[tuple[Any, Condition]]:
        """(B, C, H, W) in [−1, 1] and what they are encoded under; what cannot be read is told of, and left out."""
        from ddimctl.images import levels, reading
        from ddimctl.runs.reading import read_ahead

        net, tell = self.model, len(self.items) <= TOLD
        convert = levels.to_array if self.quick else levels.to_tensor
        for condition, items in self.parts:
            for loaded in read_ahead(
                items, lambda item: reading.read(item.opens, net.channels, net.size, how=how.preprocessing), how.size
            ):
                x0: Any = batches.stacked(loaded, how.single, console, tell=tell, convert=convert)
                self.failed += [b.item for b in loaded if b.failure is not None]
                self.names += [Path(b.item.source).name for b in loaded if b.failure is None]
                self.under += [condition] * len(x0)
                self.shown += list(x0[: max(0, how.keep - len(self.shown))])
                if len(x0):
                    yield x0, condition


def opened(what: Captioned, machine: options.Machine, console: Console, *, quick: bool) -> list[Subject]:
    """The models that -m names; without torch where that is possible and `quick`.

    Raises `UsageError` where two of them are one.
    """
    names = references(what.model)
    found: list[Subject] = []
    for name in names:
        asked = replace(what, model=name)
        try:
            recalled = inputs.recall(asked, machine, console) if quick else None
            found.append(Subject(recalled or inputs.open_model(asked, machine, console), quick=recalled is not None))
        except DDIMError as e:
            raise (type(e)(f"{name}: {e}", hint=e.hint) if len(names) > 1 and name not in str(e) else e) from None
    if len(found) > 1:
        same = Counter((s.model.digest, s.model.schedule.digest, s.model.autoencoder.digest) for s in found)
        if max(same.values()) > 1:
            raise UsageError(f"-m {what.model} names the same model twice", hint="name others to compare")
        called = Counter(s.model.name for s in found)
        for subject, name in zip(found, names, strict=True):
            subject.label = subject.model.name if called[subject.model.name] == 1 else name
    return found


def references(text: str) -> list[str]:
    """What -m names: one model, or several with commas between; a file whose name has commas is one."""
    return [text] if Path(text).exists() else options.parse_list(text) if "," in text else [text]


def held_out(subjects: Sequence[Subject]) -> Path:
    """The images that came with the models. Raises `UsageError` where they came with others, which cannot be compared."""
    folders = [inputs.held_out_folder(s.model) for s in subjects]
    if len({contents(folder) for folder in folders}) > 1:
        raise UsageError("the models came with other held-out images each", hint="name the images to compare them on")
    return folders[0]


def contents(folder: Path) -> tuple[str | None, ...]:
    """The digests of a folder's images."""
    from ddimctl.files import digest, find
    from ddimctl.images import formats

    return tuple(digest(file) for file in find(folder, formats.SUFFIXES))


def share(
    subjects: Sequence[Subject],
    items: Sequence[Item],
    under: Mapping[str, Condition],
    *,
    condition: Condition,
    console: Console,
) -> None:
    """Gives each model the images, those under one condition together; `condition` is that of those not named in `under`.

    Raises `UsageError` where a model cannot be asked for that.
    """
    if len(subjects) > 1 and any(item.source == "-" for item in items):
        raise UsageError("standard input is read once, and several models are compared", hint="name a file")
    groups: dict[Condition, list[Item]] = {}
    for item in items:
        groups.setdefault(under.get(item.source, condition), []).append(item)
    for subject in subjects:
        subject.parts = list(groups.items())
        if under:
            prompts.check_heard(subject.model, groups, console)


def measure(
    subjects: Sequence[Subject],
    how: Reading,
    reports: Sequence[str],
    *,
    console: Console,
    elsewhere: Where | None = None,
) -> None:
    """Measures each. What one could not read the next are not asked for, and what is done to images is said once a size."""
    from ddimctl import roundtrip
    from ddimctl.runs.where import counted, here

    said: set[tuple[int, ...]] = set()
    total = sum(s.steps(reports, how.size) for s in subjects)
    with console.meter(total, "reconstructing") as meter, console.watched():
        bad: list[Item] = []
        for s in subjects:
            s.parts = [(c, [i for i in part if i not in bad]) for c, part in s.parts]
            again, several = s.model.image_shape in said, len({o.model.image_shape for o in subjects}) > 1
            if several and not again:
                console.notice(f"{s.label} takes images of {shape_of(s.model)}")
            where: Where = partial(here, progress=meter.over)
            if elsewhere is not None:
                where = counted(elsewhere, partial(meter.add, roundtrip.steps(s.ways, reports)))
            s.measure(how, reports, console=replace(console, quiet=console.quiet or again), where=where)
            bad += s.failed
            said.add(s.model.image_shape)


def shape_of(model: Model) -> str:
    """The images that a model takes, in words."""
    height, width = model.size
    return f"{width} × {height}, {'grey' if model.channels == 1 else 'colour'}"


def alike(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Those whose images are of one shape together: they share their originals."""
    groups: dict[tuple[int, ...], list[Subject]] = {}
    for s in subjects:
        groups.setdefault(s.model.image_shape, []).append(s)
    return list(groups.values())
