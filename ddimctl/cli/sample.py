"""``ddimctl sample``: noise → images, by the whole family of eq. 12; several --steps show consistency (section 5.2)."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import inputs, looks, options, pages, prompts
from ddimctl.cli.away import Away
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
class Several(Sized):
    """The model, and what it is asked for; several prompts make images of each."""

    prompt: Annotated[
        list[str] | None,
        like(Sized, "prompt", parser=None, help="What the images are of; again for more, or @FILE, one a line."),
    ] = None  # type: ignore[assignment]

    def each(self) -> list[Sized]:
        """What is asked for, prompt by prompt."""
        said: list[Any] = prompts.parse_prompts(self.prompt or []) or [None]
        shared = {f.name: getattr(self, f.name) for f in fields(Sized) if f.name != "prompt"}
        return [Sized(**shared, prompt=p) for p in said]


@group
class Sampling(options.Iterating):
    """The way from noise to images."""

    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", metavar="N", min=1, help="How many images of each seed and prompt: 16, or of several, 1."
        ),
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

    def draws(self, prompts: int) -> list[Draw]:
        """(seed, number) of every image of each of so many prompts."""
        seeds = options.parse_seeds(self.seed)
        n = self.n or (DEFAULT_NUMBER if len(seeds) == prompts == 1 else 1)
        if n * len(seeds) * prompts > MAX_SEEDS:
            hint = "give fewer seeds, or a smaller -n"
            raise UsageError(f"{n * len(seeds) * prompts:,} images make no sense", hint=hint)
        return [(seed, k) for seed in seeds for k in range(n)]


@flat
def sample(
    *,
    what: Several,
    how: Sampling,
    away: Away,
    files: Samples,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Make images out of noise.

    Without -o it writes the sheet samples.png; a name without a suffix, or a folder, gets a PNG an image. Image k of a
    seed is the same however many are made. Into a folder, the same command again makes what is not there yet.

    With several --steps the same x_T are decoded with each: a row of the sheet each, or a folder each, and a table of how
    far they are from the longest (mse per dimension with pixels in 0 to 1, and its root, each image's, averaged).

    Several prompts have a row of the sheet each, or a folder each, prompt-000 and so on, and the same x_T.

    --eta above 0, or --sigma-hat, adds noise at every step, as DDPM does (eq. 12 and 16 of the paper).

    --worse names a model of the same images that is smaller, or was trained less: what the two disagree about is taken
    further, and fewer images are lost (autoguidance, Karras et al. 2024). Twice the evaluations.

    Example: ddimctl sample -n 8 --steps 10,20,50,100
    """
    from ddimctl.images import formats, sheets

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    lengths = list(dict.fromkeys(options.parse_integers(how.steps, "--steps")))
    ways = ways_of(how, lengths)
    asked = what.each()
    draws = how.draws(len(asked))
    n, seeds = len(draws), list(dict.fromkeys(seed for seed, _ in draws))
    output, is_folder = target_of(files, console)
    check_several(asked, lengths, files)
    files.check_page([output, files.noise], force=files.force)

    net = inputs.open_model(asked[0], machine, console)
    prompts.check_heard(net, [a.condition() for a in asked[1:]], console)
    net = away.lead(net, asked[0], machine, console=console)
    formats.check_channels(f"an image of the model {net.name}", net.channels)
    in_rows = len(lengths) > 1 or len(asked) > 1
    columns = n if in_rows else min(n, max(COLUMNS, math.isqrt(n - 1) + 1))
    if len(seeds) > 1 and not in_rows and n > len(seeds):
        columns = n // len(seeds)  # a row for each seed
    factor = sheets.factor_to_see(net.size)
    if not is_folder:
        in_all = n * len(lengths) * len(asked)
        files.check_sheet(output, in_all, net.size, columns=columns, gap=GAP, factor=factor)
    for way in ways:
        way.way.path(net.schedule)
    longest = max(ways, key=lambda way: way.way.steps)
    work = inputs.evaluations(n * len(asked), sum(lengths), longest.way.solver)
    net = inputs.start_engine(net, machine, console, work=work)
    batches = [Batch(net, [Row(way) for way in ways], a.condition(), draws, machine.batch_size, console) for a in asked]
    folders = folders_of(output, batches, force=files.force) if is_folder else [None] * len(batches)
    skipped = sum(batch.make(folder) for batch, folder in zip(batches, folders, strict=True))
    if skipped:
        console.notice(f"sampled: {n * len(ways) * len(asked) - skipped}, there already: {skipped}")
    tell_unconverged([row for batch in batches for row in batch.rows], n, console)
    seed: int | list[int] = seeds[0] if len(seeds) == 1 else seeds
    if not is_folder:
        made = made_of(batches, {"seed": seed, "number": n, "all_steps": lengths})
        save_sheet(output, batches, columns, factor=factor, files=files, made=made)
    if files.noise is not None:
        save_noise(files.noise, net, draws, way=longest.way, condition=asked[0].condition())
        if longest.is_random or net.worse is not None:
            does = "adds no noise on the way" if longest.is_random else "leads away from no other model"
            console.notice(f"{files.noise} holds x_T alone: decode {does}, and makes other images of it")
    pictures = [p.target for folder in folders if folder is not None for p in folder.pictures.values()]
    written = [str(f) for f in pictures or [output]] + ([str(files.noise)] if files.noise is not None else [])
    text = "\n".join(written)
    if len(lengths) > 1:
        text = table(*as_lines(batches[0])) + "\n" + text
    record = as_record(batches, how, seed, files=written, skipped=skipped)
    console.data(text, record)
    look(files, batches, folders, record=record)


