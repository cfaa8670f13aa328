"""What comes back under guidance, relative errors of the state: diffusers' pair, ddim, ab2, exact and a kept path.

    python benchmarks/guidance.py           # an analytic law of eight classes, where guidance is strong: prints its table
    python benchmarks/guidance.py MODEL     # a model with text: each held-out image of its folder under its own caption

The second writes the table of docs/inversion.md and names each image that `exact` does not bring back; `--only-print`
leaves the page alone, `--limit N` takes the first N images. No network is asked for the analytic one: its ε is exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pages import put, table
from torch import Tensor

import ddimctl
from ddimctl import keeping, ode
from ddimctl.images import captions
from ddimctl.keeping import Keep
from ddimctl.model import Condition, Model
from ddimctl.network import Embedded
from ddimctl.ode import integrate, relative
from ddimctl.schedule import Schedule
from ddimctl.solvers import Care, Eps, Failure, decoder

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "inversion.md"
S = 20
GUIDANCE = (1.0, 3.0, 7.5)
OF_MODELS = (1.0, 5.0, 7.5)
HELD_OUT = 64
CLASSES, DIMENSIONS, WIDTH, EACH = 8, 192, 0.3, 8


@dataclass(frozen=True)
class Way:
    """A way there and back."""

    solver: str
    spacing: str = "karras"
    keep: Keep | None = None

    def __str__(self) -> str:
        kept = (
            ""
            if self.keep is None
            else f", path kept, {self.keep.precision}" + (", one step" if self.keep.steps else "")
        )
        return f"`{self.solver}`, `{self.spacing}`{kept}"


PAIR = "diffusers' `DDIMInverseScheduler`, `DDIMScheduler`"
EXACT = (Way("exact", "log"), Way("exact", "guided"))
KEPT = Way("ab2", keep=Keep())
WAYS = (Way("ddim"), Way("ab2"), *EXACT, KEPT, Way("ab2", keep=Keep("float16")), Way("ab2", keep=Keep(steps=1)))


def of_model_ways(guidance: float) -> Sequence[Way]:
    """Those that a model is asked for: `exact` with the spacing that is its own at that guidance."""
    return Way("ddim"), Way("ab2"), EXACT[Condition(guidance=guidance).extrapolates], KEPT


@dataclass(frozen=True)
class Case:
    """States with the ε that they are encoded under at a guidance."""

    states: Tensor
    eps: Callable[[float], Eps]
    schedule: Any
    names: Sequence[str] = ()
    theirs: Callable[[float], Tensor] | None = None  # what diffusers' pair makes of the states


@dataclass
class Found:
    """What a way came to, image by image."""

    errors: list[float] = field(default_factory=list)
    evaluations: int = 0
    failures: list[Failure | None] = field(default_factory=list)
    unconverged: int = 0

    def row(self, guidance: float, way: str) -> list[str]:
        n = len(self.errors)
        told = [f"{self.unconverged} of {n}", str(sum(f is not None and f.fold for f in self.failures))]
        told = told if self.failures else ["", ""]
        spent = f"{self.evaluations / n:.4g}"
        return [
            f"{guidance:g}",
            way,
            spent,
            said(median(self.errors)),
            said(mean(self.errors)),
            said(max(self.errors)),
            *told,
        ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def said(error: float) -> str:
    return f"{error:.0e}" if error >= 1e-16 else "below 1e-16"


def analytic() -> Iterable[Case]:
    """Data of eight classes N(μ_k, s²) in 192 dimensions: each class asked for in turn, against all of them."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn((CLASSES, DIMENSIONS), generator=g, dtype=torch.float64) / 2

    def toward(mean: Tensor, x: Tensor, t: float) -> Tensor:
        return t * (x - mean) / (WIDTH**2 + t**2)

    def eps_of(k: int) -> Callable[[float], Eps]:
        def at(guidance: float) -> Eps:
            def eps(x: Tensor, t: Any) -> Tensor:
                shares = (-((x[:, None] - means) ** 2).sum(-1) / 2 / (WIDTH**2 + t**2)).softmax(1)
                away = toward(shares @ means, x, t)
                return away + guidance * (toward(means[k], x, t) - away)

            return eps

        return at

    for k in range(CLASSES):
        noise = torch.randn((EACH, DIMENSIONS), generator=g, dtype=torch.float64)
        yield Case(means[k] + WIDTH * noise, eps_of(k), Schedule.linear())


