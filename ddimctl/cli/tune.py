"""``ddimctl tune``: levels that are a model's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from ddimctl.model import Condition, Model
    from ddimctl.roundtrip import RoundTrip
    from ddimctl.tune import Found
    from ddimctl.tuned import Tuned

RIVALS = ("karras", "log", "arsinh")  # the spacings that a tuned path is measured beside


@group
class Searched(options.Seeded):
    """What is searched, and how long."""

    PANEL: ClassVar[str] = "How"

    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Numbers of steps to tune for.")] = "10,20,50"
    rounds: Annotated[int, typer.Option(metavar="N", min=0, help="Rounds of the search, at most.")] = 12
    images_at_most: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="How many of the images, drawn by the seed.")
    ] = 64
    held_out: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Images to measure with; by default, those that came with the model."),
    ] = None


@dataclass(frozen=True)
class Work:
    """What a search is about, and what it writes."""

    model: Model
    condition: Condition
    folder: Path
    images: np.ndarray  # uint8 (N, C, H, W)
    digest: str  # of what decides about the search but its length
    batch_size: int


@flat
def tune(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of training images, or an IDX file.")],
    *,
    what: options.What,
    how: Searched,
    files: options.Forced,
    machine: options.Machine,
    said: options.Said,
) -> None:
    """Tune a model's levels: search those, and the weights of the two-step method, that bring images back best.

    What is found is written into the model's folder as paths.json after every round, so the same command goes on where one
    was stopped. Then --spacing tuned uses it with the solver ab2, also for numbers of steps between those tuned. The search
    makes both the error of the round trip and that of x_T small, on images the model was trained on; the figures printed are
    of others, which had no part in it. Latents record the levels and weights themselves.

    Example: ddimctl tune train-images/ -m my-model --steps 10,20
    """
    from ddimctl.images import datasets
    from ddimctl.tuned import load

    console = said.console()
    steps = options.parse_integers(how.steps, "--steps")
    net = inputs.open_model(what, machine, console)
    folder = net.about.folder
    if folder is None:
        raise UsageError(f"the model {net.name} has no folder", hint="ddimctl models convert makes one of a file")
    for s in steps:
        net.schedule.path(s)
    held = Path(how.held_out) if how.held_out is not None else inputs.held_out_folder(net)
    others = datasets.load_dataset(held, net.channels, net.size).numpy()
    drawn = draw(datasets.load_dataset(images, net.channels, net.size).numpy(), others, how)
    trips = sum(how.rounds for s in steps) * 22 * len(drawn) * max(steps)
    net = inputs.start_engine(net, machine, console, work=2 * trips)
    work = Work(net, what.condition(), folder, drawn, digest_of(drawn, what.condition()), machine.batch_size)
    found = list(load(folder, schedule=net.schedule.digest))
    for s in sorted(steps):
        found = tuned_for(s, found, work, how=how, again=files.force, console=console)
    found = measured(found, steps, work, others=others, console=console)
    write(found, work)
    report([p for p in found if p.steps in steps], net, folder, console=console)


def draw(images: np.ndarray, others: np.ndarray, how: Searched) -> np.ndarray:
    """The images to tune on, none of which is among the `others`. Raises `UsageError` if there are none."""
    import numpy as np

    known = {bytes(x) for x in others}
    order = [i for i in np.random.default_rng(how.seed).permutation(len(images)) if bytes(images[i]) not in known]
    if not order:
        raise UsageError("all of these images are held out", hint="name training images")
    found: np.ndarray = images[sorted(order[: how.images_at_most])]
    return found


def digest_of(images: np.ndarray, condition: Condition) -> str:
    from ddimctl.files import sha256

    return sha256(images.tobytes() + repr(condition).encode())


def tuned_for(
    steps: int, known: list[Tuned], work: Work, *, how: Searched, again: bool, console: Console
) -> list[Tuned]:
    """`known` with the best path of so many steps, which is written after every round. What was begun is gone on with."""
    from ddimctl import tune as searching
    from ddimctl.images import levels
    from ddimctl.tuned import Tuned

    before = next((p for p in known if p.steps == steps), None)
    rest = [p for p in known if p.steps != steps]
    spent, net = 0, work.model
    if before is not None and not again and before.about.get("digest") == work.digest:
        spent = int(before.about.get("rounds", 0))
        if before.about.get("done") or spent >= how.rounds:
            console.notice(f"S = {steps} is tuned already; --force begins again")
            return known
    x0: Any = levels.to_array(work.images.transpose(0, 2, 3, 1))
    if net.network.needs_torch:
        import torch

        x0 = torch.from_numpy(x0)
    begin = [before] if spent and before is not None else searching.starts(net.schedule, steps, rest)
    knots = 2 * min(steps, searching.KNOTS)
    total = len(begin) + (how.rounds - spent) * (knots + 2)
    found: Found | None = None
    with console.meter(total, f"tuning {steps} steps") as meter, console.watched():
        problem = searching.problem(net, x0, work.condition, batch_size=work.batch_size)
        tick: Callable[[], object] = meter.add
        for found in searching.search(problem, begin, rounds=how.rounds - spent, tick=tick):
            about = {
                "images": len(x0), "digest": work.digest, "rounds": spent + found.round, "done": found.done,
                "score": found.errors.score,
            }  # fmt: skip
            best = Tuned(found.path.levels, found.path.mix, about)
            write([*rest, best], work)
            console.detail(f"round {spent + found.round}: score {found.errors.score:.4f}")
    return [*rest, best]


def measured(
    found: Sequence[Tuned], steps: Sequence[int], work: Work, *, others: np.ndarray, console: Console
) -> list[Tuned]:
    """The paths with what they come to on images that had no part in the search, beside other spacings."""
    from ddimctl import roundtrip
    from ddimctl.images import levels
    from ddimctl.recipe import Way

    net = work.model
    net = replace(net, schedule=replace(net.schedule, paths=tuple(found)))
    ways = [Way("ab2", name, s) for s in sorted(steps) for name in ("tuned", *RIVALS)]
    x0: Any = levels.to_array(others.transpose(0, 2, 3, 1))
    if net.network.needs_torch:
        import torch

        x0 = torch.from_numpy(x0)
    parts = [x0[i : i + work.batch_size] for i in range(0, len(x0), work.batch_size)]
    reports = ("mse", "latent_error")
    with console.bar(roundtrip.steps(ways, reports) * len(parts), "measuring") as bar:
        trips = roundtrip.measure(net, parts, ways, reports=reports, condition=work.condition, progress=bar)
    out = []
    for path in found:
        mine = [t for t in trips if t.way.steps == path.steps]
        held = {t.way.spacing: figures(t) for t in mine}
        out.append(replace(path, about={**path.about, "held_out": held, "held_out_images": len(x0)}) if mine else path)
    return out


def figures(trip: RoundTrip) -> dict[str, float]:
    """What a path comes to."""
    mse = sorted(trip.values["mse"])
    away = trip.values["latent_error"]
    return {
        "mse": sum(mse) / len(mse), "median": mse[len(mse) // 2], "worst": mse[-1],
        "xT_error": (sum(e * e for e in away) / len(away)) ** 0.5,
    }  # fmt: skip


def write(found: Sequence[Tuned], work: Work) -> None:
    """The paths into the model's folder. Raises `DDIMError` where nothing can be written."""
    from ddimctl.files import write_bytes
    from ddimctl.tuned import FILE, to_bytes

    net = work.model
    data = to_bytes(sorted(found, key=lambda p: p.steps), model=net.digest, schedule=net.schedule.digest)
    write_bytes(work.folder / FILE, data)


def report(found: Sequence[Tuned], net: Model, folder: Path, *, console: Console) -> None:
    """A line for each number of steps and spacing."""
    rows = []
    for path in sorted(found, key=lambda p: p.steps):
        for name, f in path.about["held_out"].items():
            rows.append([str(path.steps), name, *(figure(f[k]) for k in ("mse", "median", "worst", "xT_error"))])
    header = ["steps", "spacing", "mse", "median", "worst", "latent_error"]
    records = [{"steps": p.steps, "levels": p.levels, "mix": p.mix, **p.about} for p in found]
    console.data(table(header, rows), {"model": {"name": net.name, "digest": net.digest}, "paths": records})
    console.notice(f"{folder / 'paths.json'}: use it with --spacing tuned")