def check_several(asked: Sequence[Sized], lengths: Sequence[int], files: Samples) -> None:
    """Raises `UsageError` for what has no place for several prompts."""
    if len(asked) > 1 and len(lengths) > 1:
        raise UsageError("several prompts and several --steps are two kinds of rows", hint="choose one of them")
    if len(asked) > 1 and files.noise is not None:
        hint = "the x_T are the same for all: save those of one prompt"
        raise UsageError("a latent file has one prompt", hint=hint)


def folders_of(output: Path, batches: Sequence[Batch], *, force: bool) -> list[Folder | None]:
    """The folder of each prompt. Raises `UsageError` if something else is there."""
    width = max(3, len(str(len(batches) - 1)))
    several = len(batches) > 1
    paths = [output / f"prompt-{i:0{width}}" if several else output for i in range(len(batches))]
    return [Folder.of(path, batch, force=force) for path, batch in zip(paths, batches, strict=True)]


def made_of(batches: Sequence[Batch], more: dict[str, Any]) -> dict[str, Any]:
    """How the images of all were made, as their sheet says of itself."""
    made = batches[0].made(batches[0].longest, more)
    if len(batches) == 1:
        return made
    return {**{k: v for k, v in made.items() if k != "prompt"}, "prompts": [b.condition.prompt for b in batches]}


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
    path: Path, batches: Sequence[Batch], columns: int, *, factor: int, files: Samples, made: dict[str, Any]
) -> None:
    """Writes one sheet: a row for each prompt or number of steps, or all images of the only one, enlarged to be seen."""
    import numpy as np

    from ddimctl.images import sheets, writing

    pixels = sheets.enlarge(np.concatenate([p for b in batches for row in b.rows for p in row.pixels]), factor)
    left = rows_of(batches) or looks.rows_of(len(pixels), columns)
    seeds = made["seed"] if isinstance(made["seed"], list) else [made["seed"]]
    if len(seeds) > 1 and not rows_of(batches):
        left = (
            [f"seed {seed}" for seed in seeds] if len(pixels) > len(seeds) else [f"seed {s}" for s in seeds[::columns]]
        )
    said = {k: v for k, v in made.items() if k != "prompts"}  # they stand beside their rows
    caption = looks.way_of(said) + ("" if len(seeds) > 1 else f"; seed {seeds[0]}")
    sheet = files.sheet(pixels, columns, GAP, left=left, caption=caption)
    writing.save_image(path, sheet, made=made)


