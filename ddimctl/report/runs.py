"""Charts of runs: the error of round trips by what they cost, and the quality of samples by their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddimctl.charts import MUTED, Axis, Chart, Series, rising, spread
from ddimctl.paper import TABLE_1, TABLE_2

Lines = Mapping[str, Sequence[tuple[float, float]]]


def error_against_evaluations(lines: Lines) -> Chart:
    """Round-trip mse against evaluations for an image, log-log, a line a solver, beside the paper's table 2."""
    known = [(x, y) for points in lines.values() for x, y in points if y > 0]
    low, high = spread([x for x, _ in known], log=True)
    paper = [(2.0 * s, mse) for s, mse in TABLE_2.items() if low <= 2 * s <= high]
    series = [Series(rising(points), name, i, "dotted") for i, (name, points) in enumerate(_above_0(lines).items())]
    if len(paper) > 1:
        series.insert(0, Series(paper, "the paper's table 2", MUTED, "dashed"))
    y = spread([y for _, y in (*known, *paper)], log=True)
    x = Axis("network evaluations, encode + decode", low, high, True, sorted({x for x, _ in known}))
    return Chart("Error against cost", x, Axis("mse, pixels in 0 … 1", *y, True), series)


def distance_against_steps(lines: Lines, floor: float | None, what: str) -> Chart:
    """The Fréchet distance against S, log-log, a line a row of table 1; `floor` is where real images are."""
    known = [p for points in lines.values() for p in points if p[1] > 0]
    low, high = spread([x for x, _ in known], log=True)
    series = [Series(rising(points), name, i, "dotted") for i, (name, points) in enumerate(_above_0(lines).items())]
    if floor is not None and floor > 0:
        series.insert(0, Series([(low, floor), (high, floor)], "real images", MUTED, "dashed"))
    y = spread([y for _, y in known] + ([floor] if floor else []), log=True)
    x = Axis("steps S", low, high, True, sorted({x for x, _ in known}))
    return Chart(f"Fréchet distance ({what})", x, Axis("distance: less is better", *y, True), series)


def paper_distances(names: Sequence[str]) -> Chart | None:
    """The rows of that name of the paper's table 1; None if it has none of them."""
    lines = {name: [(float(s), v) for s, v in TABLE_1[name].items()] for name in names if name in TABLE_1}
    if not lines:
        return None
    found = distance_against_steps(lines, None, "Inception, 50,000 images")
    return Chart("The paper's table 1: FID on CIFAR-10", found.x, found.y, found.series)


def _above_0(lines: Lines) -> Lines:
    """What has a place on a logarithmic axis."""
    found = {name: [(x, y) for x, y in points if y > 0] for name, points in lines.items()}
    return {name: points for name, points in found.items() if points}
