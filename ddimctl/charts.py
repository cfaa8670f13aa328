"""Charts as values, and as marks to be drawn: lines, areas and words at places, in a plane whose y points down.

What draws the marks (`images.drawing` as pixels, `report.svg` for a page) knows nothing of axes. Lines are labelled where
they end, in their own colour, so that no legend has to be looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

Point = tuple[float, float]
Measure = Callable[[str], float]  # how wide a text is

LETTER = 12  # pixels: the size of letters
LINE = 15  # pixels from one line of text to the next
TICK = 5  # pixels between an axis and its numbers
LONGEST = 24  # letters of a line's label that are shown
MUTED = -1  # the colour of what is only compared with


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, from where to where; without `ticks` it finds round numbers."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] = ()

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """What is drawn of one thing: a line through points, dots on it or not; dots; bars; or a band between two lines."""

    points: Sequence[Point]
    label: str = ""
    colour: int = 0
    kind: Literal["line", "dotted", "dashed", "dots", "bars", "band"] = "line"
    upper: Sequence[float] = ()  # of a band: y of the upper line, an entry a point


@dataclass(frozen=True)
class Chart:
    """A title, two axes, and what is drawn between them, the first below the others."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]


@dataclass(frozen=True)
class Mark:
    """Something to draw, in a series' colour, `MUTED`, or one of "ink", "muted" and "grid".

    Of a text `anchor` says which side of it stands at its one point: (l)eft, (m)iddle or (r)ight; then (a)bove, (m)iddle
    or (d)own.
    """

    kind: Literal["line", "area", "dot", "text"]
    points: Sequence[Point]
    colour: int | str
    text: str = ""
    anchor: str = "lm"
    dashed: bool = False


def marks(chart: Chart, width: float, height: float, *, measure: Measure) -> list[Mark]:
    """All marks of a chart of that size, in the order in which they are drawn."""
    named = [s for s in chart.series if s.label and s.kind != "bars"]
    numbers = [tick(v) for v in ticks(chart.y)]
    left = max(map(measure, numbers)) + 2 * TICK
    right = max((measure(shortened(s.label)) for s in named), default=0) + 2 * TICK
    right = max(right, measure(tick(chart.x.high)) / 2 + 2)
    top, bottom = 2 * LINE + 6.0, 2 * LINE + 2.0 * TICK
    edge = width - right

    def x(v: float) -> float:
        return left + chart.x.place(v) * (edge - left)

    def y(v: float) -> float:
        return height - bottom - min(1, max(0, chart.y.place(v))) * (height - top - bottom)

    found = [Mark("text", [(0, LINE / 2)], "ink", chart.title), Mark("text", [(0, 1.5 * LINE)], "muted", chart.y.label)]
    for v in ticks(chart.y):
        found += [
            Mark("line", [(left, y(v)), (edge, y(v))], "grid"),
            Mark("text", [(left - TICK, y(v))], "muted", tick(v), "rm"),
        ]
    free = -math.inf
    for v in ticks(chart.x):
        found.append(Mark("line", [(x(v), height - bottom), (x(v), height - bottom + TICK)], "muted"))
        half = measure(tick(v)) / 2
        if x(v) - half > free:  # numbers that would run into another are left out
            found.append(Mark("text", [(x(v), height - bottom + TICK)], "muted", tick(v), "ma"))
            free = x(v) + half + TICK
    found.append(Mark("line", [(left, height - bottom), (edge, height - bottom)], "muted"))
    found.append(Mark("text", [(edge, height - 1)], "muted", chart.x.label, "rd"))
    for s in chart.series:
        found += drawn(s, x, y, floor=height - bottom)
    heights = apart([y(s.points[-1][1]) for s in named], LINE, top, high=height - bottom)
    found += [
        Mark("text", [(edge + TICK, at)], s.colour, shortened(s.label)) for s, at in zip(named, heights, strict=True)
    ]
    return found


def shortened(label: str) -> str:
    """A label that leaves room for its line."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def drawn(series: Series, x: Callable[[float], float], y: Callable[[float], float], *, floor: float) -> list[Mark]:
    """The marks of one series."""
    at = [(x(a), y(b)) for a, b in series.points]
    if series.kind == "band":
        back = [(x(a), y(b)) for (a, _), b in zip(series.points, series.upper, strict=True)][::-1]
        return [Mark("area", [*at, *back], series.colour)]
    if series.kind == "bars":
        half = (at[1][0] - at[0][0]) / 2 if len(at) > 1 else 4
        sides = [((a - half + 0.5, b), (a + half - 0.5, b)) for a, b in at]
        return [Mark("area", [p, q, (q[0], floor), (p[0], floor)], series.colour) for p, q in sides]
    line = [Mark("line", at, series.colour, dashed=series.kind == "dashed")] if series.kind != "dots" else []
    return line + ([Mark("dot", [p], series.colour) for p in at] if series.kind in ("dotted", "dots") else [])


def apart(wanted: Sequence[float], least: float, low: float, *, high: float) -> list[float]:
    """Places near the wanted ones, at least so far from each other, and between two ends where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [wanted[i] for i in order]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + least)
    if places and places[-1] > high:
        places[-1] = max(high, low + least * (len(places) - 1))
        for k in range(len(places) - 2, -1, -1):
            places[k] = min(places[k], places[k + 1] - least)
    out = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        out[i] = place
    return out


def ticks(axis: Axis) -> list[float]:
    """Round numbers along an axis: four to seven of them, or all powers of ten, or every so many of those."""
    if axis.ticks:
        return [v for v in axis.ticks if axis.low <= v <= axis.high]
    if axis.log:
        low, high = math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9)
        if high - low >= 2:
            return [10.0**e for e in range(low, high + 1, -(-(high - low) // 6))]
        digits = [d * 10.0**e for e in range(low - 1, high + 1) for d in (1, 2, 5)]
        found = [v for v in digits if axis.low * (1 - 1e-9) <= v <= axis.high * (1 + 1e-9)]
        return found if len(found) > 1 else ticks(replace(axis, log=False))
    rough = (axis.high - axis.low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(axis.low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def tick(value: float) -> str:
    """A number at an axis: 0.01, 20, 1e-5."""
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def spread(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """Ends of an axis that hold all values, with some room; of a logarithmic one, of those above 0."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.06, 1.15)
        return low / room, high * room
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def rising(points: Sequence[Point]) -> list[Point]:
    """Points by x, those of an equal x but the first left out."""
    ordered = sorted(points)
    return ordered[:1] + [b for a, b in pairwise(ordered) if b[0] > a[0]]
