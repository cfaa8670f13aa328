"""``ddimctl interpolate``: slerp through latents, and decode the frames (section 5.3)."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import gathered, looks, options, pages
from ddimctl.cli.console import Console, table
from ddimctl.cli.groups import flat, given, group, like
from ddimctl.cli.motion import Motion
from ddimctl.errors import DDIMError, UsageError
from ddimctl.files import read_bytes, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np

    from ddimctl.runs.frames import Frames

MAX_SOUND = 1 << 30  # bytes of a sound file
GAP = 2  # pixels between the images of a strip or grid

OF_ENCODE = ("--frame", "--range", "--max-pixels")  # options that an image may need, and that this command lacks


@group
class Film(options.Output, looks.Looks):
    """Where the frames go."""

    output: Annotated[
        Path | None,
        like(options.Output, "output", help=".gif .webp .apng .mp4, a .png strip or grid, or a folder."),
    ] = None
    audio: Annotated[
        Path | None,
        typer.Option("--audio", metavar="FILE", help="Sound for an .mp4; it ends with the film at the latest."),
    ] = None
    kept: Annotated[
        Path | None,
        typer.Option(
            "--latents", metavar="FOLDER", parser=options.parse_path, help="Keep each frame's x_T there, too."
        ),
    ] = None

    def check_kept(self, n: int) -> None:
        """Raises `UsageError` where the latents of n frames cannot be kept."""
        from ddimctl.runs import frames

        if self.kept is not None:
            frames.refuse(self.kept, n, force=self.force)


@flat
def interpolate(
    ctx: typer.Context,
    latents: Annotated[list[str], typer.Argument(help="Two or more latents, or images, which are encoded first.")],
    *,
    what: gathered.Asked,
    how: options.Theirs,
    motion: Motion,
    files: Film,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Interpolate between latents with slerp and decode every frame.

    Without -o it writes interpolation.gif (interpolation.png for a grid). A file with several latents counts as that
    many, in order.

    Images get noise of σ(1) before they are encoded, as of encode --dither 0, or as a latent beside them did: what lies
    between is as rough as they are. --dither none leaves it away.

    Of a model that hears text each may have a prompt and a guidance of its own, from its file, --prompt given again, or
    --captions; what lies between is decoded under a blend of them, the embeddings in a straight line.

    --even looks at some five times as many frames as it writes, to place them where neighbours are equally far apart.

    Example: ddimctl interpolate a.pt b.pt --frames 10
    """
    from ddimctl import origin
    from ddimctl.files import refuse_source
    from ddimctl.images import animation, formats, levels, sheets
    from ddimctl.motion import order
    from ddimctl.runs import frames as kept
    from ddimctl.runs import work

    files = replace(files, output=places.of_kind(files.output, ".png" if motion.grid else ".gif"))
    console = said.console(files.output)
    output = target_of(latents, motion, files, given=given(ctx), console=console)
    seconds, count = lengths(motion)
    files.check_kept(count)
    columns = options.parse_size(motion.size, "--size")[1] if motion.grid else count
    sound = None if files.audio is None else read_bytes(files.audio, MAX_SOUND)
    try:
        keys = gathered.gather_latents(
            latents, what.each(len(latents)), how, machine=machine, console=console, force=files.force, outputs=count,
            dither=motion.dither, captions=what.captions,
        )  # fmt: skip
    except DDIMError as e:
        for option in OF_ENCODE:
            if option in e.hint:
                raise type(e)(str(e), hint=f"encode it first, with {option}") from None
        raise
    refuse_source(output, keys.sources)
    files.check_page([output, *latents], force=files.force)
    tell_of_weak(keys, motion, console)
    decoding, net = keys.decoding, keys.decoding.model
    formats.check_channels(f"an image of the model {net.name}", net.channels)
    zoom = motion.zoom or (1 if not motion.grid and not output.suffix else sheets.factor_to_see(net.size, 224))
    most = count if motion.grid else (count + len(keys.xT) * motion.held) * (2 if motion.pingpong else 1)
    check_size(output, most, columns, size=(zoom * net.size[0], zoom * net.size[1]), files=files, grid=motion.grid)
    formats.check_memory(most, (zoom * net.size[0], zoom * net.size[1]), net.channels)
    frames = frames_of(keys, motion, seconds, count=count, machine=machine, console=console)
    stops, size = frames.stops, machine.batch_size
    added = [keys.dithers[stops[i]] if i in stops else None for i in range(count)]
    with console.bar(work.batches(frames.conditions, size) * decoding.way.steps, "decoding") as bar:
        images = work.decode_under(frames.xT, frames.conditions, decoding, dithers=added, batch_size=size, progress=bar)
    levels.check_finite(images, net.name)
    pixels = sheets.enlarge(levels.to_pixels(images), zoom)
    made = made_of(keys, motion, latents, count=count)
    if files.kept is not None:
        parents = {name: origin.parent(name) for name in latents}
        kept.save(files.kept, frames, decoding, parents=[parents[n] for n in keys.names], dithers=added)
    shown = order(count, [] if motion.grid else list(stops), pingpong=motion.pingpong, hold=motion.held)
    if motion.grid or output.suffix.lower() in animation.STILL:
        save_sheet(output, pixels, shown, columns=columns, motion=motion, files=files, made=made)
    else:
        save_film(output, pixels, shown, motion=motion, sound=sound, made=made, console=console)
    steps_apart = ((images[1:] - images[:-1]) / 2).flatten(1).square().mean(1).sqrt().tolist()
    text = (table(*pages.distances(steps_apart)) + "\n" if motion.distances else "") + str(output)
    record = {"file": str(output), "frames": count, "distances": steps_apart}
    console.data(text, record)
    look(levels.to_pixels(images), shown, motion, files=files, made=made, record=record, console=console)


