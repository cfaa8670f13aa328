"""Plots, with matplotlib (extra ``plots``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddimctl.errors import UsageError
from ddimctl.files import atomic_file
from ddimctl.paper import TABLE_2

SUFFIXES = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Raises `UsageError` if matplotlib is missing or `path` names no format of a plot."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots need the extra 'plots'", hint="install it with: pip install 'ddimctl[plots]'")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a plot", hint=f"use one of {' '.join(SUFFIXES)}")


def error_against_evaluations(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], title: str) -> None:
    """Round-trip mse against evaluations for an image, log-log, one line a solver, beside the paper's table 2."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, points in lines.items():
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker="o", label=label)
    axes.plot(
        [2 * s for s in TABLE_2], list(TABLE_2.values()), "k:s", alpha=0.5, label="the paper's table 2 (CIFAR-10)"
    )
    axes.set(xscale="log", yscale="log", xlabel="network evaluations, encode + decode", ylabel="mse, pixels in 0 … 1")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    with atomic_file(path) as f:
        figure.savefig(
            f, format=path.suffix[1:].lower(), dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None
        )
