"""The images of a run of samples: each draw by each number of steps; kept for a sheet, or written into a folder.

A folder is resumed: its manifest vouches for pictures, and has the figures that a table is made of.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli import batches
from ddimctl.cli.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ddimctl.model import Condition, Model
    from ddimctl.ode import Progress, Solution
    from ddimctl.runs.local import Targets
    from ddimctl.runs.plan import Outcome
    from ddimctl.runs.samples import Draw, Picture
    from ddimctl.sampling import Noising


@dataclass
class Row:
    """What one number of steps came to."""

    how: Noising
    each: dict[Draw, dict[str, Any]] = field(
        default_factory=dict
    )  # evaluations, residual, converged, mse to the longest
    pixels: list[Any] = field(default_factory=list)  # for the sheet, an entry a batch

    @property
    def steps(self) -> int:
        return self.how.way.steps

    def add(self, draws: Sequence[Draw], solution: Solution) -> None:
        for i, draw in enumerate(draws):
            entry: dict[str, Any] = {"evaluations": solution.evaluations[i]}
            if solution.residuals is not None:
                entry |= {"residual": solution.residuals[i], "converged": i not in solution.unconverged}
            self.each[draw] = entry

    @property
    def unconverged(self) -> int:
        return sum(entry.get("converged") is False for entry in self.each.values())

    @property
    def record(self) -> dict[str, Any]:
        entries = list(self.each.values())
        n, errors = len(entries), [entry["mse"] for entry in entries]
        return {
            "steps": self.steps,
            "evaluations": sum(entry["evaluations"] for entry in entries) / n,
            "mse": sum(errors) / n,
            "rms": sum(map(math.sqrt, errors)) / n,
            "unconverged": self.unconverged,
            "residuals": [entry["residual"] for entry in entries if "residual" in entry] or None,
        }


@dataclass(frozen=True)
class Batch:
    """The images of a run: each draw by each number of steps."""

    model: Model
    rows: Sequence[Row]
    condition: Condition
    draws: Sequence[Draw]
    size: int
    console: Console

    @property
    def longest(self) -> Row:
        return max(self.rows, key=lambda row: row.steps)

    def made(self, row: Row, more: dict[str, Any]) -> dict[str, Any]:
        """How a sample was made, as it says of itself."""
        from ddimctl import origin

        noisy = {"eta": row.how.eta, "sigma_hat": row.how.sigma_hat} if row.how.is_random else {}
        return origin.of("sample", self.model, row.how.way, self.condition, more={**more, **noisy})

    def make(self, folder: Folder | None) -> int:
        """Samples what is to do, and writes it into `folder`, or keeps its pixels; how many pictures were there already."""
        left, steps = list(self.draws), sum(row.steps for row in self.rows)
        if folder is not None:
            left = [draw for draw in left if not folder.has(draw, [row.steps for row in self.rows])]
            for row in self.rows:
                row.each = {draw: folder.entry(row, draw) for draw in self.draws}
        with (
            folder.written() if folder is not None and left else nullcontext(_nothing) as write,
            self.console.bar(steps * -(-len(left) // self.size), "sampling") as bar,
        ):
            for start in range(0, len(left), self.size):
                part = left[start : start + self.size]
                self.sample(part, folder, bar)
                if folder is not None:
                    for row, draw in product(self.rows, part):
                        write(folder.outcome(row, draw))
        return (len(self.draws) - len(left)) * len(self.rows)

    def sample(self, part: Sequence[Draw], folder: Folder | None, progress: Progress) -> None:
        """A batch of draws by every row; and how far each image is from the longest row's."""
        from ddimctl import sampling
        from ddimctl.images import levels
        from ddimctl.metrics import mse

        xs = {}
        seeds, numbers = zip(*part, strict=True)
        for row in self.rows:
            solution = sampling.sample(
                self.model, len(part), row.how, self.condition,
                seed=seeds, first=numbers, batch_size=len(part), progress=progress,
            )  # fmt: skip
            levels.check_finite(solution.x, self.model.name)
            row.add(part, solution)
            xs[row.steps] = solution.x
            pixels = levels.to_pixels(solution.x)
            if folder is None:
                row.pixels.append(pixels)
            else:
                for draw, image in zip(part, pixels, strict=True):
                    row.each[draw]["sha256"] = folder.save(row, draw, image)
        truth = xs[self.longest.steps]
        for row in self.rows:
            for draw, error in zip(part, mse(xs[row.steps], truth).tolist(), strict=True):
                row.each[draw] |= {"mse": error, "to": self.longest.steps}
        for draw, error in zip(part[1:], mse(truth[1:], truth[:-1]).tolist(), strict=True):
            self.longest.each[draw]["apart"] = error

    def apart(self) -> list[float]:
        """How far images of the longest row are from the next: what the table's figures would be of unrelated ones."""
        return [entry["apart"] for entry in self.longest.each.values() if "apart" in entry]


