"""Measures the round trips of docs/inversion.md and writes its tables and plot: python benchmarks/inversion.py [IMAGES].

IMAGES is a folder, or an IDX file of which the first 256 images are taken; without it, the bundled held-out images. The
part of the page between the two markers is replaced, so the page never shows a figure that this did not measure.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import put, table
from torch import Tensor

from ddimctl import ddim, lossless, plots
from ddimctl.images import datasets, levels, reading
from ddimctl.metrics import max_abs, mse, psnr, wrong_pixels
from ddimctl.model import Model, bundled, load
from ddimctl.paper import TABLE_2

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "inversion.md"
GRID = [
    *(("ddim", "linear", S) for S in (10, 20, 50, 100)),
    *(("ddim", "quadratic", S) for S in (10, 20, 50, 100)),
    *(("ab2", "karras", S) for S in (10, 20, 50, 100)),
    *(("ab2mix", "arsinh", S) for S in (10, 20, 50, 100)),
    ("ddim", "karras", 20),
    ("heun", "karras", 10),
    *(("exact", spacing, 20) for spacing in ("karras", "log")),
    *(("exact", spacing, 50) for spacing in ("karras", "log")),
]


@dataclass(frozen=True)
class Row:
    solver: str
    spacing: str
    steps: int
    encode: float
    decode: float
    mse: float
    psnr: float
    wrong: int
    worst: float
    latent_error: float
    norm: float
    unconverged: int


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def measure(model: Model, x0: Tensor, solver: str, spacing: str, steps: int, reference: Tensor) -> Row:
    path = model.schedule.path(steps, spacing)
    encoded = ddim.encode(model, x0, path, solver)
    xT = encoded.x.float()
    decoded = ddim.decode(model, xT, path, solver)
    return Row(
        solver, spacing, steps, encoded.mean_evaluations, decoded.mean_evaluations,
        float(mse(x0, decoded.x).mean()), float(psnr(x0, decoded.x).mean()), int(wrong_pixels(x0, decoded.x).sum()),
        float(max_abs(x0, decoded.x).max()), rms(xT - reference), rms(xT), len(encoded.unconverged),
    )  # fmt: skip


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
    assert model.folder is not None
    return levels.signed(datasets.load_dataset(model.folder / "held-out", model.channels, model.size).float())


def main(source: Path | None) -> None:
    model = load("fashion-mnist", "cpu")
    if source is None:
        x0 = held_out(model)
    else:
        x0 = levels.signed(datasets.load_dataset(source, model.channels, model.size)[:256].float())
    n = len(x0)
    references = {}
    rows = []
    for solver, spacing, steps in GRID:
        path = model.schedule.path(steps, spacing)
        if path[0] not in references:
            references[path[0]] = ddim.encode(model, x0, (path[0], path[-1]), "adaptive", 1e-4)
        rows.append(measure(model, x0, solver, spacing, steps, references[path[0]].x))
        print(rows[-1], flush=True)
    body = [
        f"Model fashion-mnist (digest {model.digest[:12]}…), {n} images that it never saw, float32 network, float64 state.",
        table(
            ["solver", "spacing", "S", "evaluations", "mse", "PSNR", "wrong values", "worst (levels)", "x_T error",
             "norm/√d", "paper's table 2"],
            [[r.solver, r.spacing, str(r.steps), f"{r.encode:.4g} + {r.decode:.4g}", f"{r.mse:.1e}", f"{r.psnr:.1f} dB",
              f"{r.wrong:,} of {x0.numel():,}", f"{r.worst:.2f}", f"{r.latent_error:.4f}", f"{r.norm:.3f}",
              str(TABLE_2.get(r.steps, "–"))] for r in rows],
        ),
        "*x_T error*: root mean square against the adaptive solver at a tolerance of 1e-4"
        f" ({max(r.mean_evaluations for r in references.values()):.0f} evaluations an image), from the same first level.",
        "`encode --lossless` at S = 20 of each model's own 64 held-out images, checks included in the evaluations:",
    ]  # fmt: skip
    checked = []
    for name in bundled():
        own = load(name, "cpu")
        for spacing in ("karras", "log"):
            solution = lossless.encode(own, held_out(own), own.schedule.path(20, spacing))
            assert solution.checks is not None
            good = sum(c.wrong == 0 for c in solution.checks)
            checked.append([name, spacing, f"{good} of {len(solution.checks)}", f"{solution.mean_evaluations:.1f}",
                            str(max(solution.evaluations)), f"{max(c.worst for c in solution.checks):.2f}"])  # fmt: skip
            print(checked[-1], flush=True)
    body += [table(["model", "spacing", "lossless", "evaluations, mean", "most", "worst (levels)"], checked),
             "The same for images unlike anything that fashion-mnist was trained on, karras spacing:"]  # fmt: skip
    odd = []
    for name, image in strange(model.shape).items():
        solution = lossless.encode(model, image, model.schedule.path(20))
        assert solution.checks is not None
        c = solution.checks[0]
        odd.append([name, str(c.wrong), f"{c.worst:.2f}", f"{c.tolerance:g}", str(solution.evaluations[0])])
        print(odd[-1], flush=True)
    body.append(table(["image", "wrong values", "worst (levels)", "tolerance needed", "evaluations in all"], odd))
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        lines.setdefault(f"{r.solver}, {r.spacing}", []).append((r.encode + r.decode, max(r.mse, 1e-14)))
    plots.error_against_evaluations(ROOT / "docs" / "inversion.png", lines, f"fashion-mnist, {n} images")
    put(PAGE, __file__, "\n\n".join(body))
    assert all(math.isfinite(r.mse) for r in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
