"""``ddimctl train``: images → a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import batches, options, remembered
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat, given, group, like
from ddimctl.cli.watching import counted, run, spoken
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.training.data import Data
    from ddimctl.training.loop import Task, Trainer
    from ddimctl.training.processes import Group
    from ddimctl.training.settings import Settings


@group
class Folder(options.Forced):
    """Where the model goes."""

    output: Annotated[
        Path,
        like(options.Output, "output", parser=options.parse_folder, metavar="FOLDER", help="The model folder to make."),
    ]


@group
class Kind:
    """What is trained: by default, a network of pixels that is asked for nothing."""

    PANEL: ClassVar[str] = "Network"

    captions: Annotated[
        bool,
        typer.Option("--captions", help="Listen to captions, of metadata.jsonl, captions.txt, NAME.txt or an archive."),
    ] = False
    latent: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", parser=options.parse_path, help="With captions, in the latent space of this autoencoder."
        ),
    ] = None
    start: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With captions, from the weights of this model of pixels.")
    ] = None
    autoencoder: Annotated[
        bool, typer.Option("--autoencoder", help="Train an autoencoder: the way into a latent space.")
    ] = False


@group
class Captioned:
    """A network with captions."""

    PANEL: ClassVar[str] = "Network"

    text_width: Annotated[int, typer.Option(metavar="N", min=1, help="Channels of the text encoder.")] = 128
    text_layers: Annotated[int, typer.Option(metavar="N", min=1, help="Layers of the text encoder.")] = 2
    words: Annotated[int, typer.Option(metavar="N", min=1, help="Words of a caption that are read.")] = 14
    drop: Annotated[
        float, typer.Option(metavar="X", min=0, max=1, help="The part of the captions that is dropped, for guidance.")
    ] = 0.1


@group
class Latent:
    """An autoencoder."""

    PANEL: ClassVar[str] = "Network"

    latent_channels: Annotated[int, typer.Option(metavar="N", min=1, help="Channels of an autoencoder's latents.")] = 4
    kl: Annotated[
        float, typer.Option("--kl", metavar="X", min=0, help="Weight of an autoencoder's divergence from noise.")
    ] = 2e-4
    hue: Annotated[bool, typer.Option("--hue", help="Half of an autoencoder's images in other colours.")] = False


@group
class Pictures:
    """What the images are."""

    PANEL: ClassVar[str] = "Images"

    held_out: Annotated[
        str, typer.Option(metavar="SET", help="Images to measure with and never train on: a fraction, or a path.")
    ] = "0.05"
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Image size, such as 32 or 48x64; sides must halve evenly.")
    ] = "32"
    grey: Annotated[bool, typer.Option("--grey", help="One channel instead of three.")] = False
    license_: Annotated[
        str, typer.Option("--license", metavar="NAME", help="The images' licence, for the model card.")
    ] = ""
    data_name: Annotated[
        str, typer.Option("--data-name", metavar="NAME", help="What the images are, for the card.")
    ] = ""


@group
class Network:
    """The network's shape."""

    PANEL: ClassVar[str] = "Network"

    channels: Annotated[str, typer.Option(metavar="A,B,…", help="Channels at each resolution.")] = "32,64,128"
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Residual blocks at each resolution.")] = 1
    attention: Annotated[
        str, typer.Option(metavar="I,J,…", help="Resolutions with self-attention, 0 being the finest; or none.")
    ] = "2"
    groups: Annotated[int, typer.Option(metavar="N", min=1, help="Groups of the group norms.")] = 4
    head_dim: Annotated[int, typer.Option(metavar="N", min=1, help="Channels of an attention head.")] = 64
    dropout: Annotated[float, typer.Option(metavar="X", min=0, max=1, help="Dropout in the residual blocks.")] = 0.0


