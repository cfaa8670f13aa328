"""``ddimctl tune``: levels that are a model's own."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ddimctl.cli import inputs, names, options
from ddimctl.cli.console import Console, figure, table
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import UsageError
from ddimctl.multistep import MIXING
from ddimctl.tuned import ENOUGH

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ddimctl.model import Condition, Model
    from ddimctl.roundtrip import RoundTrip
    from ddimctl.tune import Aim, Found, Problem
    from ddimctl.tuned import Tuned

TUNABLE = ("ab2", "ab3")
SPARE = 1.1  # of an estimate
REFERENCE = 90  # steps of the adaptive solver, about
RIVALS = ("karras", "log", "arsinh")  # the spacings that a tuned path is measured beside


@group
class Searched(options.Seeded):
    """What is searched, and how long."""

    PANEL: ClassVar[str] = "How"

    steps: Annotated[str, like(options.How, "steps", metavar="S,…", help="Numbers of steps to tune for.")] = "10,20,50"
    solver: Annotated[
        str,
        like(
            options.How, "solver", help="The method that it is for: ab2, or ab3.", autocompletion=names.one_of(*TUNABLE)
        ),
    ] = "ab3"
    rounds: Annotated[int, typer.Option(metavar="N", min=0, help="Rounds of the search, at most.")] = 12
    minutes: Annotated[
        float | None,
        typer.Option(metavar="M", min=0, help="Ends in about that time, with the best so far."),
    ] = None
    knots: Annotated[
        int, typer.Option(metavar="N", min=2, help="Numbers that each curve of a path is given by, at most.")
    ] = 10
    power: Annotated[
        float,
        typer.Option(
            metavar="P",
            min=1,
            max=2,
            help="Of each image's error in the mean: 1, or 2 for the mean of squares, which the worst images decide.",
        ),
    ] = 1.0
    kappa: Annotated[
        float, typer.Option(metavar="K", min=0, help="How much the error of x_T counts beside the round trip's.")
    ] = 0.5
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
    clock: Clock
    aim: Aim

    def arrays(self, images: np.ndarray) -> Any:
        """As the model's network takes them."""
        from ddimctl.images import levels

        x0: Any = levels.to_array(images.transpose(0, 2, 3, 1))
        if self.model.network.needs_torch:
            import torch

            x0 = torch.from_numpy(x0)
        return x0

    @cached_property
    def problem(self) -> Problem:
        """Costs an encoding with the adaptive solver."""
        from ddimctl import tune as searching

        x0 = self.arrays(self.images)
        return searching.problem(self.model, x0, self.condition, batch_size=self.batch_size, aim=self.aim)


@dataclass
class Clock:
    """The time that there is, and what a step of one image costs by the time spent so far."""

    minutes: float
    begin: float = field(default_factory=time.monotonic)
    last: float = 0.0
    spent: float = 0.0  # seconds of the steps counted
    steps: float = 0.0  # of single images

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.monotonic() - self.begin)

    def start(self) -> None:
        """What is counted next begins now."""
        self.last = time.monotonic()

    def count(self, steps: float) -> None:
        """So many were made since the last ones."""
        now = time.monotonic()
        self.steps, self.spent, self.last = self.steps + steps, self.spent + now - self.last, now

    def cost(self, steps: float) -> float:
        """Seconds; nothing where nothing was counted."""
        return steps * self.spent / max(self.steps, 1.0)


