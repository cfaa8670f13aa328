"""Charts of runs: the error of round trips by what they cost, the quality of samples by their steps, and speed."""

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
    whole = sorted({x for x, _ in known if float(x).is_integer()})  # a mean over images is no number for an axis
    x = Axis("network evaluations, encode + decode", low, high, True, whole)
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


def seconds_against_steps(seconds: Mapping[int, float]) -> Chart:
    """What an image costs."""
    points = rising([(float(s), t) for s, t in seconds.items()])
    x = Axis("steps S", 0, 1.04 * points[-1][0], ticks=[0, *(s for s, _ in points)])
    return Chart(
        "Cost", x, Axis("seconds an image", 0, 1.08 * max(t for _, t in points)), [Series(points, kind="dotted")]
    )


def rates_against_batches(rates: Lines) -> Chart:
    """Evaluations of images a second by batch size, a line an engine."""
    known = [p for points in rates.values() for p in points]
    x = Axis("batch size", *spread([b for b, _ in known], log=True), log=True, ticks=sorted({b for b, _ in known}))
    series = [Series(rising(points), name, i, "dotted") for i, (name, points) in enumerate(rates.items())]
    return Chart("Rate", x, Axis("evaluations of an image, a second", 0, 1.08 * max(r for _, r in known)), series)


def times_against_steps(lines: Mapping[str, tuple[Sequence[tuple[int, float]], float, float]], batch: int) -> Chart:
    """Seconds to decode a batch against S: points, and the straight line through them (figure 4).

    `lines` gives for each engine the points (S, seconds), the seconds at S = 0 and the seconds a step.
    """
    series = []
    most = max(s for points, _, _ in lines.values() for s, _ in points)
    for i, (name, (points, fixed, step)) in enumerate(lines.items()):
        ends = [(0.0, fixed), (float(most), fixed + most * step)]
        series.append(Series(ends, f"{name}: {1000 * step:.3g} ms a step", i))
        series.append(Series([(float(s), t) for s, t in points], "", i, "dots"))
    top = max(y for s in series for _, y in s.points)
    marked = [0, *sorted({s for points, _, _ in lines.values() for s, _ in points})]
    x = Axis("steps S", 0, 1.04 * most, ticks=marked)
    return Chart(f"Time to decode {batch} image{'s' * (batch > 1)}", x, Axis("seconds", 0, 1.08 * top), series)


def _above_0(lines: Lines) -> Lines:
    """What has a place on a logarithmic axis."""
    found = {name: [(x, y) for x, y in points if y > 0] for name, points in lines.items()}
    return {name: points for name, points in found.items() if points}
