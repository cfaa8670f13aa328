"""``ddimctl evaluate``: quality against cost, for every η and S (section 5.1, table 1 and figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import batches, inputs, names, options, pages
from ddimctl.cli.cells import Cell, as_lines, as_record, curves, samples, seconds_per_image, seeded, tables
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import flat, given, group, like
from ddimctl.errors import FileError, UsageError, choose

if TYPE_CHECKING:
    from ddimctl.evaluate import Setting
    from ddimctl.features import Extractor
    from ddimctl.frechet import Statistics
    from ddimctl.model import Condition, Model
    from ddimctl.report.html import Section


@group
class Kept(options.Plotted, pages.Page):
    """Where the images are kept, and the plot goes."""

    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where generated images are kept, for the next time.")
    ] = None
    plot: Annotated[
        Path | None, like(options.Plotted, "plot", help="Draw distance and seconds against S (.png, .svg, .pdf).")
    ] = None


@group
class Cells:
    """How the images of each cell are made."""

    PANEL: ClassVar[str] = "How"

    eta: Annotated[str, typer.Option("--eta", metavar="η,…", help="A row for each: 0 is DDIM, 1 is DDPM.")] = "0,1"
    sigma_hat: Annotated[
        bool,
        typer.Option("--sigma-hat", help="One more row: DDPM with the larger variance (appendix D.3)."),
    ] = False
    steps: Annotated[
        str, like(options.How, "steps", metavar="S,…", help="A column for each: steps of the sampler.")
    ] = "10,20,50"
    n: Annotated[int, typer.Option("-n", "--images", metavar="N", help="Images for each cell.")] = 1000
    seed: Annotated[
        str,
        like(
            options.Seeded,
            "seed",
            metavar="N,A-B,…",
            min=None,
            help="What randomness follows from; several for the spread.",
        ),
    ] = "0"
    spacing: Annotated[str, like(options.How, "spacing", help=options.SPACING_HELP)] = "linear"
    solver: Annotated[str, like(options.How, "solver", help="For the row η = 0: ddim, ab2, …")] = "ddim"


@group
class Against:
    """What the images are compared with."""

    PANEL: ClassVar[str] = "How"

    reference: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|IDX", help="Images to compare with; without, the training images' statistics."),
    ] = None
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="classifier (that came with the model, or a file), bottleneck (the model's own) or inception.",
            autocompletion=names.one_of(*names.FEATURES),
        ),
    ] = None


@flat
def evaluate(
    ctx: typer.Context,
    *,
    what: options.What,
    how: Cells,
    against: Against,
    files: Kept,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Measure how good samples are, and what they cost, for every η and number of steps S.

    The measure is the Fréchet distance between features of generated images and of the reference: less is better. The
    features are those of a small classifier that came with the model; without one, the middle of the model's own network;
    or Inception's (extra fid), which make it the FID. It depends on the number of images: compare only what was measured
    with the same N and the same features.

    Images are kept in a cache, by the model and everything that decides what they are. A run that was stopped goes on
    where it was, and a larger N makes only what is missing.

    Several seeds, --seed 1,4,10-20, are a line each, with their mean and standard deviation below: how far apart two figures
    are by chance alone.

    Example: ddimctl evaluate --eta 0,0.2,0.5,1 --sigma-hat --steps 10,20,50 -n 2000
    """
    from ddimctl import cache as caches
    from ddimctl import engines, origin, plots
    from ddimctl.files import refuse_existing
    from ddimctl.images.formats import check_apart
    from ddimctl.report import runs

    console = said.console()
    engines.check(machine.engine, machine.precision)
    settings = plan_cells(how, what.condition(), named="solver" in given(ctx))
    files.check_page([files.plot, against.reference], force=files.force)
    if files.plot is not None:
        plots.check_target(files.plot)
        refuse_existing(files.plot, files.force)
        check_apart(files.plot, filter(None, [against.reference]))
    net = inputs.open_model(what, machine, console)
    for setting in settings:
        setting.how.check()
        setting.how.way.path(net.schedule)
    extractor = open_features(against.features, net, what.condition())
    console.notice(said_of(extractor))
    known, floor = open_reference(against.reference, extractor, net, console=console)
    warn_of_few({"generated images": how.n, "reference images": known.n}, extractor, console)
    folder = caches.folder() if files.cache is None else files.cache
    measuring = Measuring(folder, extractor, known, machine, console)
    cells, engine = measuring.fill(net, settings, how.n)
    if old := sum(how.n - c.made for c in cells):
        console.notice(f"{old:,} of {how.n * len(cells):,} images were in the cache, {folder}")
    seconds = seconds_per_image(cells, how.n)
    record = {
        "model": origin.named(net),
        "features": described(extractor),
        "reference": {"source": str(against.reference) if against.reference else "training images", "images": known.n},
        "floor": floor,
        "images": how.n,
        **seeded(settings),
        "spacing": how.spacing,
        "solver": how.solver,
        "engine": engine,
        "precision": machine.precision,
        **as_record(cells, how.n),
        "seconds_per_image": {str(s): t for s, t in seconds.items()},
    }
    console.data(table(*as_lines(cells, seconds)), record)
    lines = curves(cells)
    real = floor.get("test", {}).get(str(how.n))
    if files.html is not None:
        sections = pages.of_cells(tables(cells, seconds), lines, samples(cells), floor=real, what=extractor.name)
        save_page(net, settings[-1], sections, files=files, record=record, console=console)
    if files.plot is not None:
        charts = [*pages.distances_of(lines, floor=real, what=extractor.name), runs.seconds_against_steps(seconds)]
        plots.draw(files.plot, charts, title=f"{net.name}, {how.n:,} images a cell", dark=files.dark)
        console.notice(f"{files.plot}: distance and seconds against S")