@dataclass
class Share:
    """What one number of steps may take of the time, when so much is kept for the measurement that comes later."""

    clock: Clock
    part: float
    later: float  # steps of single images
    left: float = math.inf

    def start(self) -> None:
        self.left = self.clock.left
        self.clock.start()

    def over(self, steps: float) -> bool:
        """Whether so many more do not fit."""
        kept = min(self.clock.cost(self.later), 30 * self.clock.minutes)
        until = self.left - self.part * (self.left - kept)  # seconds that must then be left of all
        return self.clock.left - SPARE * self.clock.cost(steps) < until


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
    was stopped. Then --spacing tuned uses it, also for numbers of steps between those tuned. The search makes both the error
    of the round trip and that of x_T small, on images the model was trained on; the figures printed are of others, which had
    no part in it. Where no other spacing's round trip is better there, and x_T no worse than karras's, it is the default.
    Latents record the levels and weights themselves.

    Example: ddimctl tune train-images/ -m my-model --steps 10,20
    """
    from ddimctl.engines import pytorch
    from ddimctl.errors import choose
    from ddimctl.images import datasets
    from ddimctl.tune import Aim
    from ddimctl.tuned import load

    console = said.console()
    choose(dict.fromkeys(TUNABLE), how.solver, "tunable solver")
    steps = sorted(set(options.parse_integers(how.steps, "--steps")))
    clock = Clock(math.inf if how.minutes is None else how.minutes)
    net = inputs.open_model(what, machine, console)
    folder = net.about.folder
    if folder is None:
        raise UsageError(f"the model {net.name} has no folder", hint="ddimctl models convert makes one of a file")
    for s in steps:
        net.schedule.path(s)
    held = Path(how.held_out) if how.held_out is not None else inputs.held_out_folder(net)
    others = datasets.load_dataset(held, net.channels, net.size).numpy()
    drawn = draw(datasets.load_dataset(images, net.channels, net.size).numpy(), others, how)
    net = inputs.start_engine(net, machine, console, work=2.0 * how.rounds * 22 * len(drawn) * sum(steps))
    pytorch.hurry(net.network.module)
    condition, aim = what.condition(), Aim(how.power, how.kappa)
    digest = digest_of(drawn, condition, how, aim=aim)
    work = Work(net, condition, folder, drawn, digest, machine.batch_size, clock, aim)
    found = list(load(folder, schedule=net.schedule.digest))
    for i, s in enumerate(steps):
        later = len(others) * (REFERENCE + 2 * (1 + len(RIVALS)) * sum(steps))
        share = Share(clock, s**0.5 / sum(n**0.5 for n in steps[i:]), later)  # few steps take more rounds
        found = tuned_for(s, found, work, how=how, again=files.force, share=share, console=console)
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


def digest_of(images: np.ndarray, condition: Condition, how: Searched, *, aim: Aim) -> str:
    from ddimctl.files import sha256

    return sha256(images.tobytes() + repr((condition, how.solver, how.knots, aim)).encode())


def tuned_for(
    steps: int, known: list[Tuned], work: Work, *, how: Searched, again: bool, share: Share, console: Console
) -> list[Tuned]:
    """`known` with the best path of so many steps, which is written after every round. What was begun is gone on with."""
    from ddimctl import tune as searching
    from ddimctl.tuned import Tuned

    before = next((p for p in known if p.steps == steps), None)
    rest = [p for p in known if p.steps != steps]
    spent, schedule = 0, work.model.schedule
    if before is not None and not again and before.about.get("digest") == work.digest:
        spent = int(before.about.get("rounds", 0))
        if before.about.get("done") or spent >= how.rounds:
            console.notice(f"S = {steps} is tuned already; --force begins again")
            return known
    begin = [before] if spent and before is not None else searching.starts(schedule, steps, rest if again else known)
    a_round = (1 + MIXING[how.solver]) * min(steps, how.knots) + len(searching.DAMPINGS)
    total = len(begin) + (how.rounds - spent) * a_round
    found: Found | None = None
    with console.meter(total, f"tuning {steps} steps") as meter, console.watched():
        trip = 2 * steps * len(work.problem.states)
        share.start()

        def tick(trips: float) -> None:
            share.clock.count(trip * trips)
            meter.add(trips)

        for found in searching.search(
            work.problem, begin, rounds=how.rounds - spent, solver=how.solver, knots=how.knots, tick=tick,
            enough=lambda trips: share.over(trip * trips),
        ):  # fmt: skip
            about = {
                "images": len(work.images), "digest": work.digest, "rounds": spent + found.round, "done": found.done,
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
    from ddimctl.recipe import Way

    net = work.model
    net = replace(net, schedule=replace(net.schedule, paths=tuple(found)))
    ways = [Way("ab2", name, s) for s in steps for name in RIVALS]
    ways += [Way(path.solver, "tuned", path.steps) for path in found if path.steps in steps]
    if math.isfinite(work.clock.minutes):
        one = work.clock.cost(SPARE * (REFERENCE + 2 * sum(way.steps for way in ways)))
        others = others[: max(ENOUGH, int(work.clock.left / max(one, 1e-9)))]
    x0 = work.arrays(others)
    parts = [x0[i : i + work.batch_size] for i in range(0, len(x0), work.batch_size)]
    reports = ("mse", "latent_error")
    with console.bar(roundtrip.steps(ways, reports) * len(parts), "measuring") as bar:
        trips = roundtrip.measure(net, parts, ways, reports=reports, condition=work.condition, progress=bar)
    can_be_asked = net.about.classes is not None or net.hears_text
    under = {"condition": asdict(work.condition)} if can_be_asked else {}
    out = []
    for path in found:
        mine = [t for t in trips if t.way.steps == path.steps]
        held = {t.way.spacing: figures(t) for t in mine}
        about = {**path.about, "held_out": held, "held_out_images": len(x0), **under}
        out.append(replace(path, about=about) if mine else path)
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
    from ddimctl import origin

    rows = []
    for path in sorted(found, key=lambda p: p.steps):
        for name, f in path.about["held_out"].items():
            rows.append([str(path.steps), name, *(figure(f[k]) for k in ("mse", "median", "worst", "xT_error"))])
    header = ["steps", "spacing", "mse", "median", "worst", "latent_error"]
    records = [{"steps": p.steps, "levels": p.levels, "mix": p.mix, **p.about} for p in found]
    console.data(table(header, rows), {"model": origin.named(net), "paths": records})
    console.notice(f"{folder / 'paths.json'}: use it with --spacing tuned")
    if winners := [str(p.steps) for p in found if p.wins]:
        console.notice(f"it wins at S = {', '.join(winners)}, and is the default there and between")
