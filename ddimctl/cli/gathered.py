"""Latents and images that belong together, for what lies between them: of one model and one way, each under its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ddimctl.cli import inputs, options, prompts
from ddimctl.cli.console import Console
from ddimctl.cli.groups import group, like
from ddimctl.cli.opened import check_theirs, no_bare, sampled_by
from ddimctl.cli.sized import Captioned, OtherTiles
from ddimctl.errors import FileError, UsageError, choose
from ddimctl.model import NOTHING

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.dither import Dither
    from ddimctl.latent import Latent
    from ddimctl.model import Condition, Model
    from ddimctl.recipe import Way
    from ddimctl.runs.work import Decoding


@group
class Asked(OtherTiles):
    """The model, and what each latent is asked for."""

    prompt: Annotated[
        list[str] | None,
        like(
            options.OtherWhat, "prompt", parser=None,
            help="Another prompt than the file's; again, in their order, for each; or @FILE, one a line.",
        ),
    ] = None  # type: ignore[assignment]  # fmt: skip
    captions: Annotated[bool, like(Captioned, "captions")] = False

    def each(self, n: int) -> list[OtherTiles]:
        """What each of n latents and images is asked for. Raises `UsageError` where the prompts are neither one nor n."""
        said: list[Any] = prompts.parse_prompts(self.prompt or []) or [None]
        if len(said) not in (1, n):
            hint = "one for all, or one for each, in their order"
            raise UsageError(f"{len(said)} prompts do not fit {n} latents and images", hint=hint)
        shared = {f.name: getattr(self, f.name) for f in fields(OtherTiles) if f.name != "prompt"}
        return [OtherTiles(**shared, prompt=p) for p in (said * n if len(said) == 1 else said)]


def refuse_mixture(first: str, a: tuple[Way, Condition], later: str, *, b: tuple[Way, Condition]) -> None:
    """Raises `FileError`, which says in what they differ, unless something can be decoded between two latents."""
    (way, condition), (other, other_condition) = a, b
    try:
        condition.toward(other_condition, 0.5)
    except UsageError as e:
        raise FileError(
            f"{later} was encoded under another class or negative prompt than {first}",
            hint="ask for one for all, such as with --class, or encode one of them again",
        ) from e
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
    names: list[str]  # of the file that each is from
    conditions: list[Condition]  # what each is asked for


def seed_for(dither: str, files: Sequence[Latent]) -> int | None:
    """The seed of the noise that images get: a number, none, or auto: what the latent beside them got, and 0 alone.

    Raises `UsageError` for anything else.
    """
    if dither == "auto":
        return files[0].recipe.dither if files else 0
    if dither != "none" and not dither.isdecimal():
        raise UsageError(f"--dither takes a seed, a number from 0, or none, not {dither!r}")
    return None if dither == "none" else int(dither)


@dataclass(frozen=True)
class Among:
    """What the names of latents and images hold: latents, other programs' tensors, and what came on standard input."""

    files: dict[str, Latent]
    bare: dict[str, bytes]
    piped: bytes

    def holds(self, name: str) -> bool:
        """Whether that name is a latent's, not an image's."""
        return name in self.files or name in self.bare


def is_tensor(name: str) -> bool:
    """Whether a file's name could be a latent's, or another program's tensor's."""
    return name.lower().endswith(inputs.BARE_SUFFIXES)


def latents_among(names: Sequence[str], *, bare: bool) -> Among:
    """Raises `DDIMError` where what must be a latent is none; another program's tensor is one if `bare` ones are taken."""
    from ddimctl import containers, latent
    from ddimctl.bare import NPY
    from ddimctl.files import read_bytes, read_stdin, refuse_special

    for name in names:
        if name != "-":
            refuse_special(Path(name))
    piped = read_stdin(latent.MAX_BYTES) if "-" in names else b""
    found = Among({}, {}, piped)
    for name in dict.fromkeys(names):
        if not (containers.could_be(piped) or piped.startswith(NPY) if name == "-" else is_tensor(name)):
            continue
        try:
            found.files[name] = latent.from_bytes(piped, "-") if name == "-" else latent.load(Path(name))
        except containers.NotOurs:
            if not bare:
                raise
            found.bare[name] = piped if name == "-" else read_bytes(Path(name), latent.MAX_BYTES)
    return found


