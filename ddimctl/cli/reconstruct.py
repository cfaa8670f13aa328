"""``ddimctl reconstruct``: encode, decode, report the error (section 5.4, table 2)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ddimctl import places
from ddimctl.cli import batches, compared, inputs, names, options, prompts, trips
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.part import Part
from ddimctl.cli.sized import Captioned
from ddimctl.cli.workers import Workers
from ddimctl.errors import AboveLimit, SomeFailed, UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddimctl.cli.compared import Subject
    from ddimctl.cli.console import Console
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.plan import Item

REPORTED = "mse,mse_8bit,psnr,wrong_pixels,max_abs"


@group
class Models(Captioned):
    """The models, one or several, and what they are asked for."""

    model: Annotated[
        str,
        like(
            options.What, "model", metavar="MODEL,…", help=f"{options.MODEL_HELP} Several to compare.",
            autocompletion=names.some_models,
        ),
    ] = options.DEFAULT_MODEL  # fmt: skip


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
    what: Models,
    how: Several,
    fit: options.Fit,
    files: trips.Sheet,
    machine: Workers,
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

    Several models, -m a,b, are compared on the same images, each with these as it takes them. --captions encodes each image
    under the prompt beside it; those that share one stand together.

    Example: ddimctl reconstruct --steps 10,20,50,100 --solver ab2,ddim
    """
    from ddimctl import roundtrip
    from ddimctl.images import formats

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    preprocessing = fit.preprocessing()
    reports = parse_reports(said.report)
    check_targets(files, said, how, reports=reports)
    arrays = not files.kept and set(reports) <= set(roundtrip.ON_ARRAYS)
    subjects = compared.opened(what, machine, console, quick=arrays)
    if said.report in (REPORTED, "all") and any(s.model.autoencoder.digest is not None for s in subjects):
        reports += roundtrip.APART
    for subject in subjects:
        subject.ways = ways_of(how, subject.model, what.condition())
    given = images or ([] if files.from_file else [str(compared.held_out(subjects))])
    items = items_of(given, files, own=not (images or files.from_file), whose=trips.names_of(subjects), console=console)
    under = prompts.beside(items, given, what.condition(), console=console) if what.captions else {}
    compared.share(subjects, items, under, condition=what.condition(), console=console)
    for target in filter(None, (files.output, files.plot, files.html)):
        formats.check_apart(target, (item.source for item in items))
    for subject in subjects:
        start(subject, machine, console, n=len(items))
    trips.check_sheet(files, subjects, len(items))
    single = batches.is_single(images or [], items, files)
    reading = compared.Reading(preprocessing, machine.batch_size, files.kept, single)
    with machine.elsewhere(subjects[0].model) as elsewhere:
        compared.measure(subjects, reading, reports, console=console, elsewhere=elsewhere)
    if not subjects[0].count:
        raise SomeFailed(f"none of {len(items)} images could be read")
    trips.report(subjects, reports, files=files, console=console)
    worst = max((t.total("mse") for t in trips.trips_of(subjects)), default=0.0) if "mse" in reports else math.nan
    if said.fail_above is not None and not worst <= said.fail_above:
        raise AboveLimit(f"mse {worst:.3g} is above {said.fail_above:.3g}")
    if failed := sum(len(s.failed) for s in subjects):
        hint = "the figures are of the others"
        raise SomeFailed(f"{failed} of {len(items)} images could not be read", hint=hint)


def items_of(images: Sequence[str], files: trips.Sheet, *, own: bool, whose: str, console: Console) -> list[Item]:
    """The images: those named, or the models' `own`."""
    from ddimctl.images import formats, plugins

    if own:
        items = batches.items_of(images, options.Listed(), formats.SUFFIXES)[: files.limit]
        console.notice(f"{len(items)} held-out images of {whose}")
        return items
    batches.tell_left_out(images, console)
    return batches.items_of(images, files, plugins.readable(), writes=False)[: files.limit]


def start(subject: Subject, machine: options.Machine, console: Console, *, n: int) -> None:
    """Has the model ready for `n` images."""
    if not subject.quick:
        work = sum(2 * inputs.evaluations(n, way.steps, way.solver) for way in subject.ways)
        subject.model = inputs.start_engine(subject.model, machine, console, work=work)


def check_targets(files: trips.Sheet, said: Reports, how: Several, *, reports: Sequence[str]) -> None:
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


def ways_of(how: Several, model: Model, condition: Condition) -> list[Way]:
    """The ways to compare. Raises `UsageError` for one that there is not."""
    from ddimctl.recipe import Way, spacing_under
    from ddimctl.solvers import TOLERANCES

    to = how.level(model.schedule)
    ways = [
        Way(
            solver, spacing_under(condition, solver, spacing), s, how.tolerance if solver in TOLERANCES else None, to=to
        )
        for solver in options.parse_list(how.solver)
        for spacing in ([""] if how.spacing is None else options.parse_list(how.spacing))
        for s in options.parse_integers(how.steps, "--steps")
    ]
    for way in ways:
        way.path(model.schedule)
        way.check()
    return ways


def parse_reports(text: str) -> list[str]:
    """The reports asked for; "all" for every one that every model has."""
    from ddimctl.roundtrip import APART, REPORTS

    known = {name: name for name in REPORTS}
    if text == "all":
        return [name for name in known if name not in APART]
    return [choose(known, n, "report") for n in options.parse_list(text)]