@dataclass(frozen=True)
class Folder:
    """A folder of a run's pictures, and what its manifest says of them."""

    path: Path
    about: dict[str, Any]
    pictures: dict[tuple[int, Draw], Picture]  # by the number of steps and the draw
    before: Mapping[str, Mapping[str, Any]]
    targets: Targets

    @classmethod
    def of(cls, path: Path, batch: Batch, *, force: bool) -> Folder:
        """Raises `UsageError` if something else is there."""
        from ddimctl.files import make_folder
        from ddimctl.runs import samples
        from ddimctl.runs.local import Targets
        from ddimctl.runs.manifest import read_manifest

        model, pictures = batch.model, {}
        names = samples.names(batch.draws, [row.steps for row in batch.rows])
        for row, stems in zip(batch.rows, names, strict=True):
            more = [row.how.way.path(model.schedule), model.network.dtype]
            for draw, name in zip(batch.draws, stems, strict=True):
                made = batch.made(row, {"seed": draw[0], "number": draw[1]})
                pictures[row.steps, draw] = samples.Picture.of(path, name, made, more)
        samples.check(list(pictures.values()), force=force)
        make_folder(path)
        about = {"command": "sample", "model": model.digest, "engine": model.network.engine}
        before = read_manifest(batches.manifest_path(path, None))
        return cls(path, about, pictures, before, Targets(path, ".png", force))

    def has(self, draw: Draw, lengths: Sequence[int]) -> bool:
        """Whether the pictures of a draw are there, as an earlier run left them, and compared with the same one."""
        pictures = [self.pictures[s, draw] for s in lengths]
        return all(p.is_in(self.before) and _is_compared(self.before[p.name], max(lengths)) for p in pictures)

    def entry(self, row: Row, draw: Draw) -> dict[str, Any]:
        """What the manifest says of a picture."""
        return dict(self.before.get(self.pictures[row.steps, draw].name, {}))

    def save(self, row: Row, draw: Draw, image: Any) -> str:
        """Writes a picture; its SHA-256."""
        from ddimctl.images import writing
        from ddimctl.runs.local import put

        p = self.pictures[row.steps, draw]
        return put(p.target, writing.to_bytes(image, ".png", made=p.made), self.targets)

    def written(self) -> AbstractContextManager[Callable[[Outcome], None]]:
        return batches.written(batches.manifest_path(self.path, None), self.about, dry_run=False)

    def outcome(self, row: Row, draw: Draw) -> Outcome:
        """What became of a picture that was just made."""
        from ddimctl.runs import plan

        p = self.pictures[row.steps, draw]
        item = plan.Item(f"noise {draw[1]} of seed {draw[0]}", p.name)
        return plan.Outcome(item, plan.DONE, (p.target,), notes={"key": p.key, **row.each[draw]})


def _is_compared(entry: Mapping[str, Any], longest: int) -> bool:
    """Whether a manifest's entry, which anybody may have written, has what the table needs."""
    figures = [entry.get("mse"), entry.get("evaluations"), entry.get("residual", 0.0)]
    return entry.get("to") == longest and all(isinstance(f, int | float) for f in figures)


def _nothing(outcome: Outcome) -> None:
    pass