def own_way(model: Model, how: options.Theirs, condition: Condition) -> Way:
    """The way where no latent file says it."""
    from ddimctl.recipe import Way, spacing_under

    s = options.DEFAULT_STEPS if how.steps is None else how.steps
    if how.from_diffusers is not None:
        return sampled_by(how.from_diffusers, model, Way(how.solver or "ddim", "", s, how.tolerance))
    solver = how.solver or options.DEFAULT_SOLVER
    way = Way(solver, spacing_under(condition, solver, how.spacing), s)
    return replace(way.on(model.schedule), tolerance=how.tolerance)


def adopt(
    among: Among,
    asked: Mapping[str, OtherTiles],
    how: options.Theirs,
    *,
    machine: options.Machine,
    console: Console,
    force: bool,
) -> Model:
    """Makes latents of the bare tensors, as the first latent file is one, or else as the command line says; the model."""
    from ddimctl import bare

    if among.files:
        name, first = next(iter(among.files.items()))
        net = inputs.model_of(first, name, asked[name], machine=machine, console=console, force=force)
        way, condition = replace(first.recipe.way, keep=None), first.recipe.condition
    else:
        net, condition = inputs.open_model(asked[next(iter(among.bare))], machine, console), NOTHING
        way = own_way(net, how, condition)
        way.check()
    for name, data in among.bare.items():
        console.notice(f"{name} is a bare tensor, taken for x_T: {describe_way(way)}")
        among.files[name] = bare.load((name, data), net, way, condition=condition)
        inputs.check_model(among.files[name], name, net, console=console, force=force)
    return net


def conditions_of(
    names: Sequence[str],
    asked: Sequence[OtherTiles],
    files: Mapping[str, Latent],
    *,
    captions: bool,
    console: Console,
) -> list[Condition]:
    """What each is under: what its file says, images as the first file, unless something else is asked for.

    With `captions` images are under what is written beside them. Raises `UsageError` where that is nothing.
    """
    base = next(iter(files.values())).recipe.condition if files else NOTHING
    under = [
        inputs.over(files[n].recipe.condition if n in files else base, a) for n, a in zip(names, asked, strict=True)
    ]
    if not captions:
        return under
    images = [n for n in names if n not in files]
    if not images:
        raise UsageError("--captions is about images", hint="latents have prompts of their own")
    said = prompts.captions_of(images, [], instead="what --prompt says, or nothing,", console=console)
    return [
        c if said.get(n) is None else replace(c, prompt=said[n], blend=()) for n, c in zip(names, under, strict=True)
    ]


def check_scheduler(among: Among, what: OtherTiles, how: options.Theirs) -> None:
    """Raises `UsageError` where diffusers' scheduler is named, and is not what alone says the levels."""
    check_theirs(what, how)
    if how.from_diffusers is not None and among.files:
        raise no_bare(next(iter(among.files)))
    if how.from_diffusers is not None and not among.bare:
        raise UsageError("--from-diffusers is about bare tensors, and there are none", hint="images take --spacing")


def tell_of_paths(files: Mapping[str, Latent], console: Console) -> None:
    """That paths kept are not used: only the latents themselves have one, and the film would jump beside them."""
    if kept := [name for name, file in files.items() if file.corrections is not None]:
        console.notice(
            f"the path that {', '.join(kept)} {'keep' if len(kept) > 1 else 'keeps'} is not used:"
            " what lies between has none, and would jump beside it"
        )


