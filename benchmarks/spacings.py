"""Measures every spacing with every explicit method, beside a model's own path:

    python benchmarks/spacings.py MODEL [IMAGES] -o figures.json [--images N] [--minutes M] [--device cuda] [--steps 5,10]
    python benchmarks/spacings.py --table figures.json [more.json]

IMAGES is a folder or an IDX file that the model never saw; without it, its held-out images. Figures of each cell are
written as they come, and a run that was stopped leaves what it had. What most often wins (`MAIN`) is measured on all
images, the rest on the first `--rest`. The second form puts the tables into docs/inversion.md.

The methods, besides `ab2`, `ab2mix` and `ab3`: *own*, the parts of the model's own path, taken over to other levels by
log σ; *heun start*, `ab2` whose first step is Heun's, for one evaluation more; *corrected*, `ab2` whose step is replaced by
Adams and Moulton's, of order 3, once ε is known where it ended; the next step uses that ε, so it is no evaluation more.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pages import put, table

from ddimctl import ode
from ddimctl.arrays import Array, float32, float64
from ddimctl.engines import pytorch
from ddimctl.families import load
from ddimctl.files import write_bytes
from ddimctl.images import datasets, levels
from ddimctl.implicit import rms
from ddimctl.metrics import METRICS
from ddimctl.model import Model
from ddimctl.multistep import MIXING, integral_log, integral_square, weights
from ddimctl.recipe import Way
from ddimctl.roundtrip import REFERENCE
from ddimctl.schedule import Levels
from ddimctl.solvers import MIX, Eps, States, march
from ddimctl.tuned import Tuned, along, between

ROOT = Path(__file__).resolve().parent.parent
STEPS = (5, 10, 14, 20, 30, 50, 100)
SPACINGS = ("karras", "arsinh", "log", "tuned")
METHODS = ("ab2", "ab2mix", "ab3", "own", "heun start", "corrected")
MAIN = {
    ("karras", "ab2"), ("arsinh", "ab2"), ("log", "ab2"), ("arsinh", "ab2mix"), ("karras", "ab3"), ("log", "ab3"),
    ("tuned", "own"),
}  # fmt: skip
ADAPTIVE = 140  # evaluations of the reference for an image, about
BATCH = {"cuda": 1024, "cpu": 64}
SPARE = 1.1  # of an estimate of time

Method = Callable[[Eps, Array, Sequence[float]], States]  # along rising or falling levels, as a solver


@dataclass
class Cell:
    """A way of so many steps, and each image's figures."""

    steps: int
    spacing: str
    method: str
    mse: list[float] = field(default_factory=list)
    away: list[float] = field(default_factory=list)  # of x_T, root mean square

    @property
    def evaluations(self) -> int:
        """Of the network for an image, both ways."""
        return 2 * (self.steps + (self.method == "heun start"))

    @property
    def is_main(self) -> bool:
        return (self.spacing, self.method) in MAIN

    def record(self, first: int) -> dict[str, Any]:
        """Of all its images, and of the first ones, which all cells have."""
        of = {"all": figures(self.mse, self.away), "first": figures(self.mse[:first], self.away[:first])}
        return {
            "steps": self.steps,
            "spacing": self.spacing,
            "method": self.method,
            "evaluations": self.evaluations,
            **of,
        }


def figures(mse: Sequence[float], away: Sequence[float]) -> dict[str, float]:
    return {
        "images": len(mse), "mse": float(np.mean(mse)), "median": float(np.median(mse)), "worst": max(mse),
        "xT_error": math.sqrt(float(np.mean(np.square(away)))),
    }  # fmt: skip


def path_of(schedule: Levels, steps: int, spacing: str) -> tuple[float, ...]:
    return between(schedule.paths, steps).levels if spacing == "tuned" else schedule.path(steps, spacing)


def method(name: str, schedule: Levels, path: Sequence[float]) -> Method:
    """A method for a rising path, in both directions."""
    n = len(path) - 1
    if name == "heun start":
        return heun_start
    if name == "corrected":
        return corrected
    mix, order = {"ab2": ((), 2), "ab2mix": ((MIX,) * n, 2), "ab3": ((), 3)}.get(name, ((), 0))
    if name == "own":
        own = between(schedule.paths, n)
        mix, order = parts_at(own, path), 1 + MIXING[own.solver]

    def solve(eps: Eps, x: Array, way: Sequence[float]) -> States:
        return march(eps, x, way, by=weights(way, mix, order=order))

    return solve


