"""The cells of the table that `evaluate` makes, over one seed or several."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddimctl.cli.console import figure

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.evaluate import Setting


@dataclass(frozen=True)
class Cell:
    """One cell of the table: how the images were made, how far they are from the reference, and what they cost."""

    setting: Setting
    distance: float
    seconds: float  # for all of them
    made: int  # how many were made just now; the others were in the cache
    pixels: np.ndarray  # of the first ones, uint8 (k, H, W, C)

    def record(self, n: int) -> dict[str, Any]:
        return {
            "eta": self.setting.how.eta,
            "sigma_hat": self.setting.how.sigma_hat,
            "steps": self.setting.steps,
            "distance": self.distance,
            "seconds_per_image": self.seconds / n,
            "made": self.made,
        }


def seeded(settings: Sequence[Setting]) -> dict[str, Any]:
    """The seed, or the seeds where there are several, for the record."""
    seeds = list(dict.fromkeys(s.seed for s in settings))
    return {"seed": seeds[0]} if len(seeds) == 1 else {"seeds": seeds}


def by_cell(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """What each row of the paper's table has for each S: a cell a seed."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for c in cells:
        found.setdefault((c.setting.row, c.setting.steps), []).append(c)
    return found


def as_record(cells: Sequence[Cell], n: int) -> dict[str, Any]:
    """What is known of each cell, of `n` images; where there are several seeds, their mean and deviation (of n − 1), too."""
    groups = list(by_cell(cells).values())
    if all(len(group) == 1 for group in groups):
        return {"results": [c.record(n) for c in cells]}
    over = [
        {**{k: v for k, v in group[0].record(n).items() if k in ("eta", "sigma_hat", "steps")},
         "mean": statistics.fmean(c.distance for c in group), "deviation": statistics.stdev(c.distance for c in group)}
        for group in groups
    ]  # fmt: skip
    return {"results": [{"seed": c.setting.seed, **c.record(n)} for c in cells], "over_seeds": over}


def samples(cells: Sequence[Cell]) -> list[tuple[str, np.ndarray]]:
    """The first images of each cell, and what that is called; of several seeds, those of the first."""
    return [(f"{g[0].setting.row}\nS = {g[0].setting.steps}", g[0].pixels) for g in by_cell(cells).values()]


def curves(cells: Sequence[Cell]) -> dict[str, dict[int, float]]:
    """Distance by S for each row, over the seeds, to be drawn."""
    lines: dict[str, dict[int, float]] = {}
    for (row, steps), found in by_cell(cells).items():
        lines.setdefault(row, {})[steps] = statistics.fmean(c.distance for c in found)
    return lines


def seconds_per_image(cells: Sequence[Cell], n: int) -> dict[int, float]:
    """By S, over all rows: each takes S evaluations (figure 4). A solver that takes more is in the row η = 0 only."""
    by_steps: dict[int, list[float]] = {}
    for c in cells:
        by_steps.setdefault(c.setting.steps, []).append(c.seconds / n)
    return {s: sum(t) / len(t) for s, t in by_steps.items()}


def tables(cells: Sequence[Cell], seconds: dict[int, float]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """`as_lines` under its title, for a page; of several seeds the mean and deviation of each cell come first."""
    whole, title = as_lines(cells, seconds), "Fréchet distance and cost"
    seeds = len({c.setting.seed for c in cells})
    if seeds == 1:
        return {title: whole}
    over: dict[str, list[str]] = {}
    for (row, _), found in by_cell(cells).items():
        distances = [c.distance for c in found]
        over.setdefault(row, []).append(
            f"{figure(statistics.fmean(distances))} ± {figure(statistics.stdev(distances))}"
        )
    header, lines = whole
    each = [line for line in lines[:-1] if not line[0].endswith((", mean", ", deviation"))]
    first = [*([row, *values] for row, values in over.items()), lines[-1]]
    return {f"{title}: mean ± deviation of {seeds} seeds": (header, first), "Each seed": (header, each)}


def as_lines(cells: Sequence[Cell], seconds: dict[int, float]) -> tuple[list[str], list[list[str]]]:
    """The paper's table 1, and below it the seconds that an image takes; of several seeds a line each, then their spread."""
    several = len({c.setting.seed for c in cells}) > 1
    rows: dict[str, list[str]] = {}
    for row in dict.fromkeys(c.setting.row for c in cells):
        mine = [c for c in cells if c.setting.row == row]
        for c in mine:
            rows.setdefault(f"{row}, seed {c.setting.seed}" if several else row, []).append(figure(c.distance))
        if several:
            groups = [[c.distance for c in group] for group in by_cell(mine).values()]
            rows[f"{row}, mean"] = [figure(statistics.fmean(g)) for g in groups]
            rows[f"{row}, deviation"] = [figure(statistics.stdev(g)) for g in groups]
    lines = [[name, *values] for name, values in rows.items()]
    return ["S", *map(str, seconds)], [*lines, ["seconds an image", *map(figure, seconds.values())]]
