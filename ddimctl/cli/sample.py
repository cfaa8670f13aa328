"""``ddimctl sample``: noise → images, by the whole family of eq. 12; several --steps show consistency (section 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import inputs, looks, options
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddimctl.model import Condition, Model
    from ddimctl.ode import Solution
    from ddimctl.recipe import Way
    from ddimctl.sampling import Noising

COLUMNS = 8  # of a sheet, or a square where that is wider
GAP = 4  # pixels between its images


@group
class Samples(options.Output, looks.Looks):
    """Where the images go, and the noise."""

    noise: Annotated[
        Path | None, typer.Option("--save-noise", metavar="FILE", help="Also write x_T: a latent file (.pt …).")
    ] = None


@group
class Sampling(options.Iterating, options.Seeded):
    """The way from noise to images."""

    n: Annotated[int, typer.Option("-n", "--number", metavar="N", min=1, help="How many images.")] = 16
    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Steps; several to compare them.")] = "20"
    eta: Annotated[float, typer.Option("--eta", metavar="X", help="Noise on the way: 0 is DDIM, 1 is DDPM.")] = 0.0
    sigma_hat: Annotated[bool, typer.Option("--sigma-hat", help="The DDPM of larger variance.")] = False
    solver: Annotated[
        str | None,
        like(options.How, "solver", help=f"{options.SOLVER_HELP} With noise on the way, only ddim."),
    ] = None
    spacing: Annotated[str, like(options.How, "spacing", help=options.SPACING_HELP)] = options.DEFAULT_SPACING


@dataclass
class Row:
    """What one number of steps came to."""

    how: Noising
    evaluations: list[int] = field(default_factory=list)
    mse: list[float] = field(default_factory=list)  # to the longest row, an entry an image
    pixels: list[Any] = field(default_factory=list)  # for the sheet, an entry a batch
    residuals: list[float] = field(default_factory=list)
    unconverged: int = 0

    @property
    def steps(self) -> int:
        return self.how.way.steps

    def add(self, solution: Solution) -> None:
        self.evaluations += solution.evaluations
        self.residuals += solution.residuals or []
        self.unconverged += len(solution.unconverged)

    @property
    def record(self) -> dict[str, Any]:
        n = len(self.evaluations)
        return {
            "steps": self.steps,
            "evaluations": sum(self.evaluations) / n,
            "mse": sum(self.mse) / n,
            "rms": sum(map(math.sqrt, self.mse)) / n,
            "unconverged": self.unconverged,
            "residuals": self.residuals or None,
        }


@flat
def sample(
    *,
    what: options.Sized,
    how: Sampling,
    files: Samples,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Make images out of noise.

    Without -o it writes the sheet samples.png; a name without a suffix, or a folder, gets a PNG an image. Image k of a
    seed is the same however many are made.

    With several --steps the same x_T are decoded with each: a row of the sheet each, or a folder each, and a table of how
    far they are from the longest (mse per dimension with pixels in 0 to 1, and its root, each image's, averaged).

    --eta above 0, or --sigma-hat, adds noise at every step, as DDPM does (eq. 12 and 16 of the paper).

    Example: ddimctl sample -n 8 --steps 10,20,50,100
    """
    from ddimctl.images import formats, sheets

    console = said.console()
    lengths = list(dict.fromkeys(options.parse_integers(how.steps, "--steps")))
    ways = ways_of(how, lengths)
    folder, pictures = targets(files.output, how.n, lengths)
    check_targets(files, folder, pictures)
    if files.output is None:
        console.notice(f"writing {pictures[0]}")

    net = inputs.open_model(what, machine, console)
    formats.check_channels(f"an image of the model {net.name}", net.channels)
    columns = how.n if len(lengths) > 1 else min(how.n, max(COLUMNS, math.isqrt(how.n - 1) + 1))
    factor = sheets.factor_to_see(net.size)
    if folder is None:
        files.check_sheet(pictures[0], how.n * len(lengths), net.size, columns=columns, gap=GAP, factor=factor)
    rows = [Row(way) for way in ways]
    for row in rows:
        row.how.way.path(net.schedule)
    longest = max(rows, key=lambda row: row.steps)
    net = inputs.start_engine(
        net, machine, console, work=inputs.evaluations(how.n, sum(lengths), longest.how.way.solver)
    )
    apart = make(
        rows, net, what.condition(), how=how, machine=machine, files=pictures if folder else [], console=console
    )
    tell_unconverged(rows, how.n, console)
    if folder is None:
        origins = {"seed": how.seed, "number": how.n, "all_steps": lengths}
        origin = made(net, longest, what.condition(), more=origins)
        save_sheet(pictures[0], rows, columns, factor=factor, files=files, made=origin)
    if files.noise is not None:
        save_noise(files.noise, net, how.n, seed=how.seed, way=longest.how.way, condition=what.condition())
        if longest.how.is_random:
            console.notice(
                f"{files.noise} holds x_T alone: decode adds no noise on the way, and makes other images of it"
            )
    written = [str(f) for f in pictures] + ([str(files.noise)] if files.noise is not None else [])
    text = "\n".join(written)
    if len(rows) > 1:
        text = as_table(rows, longest, apart) + "\n" + text
    record: dict[str, Any] = {
        "files": written,
        "images": how.n,
        "model": {"name": net.name, "digest": net.digest},
        "seed": how.seed,
        "eta": 1.0 if how.sigma_hat else how.eta,
        "sigma_hat": how.sigma_hat,
        "solver": longest.how.way.solver,
        "spacing": how.spacing,
        "results": [row.record for row in rows],
        "unrelated_mse": sum(apart) / len(apart) if apart else None,
    }
    console.data(text, record)