def parts_at(own: Tuned, path: Sequence[float]) -> tuple[float, ...]:
    """A tuned path's parts, for the steps of another by the log σ of their middles."""

    def middles(levels: Sequence[float]) -> list[float]:
        return [(math.log(s) + math.log(t)) / 2 for s, t in pairwise(levels)]

    here = middles(own.levels)
    if tuple(path) == own.levels:
        return own.mix
    places = [float(np.interp(u, here, np.arange(len(here)))) for u in middles(path)]
    return tuple(along(curve, x) for curve in own.curves(MIXING[own.solver]) for x in places)


def heun_start(eps: Eps, x: Array, way: Sequence[float]) -> States:
    """`ab2`, but for a first step that is the trapezoidal rule's."""
    r, s = way[:2]
    before = eps(x, r)
    x = x + (s - r) * 0.5 * (before + eps(x + (s - r) * before, s))
    yield x
    for (h, a, _), s in zip(weights(way)[1:], way[1:], strict=False):
        here = eps(x, s)
        x = x + h * here + a * (here - before)
        before = here
        yield x
    return None


def corrected(eps: Eps, x: Array, way: Sequence[float]) -> States:
    """`ab2` predicts; where ε was evaluated at the end of a step, Adams and Moulton's step to there replaces it."""
    start, known = x, []  # where the last step began, and ε at the levels so far
    for k, ((h, a, _), s) in enumerate(zip(weights(way), way, strict=False)):
        known.append(eps(x, s))
        if k:
            x = start + moulton(way[max(k - 2, 0) : k + 1], known[-3:])
        start = x
        x = x + h * known[-1] + (a * (known[-1] - known[-2]) if k else 0.0)
        yield x
    return None


def moulton(at: Sequence[float], eps: Sequence[Array]) -> Array:
    """∫ ε dσ over the last step of two or three levels, ε the polynomial in log σ through all of them."""
    *_, s, t = at
    width, first = math.log(t / s), integral_log(s, t)
    slope = (eps[-1] - eps[-2]) * (1 / width)
    change = (t - s) * eps[-2] + first * slope
    if len(at) == 3:
        before = (eps[-2] - eps[-3]) * (1 / math.log(s / at[0]))
        change = change + (integral_square(s, t) - width * first) / math.log(t / at[0]) * (slope - before)
    return change


def measure(model: Model, x0: Any, reference: Array, cell: Cell) -> None:
    """A round trip of a batch, x_T rounded to float32 as in a file."""
    schedule, eps = model.schedule, model.eps()
    path = path_of(schedule, cell.steps, cell.spacing)
    solve, scale = method(cell.method, schedule, path), schedule.scale(path[-1])
    x = float64(x0)
    for state in solve(eps, x, path):
        x = state
    xT = float32(x * (1 / scale))
    x = float64(xT) * scale
    for state in solve(eps, x, path[::-1]):
        x = state
    cell.mse += METRICS["mse"](x0, x).tolist()
    cell.away += rms(float64(xT) - reference)