def held_out(model: Model, limit: int = HELD_OUT) -> list[tuple[Path, str]]:
    """The first images that the model was not trained on, with their captions."""
    assert model.about.folder is not None
    files = sorted((model.about.folder / "held-out").glob("*.png"))
    texts = captions.of_files(files, [])
    return [(f, text) for f, text in zip(files, texts, strict=True) if text is not None][:limit]


def of_model(model: Model, images: Sequence[tuple[Path, str]]) -> tuple[list[Case], Case]:
    """The states of images: those of one caption together, and all of them in the same order.

    All have a row of their embeddings each, which solvers that drop images that are done cannot use.
    """
    by_caption: dict[str, list[Path]] = {}
    for file, text in images:
        by_caption.setdefault(text, []).append(file)
    cases = []
    for text, files in by_caption.items():
        pixels = torch.cat([torch.as_tensor(ddimctl.open(str(f), model)) for f in files])
        z = torch.as_tensor(model.autoencoder.encode(pixels)).double()

        def eps_of(guidance: float, text: str = text) -> Eps:
            return model.eps(Condition(prompt=text, guidance=guidance))

        cases.append(Case(z, eps_of, model.schedule, [f.stem for f in files]))
    texts = [text for text, files in by_caption.items() for _ in files]
    z = torch.cat([case.states for case in cases])

    def embed(condition: Condition) -> Embedded:
        if condition.prompt is None:
            return model.embed(condition)
        each = [model.embed(Condition(prompt=text)) for text in texts]
        return {k: torch.cat([e[k] for e in each]) for k in each[0]}

    listening = replace(model, embed=embed)
    together = Case(
        z,
        lambda guidance: listening.eps(Condition(prompt="each its own", guidance=guidance)),
        model.schedule,
        [name for case in cases for name in case.names],
        lambda guidance: diffusers_pair(listening, z, guidance=guidance),
    )
    return cases, together


def diffusers_pair(model: Model, z: Tensor, *, guidance: float) -> Tensor:
    """z there and back by diffusers' own two schedulers, as its users write it: the same guidance both ways, no clipping.

    Schedulers and network are of the model's folder; the folder's own spacing stands.
    """
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    folder = str(model.about.folder)
    network = model.network.module.torch
    embedded, null = (model.embed(Condition(prompt=p)) for p in ("each its own", None))
    more: dict[str, Any] = {"clip_sample": False}
    up: Any = DDIMInverseScheduler.from_pretrained(folder, subfolder="scheduler", **more)
    down: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **more)
    x = z.float()
    for scheduler in (up, down):
        scheduler.set_timesteps(S)
        for t in scheduler.timesteps:
            with torch.no_grad():
                out = network(x, t[None].float(), **embedded)
                if guidance != 1:
                    away = network(x, t[None].float(), **null)
                    out = away + guidance * (out - away)
            x = scheduler.step(out, t, x).prev_sample
    return x.double()