def target_of(latents: list[str], motion: Motion, files: Film, *, given: Collection[str], console: Console) -> Path:
    """What is written. Raises `UsageError` where it cannot be, or where options contradict each other."""
    from ddimctl.images import animation, formats

    motion.check(given)
    output = files.output or Path("interpolation.png" if motion.grid else "interpolation.gif")
    if motion.grid:
        formats.check_suffix(output)
        options.parse_size(motion.size, "--size")
        if files.audio is not None:
            raise UsageError("a grid cannot hold sound")
    else:
        animation.check_target(output, sound=files.audio is not None)
    if not motion.grid and not output.suffix:
        refuse_existing_folder(output)
    else:
        refuse_existing(output, files.force)
        formats.check_apart(output, [*latents, *filter(None, [files.audio])])
    if files.output is None:
        console.notice(f"writing {output}")
    return output


def tell_of_weak(keys: gathered.Keys, motion: Motion, console: Console) -> None:
    """Says which latents are weaker than noise ever is, unless what lies between them is made up for."""
    from ddimctl.health import too_weak

    weak = too_weak(keys.xT)
    if any(weak) and motion.interpolant == "slerp" and keys.decoding.way.to is None:
        console.notice(
            f"{sum(weak)} of {len(weak)} latents are unlike noise, too weak: what lies between may be smooth;"
            " encode with --dither, or try --renorm here"
        )


def made_of(keys: gathered.Keys, motion: Motion, latents: Sequence[str], *, count: int) -> dict[str, Any]:
    """What the pictures say of themselves."""
    from ddimctl import origin

    condition, several = origin.under(keys.conditions)
    more = {
        "frames": count,
        "interpolant": motion.interpolant,
        "even": motion.even,
        "dithered": any(keys.dithers),
    } | several
    parents = [origin.parent(n) for n in latents]
    return origin.of("interpolate", keys.decoding.model, keys.decoding.way, condition, parents=parents, more=more)


def lengths(motion: Motion) -> tuple[list[float], int]:
    """(seconds of each leg where they are said, frames in all)."""
    if motion.grid:
        rows, columns = options.parse_size(motion.size, "--size")
        return [], rows * columns
    if motion.durations is None:
        return [], motion.frames
    try:
        seconds = [float(part) for part in options.parse_list(motion.durations)]
    except ValueError:
        seconds = [math.nan]
    if not all(0 < s < math.inf for s in seconds):
        raise UsageError(f"--durations takes seconds with commas between, not {motion.durations!r}")
    legs = [max(1, round(s * motion.fps)) for s in seconds]
    return seconds, sum(legs) + (not motion.loop)


