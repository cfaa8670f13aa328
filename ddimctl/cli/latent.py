"""``ddimctl latent``: sums, means and directions of latents, and which are near which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddimctl import places
from ddimctl.cli import batches, options
from ddimctl.cli.console import Console, figure, plain, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.cli.help import Command, Group
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ddimctl.arithmetic import Term
    from ddimctl.latent import Latent

app = typer.Typer(cls=Group, no_args_is_help=True, help="Add, average and compare latents.")

Files = Annotated[
    list[str], typer.Argument(metavar="LATENT…", help="Latent files, folders, patterns; - is standard input.")
]
Sum = Annotated[
    list[str], typer.Argument(metavar="[W] LATENT…", help="Latent files, each after its weight if it has one.")
]


@group
class Made(options.Output):
    """Where the latent goes."""

    output: Annotated[Path | None, like(options.Output, "output", metavar="FILE", help="The latent file to make.")] = (
        None
    )


@group
class Normed(Made):
    """Where it goes, and how strong it is."""

    renorm: Annotated[
        bool,
        typer.Option("--renorm", help="Of the norm that the latents have, as decoding needs.", rich_help_panel="How"),
    ] = False


@app.command(cls=Command)
@flat
def mean(latents: Files, *, files: Normed, said: options.Said) -> None:
    """The mean of all latents of all files.

    Of n latents it has about 1/√n of their norm; --renorm gives it theirs, so that it can be decoded.

    Example: ddimctl latent mean cats/ --renorm -o cat.pt
    """
    from ddimctl import arithmetic

    save("mean", lambda: arithmetic.mean(every(latents), renorm=files.renorm), files=files, said=said)


@app.command(cls=Command)
@flat
def add(latents: Sum, *, files: Normed, said: options.Said) -> None:
    """The sum of latents, each times its weight; one file's only latent is added to each of several in another.

    Example: ddimctl latent add a.pt 1.5 smile.pt -o smiling.pt
    """
    from ddimctl import arithmetic

    save("add", lambda: arithmetic.add(weighted(latents), renorm=files.renorm), files=files, said=said)


@app.command(cls=Command)
@flat
def sub(latents: Sum, *, files: Normed, said: options.Said) -> None:
    """The first latent less all others, each times its weight.

    Example: ddimctl latent sub smiling.pt 1.5 smile.pt -o back.pt
    """
    from dataclasses import replace

    from ddimctl import arithmetic

    def less() -> Latent:
        first, *others = weighted(latents)
        terms = [first, *(replace(t, weight=-t.weight) for t in others)]
        return arithmetic.add(terms, operation="sub", renorm=files.renorm)

    save("sub", less, files=files, said=said)


@app.command(cls=Command)
@flat
def mix(latents: Sum, *, files: Made, said: options.Said) -> None:
    """A mixture of latents, as strong as they are: what slerp is for two, for any number.

    Example: ddimctl latent mix 2 a.pt b.pt c.pt -o mixed.pt
    """
    from ddimctl import arithmetic

    save("mix", lambda: arithmetic.mix(weighted(latents)), files=files, said=said)


@app.command(cls=Command)
@flat
def stack(latents: Files, *, files: Made, said: options.Said) -> None:
    """All latents in one file; decode makes an image of each, or one film.

    Example: ddimctl latent stack latents/ -o all.safetensors
    """
    from ddimctl import arithmetic

    save("stack", lambda: arithmetic.stack(every(latents)), files=files, said=said)


@app.command(cls=Command)
@flat
def split(
    latent: Annotated[str, typer.Argument(metavar="LATENT", help="A file of several latents.")],
    *,
    files: options.Output,
    said: options.Said,
) -> None:
    """Each latent of a file in a file of its own, called as its image was, in the folder that -o names.

    Example: ddimctl latent split all.safetensors -o latents/
    """
    from ddimctl import arithmetic
    from ddimctl import latent as container
    from ddimctl.files import make_folder, refuse_existing
    from ddimctl.runs import names

    console, folder = said.console(), files.output
    if folder is None or folder.suffix.lower() in container.SUFFIXES or places.is_stream(folder):
        raise UsageError("many files need a folder", hint="name one with -o")
    (term,) = opened([latent])
    called = Path("latent.pt" if latent == "-" else latent)
    stems = names.of_images(term.latent, called.stem, alone=True)
    targets = [folder / f"{stem}{called.suffix}" for stem in stems]
    for target in targets:
        refuse_existing(target, files.force, makes_folder=True)
    make_folder(folder)
    for target, part in zip(targets, arithmetic.split(term), strict=True):
        container.save(target, part)
    console.data("\n".join(map(str, targets)), {"files": [str(t) for t in targets]})


@app.command(cls=Command)
@flat
def direction(
    some: Annotated[
        str, typer.Argument(metavar="SOME", help="Latents that have what the direction leads to: a folder.")
    ],
    others: Annotated[str, typer.Argument(metavar="OTHERS", help="Latents that have it not.")],
    *,
    files: Made,
    said: options.Said,
) -> None:
    """The mean of some latents less the mean of others: what, added to a latent, leads from these to those.

    The more latents, and the more alike they are but for that, the more it is that alone. Encode them with --dither.

    Example: ddimctl latent direction smiling/ neutral/ -o smile.pt
    """
    from ddimctl import arithmetic

    save("direction", lambda: arithmetic.direction(every([some]), every([others])), files=files, said=said)


@app.command(cls=Command)
@flat
def nearest(
    latent: Annotated[str, typer.Argument(metavar="LATENT", help="The latent to compare with.")],
    among: Annotated[list[str], typer.Argument(metavar="AMONG…", help="Latent files, folders of them, or patterns.")],
    *,
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="How many to show.", rich_help_panel="How")] = 10,
    said: options.Said,
) -> None:
    """Which latents are nearest to one, by the angle between them.

    Example: ddimctl latent nearest a.pt latents/ -n 5
    """
    from ddimctl import arithmetic
    from ddimctl.arrays import to_numpy

    console = said.console()
    (term,) = opened([latent])
    others = [t for t in every(among) if t.sha256 != term.sha256]
    if not others:
        raise UsageError("there is no other latent to compare with")
    arithmetic.check_alike([term, *others])
    rows, records = [], []
    for image, x in zip(term.latent.images, to_numpy(term.latent.xT), strict=True):
        for near in arithmetic.nearest(x, others, n=n):
            rows.append([plain(str(image["name"])), near.name, figure(near.cosine), figure(near.distance)])
            records.append({"of": image["name"], "name": near.name, "cosine": near.cosine, "distance": near.distance})
    console.data(table(["latent", "nearest", "cosine", "distance"], rows), {"nearest": records})


def save(operation: str, make: Callable[[], Latent], *, files: Made, said: options.Said) -> None:
    """Makes a latent and writes it, if it may be written where it goes."""
    from ddimctl import arithmetic, health
    from ddimctl import latent as container
    from ddimctl.files import refuse_existing

    output = places.of_kind(files.output, ".pt")
    console, target = said.console(output), output or Path(f"{operation}.pt")
    if target.suffix.lower() not in container.SUFFIXES:
        raise UsageError(f"{target} is no name for a latent", hint=f"use a suffix of {' '.join(container.SUFFIXES)}")
    refuse_existing(target, files.force)
    if files.output is None:
        console.notice(f"writing {target}")
    made = make()
    container.save(target, made)
    strength = float(health.norm(made.xT).mean())
    if not arithmetic.is_difference(made):
        tell_of_strength(made, strength, console)
    record: dict[str, Any] = {"file": str(target), "latents": len(made.xT), "norm": strength}
    console.data(str(target), {**record, "difference": arithmetic.is_difference(made)})


def tell_of_strength(made: Latent, strength: float, console: Console) -> None:
    """Says where a sum is not as strong as latents are."""
    if made.recipe.way.to is None and not 0.75 < strength < 1.1:
        console.notice(
            f"its norm is {strength:.2f} times that of noise: decode may make little of it; see --renorm and mix"
        )


def weighted(tokens: Sequence[str]) -> list[Term]:
    """The files of a sum, each with the weight before it."""
    from dataclasses import replace

    names: list[str] = []
    weights: list[float] = []
    pending: float | None = None
    for token in tokens:
        weight = number(token)
        if weight is None:
            names.append(token)
            weights.append(1.0 if pending is None else pending)
        elif pending is not None:
            raise UsageError(f"{token} follows another weight", hint="each is followed by its latent")
        pending = weight
    if pending is not None:
        raise UsageError(f"nothing follows the weight {pending:g}", hint="each is followed by its latent")
    return [replace(t, weight=w) for t, w in zip(opened(names), weights, strict=True)]


def number(text: str) -> float | None:
    """The finite number that a text is; None if it is none."""
    import math

    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def every(names: Sequence[str]) -> list[Term]:
    """The latents of files and folders, and of standard input."""
    from ddimctl import latent as container

    def found(name: str) -> list[str]:
        items = batches.items_of([name], options.Listed(), container.SUFFIXES, writes=False)
        return [item.source for item in items]

    return opened([source for name in names for source in found(name)])


def opened(names: Sequence[str]) -> list[Term]:
    """Latent files, read whole; - is standard input."""
    from ddimctl import latent as container
    from ddimctl.arithmetic import Term
    from ddimctl.files import read_bytes, read_stdin, refuse_special, sha256

    if list(names).count("-") > 1:
        raise UsageError("standard input is one file", hint="name it once")
    terms = []
    for name in names:
        if name != "-" and not name.lower().endswith(container.SUFFIXES):
            raise UsageError(
                f"{name} is no latent file", hint="ddimctl encode makes one of an image; a folder is for mean"
            )
        if name != "-":
            refuse_special(Path(name))
        data = read_stdin(container.MAX_BYTES) if name == "-" else read_bytes(Path(name), container.MAX_BYTES)
        terms.append(Term(container.from_bytes(data, name, tensors=False), Path(name).name, sha256(data)))
    return terms
