"""``ddimctl decode``: x_T → images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl.cli import batches, inputs, options
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat
from ddimctl.errors import FileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddimctl.batch import Item
    from ddimctl.latent import Latent
    from ddimctl.model import Model


@flat
def decode(
    latents: Annotated[
        list[str] | None, typer.Argument(help="Latent files (.pt, .safetensors), folders of them, or patterns.")
    ] = None,
    *,
    what: options.OtherWhat,
    how: options.OtherHow,
    files: options.Batch,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Decode latents into images.

    The model, the noise levels and the solver come from the file; name others only to see what they do. One image makes
    LATENT.png, or the file that -o names; several go into the folder that -o names, where they keep their places.

    With several files, the same command again does only what is not done yet, a bad file does not stop the others (exit
    code 4), and a manifest in the folder says what became of each.

    Example: ddimctl decode latent.pt -o back.png
    """
    from ddimctl import batch, latent
    from ddimctl.files import make_folder, refuse_existing
    from ddimctl.images import formats

    console = said.console()
    items = batches.items_of(latents or [], files.from_file, latent.SUFFIXES, files.shard, console=console)
    single = batches.is_single(latents or [], items, files.from_file, files.shard)
    first = latent.load(Path(items[0].source)) if single else None
    if first is None and items:
        first = first_whole(items)
    one_image = single and first is not None and len(first.xT) == 1
    if files.output is not None and files.output.suffix and not files.output.is_dir():
        if not one_image:
            raise UsageError(f"several images do not fit into one file {files.output}", hint="name a folder with -o")
        formats.check_suffix(files.output)
    elif files.output is None and any(Path(a).is_dir() for a in latents or []):
        raise UsageError("a folder of latents makes many images", hint="name a folder for them with -o")
    target = files.output if files.output is not None and files.output.suffix and not files.output.is_dir() else None
    if one_image:
        target = target or (files.output or Path()) / f"{items[0].name}.png"
        refuse_existing(target, files.force, makes_folder=target.parent == files.output)
        formats.check_apart(target, [items[0].source])
        if target.parent == files.output and not files.dry_run:
            make_folder(files.output)

    net: Model | None = None
    if first is not None:
        name = items[0].source if single else "the first latent"
        net = inputs.model_of(
            first, name, what.model, machine.device, console, files.force, what.class_label, what.config
        )
    elif what.model is not None:
        net = inputs.open_model(what.model, machine.device, console, what.class_label, what.config)
    if net is not None:
        formats.check_channels(f"an image of the model {net.name}", net.channels)
    if net is not None and first is not None:
        solver = how.solver or first.provenance["decoder"]
        work = inputs.evaluations(len(items) * len(first.xT), how.steps or len(first.path) - 1, solver)
        inputs.start_engine(net, machine.engine, machine.precision, work, console)

    def way(file: Latent, name: str) -> tuple[Model, Sequence[float], str]:
        if net is None:
            raise FileError(f"{name} could not be read at first")
        inputs.check_model(file, name, net, console, files.force)
        return (net, *inputs.way_back(file, net, how.steps, how.spacing, how.solver))

    folder = files.output or Path()
    manifest = batches.manifest_path(folder, files.shard)
    if one_image and first is not None and target is not None:
        if not files.dry_run:
            decode_one(first, items[0].source, target, way, how.tolerance, console)
            return
        way(first, items[0].source)
        outcomes = iter([batch.Outcome(items[0], batch.DONE, (target,))])
    else:
        before = batch.read_manifest(manifest)
        outcomes = batch.decode(
            items, folder, ".png", way, how.tolerance, machine.batch_size, before, files.force, files.dry_run
        )
    run: dict[str, Any] = {"command": "decode", "model": net.digest if net else None, "tolerance": how.tolerance}
    run |= {"engine": net.engine if net else None, "precision": machine.precision}
    batches.run(outcomes, len(items), manifest, run, "decoded", console, files.dry_run)


def decode_one(file: Latent, name: str, target: Path, way: Any, tolerance: float | None, console: Console) -> None:
    """One latent → one image. What is wrong with it is the command's own error."""
    from ddimctl import ddim
    from ddimctl.images import levels, writing

    net, path, how = way(file, name)
    with console.bar(len(path) - 1, "decoding") as bar:
        solution = ddim.decode(net, file.xT, path, how, tolerance, 1, bar)
    levels.check_finite(solution.x, net.name)
    writing.save_image(target, levels.to_pixels(solution.x)[0])
    console.data(str(target), {"files": [str(target)], "images": 1})


def first_whole(items: Sequence[Item]) -> Latent | None:
    """The first file that can be read: it names the model for all."""
    from ddimctl import latent

    for item in items:
        try:
            return latent.load(Path(item.source))
        except (FileError, UsageError):
            continue
    return None
