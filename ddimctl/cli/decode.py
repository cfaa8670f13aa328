"""``ddimctl decode``: x_T → images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import batches, inputs, options
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat
from ddimctl.cli.opened import Opened
from ddimctl.cli.sized import OtherTiles
from ddimctl.cli.workers import Workers
from ddimctl.errors import FileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ddimctl.latent import Latent
    from ddimctl.model import Model
    from ddimctl.runs.plan import Item
    from ddimctl.runs.where import Where
    from ddimctl.runs.work import Decoding


@flat
def decode(
    latents: Annotated[
        list[str] | None,
        typer.Argument(help="Latent files (.pt, .safetensors), folders, archives, patterns, URLs, or -."),
    ] = None,
    *,
    what: OtherTiles,
    how: options.Theirs,
    files: options.Batch,
    machine: Workers,
    said: options.Said,
) -> None:
    """Decode latents into images.

    The model, the noise levels, the solver and the class come from each file; name others only to see what they do. x_T
    of another program, alone in a .pt, .npy, .npz or .safetensors, says none of these: it takes -m, and --steps,
    --solver and --spacing, or --from-diffusers. One image makes LATENT.png, or LATENT.decoded.png where that is what
    was encoded, or the file that -o names; several go into the folder that -o names, where they keep their places.
    Those of a packed file are called as they were; they make a film where -o names one (.gif, .webp, .apng, .mp4): the
    frames of encode --all-frames, in time.

    A file that keeps its path (encode --keep-path) returns exactly; under another --prompt that is direct inversion.
    Another way, such as --solver ddim, leaves the path out.

    With several files, the same command again does only what is not done yet, a bad file does not stop the others (exit
    code 4), and a manifest in the folder says what became of each.

    Example: ddimctl decode latent.pt -o back.png
    """
    from ddimctl import latent
    from ddimctl.runs import local, pictures, plan
    from ddimctl.runs.manifest import read_manifest

    files = replace(files, output=places.of_kind(files.output, ".png"))
    console = said.console(files.output)
    suffixes = latent.SUFFIXES if what.model is None else inputs.BARE_SUFFIXES
    items = batches.items_of(latents or [], files, suffixes, console=console)
    single = batches.is_single(latents or [], items, files)
    models = Opened(what, how, machine=machine, console=console, force=files.force)
    first = models.load(items[0].opens) if single else first_whole(items, models)
    one_image = single and first is not None and len(first.xT) == 1
    is_film = single and first is not None and plan_film(items[0], files, len(first.xT))
    target = plan_target(latents or [], items, files, one=first if one_image else None, is_film=is_film)

    net: Model | None = None
    if first is not None:
        name = items[0].source if single else "the first latent"
        net = models.of(first, name, images=len(items) * len(first.xT))
        inputs.tell_of_path(first, models.way_back(first, name), name, console=console)
    elif what.model is not None:
        net = inputs.open_model(what, machine, console)

    if is_film and target is not None and first is not None and net is not None and not files.dry_run:
        back = models.way_back(first, items[0].source)
        decode_film(items[0], first, back, target=target, machine=machine, console=console)
        return
    if target is not None and first is not None and not files.dry_run:
        decode_one(items[0], target, models, machine=machine, console=console)
        return
    folder = files.output or Path()
    manifest = batches.manifest_path(folder, files.shard)
    targets = local.Targets(folder, ".png", files.force, files.dry_run, beside=files.output is None)
    before = {} if target is not None else read_manifest(manifest)
    if target is not None and first is not None:
        models.way_back(first, items[0].source)

    def decoded(where: Where) -> Iterator[plan.Outcome]:
        if target is not None and first is not None:
            return iter([plan.Outcome(items[0], plan.DONE, (target,))])
        each = partial(pictures.decode, items, targets, models.way_back, opener=models.load)
        return each(batch_size=machine.batch_size, before=before, where=where)

    run: dict[str, Any] = {"command": "decode", "model": net.digest if net else None, "tolerance": how.tolerance}
    run |= {"engine": net.network.engine if net else None, "precision": machine.precision}
    steps = 1 if first is None else len(first.xT) * (how.steps or len(first.path) - 1)
    with machine.elsewhere(net, dry_run=files.dry_run) as elsewhere:
        batches.run(
            lambda where: decoded(elsewhere or where), len(items), steps,
            manifest=manifest, about=run, verb="decoded", console=console, dry_run=files.dry_run,
        )  # fmt: skip


def plan_film(item: Item, files: options.Batch, n: int) -> bool:
    """Whether -o names a film for so many latents. Raises `UsageError` where it cannot be written."""
    from ddimctl import remote
    from ddimctl.files import refuse_existing
    from ddimctl.images import animation, formats

    output = files.output
    if n == 1 or output is None or output.is_dir() or output.suffix.lower() not in animation.ANIMATED:
        return False
    animation.check_target(output)
    if remote.url_of(output) is not None:
        raise UsageError("a film is made here, and put into no store", hint="name a file of this machine")
    refuse_existing(output, files.force)
    formats.check_apart(output, [item.source])
    return True


def plan_target(
    latents: list[str], items: Sequence[Item], files: options.Batch, *, one: Latent | None, is_film: bool
) -> Path | None:
    """The one file that is written, for the `one` image. Raises `UsageError` where it, or what -o names, cannot be."""
    from ddimctl.files import refuse_source
    from ddimctl.images import formats
    from ddimctl.runs import names, outputs, plan

    outputs.check(files.output)
    if files.output is not None and files.output.suffix and not files.output.is_dir():
        if is_film:
            return files.output
        if one is None:
            raise UsageError(
                f"several images do not fit into one file {files.output}",
                hint="name a folder with -o; with a slash at its end if there is a dot in its name",
            )
        formats.check_suffix(files.output)
    elif files.output is None and (any(map(plan.is_folder, latents)) or (one is None and any(i.held for i in items))):
        raise UsageError("a folder of latents makes many images", hint="name a folder for them with -o")
    target = files.output if files.output is not None and files.output.suffix and not files.output.is_dir() else None
    if one is not None:
        stem = names.of_images(one, items[0].name, beside=files.output is None)[0]
        target = target or (files.output or Path()) / f"{stem}.png"
        if not files.force:  # what is forced may turn out to be what is there
            refuse_source(target, one.sources)
        outputs.refuse_existing(target, force=files.force, makes_folder=target.parent == files.output)
        formats.check_apart(target, [items[0].source])
        if target.parent == files.output and not files.dry_run:
            outputs.make_folder(files.output)
    return target if one is not None else None


def decode_one(item: Item, target: Path, models: Opened, *, machine: Workers, console: Console) -> None:
    """One latent → one image: a run of one. What is wrong with it is the command's own error."""
    from ddimctl.runs import local, outputs, pictures
    from ddimctl.runs.where import here

    targets = local.Targets(target.parent, target.suffix, single=True, one=target)
    named = replace(item, name=target.name.removesuffix(target.suffix))
    back = models.way_back(models.load(item.opens), item.source)
    with machine.elsewhere(back.model) as elsewhere, console.bar(back.way.steps, "decoding") as bar:
        where = elsewhere or partial(here, progress=bar)
        (outcome,) = pictures.decode(
            [named], targets, models.way_back, batch_size=1, before={}, where=where, opener=models.load
        )
    if outcome.failure is not None:
        raise outcome.failure
    shown = outputs.shown(target)
    console.data(shown, {"files": [shown], "images": 1})


def decode_film(
    item: Item, file: Latent, decoding: Decoding, *, target: Path, machine: Workers, console: Console
) -> None:
    """The latents of one file → one film."""
    from ddimctl.runs import films
    from ddimctl.runs.where import here

    films.check_size(target, len(file.xT), decoding.model.size)
    size = machine.batch_size
    steps = -(-len(file.xT) // size) * decoding.way.steps
    with machine.elsewhere(decoding.model) as elsewhere, console.bar(steps, "decoding") as bar:
        where = elsewhere or partial(here, progress=bar)
        n = films.decode(item, file, decoding, target=target, batch_size=size, where=where)
    if slow := films.slowed(target, file):
        console.notice(slow)
    console.data(str(target), {"files": [str(target)], "images": n})


def first_whole(items: Sequence[Item], models: Opened) -> Latent | None:
    """The first file that can be read: it names the model for all."""
    for item in items:
        try:
            return models.load(item.opens)
        except (FileError, UsageError):
            continue
    return None
