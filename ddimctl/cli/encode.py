"""``ddimctl encode``: images → x_T."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import batches, inputs, options
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.batch import Encoding, Item


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Whether nothing may be lost."""

    PANEL: ClassVar[str] = "How"

    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless", metavar="", help="Make sure that decoding gives back every 8-bit value (solver exact)."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class Lossless(options.How, Exact):
    """The way, which may have to be without loss."""


@flat
def encode(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images, folders of them, patterns, or - for standard input.")
    ] = None,
    *,
    what: options.What,
    how: Lossless,
    fit: options.Fit,
    files: options.Batch,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Encode images into latents x_T.

    One image makes IMAGE.pt, or the file that -o names (.pt or .safetensors). Several make one file of them all if -o
    names a file, else one file each, in the folder that -o names, where they keep their places. The file knows how to
    decode itself.

    --lossless encodes with the solver exact, decodes, and tightens until every 8-bit value comes back, of the image as it
    was made to fit the model (its size, grey or colour); where that cannot be reached nothing is written (exit code 1).

    With several images, the same command again does only what is not done yet, a bad image does not stop the others
    (exit code 4), and a manifest beside the output says what became of each.

    Example: ddimctl encode photos/ -o latents/
    """
    from functools import partial

    from ddimctl import batch, latent
    from ddimctl.ddim import bind
    from ddimctl.files import make_folder, refuse_existing
    from ddimctl.images.formats import check_apart
    from ddimctl.images.plugins import readable

    console = said.console()
    preprocessing = fit.preprocessing()
    batches.tell_left_out(images or [], console)
    items = batches.items_of(images or [], files.from_file, readable(), files.shard, console=console)
    single = batches.is_single(images or [], items, files.from_file, files.shard)
    one_file = files.output is not None and files.output.suffix.lower() in latent.SUFFIXES and not files.output.is_dir()
    if files.output is not None and files.output.suffix and not one_file and not files.output.is_dir() and single:
        latent.check_suffix(files.output)
    if files.output is None and any(Path(a).is_dir() for a in images or []):
        raise UsageError("a folder of images makes many latents", hint="name a folder for them with -o")
    target = files.output if files.output is not None and one_file else Path()
    if single and not one_file:
        target = (files.output or Path()) / f"{'latent' if items[0].source == '-' else items[0].name}.pt"
    if single:
        refuse_existing(target, files.force, makes_folder=not one_file)
    if single or one_file:
        check_apart(target, (item.source for item in items))
    solver = "exact" if how.lossless else how.solver
    if how.lossless:
        if how.solver not in (options.DEFAULT_SOLVER, "exact"):
            raise UsageError(f"--lossless goes with the solver exact, not {how.solver}")
        if machine.precision != "float32":
            raise UsageError("--lossless needs --precision float32", hint="what decodes the file will use that")
    bind(solver, how.tolerance)  # wrong names are found before anything is done

    quick = (
        None
        if how.lossless
        else inputs.recall(
            what.model, machine.device, machine.engine, machine.precision, console, what.class_label, what.config
        )
    )
    net: Any = quick or inputs.open_model(what.model, machine.device, console, what.class_label, what.config)
    path = net.schedule.path(how.steps, how.spacing)
    if quick is not None:
        console.detail(f"{net.name} from the cache, without torch; engine {net.engine}, {machine.precision}")
    else:
        inputs.start_engine(
            net, machine.engine, machine.precision, inputs.evaluations(len(items), how.steps, solver), console
        )
    about = partial(latent.provenance, net, what.model, path, how.spacing, solver, config=what.config)
    encoding = batch.Encoding(
        net, path, solver, how.tolerance, preprocessing, about, how.lossless, tensors=quick is None
    )
    settings: dict[str, Any] = {"steps": how.steps, "solver": solver, "spacing": how.spacing}
    if single and not files.dry_run:
        if files.output is not None and not one_file:
            make_folder(files.output)
        encode_one(items[0], target, encoding, settings, console)
        return
    if one_file or single:
        outcomes = batch.pack(items, target, encoding, machine.batch_size, files.force, files.dry_run)
        manifest = target.with_name(f"{target.name}.{batch.MANIFEST}")
    else:
        folder = files.output or Path()
        outcomes = batch.encode(items, folder, ".pt", encoding, machine.batch_size, files.force, files.dry_run)
        manifest = batches.manifest_path(folder, files.shard)
    run: dict[str, Any] = {"command": "encode", "model": net.digest, **settings, "tolerance": how.tolerance}
    run |= {"engine": net.engine, "precision": machine.precision}
    batches.run(outcomes, len(items), manifest, run, "encoded", console, files.dry_run)
    if how.lossless and not files.dry_run:
        console.notice(f"lossless: every 8-bit value of all {len(items)} images comes back")


def encode_one(item: Item, target: Path, encoding: Encoding, settings: dict[str, Any], console: Console) -> None:
    """One image → one file. What is wrong with it is the command's own error."""
    from ddimctl import ddim, latent, lossless
    from ddimctl.images import levels, reading

    model = encoding.model
    pixels, record = reading.read(item.source, model.channels, model.size, encoding.how)
    inputs.tell_of([record], console)
    x0: Any = levels.to_tensor(pixels[None]) if encoding.tensors else levels.to_array(pixels[None])
    with console.bar(len(encoding.path) - 1, "encoding") as bar:
        if encoding.lossless:
            solution = lossless.encode(model, x0, encoding.path, encoding.tolerance, 1, bar)
        else:
            solution = ddim.encode(model, x0, encoding.path, encoding.solver, encoding.tolerance, 1, bar)
    if solution.checks and solution.checks[0].wrong:
        raise lossless.complaint(item.source, solution.checks[0])
    if solution.unconverged and solution.residuals:
        residual = solution.residuals[0]
        console.notice(f"warning: {item.source} did not converge: residual {residual:.1e} > {solution.tolerance:.1e}")
    latent.save(target, latent.Latent(ddim.as_stored(solution.x), encoding.about(solution, [record])))
    if solution.checks:
        console.notice(
            f"lossless: all {pixels.size:,} values of the {model.size[1]} × {model.size[0]} image come back"
            f" (worst {solution.checks[0].worst:.2f} levels, {solution.evaluations[0]} evaluations)"
        )
    console.data(
        str(target),
        {
            "files": [str(target)],
            "images": 1,
            **settings,
            "evaluations": solution.mean_evaluations,
            "unconverged": solution.unconverged,
            "residuals": solution.residuals,
        },
    )
