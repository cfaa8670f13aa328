"""Plots, with matplotlib (extra ``plots``)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import cache
from ddimctl.charts import apart
from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import atomic_file
from ddimctl.paper import TABLE_1, TABLE_2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Raises `UsageError` if matplotlib is missing or `path` names no format of a plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need the extra 'plots'", hint="install it with: pip install 'ddimctl[plots]'")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a plot", hint=f"use one of {' '.join(SUFFIXES)}")
    with contextlib.suppress(DDIMError):  # matplotlib makes a folder of settings at home, unless told another place
        os.environ.setdefault("MPLCONFIGDIR", str(cache.folder() / "matplotlib"))


@contextlib.contextmanager
def theme(dark: bool) -> Iterator[None]:
    """The colours of what is drawn meanwhile: dark on light, or light on dark."""
    import matplotlib as mpl
    from cycler import cycler

    ink, paper = ("#e8e8e8", "#121212") if dark else ("#191919", "white")
    line = ("#70b2f5", "#ff9e5c", "#72d08a", "#e296e2", "#e6c85a", "#56d4d6") if dark else (
        "#1a5fa8", "#be4800", "#1e7837", "#8c288c", "#825f00", "#007378")  # fmt: skip
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    settings: dict[Any, Any] = {**dict.fromkeys(inked, ink), **dict.fromkeys(papered, paper)}
    with mpl.rc_context({**settings, "axes.prop_cycle": cycler(color=line)}):
        yield


def ink() -> str:
    """The colour of what is no line of ours."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def error_against_evaluations(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """Round-trip mse against evaluations for an image, log-log, one line a solver, beside the paper's table 2."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    paper = {"the paper's table 2\n(CIFAR-10)": [(2.0 * s, mse) for s, mse in TABLE_2.items()]}
    ends, seen = {}, set()
    for i, (label, points) in enumerate({**lines, **paper}.items()):
        x, y = zip(*sorted(points), strict=True)
        colour, mark = (ink(), "s:") if label in paper else (f"C{i % 6}", "o-")
        axes.plot(x, y, mark, color=colour, alpha=0.6 if label in paper else 1)
        ends[label] = (x[-1], y[-1], colour)
        seen |= set(x)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations, encode + decode", ylabel="mse, pixels in 0 … 1")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.2)
    shown = legible(sorted(seen))
    axes.set_xticks(shown, [f"{v:.4g}" for v in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    _label_ends(axes, ends)
    _save(figure, path)


def legible(values: Sequence[float], least: float = 1.3) -> list[float]:
    """Those of rising values whose numbers have room on a logarithmic axis: each so many times the one before."""
    out: list[float] = []
    for v in values:
        if not out or v >= least * out[-1]:
            out.append(v)
    return out


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Writes each line's name at the right edge, in the line's colour, as high as its last point, and none over another."""
    axes.figure.canvas.draw()  # places follow from how large everything has become
    height = axes.get_window_extent().height
    places = {
        name: axes.transAxes.inverted().transform(axes.transData.transform(end[:2]))[1] for name, end in ends.items()
    }
    lines = max(name.count("\n") + 1 for name in ends)
    heights = apart(list(places.values()), 20 * lines / height, 0.02, high=0.98)
    for (name, (x, y, colour)), at in zip(ends.items(), heights, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 2, "shrinkB": 5}
        axes.annotate(
            name, (x, y), (1.02, at), color=colour, textcoords="axes fraction", va="center", fontsize="small",
            arrowprops=leader,
        )  # fmt: skip


def distance_against_steps(
    path: Path,
    lines: Mapping[str, Mapping[int, float]],
    seconds: Mapping[int, float],
    *,
    floor: float | None,
    what: str,
    title: str,
) -> None:
    """The Fréchet distance against S, a line a row of table 1, beside the paper's; and seconds an image against S.

    `floor` is where as many real images are, if known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    ours, theirs, cost = figure.subplots(1, 3)
    for i, (label, points) in enumerate(lines.items()):
        ours.plot(*zip(*sorted(points.items()), strict=True), f"C{i}o-", label=label)
        if label in TABLE_1:
            theirs.plot(*zip(*sorted(TABLE_1[label].items()), strict=True), f"C{i}s:", label=label)
    if floor is not None:
        ours.axhline(floor, color=ink(), linestyle="--", linewidth=1, label="real test images")
    ours.set(title=title, ylabel=f"Fréchet distance ({what})")
    theirs.set(title="the paper's table 1: CIFAR-10", ylabel="FID (Inception, 50,000 images)")
    cost.plot(*zip(*sorted(seconds.items()), strict=True), "o-", color=ink())
    cost.set(title="cost", ylabel="seconds for an image", xlabel="steps S", ylim=(0, None), xlim=(0, None))
    for axes, steps in ((ours, sorted(seconds)), (theirs, [10, 20, 50, 100, 1000])):
        axes.set(xscale="log", yscale="log", xlabel="steps S")
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(True, which="both", alpha=0.2)
        if axes.get_lines():
            axes.legend(fontsize="small")
    cost.grid(True, alpha=0.2)
    _save(figure, path)


def speed(
    path: Path,
    rates: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, tuple[Sequence[tuple[int, float]], float, float]],
    *,
    title: str,
) -> None:
    """Images a second by batch size, a line an engine; and time against S, points with their straight lines (figure 4).

    `lines` gives for each label the points (S, seconds), the seconds at S = 0 and the seconds a step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for label, points in rates.items():
        left.plot(*zip(*sorted(points), strict=True), "o-", label=label)
    batches = sorted({b for points in rates.values() for b, _ in points})
    left.set(xscale="log", xlabel="batch size", ylabel="evaluations of an image, a second", ylim=(0, None))
    left.set_xticks(batches, [f"{b:g}" for b in batches])
    left.xaxis.set_minor_locator(NullLocator())
    for i, (label, (timed, fixed, step)) in enumerate(lines.items()):
        right.plot(*zip(*timed, strict=True), f"C{i}o", label=f"{label}: {fixed:z.2f} s + {1000 * step:.1f} ms · S")
        end = max(s for s, _ in timed)
        right.plot([0, end], [fixed, fixed + end * step], f"C{i}-", linewidth=1)
    right.set(xlabel="steps S", ylabel="seconds to decode a batch", xlim=(0, None), ylim=(0, None))
    for axes in (left, right):
        axes.grid(True, alpha=0.2)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as f:
        figure.savefig(
            f, format=path.suffix[1:].lower(), dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None
        )
