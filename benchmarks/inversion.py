"""Measures the round trips of docs/inversion.md and writes its tables and plot: python benchmarks/inversion.py [IMAGES].

IMAGES is a folder, or an IDX file of which the first 256 images are taken; without it, the bundled held-out images. The
part of the page between the two markers is replaced, so the page never shows a figure that this did not measure.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pages import put, table
from torch import Tensor

from ddimctl import lossless, ode, plots, roundtrip
from ddimctl.families import load
from ddimctl.images import datasets, levels, reading
from ddimctl.model import Model
from ddimctl.paper import TABLE_2
from ddimctl.recipe import Way
from ddimctl.report import runs
from ddimctl.roundtrip import REFERENCE, RoundTrip

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "inversion.md"
GRID = [
    *(Way("ddim", "linear", S) for S in (10, 20, 50, 100)),
    *(Way("ddim", "quadratic", S) for S in (10, 20, 50, 100)),
    *(Way("ab2", "karras", S) for S in (10, 20, 50, 100)),
    *(Way("ab2mix", "arsinh", S) for S in (10, 20, 50, 100)),
    Way("ddim", "karras", 20),
    Way("heun", "karras", 10),
    *(Way("exact", spacing, 20) for spacing in ("karras", "log")),
    Way("exact", "log", 12),
    *(Way("exact", spacing, 50) for spacing in ("karras", "log")),
]
REPORTS = ("mse", "psnr", "wrong_pixels", "max_abs", "latent_error", "norm")
BATCH = 64


def rms(values: Sequence[float]) -> float:
    """The root mean square of all images' numbers, from each image's own."""
    return math.sqrt(sum(v * v for v in values) / len(values))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def batches(x0: Tensor) -> Iterator[Tensor]:
    """The images in parts, saying which is worked on."""
    for start in range(0, len(x0), BATCH):
        print(f"from image {start} of {len(x0)}", flush=True)
        yield x0[start : start + BATCH]


def row(trip: RoundTrip, numbers: int) -> list[str]:
    """A line of the page's table; `numbers` are the values of all images."""
    way = trip.way
    return [
        way.solver, way.spacing, str(way.steps),
        f"{mean(trip.encode_evaluations):.4g} + {mean(trip.decode_evaluations):.4g}",
        f"{trip.total('mse'):.1e}", f"{trip.total('psnr'):.1f} dB",
        f"{trip.total('wrong_pixels'):,.0f} of {numbers:,}", f"{trip.total('max_abs'):.2f}",
        f"{rms(trip.values['latent_error']):.4f}", f"{rms(trip.values['norm']):.3f}", str(TABLE_2.get(way.steps, "–")),
    ]  # fmt: skip


def reference_evaluations(model: Model, x0: Tensor) -> float:
    """Of the network for an image, by the solver that `latent_error` compares with: the most of any first level."""
    ends = {(path[0], path[-1]) for path in (way.path(model.schedule) for way in GRID)}
    return max(ode.encode(model, x0, REFERENCE.along(e)).mean_evaluations for e in ends)


def strange(shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Images that no model was trained on, at 8 bits."""
    c, h, w = shape
    y, x = np.mgrid[:h, :w]
    made = {
        "black": np.zeros((h, w)),
        "white": np.full((h, w), 255),
        "grey": np.full((h, w), 128),
        "uniform noise": np.random.default_rng(0).integers(0, 256, (h, w)),
        "checkerboard": (x + y) % 2 * 255,
        "ramp": x * 255 // (w - 1),
    }
    found = {k: levels.to_tensor(np.repeat(v[..., None], c, 2).astype(np.uint8)[None]) for k, v in made.items()}
    photograph = ROOT / "examples" / "photograph.jpg"
    if photograph.is_file():
        found["a photograph"] = levels.to_tensor(reading.read(photograph, c, (h, w))[0][None])
    return found


def held_out(model: Model) -> Tensor:
    assert model.about.folder is not None
    return levels.signed(datasets.load_dataset(model.about.folder / "held-out", model.channels, model.size).float())


def main(source: Path | None) -> None:
    model = load("fashion-mnist", "cpu")
    if source is None:
        x0 = held_out(model)
    else:
        x0 = levels.signed(datasets.load_dataset(source, model.channels, model.size)[:256].float())
    n = len(x0)
    trips = roundtrip.measure(model, batches(x0), GRID, reports=REPORTS)
    rows = [row(trip, x0.numel()) for trip in trips]
    print(*rows, sep="\n", flush=True)
    body = [
        f"Model fashion-mnist (digest {model.digest[:12]}…), {n} images that it never saw, float32 network, float64 state.",
        table(
            ["solver", "spacing", "S", "evaluations", "mse", "PSNR", "wrong values", "worst (levels)", "x_T error",
             "norm/√d", "paper's table 2"],
            rows,
        ),
        f"*x_T error*: root mean square against the adaptive solver at a tolerance of {REFERENCE.tolerance:g}"
        f" ({reference_evaluations(model, x0):.0f} evaluations an image), from the same first level.",
        "`encode --lossless` of each model's own 64 held-out images, `log` spacing, checks included in the evaluations."
        " 24 of `emoji`'s had a part in choosing S = 12; those of `fashion-mnist` had none:",
    ]  # fmt: skip
    checked = []
    for name in ("emoji", "fashion-mnist"):
        own = load(name, "cpu")
        for steps in (12, 20):
            solution = lossless.encode(own, held_out(own), Way("exact", steps=steps))
            assert solution.checks is not None
            good = sum(c.wrong == 0 for c in solution.checks)
            checked.append([name, str(steps), f"{good} of {len(solution.checks)}", f"{solution.mean_evaluations:.1f}",
                            str(max(solution.evaluations)), f"{max(c.worst for c in solution.checks):.2f}"])  # fmt: skip
            print(checked[-1], flush=True)
    body += [table(["model", "S", "lossless", "evaluations, mean", "most", "worst (levels)"], checked),
             "The same for images unlike anything that fashion-mnist was trained on, S = 12:"]  # fmt: skip
    odd = []
    for name, image in strange(model.image_shape).items():
        solution = lossless.encode(model, image, Way("exact", steps=12))
        assert solution.checks is not None
        c = solution.checks[0]
        odd.append([name, str(c.wrong), f"{c.worst:.2f}", f"{c.tolerance:g}", str(solution.evaluations[0])])
        print(odd[-1], flush=True)
    body.append(table(["image", "wrong values", "worst (levels)", "tolerance needed", "evaluations in all"], odd))
    lines: dict[str, list[tuple[float, float]]] = {}
    for trip in trips:
        point = trip.evaluations, max(trip.total("mse"), 1e-14)
        lines.setdefault(f"{trip.way.solver}, {trip.way.spacing}", []).append(point)
    chart = runs.error_against_evaluations(lines)
    plots.draw(ROOT / "docs" / "inversion.png", [chart], title=f"fashion-mnist, {n} images")
    put(PAGE, __file__, "\n\n".join(body))
    assert all(math.isfinite(trip.total("mse")) for trip in trips)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