def plan_cells(how: Cells, condition: Condition, *, named: bool = False) -> list[Setting]:
    """A cell for each η and S, row by row. Raises `UsageError` where there is none of that kind, or none for a solver that
    was `named`: where noise is added on the way, nothing but eq. 12 is taken."""
    from ddimctl.evaluate import Setting
    from ddimctl.recipe import Way
    from ddimctl.sampling import Noising
    from ddimctl.solvers import SOLVERS

    etas, columns = parse_etas(how.eta), list(dict.fromkeys(options.parse_integers(how.steps, "--steps")))
    if how.n < 2:
        raise UsageError(
            f"{how.n} images have no covariance", hint="give -n a number from 2 up; 1,000 or more mean something"
        )
    rows = [(value, False) for value in etas] + ([(1.0, True)] if how.sigma_hat else [])
    if named and how.solver != "ddim" and 0 not in etas:
        choose(SOLVERS, how.solver, "solver")
        raise UsageError(f"no row is for the solver {how.solver}: all add noise on the way", hint="add 0 to --eta")
    return [
        Setting(Noising(Way(how.solver, how.spacing, s), v, hat), seed, condition)
        for v, hat in rows
        for seed in options.parse_seeds(how.seed)
        for s in columns
    ]


def warn_of_few(counts: Mapping[str, int], extractor: Extractor, console: Console) -> None:
    for kind, count in counts.items():
        if count <= extractor.dimension:
            console.notice(
                f"warning: {count} {kind} are too few for {extractor.dimension} features: their covariance is singular"
            )


