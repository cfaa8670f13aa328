"""Charts as inline SVG, coloured by the page's style, so that they suit light and dark."""

from __future__ import annotations

from ddimctl.charts import Chart, Mark, marks
from ddimctl.report.html import safe

ANCHORS = {"l": "start", "m": "middle", "r": "end"}
DROP = {"a": 10.5, "m": 4.0, "d": -2.5}  # from where a text stands to its baseline, in letters of 12 px


def chart(what: Chart, width: int = 520, height: int = 300) -> str:
    """A chart as an element that names itself to a screen reader."""
    said = ", ".join([what.title, what.x.label, *(s.label for s in what.series if s.label)])
    inside = "".join(map(_element, marks(what, width, height, measure=length)))
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{safe(said)}">{inside}</svg>'


def length(text: str) -> float:
    """How wide a text is at most in what sans-serif font the reader has, in pixels."""
    return sum(4.2 if c in "iljtfrI.,:;'|-1 ()" else 10.5 if c in "mwMW%" else 7.6 for c in text)


def _element(mark: Mark) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
    if mark.kind == "text":
        (x, y), side, level = mark.points[0], mark.anchor[0], mark.anchor[1]
        kind = f"f{mark.colour}" if isinstance(mark.colour, int) else mark.colour
        at = f'x="{x:.1f}" y="{y + DROP[level]:.1f}" text-anchor="{ANCHORS[side]}"'
        return f'<text {at} class="{kind}">{safe(mark.text)}</text>'
    if mark.kind == "area":
        return f'<polygon points="{places}" class="f{mark.colour}"/>'
    if mark.kind == "dot":
        x, y = mark.points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="f{mark.colour}"/>'
    kind = f"s{mark.colour}" if isinstance(mark.colour, int) else "grid" if mark.colour == "grid" else "axis"
    return f'<polyline points="{places}" class="{kind}{" dashed" if mark.dashed else ""}"/>'
