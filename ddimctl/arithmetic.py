"""Arithmetic of latents: sums of them with weights, means, directions, and which are near which.

What comes of it is a latent file like any other, and says of which parents, with which weights. x_T of one model can be
added whatever its way was, since all ways end at σ(T); what ends part of the way only with what ends there too.

A sum whose weights cancel, such as a direction (the mean of some less the mean of others), is a *difference*: no image's
latent, but something to add to one. Means and sums do not have the norm of noise: of n unlike latents the mean has 1/√n of
it. `renorm` gives a sum the norm that its parents have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from ddimctl.arrays import to_numpy
from ddimctl.errors import DDIMError, UsageError
from ddimctl.latent import Latent
from ddimctl.version import __version__

OF_IMAGES = ("evaluations", "residuals", "lossless", "returned", "dither")  # a record's, of what was encoded
TINY = 1e-9  # of a sum of weights that cancel


@dataclass(frozen=True)
class Term:
    """A latent file in a sum."""

    latent: Latent
    name: str
    sha256: str
    weight: float = 1.0

    @property
    def x(self) -> np.ndarray:
        """x_T in float64."""
        return to_numpy(self.latent.xT).astype("float64")

    @property
    def share(self) -> float:
        """How many latents of images it is: its weight, and none if it is a difference."""
        return 0.0 if is_difference(self.latent) else self.weight

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "weight": self.weight}


def is_difference(latent: Latent) -> bool:
    """Whether it is no image's latent, but a difference of such."""
    return bool((latent.provenance.get("made") or {}).get("difference"))


def add(terms: Sequence[Term], *, operation: str = "add", renorm: bool = False) -> Latent:
    """Σ w x_T. Files of one latent are added to each of those that hold several."""
    check_alike(terms)
    n = max(len(t.latent.xT) for t in terms)
    for t in terms:
        if len(t.latent.xT) not in (1, n):
            said = f"{t.name} holds {len(t.latent.xT)} latents, another {n}"
            raise UsageError(said, hint="split them, or take their mean")
    total = sum(t.weight * t.x for t in terms)
    assert isinstance(total, np.ndarray)
    if renorm:
        total = renormed(total, terms)
    first = max(terms, key=lambda t: len(t.latent.xT))
    names = [PurePath(image["name"]).name for image in first.latent.images]
    return result(terms, total, names, operation=operation, difference=abs(sum(t.share for t in terms)) < TINY)


def mean(terms: Sequence[Term], *, renorm: bool = False) -> Latent:
    """The mean of all latents of all files."""
    check_alike(terms)
    total = np.concatenate([t.x for t in terms]).mean(0, keepdims=True)
    n = sum(len(t.latent.xT) for t in terms)
    shares = [replace(t, weight=len(t.latent.xT) / n) for t in terms]
    difference = all(is_difference(t.latent) for t in terms)
    x = renormed(total, terms) if renorm else total
    return result(shares, x, [f"mean of {n}"], operation="mean", difference=difference)


def mix(terms: Sequence[Term]) -> Latent:
    """The sum with weights that are made to add up to 1, of the norm that the latents have: slerp, of any number."""
    weight = sum(t.weight for t in terms)
    if not weight > 0:
        raise UsageError(f"the weights of a mixture add up to {weight:g}", hint="they say how much of each is in it")
    return add([replace(t, weight=t.weight / weight) for t in terms], operation="mix", renorm=True)


def direction(some: Sequence[Term], others: Sequence[Term]) -> Latent:
    """The mean of some less the mean of others: added to a latent, it leads from the others to them."""
    check_alike([*some, *others])
    sides = []
    for terms, sign in ((some, 1.0), (others, -1.0)):
        n = sum(len(t.latent.xT) for t in terms)
        sides += [replace(t, weight=sign * len(t.latent.xT) / n) for t in terms]
    x = sum(np.concatenate([t.x for t in terms]).mean(0, keepdims=True) * s for terms, s in ((some, 1), (others, -1)))
    return result(sides, x, ["direction"], operation="direction", difference=True)


def stack(terms: Sequence[Term]) -> Latent:
    """All latents in one file, which must have been made the same way. Each keeps its record."""
    check_alike(terms)
    first = terms[0].latent
    for t in terms[1:]:
        a, b = first.recipe, t.latent.recipe
        if (a.way, a.condition) != (b.way, b.condition):
            said = f"{t.name} and {terms[0].name} are not decoded in the same way"
            raise UsageError(said, hint="keep them in files of their own")
    kinds = {is_difference(t.latent) for t in terms}
    if len(kinds) > 1:
        raise UsageError("latents and differences of latents are two kinds of things", hint="stack one kind")
    images = [image for t in terms for image in t.latent.images]
    out = result(
        terms, np.concatenate([t.x for t in terms]), ["-"] * len(images), operation="stack", difference=kinds.pop()
    )
    about = {**out.provenance, "images": images}
    for key in OF_IMAGES:
        held = [t.latent.provenance.get(key) for t in terms]
        if any(values is not None for values in held):
            counts = [len(t.latent.xT) for t in terms]
            none: Any = 0 if key == "evaluations" else 0.0 if key in ("residuals", "returned") else None
            if key == "lossless" and None in held:
                continue
            about[key] = [v for values, n in zip(held, counts, strict=True) for v in (values or [none] * n)]
    if first.corrections is None:
        return replace(out, provenance=about)
    about["keep_path"] = first.provenance["keep_path"]
    return Latent(out.xT, about, np.concatenate([to_numpy(t.latent.corrections) for t in terms]))


