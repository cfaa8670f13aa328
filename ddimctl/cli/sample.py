"""``ddimctl sample``: noise → images, by the whole family of eq. 12; several --steps show consistency (section 5.2)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import inputs, looks, options, pages
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.drawn import Batch, Folder, Row
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.sized import Sized
from ddimctl.cli.values import MAX_SEEDS
from ddimctl.errors import UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.samples import Draw
    from ddimctl.sampling import Noising

DEFAULT_NUMBER = 16  # of images of one seed
COLUMNS = 8  # of a sheet, or a square where that is wider
GAP = 4  # pixels between its images


@group
class Samples(options.Output, looks.Looks):
    """Where the images go, and the noise."""

    noise: Annotated[
        Path | None, typer.Option("--save-noise", metavar="FILE", help="Also write x_T: a latent file (.pt …).")
    ] = None


@group
class Sampling(options.Iterating):
    """The way from noise to images."""

    n: Annotated[
        int | None,
        typer.Option("-n", "--number", metavar="N", min=1, help="How many images of each seed: 16, or of several, 1."),
    ] = None
    seed: Annotated[
        str,
        like(
            options.Seeded, "seed", metavar="N,A-B,…", min=None, help="What randomness follows from; several at once."
        ),
    ] = "0"
    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Steps; several to compare them.")] = "20"
    eta: Annotated[float, typer.Option("--eta", metavar="X", help="Noise on the way: 0 is DDIM, 1 is DDPM.")] = 0.0
    sigma_hat: Annotated[bool, typer.Option("--sigma-hat", help="The DDPM of larger variance.")] = False
    solver: Annotated[
        str | None,
        like(options.How, "solver", help=f"{options.SOLVER_HELP} With noise on the way, only ddim."),
    ] = None
    spacing: Annotated[str, like(options.How, "spacing", help=options.SPACING_HELP)] = options.DEFAULT_SPACING

    def draws(self) -> list[Draw]:
        """(seed, number) of every image."""
        seeds = options.parse_seeds(self.seed)
        n = self.n or (DEFAULT_NUMBER if len(seeds) == 1 else 1)
        if n * len(seeds) > MAX_SEEDS:
            raise UsageError(f"{n * len(seeds):,} images make no sense", hint="give fewer seeds, or a smaller -n")
        return [(seed, k) for seed in seeds for k in range(n)]


@flat
def sample(
    *,
    what: Sized,
    how: Sampling,
    files: Samples,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Make images out of noise.

    Without -o it writes the sheet samples.png; a name without a suffix, or a folder, gets a PNG an image. Image k of a
    seed is the same however many are made. Into a folder, the same command again makes what is not there yet.

    With several --steps the same x_T are decoded with each: a row of the sheet each, or a folder each, and a table of how
    far they are from the longest (mse per dimension with pixels in 0 to 1, and its root, each image's, averaged).

    --eta above 0, or --sigma-hat, adds noise at every step, as DDPM does (eq. 12 and 16 of the paper).

    Example: ddimctl sample -n 8 --steps 10,20,50,100
    """
    from ddimctl.images import formats, sheets

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    lengths = list(dict.fromkeys(options.parse_integers(how.steps, "--steps")))
    ways = ways_of(how, lengths)
    draws = how.draws()
    n, seeds = len(draws), list(dict.fromkeys(seed for seed, _ in draws))
    output, is_folder = target_of(files, console)
    files.check_page([output, files.noise], force=files.force)

    net = inputs.open_model(what, machine, console)
    formats.check_channels(f"an image of the model {net.name}", net.channels)
    columns = n if len(lengths) > 1 else min(n, max(COLUMNS, math.isqrt(n - 1) + 1))
    if len(seeds) > 1 and len(lengths) == 1 and n > len(seeds):
        columns = n // len(seeds)  # a row for each seed
    factor = sheets.factor_to_see(net.size)
    if not is_folder:
        files.check_sheet(output, n * len(lengths), net.size, columns=columns, gap=GAP, factor=factor)
    for way in ways:
        way.way.path(net.schedule)
    rows = [Row(way) for way in ways]
    longest = max(rows, key=lambda row: row.steps)
    net = inputs.start_engine(net, machine, console, work=inputs.evaluations(n, sum(lengths), longest.how.way.solver))
    batch = Batch(net, rows, what.condition(), draws, machine.batch_size, console)
    folder = Folder.of(output, batch, force=files.force) if is_folder else None
    skipped = batch.make(folder)
    if skipped:
        console.notice(f"sampled: {n * len(rows) - skipped}, there already: {skipped}")
    tell_unconverged(rows, n, console)
    seed: int | list[int] = seeds[0] if len(seeds) == 1 else seeds
    if folder is None:
        origins = {"seed": seed, "number": n, "all_steps": lengths}
        save_sheet(output, rows, columns, factor=factor, files=files, made=batch.made(longest, origins))
    if files.noise is not None:
        save_noise(files.noise, net, draws, way=longest.how.way, condition=what.condition())
        if longest.how.is_random:
            console.notice(
                f"{files.noise} holds x_T alone: decode adds no noise on the way, and makes other images of it"
            )
    pictures = [output] if folder is None else [p.target for p in folder.pictures.values()]
    written = [str(f) for f in pictures] + ([str(files.noise)] if files.noise is not None else [])
    text = "\n".join(written)
    apart = batch.apart()
    if len(rows) > 1:
        text = table(*as_lines(rows, longest, apart)) + "\n" + text
    record = as_record(batch, how, seed, files=written, skipped=skipped)
    console.data(text, record)
    look(files, batch, folder, record=record)


