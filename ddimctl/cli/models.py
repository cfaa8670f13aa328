"""``ddimctl models``: list, show, convert, pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import described, names, options
from ddimctl.cli.console import Console, plain, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.help import Command, Group
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.checkpoints import Checkpoint
    from ddimctl.network import Facts

app = typer.Typer(cls=Group, no_args_is_help=True, help="List, examine, convert and download models.")

Reference = Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, autocompletion=names.models)]


@app.command("list", cls=Command)
@flat
def list_models(said: options.Said) -> None:
    """List the models that are here: the bundled ones, and those that were downloaded from the hub.

    A downloaded model has a digest once it was used. Any other folder or file is a model for -m, too: see models show.

    Example: ddimctl models list
    """
    from ddimctl.catalogue import here

    console, entries = said.console(), here()
    if not entries and not said.json:
        console.notice("no model is bundled, and none was downloaded")
        return
    rows = [
        [e.name, " x ".join(map(str, e.size)) if e.size else "any", str(e.channels or "-"),
         f"{e.parameters:,}" if e.parameters else "-", e.licence or "not stated", (e.digest or "-")[:16], e.where]
        for e in entries
    ]  # fmt: skip
    header = ["model", "size", "channels", "parameters", "licence", "digest", "where"]
    known = [
        {"name": e.name, "folder": str(e.folder), "where": e.where, "image_size": e.size, "channels": e.channels,
         "parameters": e.parameters, "licence": e.licence, "digest": e.digest}
        for e in entries
    ]  # fmt: skip
    console.data(plain_table(header, rows), {"models": known})


def plain_table(header: list[str], rows: list[list[str]]) -> str:
    """A table of what files say, which steers no terminal."""
    return table(header, [[plain(cell) for cell in row] for row in rows])


@app.command(cls=Command)
@flat
def show(model: Reference, what: options.Config, said: options.Said) -> None:
    """Tell what a model is: architecture, parameters, schedule, digest, licence, memory needed.

    Example: ddimctl models show fashion-mnist
    """
    console = said.console()
    console.data(*describe(model, what, console))


@group
class Converted(options.Forced):
    """Where the model goes, and what its card says."""

    output: Annotated[
        Path,
        like(options.Output, "output", parser=options.parse_folder, metavar="FOLDER", help="The model folder to make."),
    ]
    license_: Annotated[str, typer.Option("--license", metavar="NAME", help="The model's licence, for the card.")] = ""


@app.command(cls=Command)
@flat
def convert(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=options.MODEL_HELP)],
    *,
    files: Converted,
    what: options.Config,
    said: options.Said,
) -> None:
    """Convert any checkpoint into a model folder: diffusers' layout, safetensors, a card.

    The folder needs no --config any more, and its digest is that of the checkpoint.

    Example: ddimctl models convert ckpt.pth -o my-model
    """
    from ddimctl.checkpoints import diffusers, folders, formats
    from ddimctl.families import find, pixel
    from ddimctl.files import write_bytes

    console = said.console()
    if files.output.exists() and not files.output.is_dir():
        raise UsageError(f"{files.output} is a file", hint="name a folder")
    if files.output.exists() and any(files.output.iterdir()) and not files.force:
        raise UsageError(
            f"{files.output} is a folder with something in it", hint="name another; --force replaces its model"
        )
    where = find(checkpoint, config=what.config, schedule=what.schedule, guess=what.guess)
    found, name, folder = formats.read(where.path, where.said), where.about.name, where.about.folder
    if folder is not None and folder.resolve() == files.output.resolve():
        raise UsageError(f"{files.output} is the model itself", hint="name another folder")
    module = pixel.make_module(found, name)  # refuses what does not fit together, before anything is written
    report(console, found)
    licence = files.license_ or (folders.licence(folder) if folder else None)
    if files.force:
        diffusers.clear(files.output)
    diffusers.write(files.output, found)
    write_bytes(files.output / "README.md", card(found, name, module.facts.digest, licence=licence).encode())
    if found.label_scale != 1:
        console.notice("diffusers cannot scale labels: only ddimctl can use this folder")
    console.data(str(files.output), {"folder": str(files.output), "digest": module.facts.digest})


@app.command(cls=Command)
@flat
def pull(
    model: Annotated[str, typer.Argument(metavar="ID", help="A model on the Hugging Face hub: OWNER/NAME.")],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="A branch, tag or commit of it.", rich_help_panel="What")
    ] = None,
    *,
    said: options.Said,
) -> None:
    """Download a model from the Hugging Face hub into the hub's cache, and print its folder.

    Only the files that are needed are fetched, and a model that ddimctl cannot use is refused before its weights are.
    Afterwards -m ID works without a network.

    Example: ddimctl models pull google/ddpm-cifar10-32
    """
    from ddimctl.checkpoints import hub

    console = said.console()
    if not hub.is_id(model):
        raise UsageError(f"{model!r} is not a hub id", hint="it has the form OWNER/NAME")
    folder = hub.fetch(model, revision)
    console.data(str(folder), {"id": model, "folder": str(folder)})


def describe(reference: str, what: options.Config, console: Console) -> tuple[str, dict[str, Any]]:
    """What a model is, as text and as a record; what was guessed, as notices. It is not asked for any class."""
    from ddimctl.checkpoints import folders, glance
    from ddimctl.families import family_of, find

    where = find(reference, config=what.config, schedule=what.schedule, guess=what.guess)
    if (seen := glance.look(where.path, where.said)) is not None:
        report(console, seen[0])
        return about(seen[0], where.about.name, seen[1], licence=folders.licence(where.path))
    from ddimctl.checkpoints import formats
    from ddimctl.families import pixel

    family = family_of(where.path)
    if family is not pixel:
        model = family.load(where.path, where.about, where.said, device="cpu")
        return described.about(model, licence=folders.licence(where.path))
    checkpoint, folder = formats.read(where.path, where.said), where.about.folder
    facts = pixel.make_module(checkpoint, where.about.name).facts
    report(console, checkpoint)
    return about(checkpoint, where.about.name, facts, licence=folders.licence(folder) if folder else None)


def report(console: Console, checkpoint: Checkpoint) -> None:
    """What was guessed while loading, as notices; what was chosen, with -v."""
    from ddimctl.checkpoints import told

    for guess in checkpoint.guesses:
        console.notice(f"guessed: {guess}")
    for note in told(checkpoint):
        console.detail(note)


def about(checkpoint: Checkpoint, name: str, facts: Facts, *, licence: str | None) -> tuple[str, dict[str, Any]]:
    """A model as text, and as a record."""
    from ddimctl.checkpoints import told
    from ddimctl.unet.shapes import memory

    c, schedule = checkpoint.config, checkpoint.schedule
    size = c.image_size
    needs = memory(c) if size else None
    record: dict[str, Any] = {
        "kind": "model",
        "name": name,
        "image_size": list(size) if size else None,
        "channels": c.in_channels,
        "classes": c.num_class_embeds,
        "parameters": facts.parameters,
        "prediction": checkpoint.prediction,
        "learned_variance": c.out_channels != c.in_channels,
        "schedule": {
            "T": schedule.T,
            "sigma_min": schedule.sigma(1),
            "sigma_max": schedule.sigma(schedule.T),
            "label_scale": checkpoint.label_scale,
            "digest": schedule.digest,
        },
        "digest": facts.digest,
        "licence": licence,
        "memory_bytes": needs,
        "architecture": c.to_dict(),
        "notes": list(told(checkpoint)),
        "guesses": list(checkpoint.guesses),
    }
    levels = [
        f"{ch}{'*' if 'Attn' in b else ''}" for ch, b in zip(c.block_out_channels, c.down_block_types, strict=True)
    ]
    rows = [
        ("images", f"{' x '.join(map(str, size)) if size else 'of any size'}, {c.in_channels} channels"),
        ("network", f"channels {' '.join(levels)} (* attention), {c.layers_per_block} layers a resolution"),
        ("parameters", f"{facts.parameters:,}"),
        (
            "predicts",
            checkpoint.prediction + (", and variances, which are left out" if record["learned_variance"] else ""),
        ),
        ("schedule", f"T = {schedule.T}, σ from {schedule.sigma(1):.4g} to {schedule.sigma(schedule.T):.4g}"),
        ("digest", facts.digest),
        ("licence", licence or "not stated"),
        (
            "memory",
            f"about {needs / 1e6:,.0f} MB for one image, beside Python's and torch's own" if needs else "unknown",
        ),
    ]
    if checkpoint.label_scale != 1:
        rows.insert(5, ("labels", f"times {checkpoint.label_scale:g}"))
    if c.num_class_embeds:
        rows.insert(1, ("classes", f"{c.num_class_embeds}, chosen with --class"))
    return "\n".join([plain(name), *(f"  {k:<11} {plain(v)}" for k, v in rows)]), record


def card(checkpoint: Checkpoint, name: str, digest: str, *, licence: str | None) -> str:
    """The README.md of a converted model."""
    from ddimctl.version import __version__

    c = checkpoint.config
    size = " × ".join(map(str, c.image_size)) if c.image_size else "any"
    told = [f"- {note}" for note in checkpoint.notes] + [f"- guessed: {guess}" for guess in checkpoint.guesses]
    head = f"license: {licence}\n" if licence else ""
    return (
        f"---\n{head}tags: [ddpm, ddim]\n---\n\n# {name}\n\n"
        f"Converted to diffusers' layout by ddimctl {__version__}. "
        f"{c.in_channels}-channel images of {size} pixels, {checkpoint.schedule.T} noise levels, "
        f"predicts {checkpoint.prediction}.\n\n"
        f"Licence: {licence or 'not stated in the checkpoint; ask whoever trained it'}.\n\n"
        f"Weights digest: `{digest}`\n" + ("\nWhat the conversion chose:\n\n" + "\n".join(told) + "\n" if told else "")
    )