def tell_unconverged(rows: Sequence[Row], n: int, console: Console) -> None:
    for row in rows:
        if row.unconverged:
            console.notice(
                f"warning: {row.unconverged} of {n} images did not converge (residual at most {max(row.residuals):.1e})"
            )


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


def check_targets(files: Samples, folder: Path | None, pictures: Sequence[Path]) -> None:
    """Raises `UsageError` for what cannot be written, before anything is done."""
    from ddimctl import latent
    from ddimctl.files import refuse_existing

    for file in pictures:
        refuse_existing(file, files.force, makes_folder=folder is not None)
    if files.noise is not None:
        latent.check_suffix(files.noise)
        made = folder is not None and files.noise.parent in (folder, *(f.parent for f in pictures))
        refuse_existing(files.noise, files.force, makes_folder=made)


def make(
    rows: Sequence[Row],
    model: Model,
    condition: Condition,
    *,
    how: Sampling,
    machine: options.Machine,
    files: Sequence[Path],
    console: Console,
) -> list[float]:
    """Samples every row; writes its images, where there are `files` for them, else keeps them.

    Gives how far each image of the longest row is from the next: what the table's figures would be of unrelated ones.
    """
    from ddimctl import sampling
    from ddimctl.files import make_folder
    from ddimctl.images import levels, writing
    from ddimctl.metrics import mse

    longest = max(rows, key=lambda row: row.steps)
    apart: list[float] = []
    steps = sum(row.steps for row in rows)
    with console.bar(steps * -(-how.n // machine.batch_size), "sampling") as bar:
        for start in range(0, how.n, machine.batch_size):
            m = min(machine.batch_size, how.n - start)
            xs = {}
            for i, row in enumerate(rows):
                solution = sampling.sample(
                    model,
                    m,
                    row.how,
                    condition,
                    seed=how.seed,
                    first=start,
                    batch_size=machine.batch_size,
                    progress=bar,
                )
                levels.check_finite(solution.x, model.name)
                row.add(solution)
                xs[row.steps] = solution.x
                pixels = levels.to_pixels(solution.x)
                if not files:
                    row.pixels.append(pixels)
                    continue
                at = i * how.n + start
                make_folder(files[at].parent)
                for k, (file, image) in enumerate(zip(files[at : at + m], pixels, strict=True), start):
                    writing.save_image(
                        file, image, made=made(model, row, condition, more={"seed": how.seed, "number": k})
                    )
            for row in rows:
                row.mse += mse(xs[row.steps], xs[longest.steps]).tolist()
            apart += mse(xs[longest.steps][1:], xs[longest.steps][:-1]).tolist()
    return apart


def targets(output: Path | None, n: int, lengths: Sequence[int]) -> tuple[Path | None, list[Path]]:
    """(folder, files): one sheet and no folder, or in the folder n PNG files for each number of steps, in order."""
    from ddimctl.images import formats
    from ddimctl.latent import SUFFIXES

    output = output or Path("samples.png")
    if output.suffix and not output.is_dir():
        if output.suffix.lower() in SUFFIXES:
            raise UsageError(f"{output} is no name for images", hint="x_T goes where --save-noise says")
        formats.check_suffix(output)
        return None, [output]
    folders = [output / f"steps-{s}" for s in lengths] if len(lengths) > 1 else [output]
    width = max(3, len(str(n - 1)))
    return output, [folder / f"{k:0{width}}.png" for folder in folders for k in range(n)]


def made(model: Model, row: Row, condition: Condition, *, more: dict[str, Any]) -> dict[str, Any]:
    """How a sample was made, as it says of itself."""
    from ddimctl import origin

    noisy = {"eta": row.how.eta, "sigma_hat": row.how.sigma_hat} if row.how.is_random else {}
    return origin.of("sample", model, row.how.way, condition, more={**more, **noisy})


def save_sheet(
    path: Path, rows: Sequence[Row], columns: int, *, factor: int, files: Samples, made: dict[str, Any]
) -> None:
    """Writes one sheet: a row for each number of steps, or all images of the only one, enlarged to be seen."""
    import numpy as np

    from ddimctl.images import sheets, writing

    pixels = sheets.enlarge(np.concatenate([p for row in rows for p in row.pixels]), factor)
    left = looks.rows_of(len(pixels), columns) if len(rows) == 1 else [f"S = {row.steps}" for row in rows]
    caption = looks.way_of(made) + f"; seed {made['seed']}"
    sheet = files.sheet(pixels, columns, GAP, left=left, caption=caption)
    writing.save_image(path, sheet, made=made)


def save_noise(path: Path, model: Model, n: int, *, seed: int, way: Way, condition: Condition) -> None:
    """Writes x_T as a latent file, which says that it was drawn: no evaluations, and no image where one would stand."""
    from ddimctl import latent, ode, seeds
    from ddimctl.recipe import Recipe

    xT = seeds.noise(model.state_shape, n, seed)
    records = [{"name": f"noise {k} of seed {seed}", "noise": {"seed": seed, "number": k}} for k in range(n)]
    drawn = ode.Solution(xT, [0] * n, None, way.used_tolerance)
    about = latent.provenance(model, Recipe.of(model, way, condition), drawn, records=records)
    latent.save(path, latent.Latent(xT, about))


def as_table(rows: Sequence[Row], longest: Row, apart: Sequence[float]) -> str:
    """How far each row is from the longest, and in the last line, how far one image is from the next."""
    found = [row.record for row in rows]
    lines = [[str(r["steps"]), f"{r['evaluations']:.4g}", figure(r["mse"]), figure(r["rms"])] for r in found]
    if apart:
        mean, root = (sum(v) / len(apart) for v in (apart, list(map(math.sqrt, apart))))
        lines.append(["another x_T", "-", figure(mean), figure(root)])
    return table(["steps", "evaluations", f"mse to {longest.steps}", "rms"], lines)