@group
class Training(options.Seeded):
    """How it is trained."""

    PANEL: ClassVar[str] = "Training"

    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Optimiser steps in all.")] = 16_000
    batch_size: Annotated[int, like(options.Machine, "batch_size")] = 64
    lr: Annotated[
        float, typer.Option(metavar="X", help="Peak learning rate: warm-up to it, then half a cosine to zero.")
    ] = 1e-3
    warmup: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of warm-up.")] = 200
    weight_decay: Annotated[
        float, typer.Option(metavar="X", min=0, help="AdamW's, on the weights of rank 2 and more.")
    ] = 1e-4
    ema: Annotated[float, typer.Option(metavar="X", min=0, max=1, help="Decay of the average of the weights.")] = 0.9995
    clip: Annotated[float, typer.Option(metavar="X", min=0, help="Largest gradient norm.")] = 1.0
    balance: Annotated[
        float,
        typer.Option(
            metavar="X",
            min=0,
            help="Weigh ε's error by 1 + min(σ², N): more care for the whole; 0 is the paper's loss.",
        ),
    ] = 0.0
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random.")] = False
    bf16: Annotated[
        bool, typer.Option("--bf16/--float32", help="Arithmetic of the network.", rich_help_panel="Machine")
    ] = True
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in FOLDER, exactly.")] = False
    sample_every: Annotated[int, typer.Option(metavar="N", min=1, help="Steps between sample sheets.")] = 2000
    save_every: Annotated[int, typer.Option(metavar="N", min=1, help="Steps between checkpoints.")] = 500
    accumulate: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="See a batch in N parts, for less memory: the same steps.",
            rich_help_panel="Machine",
        ),
    ] = 1
    memory: Annotated[
        int,
        typer.Option(
            metavar="MIB",
            min=0,
            help="What images may take in memory; more are mapped from a file in the cache folder.",
            rich_help_panel="Machine",
        ),
    ] = 256
    compiled: Annotated[
        bool, typer.Option("--compile", help="Fuse each step by PyTorch's compiler.", rich_help_panel="Machine")
    ] = False
    features: Annotated[
        bool, typer.Option("--features", help="Keep what evaluate compares samples with: features of these images.")
    ] = False


@flat
def train(
    ctx: typer.Context,
    images: Annotated[
        Path | None,
        typer.Argument(
            parser=options.parse_path,
            help="A folder of images or of archives, a tar, parquet, IDX or CIFAR file, or a URL. With --resume, the run's.",
        ),
    ] = None,
    *,
    kind: Kind,
    pictures: Pictures,
    network: Network,
    text: Captioned,
    latent: Latent,
    fit: options.Fit,
    training: Training,
    files: Folder,
    machine: options.Device,
    said: options.Said,
) -> None:
    """Train a model on images.

    The folder made holds the averaged weights in diffusers' layout, a model card and 64 held-out images; every other
    command takes it as -m FOLDER. Checkpoint, loss log and sample sheets are in FOLDER/training. Ctrl-C saves and stops,
    and --resume alone continues with the run's own settings.

    Example: ddimctl train photos/ -o my-model --size 32 --steps 20000
    """
    from ddimctl.training import processes
    from ddimctl.training.loop import stored
    from ddimctl.training.settings import PixelSettings

    team = processes.asked()
    console = said.console() if team.rank == 0 else replace(said.console(), quiet=True)
    output = files.output
    with team.joined(), spoken(team):
        with team.together():
            _check_folder(output, going_on=training.resume or files.force)
            before, known = stored(output) if training.resume else (None, {})
            about = remembered.said(ctx, known)
            settings = _settings(_kind(kind, before), ctx, before=before)
            if training.features and not isinstance(settings, PixelSettings):
                raise UsageError("--features are of models of pixels")
            team.check(settings.batch, training.accumulate)
            where = team.device(machine.device)
        trainer = _trainer(settings, about, team, where=where, training=training, files=files, console=console)
        story = remembered.story(about)
        every = (training.sample_every, training.save_every)
        run(trainer, story, console, every=every, features=training.features)
    if team.rank == 0:
        console.data(str(output), {"folder": str(output)})


def _trainer(
    settings: Settings,
    about: dict[str, str],
    team: Group,
    *,
    where: str,
    training: Training,
    files: Folder,
    console: Console,
) -> Trainer:
    """The run at its beginning, or where it was stopped: the same in all processes, or in none."""
    import torch

    from ddimctl.checkpoints import diffusers
    from ddimctl.training import loop, tasks
    from ddimctl.version import __version__

    team.agree({"version of ddimctl": __version__, "version of torch": torch.__version__})

    def made() -> Task:
        data = _load(about, settings, console, memory=training.memory << 20)
        start = "" if training.resume else about["start"]  # a run that goes on has weights of its own
        return tasks.make(settings, data, torch.device(where), latent=about["latent"], start=start)

    task = team.in_turn(made)
    team.agree({"options": repr(task.settings), "number of images": str(len(task.data.images))})
    trainer = loop.Trainer(task, files.output, group=team, accumulate=training.accumulate, compiled=training.compiled)
    with team.together():
        if training.resume:
            trainer.resume()
    team.agree({"images": trainer.data_digest, "autoencoder": task.space, "checkpoint": str(trainer.step)})
    if files.force and not training.resume and team.rank == 0:
        diffusers.clear(files.output)
        loop.clear(files.output)
    trainer.about = about
    if team.size > 1:
        console.notice(f"{team.size} processes, {settings.batch // team.size} images of each batch in each")
    if getattr(settings, "dropout", 0.0) and len(trainer.parts) * team.size > 1:
        console.notice("dropout differs from part to part of a batch: the run is not the one that sees it as one")
    return trainer