def tell_unconverged(rows: Sequence[Row], n: int, console: Console) -> None:
    for row in rows:
        if row.unconverged:
            worst = max(row.record["residuals"])
            console.notice(f"warning: {row.unconverged} of {n} images did not converge (residual at most {worst:.1e})")


def ways_of(how: Sampling, lengths: Sequence[int]) -> list[Noising]:
    """A way for each number of steps. Raises `UsageError` for one that there is not."""
    from ddimctl.recipe import Way
    from ddimctl.sampling import Noising
    from ddimctl.solvers import DEFAULT_SOLVER, SOLVERS

    is_random = Noising(eta=how.eta, sigma_hat=how.sigma_hat).is_random
    if how.solver is not None:
        choose(SOLVERS, how.solver, "solver")
        if is_random and how.solver != "ddim":
            raise UsageError(f"the solver {how.solver} adds no noise on the way", hint="leave it away, or --eta")
    solver = how.solver or ("ddim" if is_random else DEFAULT_SOLVER)
    ways = [Noising(Way(solver, how.spacing, s, how.tolerance), how.eta, how.sigma_hat) for s in lengths]
    for way in ways:
        way.check()
    return ways


def target_of(files: Samples, console: Console) -> tuple[Path, bool]:
    """(the sheet or the folder, which of the two). Raises `UsageError` for what cannot be written, before any work."""
    from ddimctl import latent
    from ddimctl.files import refuse_existing
    from ddimctl.images import formats

    output = files.output or Path("samples.png")
    is_folder = output.is_dir() or not output.suffix
    if not is_folder:
        if output.suffix.lower() in latent.SUFFIXES:
            raise UsageError(f"{output} is no name for images", hint="x_T goes where --save-noise says")
        formats.check_suffix(output)
        refuse_existing(output, files.force)
    elif output.exists() and not output.is_dir():
        raise UsageError(f"{output} exists already, and is no folder", hint="name another")
    if files.noise is not None:
        latent.check_suffix(files.noise)
        refuse_existing(files.noise, files.force, makes_folder=is_folder and files.noise.parent == output)
    if files.output is None:
        console.notice(f"writing {output}")
    return output, is_folder


def save_sheet(
    path: Path, rows: Sequence[Row], columns: int, *, factor: int, files: Samples, made: dict[str, Any]
) -> None:
    """Writes one sheet: a row for each number of steps, or all images of the only one, enlarged to be seen."""
    import numpy as np

    from ddimctl.images import sheets, writing

    pixels = sheets.enlarge(np.concatenate([p for row in rows for p in row.pixels]), factor)
    left = looks.rows_of(len(pixels), columns) if len(rows) == 1 else [f"S = {row.steps}" for row in rows]
    seeds = made["seed"] if isinstance(made["seed"], list) else [made["seed"]]
    if len(seeds) > 1 and len(rows) == 1:
        left = (
            [f"seed {seed}" for seed in seeds] if len(pixels) > len(seeds) else [f"seed {s}" for s in seeds[::columns]]
        )
    caption = looks.way_of(made) + ("" if len(seeds) > 1 else f"; seed {seeds[0]}")
    sheet = files.sheet(pixels, columns, GAP, left=left, caption=caption)
    writing.save_image(path, sheet, made=made)


