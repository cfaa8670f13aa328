"""``ddimctl reconstruct``: encode, decode, report the error (section 5.4, table 2)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import batches, inputs, names, options
from ddimctl.cli.console import figure, table
from ddimctl.cli.groups import flat, like
from ddimctl.errors import AboveLimit, SomeFailed, UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ddimctl.model import Model

# How a report's value for each image becomes one number: the mean, but for these.
COMBINE: dict[str, Callable[[list[float]], float]] = {"wrong_pixels": sum, "max_abs": max}
OF_LATENTS = ("norm", "latent_error", "xT_error")  # reports beside the metrics of images
ON_ARRAYS = {"mse", "mse_8bit", "psnr", "max_abs", "wrong_pixels"}  # reports that need no torch
REFERENCE = 1e-5  # the adaptive solver's tolerance for latent_error
SHEET_IMAGES = 8
GAP = 4  # pixels between them
SHOWN = 20  # of more images than that, what was done to each is not told without -v


@dataclass(frozen=True, kw_only=True)
class Sheet(options.Output, options.Listed, options.Plotted):
    """What is reconstructed, and where the pictures go."""

    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="Only the first N images.")] = (
        None
    )
    plot: Annotated[
        Path | None, like(options.Plotted, "plot", help="Draw error against evaluations (.png, .svg, .pdf).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Several(options.Iterating):
    """The ways to compare."""

    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Steps each way; several for a table.")] = "20"
    solver: Annotated[
        str, like(options.How, "solver", metavar="NAME,…", autocompletion=names.some_of(*names.SOLVERS))
    ] = options.DEFAULT_SOLVER
    spacing: Annotated[
        str, like(options.How, "spacing", metavar="NAME,…", autocompletion=names.some_of(*names.SPACINGS))
    ] = options.DEFAULT_SPACING


@dataclass(frozen=True, kw_only=True)
class Reports(options.Said):
    """What is measured, and said."""

    report: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="What to measure: see the list below, or all.",
            autocompletion=names.some_of(*names.REPORTS, "all"),
        ),
    ] = "mse,mse_8bit,psnr,wrong_pixels,max_abs"
    fail_above: Annotated[
        float | None, typer.Option(metavar="MSE", help="Exit with 5 if any line's mse is above this.")
    ] = None


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

    @property
    def evaluations(self) -> float:
        """Of the network for an image, both ways."""
        return (sum(self.encode_evaluations) + sum(self.decode_evaluations)) / len(self.encode_evaluations)

    def total(self, report: str) -> float:
        values = self.values[report]
        return float(COMBINE[report](values)) if report in COMBINE else sum(values) / len(values)


@flat
def reconstruct(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images or folders; without any, the model's own held-out images.")
    ] = None,
    *,
    what: options.What,
    how: Several,
    fit: options.Fit,
    files: Sheet,
    machine: options.Machine,
    said: Reports,
) -> None:
    """Encode images, decode them again, and report the error.

    Reports: mse (the paper's: per dimension, pixels in 0 to 1), mse_8bit (after rounding to 8 bits), psnr (dB), ssim,
    max_abs (worst pixel, in 8-bit levels, before rounding), wrong_pixels (8-bit values that differ, in all),
    norm (of x_T, divided by the root of its dimension: 1 for noise), latent_error (of x_T itself, against the adaptive
    solver: root mean square), xT_error (x_T decoded and encoded again: root mean square).

    Where the paper has a figure for the same number of steps (table 2, CIFAR-10), it stands in the last column. -o writes
    a sheet: original, then for each line its reconstruction and the difference, amplified as far as that line needs.

    Example: ddimctl reconstruct --steps 10,20,50,100 --solver ab2,ddim
    """
    from ddimctl import batch, ddim, plots
    from ddimctl.files import refuse_existing
    from ddimctl.images import formats, levels, plugins, reading, sheets
    from ddimctl.solvers import TOLERANCES

    console = said.console()
    preprocessing = fit.preprocessing()
    reports = parse_reports(said.report)
    if files.output is not None:
        formats.check_suffix(files.output)
        refuse_existing(files.output, files.force)
    if files.plot is not None:
        plots.check_target(files.plot)
        refuse_existing(files.plot, files.force)
        formats.check_apart(files.plot, filter(None, [files.output]))
        if "mse" not in reports:
            raise UsageError("--plot draws the mse", hint="add it to --report")
    if said.fail_above is not None and "mse" not in reports:
        raise UsageError("--fail-above is about the mse", hint="add it to --report")
    if how.tolerance is not None and not any(name in TOLERANCES for name in options.parse_list(how.solver)):
        raise UsageError(f"the solver {how.solver} takes no tolerance", hint=f"these do: {', '.join(TOLERANCES)}")
    quick = None
    if files.output is None and set(reports) <= ON_ARRAYS:
        quick = inputs.recall(
            what.model, machine.device, machine.engine, machine.precision, console, what.class_label, what.config
        )
    net: Any = quick or inputs.open_model(what.model, machine.device, console, what.class_label, what.config)
    cells = [
        Cell(solver, spaced, s, net.schedule.path(s, spaced))
        for solver in options.parse_list(how.solver)
        for spaced in options.parse_list(how.spacing)
        for s in options.parse_integers(how.steps, "--steps")
    ]
    if images or files.from_file:
        batches.tell_left_out(images or [], console)
        items = batches.items_of(images or [], files.from_file, plugins.readable(), None, writes=False)[: files.limit]
    else:
        items = batches.items_of([str(inputs.held_out_folder(net))], None, formats.SUFFIXES, None)[: files.limit]
        console.notice(f"{len(items)} held-out images of {net.name}")
    for target in filter(None, (files.output, files.plot)):
        formats.check_apart(target, (item.source for item in items))
    if quick is not None:
        console.detail(f"{net.name} from the cache, without torch; engine {net.engine}, {machine.precision}")
    else:
        work = sum(2 * inputs.evaluations(len(items), c.steps, c.solver) for c in cells)
        inputs.start_engine(net, machine.engine, machine.precision, work, console)
    if files.output is not None:
        shown, factor = min(len(items), SHEET_IMAGES), sheets.factor_to_see(net.size)
        formats.check_side(files.output, *sheets.sheet_size(shown, net.size, 1 + 2 * len(cells), GAP, factor))
    count = failed = 0
    single = batches.is_single(images or [], items, files.from_file, None)
    originals: list[Any] = []
    convert = levels.to_array if quick is not None else levels.to_tensor
    work = sum((4 if "xT_error" in reports else 2) * c.steps for c in cells) * -(-len(items) // machine.batch_size)
    with console.bar(work, "reconstructing") as bar:
        for group in batch.read_ahead(
            items, lambda item: reading.read(item.source, net.channels, net.size, preprocessing), machine.batch_size
        ):
            x0 = batches.stacked(group, single, console, len(items) <= SHOWN, convert)
            failed += sum(b.failure is not None for b in group)
            count += len(x0)
            if not len(x0):
                continue
            originals += list(x0[: max(0, SHEET_IMAGES - len(originals))])
            references: dict[float, Tensor] = {}  # by the level that counts as clean
            for cell in cells:
                if "latent_error" in reports and cell.path[0] not in references:
                    ends = (cell.path[0], cell.path[-1])
                    references[cell.path[0]] = ddim.encode(net, x0, ends, "adaptive", REFERENCE, len(x0)).x
                fits = how.tolerance if cell.solver in TOLERANCES else None
                measure(cell, net, x0, references.get(cell.path[0]), reports, fits, bar)
    if not count:
        raise SomeFailed(f"none of {len(items)} images could be read")
    for cell in cells:
        if cell.unconverged:
            console.notice(
                f"warning: {cell.solver} with {cell.steps} steps did not converge"
                f" on {cell.unconverged} of {count} images (residual at most {max(cell.residuals):.1e})"
            )
    console.data(as_table(cells, reports), as_record(cells, reports, net, count))
    if files.output is not None:
        gains = save_sheet(files.output, originals, cells)
        several = len({c.spacing for c in cells}) > 1
        gained = [
            f"{c.solver} {c.spacing + ' ' if several else ''}{c.steps} × {gain:,}"
            for c, gain in zip(cells, gains, strict=True)
        ]
        console.notice(
            f"{files.output}: original, then for each line its reconstruction and the difference: {', '.join(gained)}"
        )
    if files.plot is not None:
        lines: dict[str, list[tuple[float, float]]] = {}
        for c in cells:
            lines.setdefault(f"{c.solver}, {c.spacing}", []).append((c.evaluations, c.total("mse")))
        plots.error_against_evaluations(files.plot, lines, f"{net.name}, {count} images")
        console.notice(f"{files.plot}: error against evaluations")
    worst = max((c.total("mse") for c in cells), default=0.0) if "mse" in reports else math.nan
    if said.fail_above is not None and not worst <= said.fail_above:
        raise AboveLimit(f"mse {worst:.3g} is above {said.fail_above:.3g}")
    if failed:
        raise SomeFailed(f"{failed} of {len(items)} images could not be read", hint="the figures are of the others")


def parse_reports(text: str) -> list[str]:
    """The reports asked for; "all" for every one."""
    from ddimctl.metrics import METRICS

    known = {name: name for name in (*METRICS, *OF_LATENTS)}
    return list(known) if text == "all" else [choose(known, n, "report") for n in options.parse_list(text)]


def measure(
    cell: Cell,
    model: Model,
    x0: Any,
    reference: Any,
    reports: Sequence[str],
    tolerance: float | None,
    bar: Any,
) -> None:
    """Encodes and decodes one batch and adds what it comes to. `reference` is x_T by the adaptive solver."""
    from ddimctl import ddim
    from ddimctl.images.levels import check_finite
    from ddimctl.metrics import METRICS

    begin = time.perf_counter()
    encoded = ddim.encode(model, x0, cell.path, cell.solver, tolerance, len(x0), bar)
    xT = ddim.as_stored(encoded.x)
    decoded = ddim.decode(model, xT, cell.path, cell.solver, tolerance, len(x0), bar)
    check_finite(decoded.x, model.name)
    cell.seconds += time.perf_counter() - begin
    cell.encode_evaluations += encoded.evaluations
    cell.decode_evaluations += decoded.evaluations
    cell.residuals += encoded.residuals or []
    cell.unconverged += len(encoded.unconverged)
    cell.shown += list(decoded.x[: max(0, SHEET_IMAGES - len(cell.shown))])
    back = decoded.x.cpu() if hasattr(decoded.x, "cpu") else decoded.x
    for name in reports:
        if name == "norm":
            values = rms(xT)
        elif name == "latent_error":
            values = rms(xT - reference)
        elif name == "xT_error":
            values = rms(ddim.encode(model, decoded.x, cell.path, cell.solver, tolerance, len(x0), bar).x - xT)
        else:
            values = METRICS[name](x0, back)
        cell.values.setdefault(name, []).extend(values.tolist())


def rms(xT: Tensor) -> Tensor:
    """Each latent's norm divided by the root of its dimension."""
    return xT.double().flatten(1).square().mean(1).sqrt()


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
    """The same for machines, with each image's values."""
    from ddimctl.paper import TABLE_2

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
                **{r: c.total(r) for r in reports},
                "paper": TABLE_2.get(c.steps),
                "unconverged": c.unconverged,
                "residuals": c.residuals,
                "seconds": c.seconds,
                "each": {r: c.values[r] for r in reports},
            }
            for c in cells
        ],
    }


def save_sheet(path: Path, originals: Sequence[Tensor], cells: Sequence[Cell]) -> list[int]:
    """Writes original | reconstruction | amplified difference (| the next line's …), a row an image; each line's gain."""
    import numpy as np
    import torch

    from ddimctl.images.levels import to_pixels
    from ddimctl.images.sheets import enlarge, factor_to_see, sheet
    from ddimctl.images.writing import save_image

    x0 = torch.stack(list(originals)).double()
    columns, gains = [x0], []
    for cell in cells:
        back = torch.stack(cell.shown).cpu()
        worst = float((back - x0).abs().max())
        gains.append(10 ** max(0, min(6, math.floor(math.log10(1 / worst)))) if worst else 1)
        columns += [back, (back - x0) * gains[-1]]
    pixels = np.stack([to_pixels(c) for c in columns], axis=1)  # (images, columns, H, W, C)
    factor = factor_to_see(pixels.shape[2:4])
    save_image(path, sheet(enlarge(pixels.reshape(-1, *pixels.shape[2:]), factor), len(columns), GAP))
    return gains