@dataclass(frozen=True)
class Measuring:
    """What every cell is made with, and compared with."""

    folder: Path  # of the cache
    extractor: Extractor
    known: Statistics
    machine: options.Machine
    console: Console

    def fill(self, model: Model, settings: Sequence[Setting], n: int) -> tuple[list[Cell], str | None]:
        """The cells, and the engine that made what was missing of their images; None if nothing was."""
        from ddimctl import engines, evaluate, frechet

        machine, console, cells = self.machine, self.console, []
        # The precision decides about the images; the engine is chosen by what is to do.
        model = model.with_network(engines.make(model.network.module, "torch", machine.precision))
        lacking = {s: list(evaluate.missing(model, s, n, cache=self.folder)) for s in settings}
        work = sum(inputs.evaluations(sum(lacking[s]), s.steps, s.how.way.solver) for s in settings)
        if work:
            model = inputs.start_engine(model, machine, console, work=work)
            warm_up(model, settings[0].condition)
        steps = sum(s.steps * -(-k // machine.batch_size) for s in settings for k in lacking[s])
        with console.bar(steps, "sampling") as bar:
            for setting in settings:
                made = evaluate.generate(
                    model, setting, n, cache=self.folder, batch_size=machine.batch_size, progress=bar
                )
                found = frechet.statistics(self.extractor.parts(made.pixels))
                first = made.pixels[: pages.OF_A_CELL].permute(0, 2, 3, 1).numpy().copy()
                cells.append(Cell(setting, frechet.distance(found, self.known), made.seconds, made.made, first))
                console.detail(
                    f"{setting.row}, S = {setting.steps}: {cells[-1].distance:.4g} ({made.made} images made)"
                )
        return cells, model.network.engine if work else None


def warm_up(model: Model, condition: Condition) -> None:
    """Has an engine that compiles do so now, so that no image is charged for it. 21 images need batches of every size."""
    import torch

    if model.network.engine != "torch":
        device = model.network.module.state_device
        model.eps(condition)(torch.zeros(21, *model.state_shape, dtype=torch.float64, device=device), 1.0)


def parse_etas(text: str) -> list[float]:
    """ "0,0.5,1" → [0.0, 0.5, 1.0], each once."""
    try:
        return list(dict.fromkeys(float(p) for p in options.parse_list(text)))
    except ValueError:
        raise UsageError(f"--eta takes numbers from 0 to 1 with commas between, not {text!r}") from None


def open_features(wanted: str | None, model: Model, condition: Condition) -> Extractor:
    """What --features asks for; without, the classifier that came with the model, or the model's own bottleneck.

    Raises `UsageError` where it is not here, `FileError` where it is for other images or of another model.
    """
    from ddimctl import bottleneck, features

    file = model.about.folder / features.FILE if model.about.folder else None
    named = wanted is not None and wanted.endswith(".safetensors")
    if wanted is not None and named:
        file, wanted = Path(wanted), None
    elif file is not None and not file.is_file():
        file = None
    held = None if file is None else features.kind_of(file)
    kind = choose({k: k for k in features.KINDS}, wanted or held or "bottleneck", "features")
    if kind == "inception":
        return features.load_inception(model.device)
    if kind == "bottleneck":
        own = bottleneck.extractor(model, condition)
        known = bottleneck.read(file, own) if file is not None and held == kind else None
        if named and known is None:
            raise FileError(f"{file} is of another model's features than those of {model.name}")
        return known or own
    if file is None or held != kind:
        raise UsageError(
            f"the model {model.name} came without a classifier ({features.FILE})",
            hint="--features bottleneck needs none; --features inception is the extra 'fid'",
        )
    extractor = features.load_classifier(file, model.device)
    takes = (extractor.about["channels"], *extractor.about["size"])
    if takes != model.image_shape:
        raise FileError(f"{file} is for images of shape {takes}, the model {model.name} makes {model.image_shape}")
    return extractor


def said_of(extractor: Extractor) -> str:
    """Which features the numbers are of: those of other features are other numbers."""
    whose = {"classifier": "the classifier's", "inception": "Inception's"}.get(
        extractor.name, "the model's own bottleneck,"
    )
    digest = str(extractor.about.get("digest", ""))[:16]
    return f"features: {whose} {extractor.dimension} numbers an image{f' ({digest}…)' if digest else ''}"


def described(extractor: Extractor) -> dict[str, Any]:
    """The features, as a record."""
    about = {k: v for k, v in extractor.about.items() if k != "floor"}
    return {"name": extractor.name, "dimension": extractor.dimension, **about}


def open_reference(
    path: Path | None, extractor: Extractor, model: Model, *, console: Console
) -> tuple[Statistics, dict[str, Any]]:
    """The statistics to compare with, and how far real images are apart: what no sampler can be expected to beat."""
    from ddimctl import frechet
    from ddimctl.evaluate import reference_images
    from ddimctl.features import BATCH

    if path is None:
        if extractor.reference is None:
            raise UsageError(
                f"the features {extractor.name} came without a reference", hint="name images with --reference"
            )
        whose = "classifier" if extractor.name == "classifier" else "model"
        console.notice(f"reference: the {extractor.reference.n:,} training images of the {whose}")
        floor = extractor.about["floor"]
        if floor.get("test"):
            apart = ", ".join(f"{figure(v)} for {int(k):,}" for k, v in floor["test"].items())
            console.notice(f"real test images are as far from it as: {apart}")
        return extractor.reference, floor
    batches.tell_left_out([str(path)], console)
    pixels, note = reference_images(path, model)
    if note:
        console.notice(f"{path}: {note}")
    if len(pixels) < 4:
        raise UsageError(f"{path} holds {len(pixels)} images, too few to compare with")
    with console.bar(-(-len(pixels) // BATCH), "reference") as bar:
        known = frechet.statistics(bar(extractor.parts(pixels)))
    halves = [frechet.statistics(extractor.parts(pixels[i::2])) for i in (0, 1)]
    floor = {"halves": frechet.distance(*halves)}
    console.notice(f"reference: {known.n:,} images; its halves are {figure(floor['halves'])} apart")
    return known, floor


def save_page(
    model: Model,
    setting: Setting,
    sections: Sequence[Section],
    *,
    files: Kept,
    record: dict[str, Any],
    console: Console,
) -> None:
    """Writes the page of --html."""
    from ddimctl import origin

    seeds: dict[str, Any] = {k: str(record[k]).strip("[]") for k in ("seed", "seeds") if k in record}
    of: dict[str, Any] = {"reference": record["reference"]["source"], "features": record["features"]["name"], **seeds}
    for name in ("eta", "steps"):
        of[name] = ", ".join(dict.fromkeys(f"{cell[name]:g}" for cell in record["results"]))
    files.write_page(
        f"Quality of {model.name}", f"{record['images']:,} images a cell, against {of['reference']}.", sections,
        made=origin.of("evaluate", model, setting.how.way, setting.condition, more=of),
        record=record, side=model.size[1], console=console,
    )  # fmt: skip
