"""``ddimctl train``: images → a model folder."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ddimctl.cli import batches, options
from ddimctl.cli.console import Console
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.training.data import Data
    from ddimctl.training.log import Report
    from ddimctl.training.loop import Trainer


@group
class Folder(options.Forced):
    """Where the model goes."""

    output: Annotated[Path, like(options.Output, "output", metavar="FOLDER", help="The model folder to make.")]


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


@flat
def train(
    images: Annotated[
        Path, typer.Argument(parser=options.parse_path, help="A folder of images, or an IDX file (perhaps gzipped).")
    ],
    *,
    pictures: Pictures,
    network: Network,
    fit: options.Fit,
    training: Training,
    files: Folder,
    machine: options.Device,
    said: options.Said,
) -> None:
    """Train a model on images.

    The folder made holds the averaged weights in diffusers' layout, a model card and 64 held-out images; every other
    command takes it as -m FOLDER. Checkpoint, loss log and sample sheets are in FOLDER/training. Ctrl-C saves and stops.

    Example: ddimctl train photos/ -o my-model --size 32 --steps 20000
    """
    import torch

    from ddimctl.checkpoints import diffusers
    from ddimctl.engines import pytorch
    from ddimctl.families import pixel
    from ddimctl.files import make_folder
    from ddimctl.images.levels import to_tensor
    from ddimctl.model import About
    from ddimctl.training import card
    from ddimctl.training.log import LossLog
    from ddimctl.training.loop import N_HELD_OUT_FILES, Trainer
    from ddimctl.training.pixel import Pixel
    from ddimctl.training.settings import PixelSettings

    console = said.console()
    settings = PixelSettings(
        channels=1 if pictures.grey else 3,
        size=options.parse_size(pictures.size, "--size"),
        block_channels=options.parse_integers(network.channels, "--channels"),
        attention=() if network.attention == "none" else options.parse_integers(network.attention, "--attention"),
        layers=network.layers,
        groups=network.groups,
        head_dim=network.head_dim,
        dropout=network.dropout,
        steps=training.steps,
        batch=training.batch_size,
        lr=training.lr,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        ema=training.ema,
        clip=training.clip,
        flip=training.flip,
        bf16=training.bf16,
        seed=training.seed,
        balance=training.balance,
    )
    if files.output.exists() and not files.output.is_dir():
        raise UsageError(f"{files.output} is a file", hint="-o names a folder")
    if files.output.exists() and any(files.output.iterdir()) and not (training.resume or files.force):
        raise UsageError(
            f"{files.output} is a folder with something in it",
            hint="--resume continues a run, --force starts again there",
        )
    target = torch.device(pytorch.device(machine.device))
    data = _load(
        images, pictures.held_out, settings.channels, settings.size, training.seed, fit.preprocessing(), console
    )
    task = Pixel(settings, data, target)
    trainer = Trainer(task, files.output)
    if training.resume:
        trainer.resume()
    elif files.force:
        diffusers.clear(files.output)
    trainer.about |= {k: v for k, v in (("data_name", pictures.data_name), ("license", pictures.license_)) if v}
    about = card.About(
        images.resolve().name,
        Path(pictures.held_out).name,
        trainer.about.get("data_name", images.resolve().name),
        trainer.about.get("license", "not stated"),
    )
    make_folder(trainer.work)
    log = LossLog(trainer.work / "loss.csv", trainer.step, settings.batch)
    parameters = sum(p.numel() for p in task.network.parameters())
    start = f"continuing at step {trainer.step}" if training.resume else f"{parameters:,} parameters"
    console.notice(f"{len(data.images):,} images to train on, {len(data.held_out):,} held out; {start}")
    if data.shared:
        console.notice(f"warning: {data.shared:,} of the held-out images are among those to train on as well")

    with _stop_gently() as stopped:
        for report in _progress(console, trainer):
            log.add(report)
            if report.step == settings.steps:
                trainer.save()
                break
            if report.step % training.sample_every == 0:
                _sample_sheet(trainer)
            if stopped or report.step % training.save_every == 0:
                trainer.save()
                trainer.export(card.write(trainer, about, log.held_out_loss))
            if stopped:
                console.notice(f"stopped at step {report.step} of {settings.steps}; --resume continues")
                raise typer.Exit(128 + stopped[0])
    # What follows only reads the checkpoint: if it is interrupted, --resume does it again.
    _sample_sheet(trainer)
    held_out_loss = trainer.validate() if log.held_out_loss is None else log.held_out_loss
    net = pixel.from_checkpoint(task.checkpoint(trainer.average.module), About(files.output.name), device=str(target))
    shown = to_tensor(data.held_out[:N_HELD_OUT_FILES].permute(0, 2, 3, 1).numpy()).double()
    with console.bar(card.round_trip_steps(), "measuring round trips") as bar:
        measured = card.round_trip(net, shown, progress=bar)
    trainer.export(card.write(trainer, about, held_out_loss, measured))
    console.data(str(files.output), {"folder": str(files.output)})


def _load(
    images: Path,
    held_out: str,
    channels: int,
    size: tuple[int, int],
    seed: int,
    how: Preprocessing,
    console: Console,
) -> Data:
    from ddimctl.files import refuse_special
    from ddimctl.images import datasets
    from ddimctl.training.data import Data, split

    for path in (images, Path(held_out)):
        refuse_special(path)

    def read(path: Path) -> Tensor:
        found = datasets.load(path, channels, size, how=how)
        batches.say_failures(found.failures, len(found.failures) + len(found.sources), console)
        batches.say_left_out(found.left_out, console)
        return found.images

    data = read(images)
    try:
        fraction = float(held_out)
    except ValueError:
        return Data(data, read(Path(held_out)))
    if not 0 < fraction < 1:
        raise UsageError(f"--held-out {held_out} is neither a path nor a fraction between 0 and 1")
    return split(data, fraction, seed)


def _progress(console: Console, trainer: Trainer) -> Iterator[Report]:
    """A bar with loss, images/s and time left on a terminal; elsewhere a line a minute."""
    if console.quiet:
        yield from trainer.train()
        return
    total, last = trainer.settings.steps, time.monotonic()
    mean = None
    if not sys.stderr.isatty():
        for report in trainer.train():
            mean = report.loss if mean is None else 0.98 * mean + 0.02 * report.loss
            if time.monotonic() - last > 60 or report.step == total:
                last = time.monotonic()
                left = (total - report.step) * trainer.settings.batch / report.images_per_second / 60
                speed = f"{report.images_per_second:.0f} images/s"
                console.notice(f"step {report.step}/{total}  loss {mean:.4f}  {speed}  {left:.0f} min left")
            yield report
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=trainer.step)
        for report in trainer.train():
            mean = report.loss if mean is None else 0.98 * mean + 0.02 * report.loss
            bar.update(
                task, completed=report.step, description=f"loss {mean:.4f}  {report.images_per_second:.0f} images/s"
            )
            yield report


@contextmanager
def _stop_gently() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of breaking off: the loop ends after the step it is in."""
    stopped: list[int] = []
    before = {s: signal.signal(s, lambda n, frame: stopped.append(n)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _sample_sheet(trainer: Trainer) -> None:
    from ddimctl.images.levels import to_pixels
    from ddimctl.images.sheets import enlarge, sheet
    from ddimctl.images.writing import save_image

    pixels = enlarge(sheet(to_pixels(trainer.samples()), columns=8), 2)
    save_image(trainer.work / f"samples-{trainer.step:06}.png", pixels)
    save_image(trainer.folder / "samples.png", pixels)