def split(term: Term) -> list[Latent]:
    """A file for each of the latents in one, with its record."""
    about, out = term.latent.provenance, []
    for i, image in enumerate(term.latent.images):
        own = {**about, "images": [image], "unconverged": [0] if i in about["unconverged"] else []}
        own |= {key: [about[key][i]] for key in OF_IMAGES if about.get(key) is not None}
        made: dict[str, Any] = {"operation": "split", "parents": [term.record()], "number": i}
        made["difference"] = is_difference(term.latent)
        kept = term.latent.corrections
        out.append(Latent(term.latent.xT[i : i + 1], {**own, "made": made}, None if kept is None else kept[i : i + 1]))
    return out


@dataclass(frozen=True)
class Near:
    """One latent beside another: the cosine of the angle between them, and their distance, divided by √d."""

    name: str
    cosine: float
    distance: float


def nearest(of: np.ndarray, terms: Sequence[Term], *, n: int) -> list[Near]:
    """The n of all latents of `terms` that are closest to one latent (C, H, W), by the angle, the closest first."""
    a, found = of.astype("float64").ravel(), []
    for t in terms:
        for i, b in enumerate(t.x.reshape(len(t.latent.xT), -1)):
            norms = float(np.linalg.norm(a) * np.linalg.norm(b))
            cosine = float(a @ b) / norms if norms else 0.0
            distance = float(np.sqrt(np.square(a - b).mean()))
            found.append(Near(t.name if len(t.latent.xT) == 1 else f"{t.name} [{i}]", cosine, distance))
    return sorted(found, key=lambda near: -near.cosine)[:n]


def check_alike(terms: Sequence[Term]) -> None:
    """Raises `UsageError` unless all are of one model and end at one level: others are points of other spaces."""
    first = terms[0]
    for t in terms[1:]:
        a, b = first.latent, t.latent
        if space_of(a) != space_of(b):
            name = b.provenance["model"]["name"], a.provenance["model"]["name"]
            raise UsageError(f"{t.name} is of another model ({name[0]}) than {first.name} ({name[1]})")
        if tuple(a.xT.shape[1:]) != tuple(b.xT.shape[1:]):
            raise UsageError(f"{t.name} is {b.xT.shape[1:]}, {first.name} {a.xT.shape[1:]}")
        if abs(a.path[-1] - b.path[-1]) > 1e-6 * a.path[-1]:
            raise UsageError(f"{t.name} ends at σ = {b.path[-1]:.4g}, {first.name} at {a.path[-1]:.4g}")


def space_of(latent: Latent) -> tuple[str | None, ...]:
    """What decides about which points are images' latents."""
    made = latent.recipe
    return made.model, made.schedule, made.autoencoder


def renormed(x: np.ndarray, terms: Sequence[Term]) -> np.ndarray:
    """Latents of the mean norm of those of `terms` that are of images. Raises `DDIMError` where x is nothing at all."""
    norms = [
        np.linalg.norm(row) for t in terms if not is_difference(t.latent) for row in t.x.reshape(len(t.latent.xT), -1)
    ]
    if not norms:
        raise UsageError("there is no latent of an image among them, whose norm it could have")
    own = np.sqrt(np.square(x).sum((1, 2, 3), keepdims=True))
    if not (own > 0).all():
        raise DDIMError("the sum is zero, and has no direction")
    return np.asarray(x * (float(np.mean(norms)) / own))


def result(terms: Sequence[Term], x: Any, names: Sequence[str], *, operation: str, difference: bool) -> Latent:
    """What came of an operation: decoded as the first of its parents is, and with all of them in its record."""
    about = {k: v for k, v in terms[0].latent.provenance.items() if k not in ("dither", "returned", "keep_path")}
    about |= {"evaluations": [0] * len(names), "residuals": None, "unconverged": [], "lossless": None}
    about |= {"images": [{"name": name} for name in names], "ddimctl": __version__}
    about["made"] = {"operation": operation, "parents": [t.record() for t in terms], "difference": difference}
    return Latent(np.asarray(x, dtype="float32"), about)