def measure(case: Case, way: Way, guidance: float, *, found: Found) -> None:
    """Adds what that way makes of the case's states to `found`."""
    path, eps = case.schedule.path(S, way.spacing), case.eps(guidance)
    scale = case.schedule.scale(path[-1])
    states = [case.states]
    up = integrate(
        eps,
        case.states,
        path,
        way.solver,
        care=Care(sure=way.solver == "exact" and guidance != 1),
        progress=lambda steps: (states.append(x) or x for x in steps),
    )
    held, spent = (up.x / scale).float().double() * scale, sum(up.evaluations)
    if way.keep is None:
        back = integrate(eps, held, path[::-1], decoder(way.solver)).x
    else:
        back = there_and_back(eps, held, states, path=path, keep=way.keep)
        spent += S * len(held)
    found.errors += relative(back, case.states)
    found.evaluations += spent
    found.unconverged += len(up.unconverged)
    found.failures += up.failures or []


def there_and_back(eps: Eps, held: Tensor, states: Sequence[Tensor], *, path: Sequence[float], keep: Keep) -> Tensor:
    """What a kept path brings `held` back to."""
    steps = keeping.take(eps, states, path, xbar=held, keep=keep)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            corrections = done.value
            break
    *_, back = keeping.corrected(eps, held, path[::-1], corrections=corrections)
    return back


def compared(
    cases: Sequence[Case], guidances: Sequence[float], together: Case | None = None
) -> Iterable[tuple[float, str, Found]]:
    """Every way at every guidance; diffusers' pair first, where there is one."""
    for guidance in guidances:
        if together is not None and together.theirs is not None:
            back = together.theirs(guidance)
            yield guidance, PAIR, Found(relative(back, together.states), S * len(back))
        for way in WAYS if together is None else of_model_ways(guidance):
            found = Found()
            for case in cases if together is None or way.solver == "exact" else [together]:
                measure(case, way, guidance, found=found)
            yield guidance, str(way), found


HEADER = ["guidance", "way", "evaluations up", "median", "mean", "worst", "not converged", "at a fold"]


def failures(found: Found, names: Sequence[str]) -> list[str]:
    """Each image that did not come back, with why."""
    out = []
    for name, error, why in zip(names, found.errors, found.failures, strict=True):
        if error > ode.RETURNS or why is not None:
            out.append(f"{name} ({said(error)}" + (f"; {why})" if why is not None else ")"))
    return out


def page(model: Model, limit: int = HELD_OUT, guidances: Sequence[float] = OF_MODELS) -> str:
    """What docs/inversion.md says of a model with text."""
    cases, together = of_model(model, held_out(model, limit))
    rows, told = [], []
    for guidance, way, found in compared(cases, guidances, together):
        rows.append(found.row(guidance, way))
        print(*rows[-1], sep="  ", flush=True)
        if found.failures and (lost := failures(found, together.names)):
            told.append(f"At guidance {guidance:g}, {way}: {'; '.join(lost)}.")
    first = (
        f"Model {model.name} (digest {model.digest[:12]}…), {len(together.names)} captioned images that it never saw, each"
        f" under its own caption, S = {S} each way, x_T held in float32; relative errors of the state z."
    )
    if not told:
        told = [f"`exact` solved every step of every image, and brought each back to below {ode.RETURNS:g}."]
    else:
        told.insert(
            0, f"What `exact` did not solve everywhere, or not bring back to below {ode.RETURNS:g}, image by image:"
        )
    return "\n\n".join([first, table(HEADER, rows), *told])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", nargs="?", help="a folder with text and held-out images; without it, the analytic law")
    asked.add_argument("--limit", type=int, default=HELD_OUT, help="of its held-out images")
    asked.add_argument(
        "--guidance", default=",".join(f"{g:g}" for g in OF_MODELS), help="those of a model, with commas"
    )
    asked.add_argument("--only-print", action="store_true", help="do not write the page")
    args = asked.parse_args()
    if args.model is None:
        print(table(HEADER, [found.row(g, way) for g, way, found in compared(list(analytic()), GUIDANCE)]))
        return
    model = ddimctl.load(args.model)
    body = page(model, args.limit, [float(g) for g in args.guidance.split(",")])
    if args.only_print:
        print(body)
    else:
        put(PAGE, __file__, body)


if __name__ == "__main__":
    main()
