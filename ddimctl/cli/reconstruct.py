"""``ddimctl reconstruct``: encode, decode, report the error (section 5.4, table 2)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console, figure, table
from ddimctl.errors import AboveLimit, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ddimctl.model import Model

# How a report's value for each image becomes one number: the mean, but for these.
COMBINE = {"wrong_pixels": sum, "max_abs": max}
SHEET_IMAGES = 8


@dataclass
class Cell:
    """One line of the table: a way to encode and decode, and what it came to."""

    solver: str
    spacing: str
    steps: int
    path: tuple[float, ...]
    values: dict[str, list[float]] = field(default_factory=dict)  # by report, one number an image
    encode_evaluations: list[int] = field(default_factory=list)
    decode_evaluations: list[int] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    unconverged: int = 0
    seconds: float = 0.0
    shown: list[Any] = field(default_factory=list)  # the first few reconstructions, for the sheet

    def total(self, report: str) -> float:
        values = self.values[report]
        return float(COMBINE[report](values)) if report in COMBINE else sum(values) / len(values)


def reconstruct(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images or folders; without any, the model's own held-out images.")
    ] = None,
    output: options.Output = None,
    steps: Annotated[str, typer.Option("--steps", metavar="S,…", help="Steps each way; several for a table.")] = "20",
    solver: Annotated[
        str, typer.Option("--solver", metavar="NAME,…", help=options.SOLVER_HELP)
    ] = options.DEFAULT_SOLVER,
    spacing: Annotated[
        str, typer.Option("--spacing", metavar="NAME,…", help=options.SPACING_HELP)
    ] = options.DEFAULT_SPACING,
    report: Annotated[
        str, typer.Option(metavar="NAME,…", help="What to measure: see the list below, or all.")
    ] = "mse,mse_8bit,psnr,wrong_pixels,max_abs",
    tolerance: options.Tolerance = None,
    fail_above: Annotated[
        float | None, typer.Option(metavar="MSE", help="Exit with 5 if any line's mse is above this.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="Only the first N images.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = "auto",
    batch_size: options.BatchSize = options.DEFAULT_BATCH,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    force: options.Force = False,
) -> None:
    """Encode images, decode them again, and report the error.

    Reports: mse (the paper's: per dimension, pixels in 0 to 1), mse_8bit (after rounding to 8 bits), psnr (dB), ssim,
    max_abs (worst pixel, in 8-bit levels, before rounding), wrong_pixels (8-bit values that differ, in all),
    norm (of x_T, divided by the root of its dimension: 1 for noise). Where the paper has a figure for the same number of
    steps (table 2, CIFAR-10), it stands in the last column. -o writes a sheet: original, reconstruction, difference.

    Example: ddimctl reconstruct --steps 10,20,50,100 --solver ab2,ddim
    """
    from ddimctl import images as pictures
    from ddimctl.files import refuse_existing

    console = Console(quiet, verbose, json)
    reports = parse_reports(report)
    if output is not None:
        pictures.check_suffix(output)
        refuse_existing(output, force)
    net = inputs.open_model(model, device, console)
    cells = [
        Cell(how, levels, s, net.schedule.path(s, levels))
        for how in options.parse_list(solver)
        for levels in options.parse_list(spacing)
        for s in options.parse_integers(steps, "--steps")
    ]
    files = inputs.image_files(images or [], net, console)[:limit]
    originals: list[Tensor] = []
    with console.bar(sum(2 * c.steps for c in cells) * -(-len(files) // batch_size), "reconstructing") as bar:
        for start in range(0, len(files), batch_size):
            x0, _ = inputs.read_images(files[start : start + batch_size], net, console)
            originals += x0[: max(0, SHEET_IMAGES - len(originals))]
            for cell in cells:
                measure(cell, net, x0, reports, tolerance, bar)
    for cell in cells:
        if cell.unconverged:
            console.notice(
                f"warning: {cell.solver} with {cell.steps} steps did not converge on {cell.unconverged} of {len(files)} images"
            )
    if output is not None:
        gain = save_sheet(output, originals, cells)
        console.notice(f"{output}: original, then reconstruction and {gain} times its difference for each line")
    console.data(as_table(cells, reports), as_record(cells, reports, net, len(files)))
    worst = max((c.total("mse") for c in cells), default=0.0) if "mse" in reports else math.nan
    if fail_above is not None and not worst <= fail_above:
        raise AboveLimit(f"mse {worst:.3g} is above {fail_above:.3g}")


def parse_reports(text: str) -> list[str]:
    """The reports asked for; "all" for every one."""
    from ddimctl.metrics import METRICS

    known = {**METRICS, "norm": None}
    return list(known) if text == "all" else [n for n in options.parse_list(text) if choose(known, n, "report") or True]


def measure(cell: Cell, model: Model, x0: Tensor, reports: Sequence[str], tolerance: float | None, bar: Any) -> None:
    """Encodes and decodes one batch and adds what it comes to."""
    from ddimctl import ddim
    from ddimctl.metrics import METRICS

    begin = time.perf_counter()
    encoded = ddim.encode(model, x0, cell.path, cell.solver, tolerance, len(x0), bar)
    xT = encoded.x.float()  # what a latent file holds
    decoded = ddim.decode(model, xT, cell.path, cell.solver, tolerance, len(x0), bar)
    cell.seconds += time.perf_counter() - begin
    cell.encode_evaluations += encoded.evaluations
    cell.decode_evaluations += decoded.evaluations
    cell.residuals += encoded.residuals or []
    cell.unconverged += len(encoded.unconverged)
    cell.shown += decoded.x[: max(0, SHEET_IMAGES - len(cell.shown))]
    back = decoded.x.cpu()
    for name in reports:
        if name == "norm":
            values = xT.double().flatten(1).norm(dim=1) / math.sqrt(xT[0].numel())
        else:
            values = METRICS[name](x0, back)
        cell.values.setdefault(name, []).extend(values.tolist())


def as_table(cells: Sequence[Cell], reports: Sequence[str]) -> str:
    """The table for people."""
    from ddimctl.paper import TABLE_2

    paper = "mse" in reports and any(c.steps in TABLE_2 for c in cells)
    header = ["solver", "spacing", "steps", "evaluations", *reports, *(["paper's mse"] if paper else [])]
    rows = []
    for c in cells:
        both = (sum(e) / len(e) for e in (c.encode_evaluations, c.decode_evaluations))
        row = [c.solver, c.spacing, str(c.steps), "+".join(f"{e:.4g}" for e in both)]
        row += [figure(c.total(r)) for r in reports]
        rows.append(row + ([figure(TABLE_2.get(c.steps))] if paper else []))
    return table(header, rows)


def as_record(cells: Sequence[Cell], reports: Sequence[str], model: Model, n: int) -> dict[str, Any]:
    """The same for machines, with each image's values. What is not finite (the PSNR of equal images) is null."""
    from ddimctl.paper import TABLE_2

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "model": {"name": model.name, "digest": model.digest},
        "images": n,
        "results": [
            {
                "solver": c.solver,
                "spacing": c.spacing,
                "steps": c.steps,
                "encode_evaluations": sum(c.encode_evaluations) / n,
                "decode_evaluations": sum(c.decode_evaluations) / n,
                **{r: finite(c.total(r)) for r in reports},
                "paper": TABLE_2.get(c.steps),
                "unconverged": c.unconverged,
                "residuals": c.residuals,
                "seconds": c.seconds,
                "each": {r: [finite(v) for v in c.values[r]] for r in reports},
            }
            for c in cells
        ],
    }


def save_sheet(path: Path, originals: Sequence[Tensor], cells: Sequence[Cell]) -> int:
    """Writes original | reconstruction | amplified difference (| the next line's …), a row an image; the gain."""
    import numpy as np
    import torch

    from ddimctl.images import enlarge, save_image, sheet, to_pixels

    x0 = torch.stack(list(originals)).double()
    backs = [torch.stack(c.shown).cpu() for c in cells]
    worst = max(float((b - x0).abs().max()) for b in backs)
    gain = 10 ** max(0, min(6, math.floor(math.log10(1 / worst)))) if worst else 1
    columns = [x0, *(t for b in backs for t in (b, (b - x0) * gain))]
    pixels = np.stack([to_pixels(c) for c in columns], axis=1)  # (images, columns, H, W, C)
    factor = max(1, 112 // max(pixels.shape[2:4]))
    save_image(path, sheet(enlarge(pixels.reshape(-1, *pixels.shape[2:]), factor), len(columns), gap=4))
    return int(gain)
