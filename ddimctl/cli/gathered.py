"""Latents and images that belong together, for what lies between them: of one model, one way and one condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console
from ddimctl.errors import FileError, UsageError, choose

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.dither import Dither
    from ddimctl.latent import Latent
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.work import Decoding


def refuse_mixture(first: str, a: tuple[Way, Condition], later: str, *, b: tuple[Way, Condition]) -> None:
    """Raises `FileError`, which says in what they differ, unless two latents are decoded alike."""
    (way, condition), (other, other_condition) = a, b
    if other_condition != condition:
        raise FileError(
            f"{later} was encoded under another class or prompt than {first}",
            hint="ask for one for all, such as with --class, or encode one of them again",
        )
    if (other.levels, other.mix, other.solver) != (way.levels, way.mix, way.solver):
        raise FileError(
            f"{later} was made with {describe_way(other)}, {first} with {describe_way(way)}",
            hint="encode one as the other was; or ask for one way for all with --steps, --spacing and --solver",
        )


def describe_way(way: Way) -> str:
    """A way in words."""
    top = "" if way.levels is None else f", levels to {way.levels[-1]:.4g}"
    return f"{way.steps} steps of {way.solver}, {way.spacing}{top}"


@dataclass(frozen=True)
class Keys:
    """Latents to interpolate between, how they are decoded, what was added to their images, and what those were."""

    decoding: Decoding
    xT: Tensor
    dithers: list[Dither | None]
    sources: set[str]


def seed_for(dither: str, files: Sequence[Latent]) -> int | None:
    """The seed of the noise that images get: a number, none, or auto: what the latent beside them got, and 0 alone.

    Raises `UsageError` for anything else.
    """
    if dither == "auto":
        return files[0].recipe.dither if files else 0
    if dither != "none" and not dither.isdecimal():
        raise UsageError(f"--dither takes a seed, a number from 0, or none, not {dither!r}")
    return None if dither == "none" else int(dither)


def latents_among(names: Sequence[str]) -> tuple[dict[str, Latent], bytes]:
    """(the latents by what they are called, what standard input holds). Raises `DDIMError` where one is none."""
    from ddimctl import containers, latent
    from ddimctl.files import read_stdin, refuse_special

    for name in names:
        if name != "-":
            refuse_special(Path(name))
    files = {n: latent.load(Path(n)) for n in names if inputs.is_latent(n)}
    piped = read_stdin(latent.MAX_BYTES) if "-" in names else b""
    if containers.could_be(piped):
        files["-"] = latent.from_bytes(piped, "-")
    return files, piped


def gather_latents(
    names: list[str],
    what: options.OtherWhat,
    how: options.OtherHow,
    *,
    machine: options.Machine,
    console: Console,
    force: bool,
    outputs: int,
    dither: str = "none",
) -> Keys:
    """The latents of latent files and images (which are encoded), all of them in order.

    They must be of one model and one way, unless another is asked for: frames between latents of two ways would belong to
    neither. Images are encoded as the first latent file was, with the noise that `dither` says, see `seed_for`. `outputs`
    is how many images will be decoded.
    """
    import torch

    from ddimctl import ode
    from ddimctl.dither import dithers_of
    from ddimctl.recipe import Way
    from ddimctl.runs.work import Decoding
    from ddimctl.solvers import SOLVERS, TOLERANCES, decoder

    files, piped = latents_among(names)
    seed = seed_for(dither, list(files.values()))
    if how.solver is not None:
        choose(SOLVERS, how.solver, "solver")
    net: Model | None = None
    condition = what.condition()
    for name, file in files.items():
        if net is None:
            net = inputs.model_of(file, name, what, machine=machine, console=console, force=force)
            back = replace(inputs.way_back(file, net, replace(how, tolerance=None)), keep=None)
            way = file.recipe.way
            solver = how.solver or (way.solver if way.solver in SOLVERS else back.solver)
            up = replace(back, solver=solver, tolerance=inputs.tolerance_of(way, solver, how))
            back = replace(back, tolerance=inputs.tolerance_of(way, decoder(back.solver), how))
            condition = inputs.condition_of(file, what)
        else:
            inputs.check_model(file, name, net, console=console, force=force)
            other = (
                replace(inputs.way_back(file, net, replace(how, tolerance=None)), keep=None),
                inputs.condition_of(file, what),
            )
            refuse_mixture(next(iter(files)), (back, condition), name, b=other)
    if net is None:
        net = inputs.open_model(what, machine, console)
        s = options.DEFAULT_STEPS if how.steps is None else how.steps
        up = Way(how.solver or options.DEFAULT_SOLVER, how.spacing or "", s)
        up = back = replace(up.on(net.schedule), tolerance=how.tolerance)
    up.check()
    # One tolerance for both ways, where both take one: what `exact` encodes, `ddim` decodes.
    back = replace(back, solver=decoder(back.solver))
    back = replace(back, tolerance=back.tolerance if back.solver in TOLERANCES else None)
    images = [n for n in names if n not in files]
    work = inputs.evaluations(outputs + len(images), up.steps, up.solver)
    net = inputs.start_engine(net, machine, console, work=work)
    encoded: dict[str, Tensor] = {}
    added: dict[str, Dither | None] = {}
    if images:
        x0, _ = inputs.read_images([n if n != "-" else piped for n in images], net, console)
        levels = up.path(net.schedule)
        if seed is not None and not levels[0] > 0:
            console.notice(f"images are encoded without --dither: {up.spacing} starts at the clean image")
        marks = [] if seed is None or not levels[0] > 0 else dithers_of(x0, seed, levels)
        added = dict(zip(images, marks, strict=False))
        with console.bar(up.steps * -(-len(x0) // machine.batch_size), "encoding") as bar:
            size = machine.batch_size
            xT = ode.encode(net, x0, up, condition, dithers=marks, batch_size=size, progress=bar).x.float()
        encoded = dict(zip(images, xT.split(1), strict=True))
    xTs = torch.cat([files[n].xT if n in files else encoded[n] for n in names])
    dithers: list[Dither | None] = []
    for n in names:
        dithers += (files[n].dithers or [None] * len(files[n].xT)) if n in files else [added.get(n)]
    return Keys(Decoding(net, back, condition), xTs, dithers, set().union(*(file.sources for file in files.values())))
