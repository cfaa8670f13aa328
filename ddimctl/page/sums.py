"""Arithmetic of latents on the page: what `ddimctl latent` does to files, done to what was dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ddimctl import arithmetic, health, latent
from ddimctl.arithmetic import Term
from ddimctl.arrays import on, to_numpy
from ddimctl.errors import UsageError, choose
from ddimctl.latent import Latent
from ddimctl.model import Condition
from ddimctl.page.work import MOST, Stop, Studio
from ddimctl.recipe import Way
from ddimctl.report import html, latents, svg

NEAR = 10  # of the nearest that are told


@dataclass(frozen=True)
class Asked:
    """What is computed of the latents that were dropped."""

    operation: str = "mix"
    weights: str = ""  # numbers with commas between; nothing is 1 for each
    renorm: bool = False


@dataclass(frozen=True)
class Made:
    """A latent to download."""

    latent: Latent

    def file(self, name: str) -> tuple[bytes, str]:
        if name != "latent.pt":
            raise UsageError(f"there is no {name}")
        return latent.to_bytes(self.latent, ".pt"), "application/octet-stream"


@dataclass(frozen=True)
class Sums:
    """A studio, and how what it is given is encoded."""

    studio: Studio
    way: Way
    condition: Condition
    stop: Stop

    def terms(self, paths: Sequence[str] | None, *, dither: bool) -> list[Term]:
        """What was dropped, images encoded."""
        if not paths:
            raise UsageError("there is no latent and no image", hint="drop one, or choose one")
        one = self.studio.term
        return [one(p, self.way, condition=self.condition, stop=self.stop, dither=dither) for p in paths]

    def examine(self, paths: Sequence[str] | None) -> str:
        """What each x_T looks like, and how much it resembles noise."""
        terms = self.terms(paths, dither=False)
        return "".join(portrait(t.latent, t.name) for t in terms)

    def compute(self, some: Sequence[str] | None, others: Sequence[str] | None, asked: Asked) -> tuple[str, Made]:
        """What comes of an operation: what it looks like, what it decodes to unless it is a difference, the latent."""
        operation = choose(OPERATIONS, asked.operation, "operation")
        two = self.terms(others, dither=True) if asked.operation in OF_TWO else []
        made = operation(weighted(self.terms(some, dither=True), asked.weights), two, asked)
        shown = portrait(made, asked.operation)
        if not arithmetic.is_difference(made):
            few = made.xT[:MOST]
            pixels = self.studio.decode(few, self.way, of=made.recipe, condition=self.condition, stop=self.stop)
            names = [str(image["name"]) for image in made.images[: len(few)]] if len(few) > 1 else [asked.operation]
            shown = html.Gallery("", pixels, names).html() + shown
        return shown, Made(made)

    def nearest(self, some: Sequence[str] | None, among: Sequence[str] | None) -> str:
        """Which of some latents are nearest to each of others."""
        terms, others = self.terms(some, dither=True), self.terms(among, dither=True)
        arithmetic.check_alike([*terms, *others])
        rows = []
        for term in terms:
            for x in to_numpy(term.latent.xT):
                for near in arithmetic.nearest(x, others, n=NEAR):
                    rows.append([term.name, near.name, f"{near.cosine:.4g}", f"{near.distance:.4g}"])
        return html.Table("Nearest", ["latent", "nearest", "cosine", "distance"], rows).html()


def weighted(terms: Sequence[Term], weights: str) -> list[Term]:
    """Terms with their weights."""
    parts = [part.strip() for part in weights.split(",") if part.strip()]
    try:
        numbers = [float(part) for part in parts] or [1.0] * len(terms)
    except ValueError:
        raise UsageError(f"{weights!r} are no weights", hint="numbers with commas between, such as 1, 0.5") from None
    if len(numbers) != len(terms):
        raise UsageError(f"{len(numbers)} weights do not fit {len(terms)} latents", hint="one for each, in their order")
    return [replace(t, weight=w) for t, w in zip(terms, numbers, strict=True)]


def portrait(made: Latent, name: str) -> str:
    """The channels of the first x_T, its charts beside those of noise, and a sentence."""
    xT = on("cpu", made.xT)
    portrait = next(latents.portraits(xT[:1], [name], health.examine(xT[:1])))
    channels = "".join(html.picture(c[..., None], f"{name}, channel {i}") for i, c in enumerate(portrait.channels))
    words = f"{name}: {portrait.words}"
    return html.Charts("", [f'<div class="frames">{channels}</div>', *map(svg.chart, portrait.charts)], words).html()


def less(terms: Sequence[Term], others: Sequence[Term], asked: Asked) -> Latent:
    """The first less the others."""
    first, *rest = terms
    terms = [first, *(replace(t, weight=-t.weight) for t in rest)]
    return arithmetic.add(terms, operation="sub", renorm=asked.renorm)


Operation = Callable[[Sequence[Term], Sequence[Term], Asked], Latent]
OPERATIONS: dict[str, Operation] = {
    "mix": lambda terms, _, asked: arithmetic.mix(terms),
    "mean": lambda terms, _, asked: arithmetic.mean(terms, renorm=asked.renorm),
    "add": lambda terms, _, asked: arithmetic.add(terms, renorm=asked.renorm),
    "sub": less,
    "direction": lambda terms, others, asked: arithmetic.direction(terms, others),
}
OF_TWO = ("direction",)  # operations on two sets of latents