def rows_of(batches: Sequence[Batch]) -> list[str]:
    """What stands beside the rows of a sheet, where there are several prompts or numbers of steps."""
    if len(batches) > 1:
        return [batch.condition.prompt or "" for batch in batches]
    return [f"S = {row.steps}" for row in batches[0].rows] if len(batches[0].rows) > 1 else []


def first_images(batches: Sequence[Batch], folders: Sequence[Folder | None], most: int) -> np.ndarray:
    """The first images of each row, as they were kept or as they stand in their folder."""
    import numpy as np

    from ddimctl.images import reading

    found: list[Any] = []
    for batch, folder in zip(batches, folders, strict=True):
        for row in batch.rows:
            if folder is None:
                found += list(np.concatenate(row.pixels)[:most])
                continue
            kept = [folder.pictures[row.steps, draw].target for draw in batch.draws[:most]]
            found += [reading.read(file, batch.model.channels, batch.model.size)[0] for file in kept]
    return np.stack(found)


def look(files: Samples, batches: Sequence[Batch], folders: Sequence[Folder | None], *, record: dict[str, Any]) -> None:
    """The page of --html, and what --show shows."""
    if files.html is not None:
        save_page(files, batches, folders, record=record)
    batch, rows = batches[0], rows_of(batches)
    if files.shows(batch.console):
        n = min(COLUMNS if rows else pages.SHOWN, len(batch.draws))
        left = rows or looks.rows_of(n, COLUMNS)
        files.print_sheet(first_images(batches, folders, n), min(n, COLUMNS), left=left)


def save_page(
    files: Samples, batches: Sequence[Batch], folders: Sequence[Folder | None], *, record: dict[str, Any]
) -> None:
    """Writes the page of --html, with the first images of each row."""
    batch, rows = batches[0], rows_of(batches)
    model, draws, most = batch.model, batch.draws, min(pages.SHOWN, len(batch.draws))
    shown = first_images(batches, folders, most)
    lines = as_lines(batch) if len(batch.rows) > 1 else None
    names = [str(k) if isinstance(record["seed"], int) else f"{k} of seed {seed}" for seed, k in draws[:most]]
    said = f"{record['images']} images of seed {record['seed']}" + (f", the first {most}" if most < len(draws) else "")
    files.write_page(
        f"Samples of {model.name}", f"{said}.",
        pages.of_samples(shown, rows, names, kind="prompt" if len(batches) > 1 else "steps", lines=lines),
        made=made_of(batches, {"seed": record["seed"], "number": record["images"]}),
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
    batches: Sequence[Batch], how: Sampling, seed: int | list[int], *, files: Sequence[str], skipped: int
) -> dict[str, Any]:
    """All of it for machines."""
    from ddimctl import origin

    batch, longest = batches[0], batches[0].longest
    apart = batch.apart()
    several = {"prompts": [b.condition.prompt for b in batches]} if len(batches) > 1 else {}
    return {
        "files": list(files),
        "images": sum(len(b.draws) for b in batches),
        "skipped": skipped,
        "model": origin.named(batch.model),
        **origin.led(batch.model),
        "seed": seed,
        **several,
        "eta": 1.0 if how.sigma_hat else how.eta,
        "sigma_hat": how.sigma_hat,
        "solver": longest.how.way.solver,
        "spacing": how.spacing,
        "results": [row.record for b in batches for row in b.rows],
        "unrelated_mse": sum(apart) / len(apart) if apart else None,
    }


def as_lines(batch: Batch) -> tuple[list[str], list[list[str]]]:
    """How far each row is from the longest, and in the last line, how far one image is from the next."""
    found, apart = [row.record for row in batch.rows], batch.apart()
    lines = [[str(r["steps"]), f"{r['evaluations']:.4g}", figure(r["mse"]), figure(r["rms"])] for r in found]
    if apart:
        mean, root = (sum(v) / len(apart) for v in (apart, list(map(math.sqrt, apart))))
        lines.append(["another x_T", "-", figure(mean), figure(root)])
    return ["steps", "evaluations", f"mse to {batch.longest.steps}", "rms"], lines