def frames_of(
    keys: gathered.Keys,
    motion: Motion,
    seconds: Sequence[float],
    *,
    count: int,
    machine: options.Machine,
    console: Console,
) -> Frames:
    """What is decoded, frame by frame. Raises `UsageError` where the options do not fit the latents."""
    from ddimctl import motion as moving
    from ddimctl.arrays import on
    from ddimctl.interpolate import INTERPOLANTS, legs_of
    from ddimctl.runs import frames, work

    interpolant = INTERPOLANTS[motion.interpolant]
    if motion.grid:
        rows, columns = options.parse_size(motion.size, "--size")
        return frames.on_grid(keys.xT, keys.conditions, rows, columns=columns, interpolant=interpolant)
    legs = legs_of(list(keys.xT), motion.loop)
    if seconds and len(seconds) != legs:
        raise UsageError(f"{len(seconds)} durations do not fit {legs} ways from one latent to the next")

    def at(places: Sequence[moving.Place]) -> Frames:
        return frames.on_path(keys.xT, keys.conditions, places, loop=motion.loop, interpolant=interpolant)

    if not motion.even:
        per_leg = [max(1, round(s * motion.fps)) for s in seconds] or moving.counts(count, legs, loop=motion.loop)
        return at(moving.places(per_leg, loop=motion.loop, ease=motion.ease))
    size = machine.batch_size
    # Each frame has a condition of its own where those of the latents differ.
    looked_at = count * (moving.BUDGET + 1)
    batches = looked_at if len(set(keys.conditions)) > 1 else -(-looked_at // size)

    def seen(places: Sequence[moving.Place]) -> list[Any]:
        some = at(places)
        images = work.decode_under(some.xT, some.conditions, keys.decoding, batch_size=size, progress=bar)
        return list(on("cpu", images).half().float())

    with console.bar(batches * keys.decoding.way.steps, "looking") as bar:
        return at(moving.even(seen, count, legs, loop=motion.loop, shares=seconds))


def check_size(output: Path, frames: int, columns: int, *, size: tuple[int, int], files: Film, grid: bool) -> None:
    """Raises `UsageError` if the output cannot hold so many frames of that size."""
    from ddimctl.images import animation

    if grid or output.suffix.lower() in animation.STILL:
        files.check_sheet(output, max(frames, 1), size, columns=columns if grid else max(frames, 1), gap=GAP)
    else:
        animation.check_frames(output, max(frames, 1), size)


def save_sheet(
    output: Path,
    pixels: np.ndarray,
    shown: Sequence[int],
    *,
    columns: int,
    motion: Motion,
    files: Film,
    made: dict[str, Any],
) -> None:
    """Writes the grid, with the corners' names, or the strip, with the frames' numbers."""
    from ddimctl.images import writing

    caption = looks.way_of(made) + f", {made['interpolant']}"
    if motion.grid:
        names = [p["name"] for p in made["parents"]]
        between = [""] * (columns - 2)
        if len(names) != 4:  # one of the files holds several
            names, caption = ["1", "2", "3", "4"], f"{caption}, of {', '.join(names)}"
        a, b, c, d = names
        words: dict[str, Any] = {"above": [a, *between, b], "below": [c, *between, d]}
    else:
        pixels, columns = pixels[list(shown)], len(shown)
        words = {"above": [str(i) for i in shown]}
    writing.save_image(output, files.sheet(pixels, columns, GAP, caption=caption, **words), made=made)


def look(
    pixels: np.ndarray,
    shown: Sequence[int],
    motion: Motion,
    *,
    files: Film,
    made: dict[str, Any],
    record: dict[str, Any],
    console: Console,
) -> None:
    """The page of --html, and what --show shows."""
    columns = options.parse_size(motion.size, "--size")[1] if motion.grid else 1
    if files.shows(console):
        files.print_sheet(pixels, columns if motion.grid else min(10, len(pixels)))
    if files.html is None:
        return
    sections = pages.of_frames(pixels, shown, record["distances"], fps=motion.fps, columns=columns)
    names = " and ".join(p["name"] for p in made["parents"])
    files.write_page(
        f"Between {names}", looks.way_of(made), sections, made=made, record=record, side=pixels.shape[2],
        console=console,
    )  # fmt: skip


def save_film(
    output: Path,
    pixels: np.ndarray,
    shown: Sequence[int],
    *,
    motion: Motion,
    sound: bytes | None,
    made: dict[str, Any],
    console: Console,
) -> None:
    """Writes the frames in the order in which they are shown."""
    from ddimctl.images import animation, reading

    animation.save_frames(output, pixels[list(shown)], motion.fps, sound=sound, made=made)
    if slow := animation.slowed(output, motion.fps):
        console.notice(slow)
    if places.is_special(output):
        return
    reading.allow_pixels(pixels.shape[1] * pixels.shape[2])  # to count what was just written
    distinct = 1 + sum(a != b for a, b in pairwise(shown))
    if output.suffix.lower() in animation.MERGING and (held := animation.count_frames(output)[0]) < distinct:
        console.notice(
            f"{output} holds {held} of the {distinct} frames: equal neighbours are one there, shown for longer"
        )


def refuse_existing_folder(path: Path) -> None:
    """Raises `UsageError` unless `path` can become a folder of frames: an old film's would be among the new ones."""
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is a folder that holds something already", hint="name a new one")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} exists already, and is no folder", hint="name another")
