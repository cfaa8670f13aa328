"""``ddimctl encode``: images → x_T."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl import places
from ddimctl.cli import batches, inputs, names, options, prompts
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.part import Part
from ddimctl.cli.sized import Captioned
from ddimctl.cli.workers import Workers
from ddimctl.errors import UsageError, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.plan import Item, Outcome
    from ddimctl.runs.where import Where
    from ddimctl.runs.work import Encoding


@group
class Exact:
    """Whether nothing may be lost."""

    PANEL: ClassVar[str] = "How"

    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Make sure that decoding gives back every 8-bit value (solver exact)."),
    ] = False
    dither: Annotated[
        int | None,
        typer.Option(
            "--dither",
            metavar="SEED",
            min=0,
            help="Add noise of σ(1) first, for latents like noise; decode takes it away.",
        ),
    ] = None
    keep_path: Annotated[
        bool,
        typer.Option("--keep-path", help="Keep what decoding needs to return exactly, at any guidance; larger files."),
    ] = False
    path_precision: Annotated[
        str,
        typer.Option(
            "--path-precision",
            metavar="NAME",
            help="Of what is kept: float32, or float16 for half the size.",
            autocompletion=names.one_of(*names.KEPT),
        ),
    ] = "float32"
    path_steps: Annotated[
        int | None,
        typer.Option("--path-steps", metavar="K", help="Keep so many steps next to the image, not all of them."),
    ] = None


@group
class Lossless(options.Along, Exact, Part):
    """The way, or a part of it, which may have to be without loss."""

    steps: Annotated[int | None, like(options.How, "steps", help=options.LOSSLESS_STEPS_HELP)] = None

    def way(self, machine: options.Machine, suffix: str, condition: Condition) -> Way:
        """What is asked for, without its part. Raises `UsageError` for what contradicts itself, or that there is not."""
        from ddimctl.keeping import Keep
        from ddimctl.recipe import Way, spacing_under

        if self.lossless and self.keep_path:
            raise UsageError("--lossless and --keep-path are two ways to get everything back", hint="choose one")
        if not self.keep_path and (self.path_steps is not None or self.path_precision != "float32"):
            raise UsageError("--path-steps and --path-precision are about a path that is kept", hint="add --keep-path")
        if self.lossless and self.solver not in (options.DEFAULT_SOLVER, "exact"):
            raise UsageError(f"--lossless goes with the solver exact, not {self.solver}")
        if self.lossless and machine.precision != "float32":
            raise UsageError("--lossless needs --precision float32", hint="what decodes the file will use that")
        if self.keep_path and suffix in (".npy", ".tar", ".parquet"):
            raise UsageError(f"a {suffix} holds x_T alone, and no path", hint="choose .pt or .safetensors")
        steps = options.steps_or_default(self.steps, lossless=self.lossless)
        keep = Keep(self.path_precision, self.path_steps).of(steps) if self.keep_path and steps > 0 else None
        solver = "exact" if self.lossless else self.solver
        if keep is not None and solver == "adaptive":
            raise UsageError("adaptive takes steps of its own, and has no path to keep", hint="choose another --solver")
        way = Way(solver, spacing_under(condition, solver, self.spacing), steps, self.tolerance, keep=keep)
        way.check()  # wrong names are found before anything is done
        return way

    def check(self, path: Sequence[float]) -> None:
        """Raises `UsageError` if what is asked for cannot be done along these levels."""
        from ddimctl import dither

        if self.dither is not None:
            dither.check(path)


@group
class Frames(options.Fit):
    """How images, and the frames of films, are made to fit."""

    all_frames: Annotated[
        bool,
        typer.Option(
            "--all-frames", metavar="", help="Every frame of an animation or a film (.gif, .mp4, …), in one file."
        ),
    ] = False

    def suffixes(self) -> list[str]:
        """Of the files that are taken. Raises `UsageError` where one frame and all of them are asked for."""
        from ddimctl.images import video
        from ddimctl.images.plugins import readable

        if self.all_frames and self.frame is not None:
            raise UsageError("--all-frames and --frame contradict each other")
        return [*readable(), *(video.SUFFIXES if self.all_frames else ())]


@group
class Kind(options.Batch):
    """What is written."""

    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="KIND",
            help="pt, safetensors, or npy: x_T alone, for other programs.",
            autocompletion=names.one_of(*names.KINDS),
        ),
    ] = None

    per_shard: Annotated[
        int | None,
        typer.Option("--per-shard", metavar="N", min=1, help="Latents in each file of -o 'DIR/{shard:05}.tar'."),
    ] = None

    @property
    def packs(self) -> bool:
        """Whether -o names shards, tar or parquet. Raises `UsageError` if no shards could be called that."""
        from ddimctl.archives import SUFFIXES

        named = self.output is not None and self.output.suffix.lower() in SUFFIXES and not self.output.is_dir()
        if self.per_shard is not None and not named:
            raise UsageError("--per-shard is about tars and parquet files", hint="such as -o 'latents/{shard:05}.tar'")
        if not named:
            return False
        from ddimctl.runs import shards

        shards.check(str(self.output), self.per_shard)
        return True

    @property
    def suffix(self) -> str:
        """Of the files. Raises `UsageError` for a kind there is not, or another than that of the file that -o names."""
        kind = choose({name: f".{name}" for name in names.KINDS}, self.to or "pt", "kind of file")
        named = self.output.suffix.lower() if self.output is not None and not self.output.is_dir() else ""
        if self.to is not None and named not in ("", kind):
            raise UsageError(f"{self.output} is no name for --to {self.to}", hint="leave one of the two away")
        return named or kind


@flat
def encode(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, archives, patterns, URLs, or - for standard input."),
    ] = None,
    *,
    what: Captioned,
    how: Lossless,
    fit: Frames,
    files: Kind,
    machine: Workers,
    said: options.Said,
) -> None:
    """Encode images into latents x_T.

    One image makes IMAGE.pt, or the file that -o names (.pt, .safetensors, or .npy for x_T alone). Several make one
    file of them all if -o names a file, else one file each, in the folder that -o names, where they keep their places.
    The file knows how to decode itself.

    --lossless encodes with the solver exact, decodes, and tightens until every 8-bit value comes back, of the image as it
    was made to fit the model (its size, grey or colour); where that cannot be reached nothing is written (exit code 1).
    Of a model with an autoencoder it is the state z that comes back, within rounding.

    --to-level or --strength go only a part of the way: decode goes back from there, under another --prompt, --class or
    --model if it is asked to.

    --keep-path keeps beside x_T what DDIM's steps miss of the way up: decode returns exactly, at any guidance, and under
    another prompt it is direct inversion. --path-precision and --path-steps make the file smaller.

    --captions gives each image the prompt that stands beside it; a batch has one prompt.

    --all-frames makes one file of all frames of an animation or a film, which decode -o FILM.gif makes a film of again.

    Shards that WebDataset and datasets open are made by -o 'latents/{shard:05}.tar' (or .parquet) and --per-shard N.

    Archives are tars as WebDataset has them, parquet files, folders of datasets' save_to_disk, IDX and CIFAR binaries: each
    image in them is an item, named by its key.

    With several images, the same command again does only what is not done yet, a bad image does not stop the others
    (exit code 4), and a manifest beside the output says what became of each.

    Example: ddimctl encode photos/ -o latents/
    """
    from ddimctl import lossless
    from ddimctl.runs import films, local, outputs, work

    files = replace(files, output=places.of_kind(files.output, files.suffix))
    console, preprocessing = said.console(files.output), fit.preprocessing()
    batches.tell_left_out(images or [], console)
    items = batches.items_of(images or [], files, fit.suffixes(), console=console)
    single = batches.is_single(images or [], items, files) and not files.packs
    target, one_file = plan_target(images or [], items, files, single=single)
    if fit.all_frames and one_file and not single:
        raise UsageError("--all-frames makes a file of each film", hint="name a folder with -o")
    encode_each = films.encode if fit.all_frames else local.encode
    way = how.way(machine, files.suffix, what.condition())
    quick = None if how.lossless else inputs.recall(what, machine, console)
    net = quick or inputs.open_model(what, machine, console)
    way = replace(way, to=how.level(net.schedule))
    how.check(way.path(net.schedule))
    inputs.tell_of_way(way, net, console)
    load = inputs.evaluations(len(items), way.steps, way.solver)
    net = quick or inputs.start_engine(net, machine, console, work=load)
    condition, encode_each = conditions(what, items, images, model=net, each=encode_each, one=one_file, said=console)
    encoding = work.Encoding(net, way, preprocessing, condition, how.lossless, how.dither)
    settings = settings_of(way.on(net.schedule))
    if single and not files.dry_run:
        if files.output is not None and not one_file:
            outputs.make_folder(files.output)
        encode_one(
            items[0], target, encoding,
            settings=settings, encode_each=encode_each, machine=machine, console=console,
        )  # fmt: skip
        return
    run = {"command": "encode", "model": net.digest, **settings, "tolerance": how.tolerance}
    run |= {"engine": net.network.engine, "precision": machine.precision}
    one = target if one_file or single else None
    encode_many(items, one, encoding, encode_each=encode_each, files=files, machine=machine, run=run, said=said)
    if how.lossless and not files.dry_run:
        console.notice(lossless.told_of_many(net, len(items)))


def settings_of(way: Way) -> dict[str, Any]:
    """What is said of a way in manifests and records."""
    kept = {} if way.keep is None else {"keep_path": asdict(way.keep)}
    return {"steps": way.steps, "solver": way.solver, "spacing": way.spacing, **kept}


def conditions(
    what: Captioned,
    items: Sequence[Item],
    images: list[str] | None,
    *,
    model: Model,
    each: prompts.Encode,
    one: bool,
    said: Console,
) -> tuple[Condition, prompts.Encode]:
    """What is asked for, and `each` for images that may be asked for something of their own."""
    if not what.captions:
        return what.condition(), each
    return prompts.captioned(
        items, images or [], model, condition=what.condition(), encode_each=each, one_file=one, console=said
    )


def plan_target(images: list[str], items: Sequence[Item], files: Kind, *, single: bool) -> tuple[Path, bool]:
    """(the one file that is written, whether -o names it). Raises `UsageError` where it cannot be."""
    from ddimctl import latent, remote
    from ddimctl.images.formats import check_apart
    from ddimctl.runs import outputs, plan

    outputs.check(files.output)
    suffix = files.suffix
    if files.packs:
        return files.output or Path(), True
    one_file = files.output is not None and bool(files.output.suffix) and not files.output.is_dir()
    if files.output is not None and one_file:
        latent.check_suffix(files.output)
        if places.is_stream(files.output) and not single:
            raise UsageError(f"several latents do not fit into {files.output}", hint="name a file or a folder with -o")
    if files.output is None and (any(map(plan.is_folder, images)) or (not single and any(i.held for i in items))):
        raise UsageError("a folder of images makes many latents", hint="name a folder for them with -o")
    target = files.output if files.output is not None and one_file else Path()
    if single and not one_file:
        target = (files.output or Path()) / f"{'latent' if items[0].source == '-' else items[0].name}{suffix}"
    if single:
        outputs.refuse_existing(target, force=files.force, makes_folder=not one_file)
    if one_file and not single and remote.url_of(target):
        hint = "name shards, such as URL/{shard:05}.tar, or a folder, with a slash at its end"
        raise UsageError("one file of many latents is made here, and put into no store", hint=hint)
    if single or one_file:
        check_apart(target, (item.source for item in items))
    return target, one_file


def encode_many(
    items: Sequence[Item],
    target: Path | None,
    encoding: Encoding,
    *,
    encode_each: Callable[..., Iterator[Outcome]],
    files: Kind,
    machine: Workers,
    run: dict[str, Any],
    said: options.Said,
) -> None:
    """Many images → one file, or one each, with a manifest."""
    from ddimctl import latent
    from ddimctl.runs import local, packed
    from ddimctl.runs.manifest import MANIFEST, read_manifest

    if files.packs:
        manifest, work = batches.sharded(items, encoding, files, per=files.per_shard, size=machine.batch_size)
    elif target is not None and encode_each is local.encode:

        def work(where: Where) -> Iterator[Outcome]:
            return packed.encode(
                items, target, encoding,
                batch_size=machine.batch_size, force=files.force, dry_run=files.dry_run, where=where,
            )  # fmt: skip

        manifest = target.with_name(f"{target.name}.{MANIFEST}")
    else:
        folder = files.output or Path()
        targets = local.Targets(folder, files.suffix, files.force, files.dry_run)
        if target is not None:  # one film
            folder, targets = target.parent, replace(targets, folder=target.parent, suffix=target.suffix)
            items = [replace(items[0], name=target.name.removesuffix(target.suffix))]

        manifest = batches.manifest_path(folder, files.shard)
        size, before = machine.batch_size, read_manifest(manifest) if files.suffix == latent.BARE else {}

        def work(where: Where) -> Iterator[Outcome]:
            return encode_each(items, targets, encoding, batch_size=size, before=before, where=where)

    steps = encoding.way.steps * encoding.passes
    with machine.elsewhere(encoding.model, dry_run=files.dry_run) as elsewhere:
        batches.run(
            lambda where: work(elsewhere or where), len(items), steps,
            manifest=manifest, about=run, verb="encoded", console=said.console(), dry_run=files.dry_run,
        )  # fmt: skip


def encode_one(
    item: Item,
    target: Path,
    encoding: Encoding,
    *,
    settings: dict[str, Any],
    encode_each: Callable[..., Iterator[Outcome]],
    machine: Workers,
    console: Console,
) -> None:
    """One image, or one film, → one file: a run of one. What is wrong with it is the command's own error."""
    from ddimctl import lossless
    from ddimctl.runs import local, outputs
    from ddimctl.runs.where import here

    targets = local.Targets(target.parent, target.suffix, single=True, one=target)
    named = replace(item, name=target.name.removesuffix(target.suffix))
    size, steps = machine.batch_size, encoding.way.steps * encoding.passes
    with machine.elsewhere(encoding.model) as elsewhere, console.bar(steps, "encoding") as bar:
        where = elsewhere or partial(here, progress=bar)
        (outcome,) = encode_each([named], targets, encoding, batch_size=size, before={}, where=where)
    if outcome.failure is not None or outcome.solution is None:
        raise outcome.failure or UsageError(f"{item.source} was not encoded")
    record, solution = outcome.notes["image"], outcome.solution
    if frames := outcome.notes.get("frames"):
        record = record | {"frame": None}
        console.notice(f"{item.source}: {frames} frames")
    inputs.tell_of([record], console)
    batches.tell_of_failures(item.source, solution, console)
    if solution.checks:
        spent = sum(solution.evaluations)
        console.notice(lossless.told(solution.checks, record["pixels"], film=bool(frames), evaluations=spent))
    console.data(
        outputs.shown(target),
        {
            "files": [outputs.shown(target)],
            "images": len(solution.evaluations),
            **settings,
            "evaluations": solution.mean_evaluations,
            "unconverged": solution.unconverged,
            "residuals": solution.residuals,
            **({} if solution.returned is None else {"returned": solution.returned}),
        },
    )