# The fields of the settings that have another name than the parameter.
FIELDS = {"grey": "channels", "channels": "block_channels", "batch_size": "batch"}


def _check_folder(output: Path, *, going_on: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file", hint="-o names a folder")
    if output.exists() and any(output.iterdir()) and not going_on:
        raise UsageError(
            f"{output} is a folder with something in it",
            hint="--resume continues a run, --force replaces its model",
        )


def _kind(asked: Kind, before: Settings | None) -> type[Settings]:
    """What was asked for, or what the run was before."""
    from ddimctl.training.settings import KINDS

    text = asked.captions or asked.latent or asked.start
    if asked.autoencoder and text:
        raise UsageError("an autoencoder hears no captions", hint="train it first, then --latent names its folder")
    if before is not None and not (asked.autoencoder or text):
        return type(before)
    return KINDS["autoencoder" if asked.autoencoder else "text" if text else "pixel"]


def _settings(kind: type[Settings], ctx: typer.Context, *, before: Settings | None) -> Settings:
    """The kind's own defaults with what files of defaults say over them, or the run's settings; and over these what the
    command line says. Raises `UsageError`."""
    from ddimctl.training.settings import KINDS, from_dict

    def integers(text: str, name: str) -> tuple[int, ...]:
        return () if text == "none" and name == "attention" else options.parse_integers(text, f"--{name}")

    read: dict[str, Callable[[Any, str], Any]] = {
        "grey": lambda grey, _: 1 if grey else 3,
        "size": lambda size, _: options.parse_size(size, "--size"),
        "channels": integers,
        "attention": integers,
    }
    chosen: dict[str, Any] = {"channels": 3, "size": (32, 32)} if before is None else asdict(before)
    here, values = given(ctx), ctx.params
    for name in sorted(here if before is not None else here | given(ctx, "DEFAULT_MAP")):
        field = FIELDS.get(name, name)
        if field in kind.__dataclass_fields__ and kind.__dataclass_fields__[field].metadata:
            chosen[field] = read[name](values[name], name) if name in read else values[name]
        elif name in here and any(field in other.__dataclass_fields__ for other in KINDS.values()):
            raise UsageError(f"--{name.replace('_', '-')} is not for this kind of model", hint=WHERE)
    return from_dict(kind, chosen)


WHERE = "--captions makes one that listens to text, --autoencoder the way into a latent space"


def _load(about: Mapping[str, str], settings: Settings, console: Console, *, memory: int) -> Data:
    """The images that are to be trained on and those held out, with captions where they are needed."""
    import torch

    from ddimctl.files import refuse_special
    from ddimctl.images import captions, datasets, mapped
    from ddimctl.training.data import Data, Rows, split
    from ddimctl.training.settings import TextSettings

    images, held_out = Path(about["images"]), about["held_out"]
    for path in (images, Path(held_out)):
        refuse_special(path)
    frame = int(about["frame"]) if about["frame"] else None
    how = options.Fit(
        fit=about["fit"], background=about["background"], frame=frame, value_range=about["range"] or None,
        max_pixels=int(about["max_pixels"]),
    ).preprocessing()  # fmt: skip

    heard = isinstance(settings, TextSettings)

    def read(path: Path) -> tuple[Rows, list[str]]:
        found = datasets.load(
            path, settings.channels, settings.size, how=how, captions=heard, memory=memory,
            progress=lambda images: counted(images, console),
        )  # fmt: skip
        if found.mapped:
            console.notice(f"{found.images.nbytes / 2**20:,.0f} MiB of images are mapped from {mapped.folder()}")
        batches.say_failures(found.failures, len(found.failures) + len(found.images), console)
        batches.say_left_out(found.left_out, console)
        if not heard:
            return Rows(found.images, torch.arange(len(found.images))), []
        rows = [i for i, text in enumerate(found.captions) if text]
        if len(rows) < len(found.images):
            console.notice(f"{len(found.images) - len(rows):,} images without a caption are left out")
        if not rows:
            raise UsageError(
                f"no image in {path} has a caption", hint=f"in {captions.TABLE}, or NAME.txt beside NAME.png"
            )
        return Rows(found.images, torch.tensor(rows)), [text for text in found.captions if text]

    data, texts = read(images)
    try:
        fraction = float(held_out)
    except ValueError:
        others, words = read(Path(held_out))
        return Data(data, others, tuple(texts), tuple(words), memory)
    if not 0 < fraction < 1:
        raise UsageError(f"--held-out {held_out} is neither a path nor a fraction between 0 and 1")
    return replace(split(data, fraction, settings.seed, captions=texts), memory=memory)
