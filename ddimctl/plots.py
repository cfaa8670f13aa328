"""Plots with matplotlib (extra ``plots``): the charts of `ddimctl.charts`, side by side, as PNG, SVG or PDF.

As everywhere, what an axis shows stands above it and upright, and lines are labelled where they end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import cache
from ddimctl.charts import MUTED, Axis, Chart, Series, apart, tick, ticks
from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 120
SMALL = 9  # points: of what is written beside and below lines
LIGHT = ("#191919", "#5a5a5a", "white", ("#1a5fa8", "#be4800", "#1e7837", "#8c288c", "#825f00", "#007378"))
DARK = ("#e8e8e8", "#a6a6a6", "#121212", ("#70b2f5", "#ff9e5c", "#72d08a", "#e296e2", "#e6c85a", "#56d4d6"))
STYLES = {"line": "-", "dotted": "o-", "dashed": "--", "dots": "o"}


def check_target(path: Path) -> None:
    """Raises `UsageError` if matplotlib is missing or `path` names no format of a plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need the extra 'plots'", hint="install it with: pip install 'ddimctl[plots]'")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a plot", hint=f"use one of {' '.join(SUFFIXES)}")
    with contextlib.suppress(DDIMError):  # matplotlib makes a folder of settings at home, unless told another place
        os.environ.setdefault("MPLCONFIGDIR", str(cache.folder() / "matplotlib"))


def draw(path: Path, charts: Sequence[Chart], *, title: str, dark: bool = False) -> None:
    """Writes the charts beside each other, under a title: dark on light, or light on dark."""
    import matplotlib as mpl

    ink, muted, paper, _ = DARK if dark else LIGHT
    inked, papered = ("text.color", "axes.titlecolor"), ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(papered, paper),
        **dict.fromkeys(lines, muted),
    }
    with mpl.rc_context({**settings, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}):
        _save(figure(charts, title, dark), path)


def figure(charts: Sequence[Chart], title: str, dark: bool) -> Figure:
    """The charts, as matplotlib has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = Figure(figsize=(7.5 if len(charts) == 1 else 4.3 * len(charts), 4.6), layout="constrained")
    FigureCanvasAgg(found)
    found.suptitle(title, x=0.01, ha="left", fontsize="large")
    places = [found.add_subplot(1, len(charts), i + 1) for i in range(len(charts))]
    for axes, chart in zip(places, charts, strict=True):
        _draw(axes, chart, dark)
    found.draw_without_rendering()  # places of words follow from how large everything has become
    for axes, chart in zip(places, charts, strict=True):
        _label_ends(axes, chart, dark)
    found.draw_without_rendering()  # which took room from the axes
    for axes, chart in zip(places, charts, strict=True):
        room = axes.get_window_extent().width / (0.65 * SMALL * DPI / 72)
        axes.set_xticks(*_numbered(chart.x, room))
    return found


def colour(series: Series, dark: bool) -> str:
    """Of a line; of what is only compared with, the one of words."""
    _, muted, _, known = DARK if dark else LIGHT
    return muted if series.colour == MUTED else known[series.colour % len(known)]


def _draw(axes: Axes, chart: Chart, dark: bool) -> None:
    from matplotlib.ticker import NullLocator

    axes.set(
        xscale="log" if chart.x.log else "linear", yscale="log" if chart.y.log else "linear",
        xlim=(chart.x.low, chart.x.high), ylim=(chart.y.low, chart.y.high),
    )  # fmt: skip
    for s in chart.series:
        x, y = zip(*s.points, strict=True)
        axes.plot(x, y, STYLES[s.kind], color=colour(s, dark), markersize=5, linewidth=1.8, clip_on=s.kind == "dashed")
    axes.set_title(chart.title, loc="left", pad=22, fontsize="medium")
    muted = (DARK if dark else LIGHT)[1]
    axes.annotate(chart.y.label, (0, 1), (0, 7), "axes fraction", "offset points", color=muted, fontsize=SMALL)
    axes.set_xlabel(chart.x.label, loc="right", color=muted, fontsize=SMALL)
    axes.set_xticks(*_numbered(chart.x, 60))
    axes.set_yticks(ticks(chart.y), [tick(v) for v in ticks(chart.y)])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="y", alpha=0.3, linewidth=0.8)
    axes.set_axisbelow(True)


def _numbered(axis: Axis, room: float) -> tuple[list[float], list[str]]:
    """The ticks of an axis on which there is room for so many letters, and their numbers; without those that find none."""
    shown: list[float] = []
    free = -1.0
    for v in ticks(axis):
        half = (len(tick(v)) / 2 + 0.75) / room
        if axis.place(v) - half >= free:
            shown.append(v)
            free = axis.place(v) + half
    return shown, [tick(v) for v in shown]


def _label_ends(axes: Axes, chart: Chart, dark: bool) -> None:
    """Writes each line's name at the right edge, in the line's colour, as high as its last point, and none over another."""
    named = [s for s in chart.series if s.label]
    wanted = [chart.y.place(s.points[-1][1]) for s in named]
    line = 1.5 * SMALL * DPI / 72 / axes.get_window_extent().height
    for s, at in zip(named, apart(wanted, line, 0, high=1), strict=True):
        (x, y), ink = s.points[-1], colour(s, dark)
        leader = {"arrowstyle": "-", "color": ink, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 2, "shrinkB": 5}
        axes.annotate(
            s.label, (x, y), (1.03, at), "data", "axes fraction", color=ink, va="center", fontsize=SMALL,
            arrowprops=leader,
        )  # fmt: skip


def _save(found: Figure, path: Path) -> None:
    with atomic_file(path) as f:
        found.savefig(
            f, format=path.suffix[1:].lower(), dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None
        )