def gather_latents(
    names: list[str],
    asked: Sequence[OtherTiles],
    how: options.Theirs,
    *,
    machine: options.Machine,
    console: Console,
    force: bool,
    outputs: int,
    dither: str = "none",
    captions: bool = False,
) -> Keys:
    """The latents of latent files and images (which are encoded), all of them in order.

    They must be of one model and one way, unless another is asked for: frames between latents of two ways would belong to
    neither. `asked` says of each what it is asked for instead of what it was encoded under; images are encoded as the first
    latent file was, with the noise that `dither` says, see `seed_for`. `outputs` is how many images will be decoded.
    """
    import torch

    from ddimctl.runs.work import Decoding
    from ddimctl.solvers import SOLVERS, TOLERANCES, decoder

    among = latents_among(names, bare=asked[0].model is not None)
    seed, files = seed_for(dither, list(among.files.values())), among.files
    if how.solver is not None:
        choose(SOLVERS, how.solver, "solver")
    net: Model | None = None
    check_scheduler(among, asked[0], how)
    if among.bare:
        net = adopt(among, dict(zip(names, asked, strict=True)), how, machine=machine, console=console, force=force)
        how = replace(how, steps=None) if how.from_diffusers is not None else how  # they have the scheduler's levels
    tell_of_paths(files, console)
    conditions = conditions_of(names, asked, files, captions=captions, console=console)
    first = ""
    for name, condition, what in zip(names, conditions, asked, strict=True):
        if (file := files.get(name)) is None:
            continue
        if net is None or not first:
            net = net or inputs.model_of(file, name, what, machine=machine, console=console, force=force)
            back = inputs.way_back(file, net, replace(how, tolerance=None), path=False)
            way = file.recipe.way
            solver = how.solver or (way.solver if way.solver in SOLVERS else back.solver)
            up = replace(back, solver=solver, tolerance=inputs.tolerance_of(way, solver, how))
            back = replace(back, tolerance=inputs.tolerance_of(way, decoder(back.solver), how))
            first, of_first = name, (back, condition)
        else:
            inputs.check_model(file, name, net, console=console, force=force)
            own = inputs.way_back(file, net, replace(how, tolerance=None), path=False)
            refuse_mixture(first, of_first, name, b=(own, condition))
    if net is None:
        net = inputs.open_model(asked[0], machine, console)
        up = back = own_way(net, how, conditions[0])
    up.check()
    prompts.check_heard(net, [c for c in dict.fromkeys(conditions) if captions or c != conditions[0]], console)
    # One tolerance for both ways, where both take one: what `exact` encodes, `ddim` decodes.
    back = replace(back, solver=decoder(back.solver))
    back = replace(back, tolerance=back.tolerance if back.solver in TOLERANCES else None)
    images = [i for i, n in enumerate(names) if n not in files]
    work = inputs.evaluations(outputs + len(images), up.steps, up.solver)
    net = inputs.start_engine(net, machine, console, work=work)
    encoded: dict[int, Tensor] = {}
    added: dict[int, Dither | None] = {}
    if images:
        sources = [names[i] if names[i] != "-" else among.piped for i in images]
        under = [conditions[i] for i in images]
        xT, marks = encode_images(sources, net, up, under=under, seed=seed, size=machine.batch_size, console=console)
        encoded, added = dict(zip(images, xT.split(1), strict=True)), dict(zip(images, marks, strict=False))
    latents = [files[n].xT if n in files else encoded[i] for i, n in enumerate(names)]
    dithers: list[Dither | None] = []
    for i, n in enumerate(names):
        dithers += (files[n].dithers or [None] * len(files[n].xT)) if n in files else [added.get(i)]
    each = [(n, c) for n, c, xT in zip(names, conditions, latents, strict=True) for _ in xT]
    sources_ = set().union(*(file.sources for file in files.values()))
    decoding = Decoding(net, back, conditions[0])
    return Keys(decoding, torch.cat(latents), dithers, sources_, [n for n, _ in each], [c for _, c in each])


def encode_images(
    files: Sequence[str | bytes],
    model: Model,
    way: Way,
    *,
    under: Sequence[Condition],
    seed: int | None,
    size: int,
    console: Console,
) -> tuple[Tensor, list[Dither | None]]:
    """x_T of images, each under its condition, and the noise that was added to each; none, where there is no room for it."""
    import torch

    from ddimctl import ode
    from ddimctl.dither import dithers_of
    from ddimctl.runs import work

    x0, _ = inputs.read_images(files, model, console)
    levels = way.path(model.schedule)
    if seed is not None and not levels[0] > 0:
        console.notice(f"images are encoded without --dither: {way.spacing} starts at the clean image")
    marks = [] if seed is None or not levels[0] > 0 else dithers_of(x0, seed, levels)
    found: dict[int, Tensor] = {}
    with console.bar(way.steps * work.batches(under, size), "encoding") as bar:
        for condition, rows in work.under(under).items():
            own = [marks[i] for i in rows] if marks else []
            xT = ode.encode(model, x0[rows], way, condition, dithers=own, batch_size=size, progress=bar).x.float()
            found |= dict(zip(rows, xT.split(1), strict=True))
    return torch.cat([found[i] for i in range(len(x0))]), marks