@dataclass
class Clock:
    """The time that there is, and what an evaluation of one image took so far."""

    minutes: float
    begin: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    evaluations: float = 0.0

    def fits(self, evaluations: float) -> bool:
        cost = SPARE * evaluations * self.spent / max(self.evaluations, 1.0)
        return time.monotonic() - self.begin + cost < 60 * self.minutes

    def timed(self, evaluations: float, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        found = work()
        self.spent, self.evaluations = self.spent + time.monotonic() - start, self.evaluations + evaluations
        return found


def measured(model: Model, batches: Sequence[Any], cells: Sequence[Cell], *, rest: int, clock: Clock) -> Iterator[int]:
    """Fills the cells, batch by batch, as long as there is time; yields how many images are done, now and then."""
    done = 0
    for x0 in batches:
        main = [c for c in cells if c.is_main]
        if done and not clock.fits(len(x0) * (ADAPTIVE + sum(c.evaluations for c in main))):
            return
        reference = clock.timed(
            ADAPTIVE * len(x0), lambda x0=x0: ode.encode(model, x0, along_ends(model), batch_size=len(x0)).x
        )
        for cell in [*main, *(c for c in cells if not c.is_main and done < rest)]:
            n = len(x0) * cell.evaluations
            if cell.is_main or (len(cell.mse) == done and clock.fits(n)):
                clock.timed(n, lambda x0=x0, ref=reference, cell=cell: measure(model, x0, ref, cell))
                if not done:
                    yield 0
        done += len(x0)
        yield done


def along_ends(model: Model) -> Way:
    schedule = model.schedule
    return REFERENCE.along((schedule.sigma(1), schedule.sigma(schedule.T)))


def run(chosen: argparse.Namespace) -> None:
    model = load(chosen.model, chosen.device)
    pytorch.hurry(model.network.module)
    source = chosen.images_from
    if source is None:
        assert model.about.folder is not None
        source = model.about.folder / "held-out"
    x0 = levels.signed(datasets.load_dataset(source, model.channels, model.size)[: chosen.images].float())
    x0 = x0.to(model.network.module.state_device)
    size = chosen.batch or BATCH[model.network.module.kind]
    batches = [x0[i : i + size] for i in range(0, len(x0), size)]
    spacings = [s for s in SPACINGS if model.schedule.paths or s != "tuned"]
    cells = [
        Cell(int(s), spacing, name)
        for s in chosen.steps.split(",")
        for spacing in spacings
        for name in METHODS
        if model.schedule.paths or name != "own"
    ]
    if chosen.main:
        cells = [c for c in cells if c.is_main]
    clock, written = Clock(chosen.minutes), 0.0
    rest = min(chosen.rest, len(x0))
    about = {"model": model.name, "digest": model.digest, "images_from": source.name, "device": chosen.device,
             "paths": [p.steps for p in model.schedule.paths]}  # fmt: skip

    def write() -> None:
        found = [c.record(min(len(x.mse) for x in cells if x.mse)) for c in cells if c.mse]
        seconds = time.monotonic() - clock.begin
        text = json.dumps({**about, "seconds": seconds, "evaluations": clock.evaluations, "cells": found}, indent=1)
        write_bytes(chosen.output, text.encode())

    for done in measured(model, batches, cells, rest=rest, clock=clock):
        if done or time.monotonic() - written > 20:
            write()
            written = time.monotonic()
            print(f"{done} images, {clock.evaluations / max(clock.spent, 1e-9):.0f} evaluations/s", flush=True)
    write()


def best(cells: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    return min(cells, key=lambda c: c["first"][what])


def page(files: Sequence[Path]) -> str:
    """The tables: for each model and S the main ways, and the best of the rest."""
    parts = []
    for file in files:
        found = json.loads(file.read_text())
        cells = found["cells"]
        n = max(c["all"]["images"] for c in cells)
        first = min(c["first"]["images"] for c in cells)
        rows = []
        for steps in dict.fromkeys(c["steps"] for c in cells):
            here = [c for c in cells if c["steps"] == steps]
            shown = [c for c in here if (c["spacing"], c["method"]) in MAIN]
            others = [c for c in here if c not in shown]
            shown += [best(others, "mse")] if others else []
            low = {k: min(c["all"][k] for c in shown if c["all"]["images"] == n) for k in ("mse", "median", "xT_error")}
            for c in shown:
                values = []
                for k in ("mse", "median", "worst", "xT_error"):
                    text = f"{c['all'][k]:.1e}"
                    values.append(f"**{text}**" if c["all"]["images"] == n and low.get(k) == c["all"][k] else text)
                rows.append([str(steps), f"`{c['spacing']}`", c["method"], *values, f"{c['all']['images']:,}"])
        header = ["S", "spacing", "method", "mse", "median", "worst image", "x_T error", "images"]
        parts.append(
            f"Model {found['model']} (digest {found['digest'][:12]}…), {n:,} images that it never saw. The last line of"
            f" each S has the least mean of all that is in no other line, on {first:,} images:"
        )
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?")
    options.add_argument("images_from", nargs="?", type=Path)
    options.add_argument("-o", "--output", type=Path)
    options.add_argument("--device", default="cpu")
    options.add_argument("--images", type=int, default=256)
    options.add_argument(
        "--rest", type=int, default=1024, help="images of what is not MAIN: the first batches to reach it"
    )
    options.add_argument("--batch", type=int)
    options.add_argument("--minutes", type=float, default=math.inf)
    options.add_argument("--steps", default=",".join(map(str, STEPS)))
    options.add_argument("--main", action="store_true", help="what is not MAIN is left out")
    options.add_argument("--table", nargs="+", type=Path)
    chosen = options.parse_args()
    if chosen.table:
        put(ROOT / "docs" / "inversion.md", __file__, page(chosen.table))
    elif chosen.model is None or chosen.output is None:
        options.error("a model, and -o for its figures")
    else:
        run(chosen)


if __name__ == "__main__":
    main()
