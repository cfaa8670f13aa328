"""``ddimctl interpolate``: slerp through latents, and decode the frames (section 5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.console import figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import DDIMError, UsageError

OF_ENCODE = ("--frame", "--range", "--max-pixels")  # options that an image may need, and that this command lacks


@group
class Film(options.Output):
    """Where the frames go."""

    output: Annotated[
        Path | None,
        like(options.Output, "output", help=".gif .webp .apng .mp4, a .png strip or grid, or a folder."),
    ] = None


@group
class Motion:
    """What lies between the latents."""

    PANEL: ClassVar[str] = "How"

    frames: Annotated[int, typer.Option("--frames", metavar="N", help="Frames in all, both ends among them.")] = 10
    fps: Annotated[float, typer.Option(metavar="X", min=0.1, max=100, help="Frames a second.")] = 10.0
    loop: Annotated[bool, typer.Option("--loop", help="Go on from the last latent to the first.")] = False
    ease: Annotated[bool, typer.Option("--ease", help="Slow down at every latent.")] = False
    lerp: Annotated[bool, typer.Option("--lerp", help="Straight lines instead of slerp, to see why not.")] = False
    grid: Annotated[bool, typer.Option("--grid", help="A 2-D grid over four corners instead of an animation.")] = False
    size: Annotated[str, typer.Option(metavar="RxC", help="Rows and columns of the grid.")] = "8x8"
    zoom: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Enlarge N times (default: to about 224 pixels).")
    ] = None
    distances: Annotated[bool, typer.Option("--distances", help="Also print how far each frame is from the last.")] = (
        False
    )


@flat
def interpolate(
    latents: Annotated[list[str], typer.Argument(help="Two or more latents, or images, which are encoded first.")],
    *,
    what: options.OtherWhat,
    how: options.OtherHow,
    motion: Motion,
    files: Film,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Interpolate between latents with slerp and decode every frame.

    Without -o it writes interpolation.gif (interpolation.png for a grid). A file with several latents counts as that
    many, in order.

    Example: ddimctl interpolate a.pt b.pt --frames 10
    """
    from ddimctl.files import refuse_existing
    from ddimctl.images import animation, formats, levels, reading, sheets, writing
    from ddimctl.interpolate import INTERPOLANTS, keyframes
    from ddimctl.interpolate import grid as make_grid
    from ddimctl.runs import work

    console = said.console()
    interpolant = INTERPOLANTS["lerp" if motion.lerp else "slerp"]
    named = files.output is not None
    output = files.output or Path("interpolation.png" if motion.grid else "interpolation.gif")
    if motion.grid:
        formats.check_suffix(output)
        rows, columns = options.parse_size(motion.size, "--size")
    else:
        animation.check_target(output)
    if not motion.grid and not output.suffix:
        refuse_existing_folder(output)
    else:
        refuse_existing(output, files.force)
        formats.check_apart(output, latents)
    if not named:
        console.notice(f"writing {output}")

    count = rows * columns if motion.grid else motion.frames
    try:
        decoding, keys = inputs.gather_latents(
            latents, what, how, machine=machine, console=console, force=files.force, outputs=count
        )
    except DDIMError as e:
        for option in OF_ENCODE:
            if option in e.hint:
                raise type(e)(str(e), hint=f"encode it first, with {option}") from None
        raise
    net = decoding.model
    formats.check_channels(f"an image of the model {net.name}", net.channels)
    as_files = not motion.grid and not output.suffix
    zoom = motion.zoom or (1 if as_files else sheets.factor_to_see(net.size, 224))
    height, width = zoom * net.size[0], zoom * net.size[1]
    if motion.grid:
        formats.check_side(output, *sheets.sheet_size(count, net.size, columns, factor=zoom))
    else:
        animation.check_frames(output, max(count, 1), height, width)
    formats.check_memory(count, height, width, net.channels)
    xT = (
        make_grid(list(keys), rows, columns, interpolant)
        if motion.grid
        else keyframes(list(keys), motion.frames, motion.loop, motion.ease, interpolant)
    )
    batches = -(-len(xT) // machine.batch_size)
    with console.bar(batches * decoding.way.steps, "decoding") as bar:
        images = work.decode(xT, decoding, batch_size=machine.batch_size, progress=bar)
    levels.check_finite(images, net.name)
    pixels = sheets.enlarge(levels.to_pixels(images), zoom)
    if motion.grid:
        writing.save_image(output, sheets.sheet(pixels, columns))
    else:
        animation.save_frames(output, pixels, motion.fps)
        reading.allow_pixels(pixels.shape[1] * pixels.shape[2])  # to count what was just written
        if output.suffix.lower() in animation.MERGING and (held := animation.count_frames(output)[0]) < len(xT):
            console.notice(
                f"{output} holds {held} of the {len(xT)} frames: equal neighbours are one there, shown for longer"
            )
    steps_apart = ((images[1:] - images[:-1]) / 2).flatten(1).square().mean(1).sqrt().tolist()
    text = str(output)
    if motion.distances:
        rows_ = [[f"{i} to {i + 1}", figure(d)] for i, d in enumerate(steps_apart)]
        text = table(["frames", "rms distance"], rows_) + "\n" + text
    console.data(text, {"file": str(output), "frames": len(xT), "distances": steps_apart})


def refuse_existing_folder(path: Path) -> None:
    """Raises `UsageError` unless `path` can become a folder of frames: an old film's would be among the new ones."""
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is a folder that holds something already", hint="name a new one")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} exists already, and is no folder", hint="name another")