def first_images(batch: Batch, folder: Folder | None, most: int) -> np.ndarray:
    """The first images of each row, as they were kept or as they stand in the folder."""
    import numpy as np

    from ddimctl.images import reading

    if folder is None:
        return np.concatenate([np.concatenate(row.pixels)[:most] for row in batch.rows])
    kept = [folder.pictures[row.steps, draw].target for row in batch.rows for draw in batch.draws[:most]]
    return np.stack([reading.read(file, batch.model.channels, batch.model.size)[0] for file in kept])


def look(files: Samples, batch: Batch, folder: Folder | None, *, record: dict[str, Any]) -> None:
    """The page of --html, and what --show shows."""
    if files.html is not None:
        save_page(files, batch, folder, record=record)
    if files.shows(batch.console):
        n = min(COLUMNS, len(batch.draws)) if len(batch.rows) > 1 else min(pages.SHOWN, len(batch.draws))
        left = [f"S = {row.steps}" for row in batch.rows] if len(batch.rows) > 1 else looks.rows_of(n, COLUMNS)
        files.print_sheet(first_images(batch, folder, n), min(n, COLUMNS), left=left)


def save_page(files: Samples, batch: Batch, folder: Folder | None, *, record: dict[str, Any]) -> None:
    """Writes the page of --html, with the first images of each row."""
    model, rows, most = batch.model, batch.rows, min(pages.SHOWN, len(batch.draws))
    shown = first_images(batch, folder, most)
    lines = as_lines(rows, batch.longest, batch.apart()) if len(rows) > 1 else None
    names = [str(k) if isinstance(record["seed"], int) else f"{k} of seed {seed}" for seed, k in batch.draws[:most]]
    said = f"{len(batch.draws)} images of seed {record['seed']}" + (
        f", the first {most}" if most < len(batch.draws) else ""
    )
    files.write_page(
        f"Samples of {model.name}", f"{said}.", pages.of_samples(shown, [row.steps for row in rows], names, lines=lines),
        made=batch.made(batch.longest, {"seed": record["seed"], "number": record["images"]}),
        record=record, side=model.size[1], console=batch.console,
    )  # fmt: skip


def save_noise(path: Path, model: Model, draws: Sequence[Draw], *, way: Way, condition: Condition) -> None:
    """Writes x_T as a latent file, which says that it was drawn: no evaluations, and no image where one would stand."""
    from ddimctl import latent, ode, seeds
    from ddimctl.recipe import Recipe

    xT = seeds.draw(model.state_shape, seeds.generators(draws))
    records = [{"name": f"noise {k} of seed {seed}", "noise": {"seed": seed, "number": k}} for seed, k in draws]
    drawn = ode.Solution(xT, [0] * len(draws), None, way.used_tolerance)
    about = latent.provenance(model, Recipe.of(model, way, condition), drawn, records=records)
    latent.save(path, latent.Latent(xT, about))


def as_record(
    batch: Batch, how: Sampling, seed: int | list[int], *, files: Sequence[str], skipped: int
) -> dict[str, Any]:
    """All of it for machines."""
    apart, longest = batch.apart(), batch.longest
    return {
        "files": list(files),
        "images": len(batch.draws),
        "skipped": skipped,
        "model": {"name": batch.model.name, "digest": batch.model.digest},
        "seed": seed,
        "eta": 1.0 if how.sigma_hat else how.eta,
        "sigma_hat": how.sigma_hat,
        "solver": longest.how.way.solver,
        "spacing": how.spacing,
        "results": [row.record for row in batch.rows],
        "unrelated_mse": sum(apart) / len(apart) if apart else None,
    }


def as_lines(rows: Sequence[Row], longest: Row, apart: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """How far each row is from the longest, and in the last line, how far one image is from the next."""
    found = [row.record for row in rows]
    lines = [[str(r["steps"]), f"{r['evaluations']:.4g}", figure(r["mse"]), figure(r["rms"])] for r in found]
    if apart:
        mean, root = (sum(v) / len(apart) for v in (apart, list(map(math.sqrt, apart))))
        lines.append(["another x_T", "-", figure(mean), figure(root)])
    return ["steps", "evaluations", f"mse to {longest.steps}", "rms"], lines
