"""``ddimctl reconstruct``: encode, decode, report the error (section 5.4, table 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import batches, inputs, looks, names, options, pages
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.part import Part
from ddimctl.cli.sized import Sized
from ddimctl.errors import AboveLimit, SomeFailed, UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.model import Model
    from ddimctl.recipe import Way
    from ddimctl.roundtrip import RoundTrip
    from ddimctl.runs.plan import Item

REPORTED = "mse,mse_8bit,psnr,wrong_pixels,max_abs"
GAP = 4  # pixels between them
SHOWN = 20  # of more images than that, what was done to each is not told without -v


@group
class Sheet(options.Output, options.Listed, options.Plotted, looks.Looks):
    """What is reconstructed, and where the pictures go."""

    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="Only the first N images.")] = (
        None
    )
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="How many images the sheet of -o shows.")] = 8
    plot: Annotated[
        Path | None, like(options.Plotted, "plot", help="Draw error against evaluations (.png, .svg, .pdf).")
    ] = None

    @property
    def kept(self) -> int:
        """How many images are kept, to be shown."""
        sheet = self.output is not None or self.show
        return max(self.rows if sheet else 0, pages.SHOWN if self.html is not None else 0)


@group
class Several(options.Iterating, Part):
    """The ways to compare."""

    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Steps each way; several for a table.")] = "20"
    solver: Annotated[
        str, like(options.How, "solver", metavar="NAME,…", autocompletion=names.some_of(*names.SOLVERS))
    ] = options.DEFAULT_SOLVER
    spacing: Annotated[
        str | None, like(options.How, "spacing", metavar="NAME,…", autocompletion=names.some_of(*names.SPACINGS))
    ] = None


@group
class Reports(options.Said):
    """What is measured, and said."""

    report: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="What to measure: see the list below, or all.",
            autocompletion=names.some_of(*names.REPORTS, "all"),
        ),
    ] = REPORTED
    fail_above: Annotated[
        float | None, typer.Option(metavar="MSE", help="Exit with 5 if any line's mse is above this.")
    ] = None


@flat
def reconstruct(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, archives, URLs; or else the model's own held-out images."),
    ] = None,
    *,
    what: Sized,
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
    solver: root mean square), xT_error (x_T decoded and encoded again: root mean square). Of a model with an autoencoder
    also autoencoder_mse (what that loses without the ODE) and state_error (what the ODE loses in its space, relative).

    Where the paper has a figure for the same number of steps (table 2, CIFAR-10), it stands in the last column. -o writes
    a sheet: original, then for each line its reconstruction and the difference, amplified as far as that line needs.

    Example: ddimctl reconstruct --steps 10,20,50,100 --solver ab2,ddim
    """
    from ddimctl import roundtrip
    from ddimctl.images import formats, levels, plugins, sheets

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    preprocessing = fit.preprocessing()
    reports = parse_reports(said.report)
    check_targets(files, said, how, reports=reports)
    quick = None
    if not files.kept and set(reports) <= set(roundtrip.ON_ARRAYS):
        quick = inputs.recall(what, machine, console)
    net = quick or inputs.open_model(what, machine, console)
    if said.report in (REPORTED, "all") and net.autoencoder.digest is not None:
        reports += roundtrip.APART
    ways = ways_of(how, net)
    if images or files.from_file:
        batches.tell_left_out(images or [], console)
        items = batches.items_of(images or [], files, plugins.readable(), writes=False)[: files.limit]
    else:
        items = batches.items_of([str(inputs.held_out_folder(net))], options.Listed(), formats.SUFFIXES)[: files.limit]
        console.notice(f"{len(items)} held-out images of {net.name}")
    for target in filter(None, (files.output, files.plot, files.html)):
        formats.check_apart(target, (item.source for item in items))
    if quick is None:
        work = sum(2 * inputs.evaluations(len(items), way.steps, way.solver) for way in ways)
        net = inputs.start_engine(net, machine, console, work=work)
    if files.output is not None:
        shown, factor = min(len(items), files.rows), sheets.factor_to_see(net.size)
        files.check_sheet(files.output, shown, net.size, columns=1 + 2 * len(ways), gap=GAP, factor=factor)
    single = batches.is_single(images or [], items, files)
    pictures = Pictures(
        items,
        net,
        preprocessing,
        levels.to_array if quick is not None else levels.to_tensor,
        console,
        single,
        files.kept,
    )
    parts = pictures.batches(machine.batch_size)
    steps = roundtrip.steps(ways, reports) * -(-len(items) // machine.batch_size)
    with console.bar(steps, "reconstructing") as bar:
        trips = roundtrip.measure(
            net, parts, ways, reports=reports, condition=what.condition(), keep=files.kept, progress=bar
        )
    if not pictures.count:
        raise SomeFailed(f"none of {len(items)} images could be read")
    report(trips, reports, net, pictures=pictures, files=files, console=console)
    worst = max((t.total("mse") for t in trips), default=0.0) if "mse" in reports else math.nan
    if said.fail_above is not None and not worst <= said.fail_above:
        raise AboveLimit(f"mse {worst:.3g} is above {said.fail_above:.3g}")
    if pictures.failed:
        hint = "the figures are of the others"
        raise SomeFailed(f"{pictures.failed} of {len(items)} images could not be read", hint=hint)


def check_targets(files: Sheet, said: Reports, how: Several, *, reports: Sequence[str]) -> None:
    """Raises `UsageError` for what cannot be written or measured, before anything is done."""
    from ddimctl import plots
    from ddimctl.files import refuse_existing
    from ddimctl.images import formats
    from ddimctl.solvers import TOLERANCES

    if files.output is not None:
        formats.check_suffix(files.output)
        refuse_existing(files.output, files.force)
    files.check_page([files.output, files.plot], force=files.force)
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


def ways_of(how: Several, model: Model) -> list[Way]:
    """The ways to compare. Raises `UsageError` for one that there is not."""
    from ddimctl.recipe import Way
    from ddimctl.solvers import TOLERANCES

    to = how.level(model.schedule)
    ways = [
        Way(solver, spacing, s, how.tolerance if solver in TOLERANCES else None, to=to)
        for solver in options.parse_list(how.solver)
        for spacing in ([""] if how.spacing is None else options.parse_list(how.spacing))
        for s in options.parse_integers(how.steps, "--steps")
    ]
    for way in ways:
        way.path(model.schedule)
        way.check()
    return ways


@dataclass
class Pictures:
    """The images of a run, read batch by batch, and what became of them."""

    items: Sequence[Item]
    model: Model
    preprocessing: Preprocessing
    convert: Callable[[Any], Any]
    console: Console
    single: bool
    rows: int  # images to keep, for the sheet and the page
    count: int = 0
    failed: int = 0
    shown: list[Any] = field(default_factory=list)  # the first few
    names: list[str] = field(default_factory=list)  # of all that could be read

    def batches(self, size: int) -> Iterator[Any]:
        """(B, C, H, W) in [−1, 1]; those that cannot be read are told of, and left out."""
        from ddimctl.images import reading
        from ddimctl.runs.reading import read_ahead

        net = self.model
        for loaded in read_ahead(
            self.items, lambda item: reading.read(item.opens, net.channels, net.size, how=self.preprocessing), size
        ):
            x0 = batches.stacked(loaded, self.single, self.console, tell=len(self.items) <= SHOWN, convert=self.convert)
            self.failed += sum(b.failure is not None for b in loaded)
            self.count += len(x0)
            self.names += [Path(b.item.source).name for b in loaded if b.failure is None]
            self.shown += list(x0[: max(0, self.rows - len(self.shown))])
            if len(x0):
                yield x0


def report(
    trips: Sequence[RoundTrip],
    reports: Sequence[str],
    model: Model,
    *,
    pictures: Pictures,
    files: Sheet,
    console: Console,
) -> None:
    """The table, the sheet and the plot."""
    from ddimctl import plots
    from ddimctl.images import sheets
    from ddimctl.report import runs

    for trip in trips:
        if trip.unconverged:
            folds = sum(f.fold for f in trip.failures)
            console.notice(
                f"warning: {trip.way.solver} with {trip.way.steps} steps did not converge"
                f" on {trip.unconverged} of {pictures.count} images (residual at most {max(trip.residuals):.1e})"
                + (f"; on {folds} of them DDIM's step folds: it is not injective" if folds else "")
            )
    console.data(as_table(trips, reports), as_record(trips, reports, model, n=pictures.count))
    if files.output is not None or files.shows(console):
        gains = save_sheet(files, pictures, trips)
    if files.output is not None:
        several = len({t.way.spacing for t in trips}) > 1
        gained = [
            f"{t.way.solver} {t.way.spacing + ' ' if several else ''}{t.way.steps} × {sheets.stated(gain)}"
            for t, gain in zip(trips, gains, strict=True)
        ]
        console.notice(
            f"{files.output}: original, then for each line its reconstruction and the difference: {', '.join(gained)}"
            + (f"; {files.rows} of {pictures.count} shown" if files.rows < pictures.count else "")
        )
    if files.html is not None:
        save_page(trips, reports, model, pictures=pictures, files=files, console=console)
    if files.plot is not None:
        lines: dict[str, list[tuple[float, float]]] = {}
        for t in trips:
            lines.setdefault(f"{t.way.solver}, {t.way.spacing}", []).append((t.evaluations, t.total("mse")))
        title = f"{model.name}, {pictures.count} image{'s' * (pictures.count != 1)}"
        plots.draw(files.plot, [runs.error_against_evaluations(lines)], title=title, dark=files.dark)
        console.notice(f"{files.plot}: error against evaluations")


def parse_reports(text: str) -> list[str]:
    """The reports asked for; "all" for every one that every model has."""
    from ddimctl.roundtrip import APART, REPORTS

    known = {name: name for name in REPORTS}
    if text == "all":
        return [name for name in known if name not in APART]
    return [choose(known, n, "report") for n in options.parse_list(text)]


def save_page(
    trips: Sequence[RoundTrip],
    reports: Sequence[str],
    model: Model,
    *,
    pictures: Pictures,
    files: Sheet,
    console: Console,
) -> None:
    """Writes the page of --html."""
    from ddimctl import origin

    shown = pictures.names[: len(pictures.shown)]
    sections = pages.of_round_trips(pictures.shown, trips, shown, heads=looks.heads, lines=as_lines(trips, reports))
    some = f", {len(shown)} of them shown" if len(shown) < pictures.count else ""
    parents = [origin.parent(item.source) for item in pictures.items[: origin.MAX_PARENTS]]
    ways = {
        name: ", ".join(dict.fromkeys(str(getattr(t.way, name)) for t in trips))
        for name in ("solver", "spacing", "steps")
    }
    made = origin.of("reconstruct", model, trips[0].way, parents=parents, more=ways)
    files.write_page(
        f"Round trips of {model.name}", f"{pictures.count} images{some}, encoded and decoded again.", sections,
        made=made, record=as_record(trips, reports, model, n=pictures.count), side=model.size[1], console=console,
    )  # fmt: skip


def as_table(cells: Sequence[RoundTrip], reports: Sequence[str]) -> str:
    """The table for people."""
    return table(*as_lines(cells, reports))


def as_lines(cells: Sequence[RoundTrip], reports: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Its header, and its lines."""
    from ddimctl.paper import TABLE_2

    paper = "mse" in reports and any(c.way.steps in TABLE_2 for c in cells)
    header = ["solver", "spacing", "steps", "evaluations", *reports, *(["paper's mse"] if paper else [])]
    rows = []
    for c in cells:
        both = (sum(e) / len(e) for e in (c.encode_evaluations, c.decode_evaluations))
        row = [c.way.solver, c.way.spacing, str(c.way.steps), "+".join(f"{e:.4g}" for e in both)]
        row += [figure(int(c.total(r)) if r == "wrong_pixels" else c.total(r)) for r in reports]
        rows.append(row + ([figure(TABLE_2.get(c.way.steps))] if paper else []))
    return header, rows


def as_record(cells: Sequence[RoundTrip], reports: Sequence[str], model: Model, *, n: int) -> dict[str, Any]:
    """The same for machines, with each image's values."""
    from ddimctl.paper import TABLE_2

    return {
        "model": {"name": model.name, "digest": model.digest},
        "images": n,
        "results": [
            {
                "solver": c.way.solver,
                "spacing": c.way.spacing,
                "steps": c.way.steps,
                "encode_evaluations": sum(c.encode_evaluations) / n,
                "decode_evaluations": sum(c.decode_evaluations) / n,
                **{r: c.total(r) for r in reports},
                "paper": TABLE_2.get(c.way.steps),
                "unconverged": c.unconverged,
                "residuals": c.residuals,
                "seconds": c.seconds,
                "each": {r: c.values[r] for r in reports},
            }
            for c in cells
        ],
    }


def save_sheet(files: Sheet, pictures: Pictures, cells: Sequence[RoundTrip]) -> list[float]:
    """Writes and shows original | reconstruction | amplified difference (| the next line's …), a row an image.

    Gives each line's gain.
    """
    import torch

    from ddimctl import origin
    from ddimctl.images.sheets import comparison, enlarge, factor_to_see, stated
    from ddimctl.images.writing import save_image

    x0 = pictures.shown[: files.rows]
    pixels, gains = comparison(torch.stack(x0), [torch.stack(cell.shown[: len(x0)]) for cell in cells])
    factor = factor_to_see(pixels.shape[1:3])
    lines = [
        f"{c.way.solver}, {c.way.spacing}, {c.way.steps} steps, × {stated(g)}"
        for c, g in zip(cells, gains, strict=True)
    ]
    parents = [origin.parent(item.source) for item in pictures.items[: origin.MAX_PARENTS]]
    made = origin.of("reconstruct", pictures.model, cells[0].way, parents=parents, more={"lines": lines})
    some = len(x0) < pictures.count
    caption = f"{pictures.model.name}: " + (f"{len(x0)} of " if some else "") + f"{pictures.count} images"
    caption += "; the figures are of all" if some else ""
    columns, names = 1 + 2 * len(cells), pictures.names[: len(x0)]
    words = {"above": looks.heads(cells, gains), "left": names, "caption": caption}
    if files.output is not None:
        save_image(files.output, files.sheet(enlarge(pixels, factor), columns, GAP, **words), made=made)
    if files.shows(pictures.console):
        files.print_sheet(pixels, columns, **words)
    return gains
