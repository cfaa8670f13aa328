"""Lossless encoding: x_T from which plain DDIM decodes every 8-bit value of the image again, checked by doing so.

Where an autoencoder stands between image and ODE, which loses more than DDIM does, what comes back is its state z: every
value of it within `ROUNDING`, what float16 makes of the largest ones.

`exact` inverts DDIM up to its tolerance. How much tolerance an image can bear is found by trying: encode, round to the
float32 that a file holds, decode, compare; the images that are not back yet go again with a tighter one, from the states
that the decoder visited: they are near, and what ε is there is known. What the later decoder computes may differ in the last
float32 digits (another batch, another processor), hence a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddimctl import ode
from ddimctl.arrays import Array, float32, float64, on
from ddimctl.dither import Dither, added
from ddimctl.errors import DDIMError
from ddimctl.images.levels import in_levels
from ddimctl.model import NOTHING, Condition, Model, Pixels
from ddimctl.ode import DEFAULT_BATCH, LEVELS, STATE, Check, Progress, Solution
from ddimctl.recipe import Way
from ddimctl.solvers import Care

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCES = (7e-5, 3.5e-5, 1.5e-5, 6e-6, 2e-6)
SAID = 3  # wrong values told of, the worst first
MARGIN = 0.45  # 8-bit levels; half a level is where rounding goes the other way
ROUNDING = 2.0**-11  # of z, relative to its root mean square
MARGINS = {LEVELS: MARGIN, STATE: 0.9 * ROUNDING}
ROOM = 1 << 23  # values of states that are remembered at once, of each level

Trail = list[tuple[Array, Array]]  # for each level above the first, the decoder's state and ε there


def encode(
    model: Model,
    images: Tensor,
    way: Way,
    condition: Condition = NOTHING,
    *,
    dithers: Sequence[Dither | None] = (),
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """Images (N, C, H, W) in [−1, 1], whose values are 8-bit levels → x_T, float32, with a `Check` for each.

    The tolerance of `way`, whose solver is `exact`, is the first one tried. An image that no tolerance brings back keeps
    its best x_T, and its check says how many values are wrong and by how much. `dithers` is added before and taken away
    after: what comes back is the image without. `evaluations` are all that were spent, the checks' own decoding included.
    """
    import torch

    unit = LEVELS if model.autoencoder.digest is None else STATE
    if unit == STATE:
        images, model = model.autoencoder.encode(images), replace(model, autoencoder=Pixels())
    n, first, d = len(images), first_tolerance(way), math.prod(model.state_shape)
    best = torch.zeros(n, *model.state_shape, dtype=torch.float32)
    evaluations, residuals = [0] * n, [float("inf")] * n
    checks = [Check(images[0].numel(), [], float("inf"), first, unit)] * n if n else []
    size = max(1, min(batch_size, ROOM // d))
    for start in range(0, n, size):
        todo, near = list(range(start, min(start + size, n))), None
        for tight in tolerances(first):
            tried, noise = replace(way, tolerance=tight), [dithers[i] for i in todo] if dithers else ()
            trip = returned(
                model, images[todo], tried, condition=condition, dithers=noise, near=near, progress=progress
            )
            found = (compare if unit == LEVELS else compare_states)(images[todo], trip.back.to(images.device), tight)
            for j, i in enumerate(todo):
                evaluations[i] += trip.evaluations[j]
                if found[j].worst < checks[i].worst:
                    checks[i] = found[j]
                    best[i], residuals[i] = trip.xT[j], trip.residuals[j]
            again = [j for j, i in enumerate(todo) if checks[i].worst > MARGINS[unit]]
            if not again:
                break
            todo, near = [todo[j] for j in again], [(x[again], e[again]) for x, e in trip.trail]
    return Solution(best.double(), evaluations, residuals, first, checks, dithers=list(dithers) or None)


@dataclass(frozen=True)
class Trip:
    """One try: x_T, what it decodes to, and what the decoder saw on its way."""

    xT: Tensor  # float32
    back: Tensor  # images
    evaluations: list[int]
    residuals: list[float]
    trail: Trail


def returned(
    model: Model,
    images: Tensor,
    way: Way,
    *,
    condition: Condition = NOTHING,
    dithers: Sequence[Dither | None] = (),
    near: Trail | None = None,
    progress: Progress = iter,
) -> Trip:
    """Encodes a batch with `exact`, the steps' solutions being `near`, and decodes the float32 x_T with `ddim`."""
    way, eps = way.on(model.schedule), model.eps(condition)
    path = way.path(model.schedule)
    scale = model.schedule.scale(path[-1])
    xbar = float64(on(model.network.module.state_device, images))
    noise = added(dithers, xbar) if dithers else None
    up = ode.integrate(
        eps, xbar if noise is None else xbar + noise, path, "exact",
        tolerance=way.tolerance, care=Care(near or (), ode.is_checked(way, condition)), progress=progress,
    )  # fmt: skip
    xT = float32(up.x * (1 / scale))
    trail: Trail = []

    def seen(x: Array, sigma: float | Sequence[float]) -> Array:
        e = eps(x, sigma)
        trail.append((float32(x), float32(e)))
        return e

    down = ode.integrate(seen, float64(xT) * scale, path[::-1], "ddim", progress=progress)
    spent = [n + m for n, m in zip(up.evaluations, down.evaluations, strict=True)]
    back = down.x if noise is None else down.x - noise
    return Trip(xT.cpu(), back.cpu(), spent, up.residuals or [], [(float64(x), float64(e)) for x, e in trail[::-1]])


def first_tolerance(way: Way) -> float:
    """The tolerance that `encode` tries first."""
    return TOLERANCES[0] if way.tolerance is None else way.tolerance


def tolerances(first: float) -> list[float]:
    """What is tried, one after the other."""
    return [first, *(t for t in TOLERANCES if t < first)]


def compare(images: Tensor, back: Tensor, tolerance: float) -> list[Check]:
    """The check of each image (N, C, H, W) against what was decoded."""
    from ddimctl.metrics import max_abs, wrong_pixels

    checks = []
    for image, again in zip(images.split(1), back.split(1), strict=True):
        by = in_levels(again.double() - image.double())[0]
        n = int(wrong_pixels(image, again))
        where = [(*place, round(float(by[place]), 2)) for place in _largest(by, n)]
        checks.append(Check(n, where, float(max_abs(image, again)), tolerance))
    return checks


def compare_states(z: Tensor, back: Tensor, tolerance: float) -> list[Check]:
    """The check of each state (N, C, H, W) against what was decoded."""
    checks = []
    for state, again in zip(z.double().cpu(), back.double().cpu(), strict=True):
        by = (again - state) / state.square().mean().sqrt().clamp_min(1e-12)
        n = int((~(by.abs() <= ROUNDING)).sum())  # what is no number is wrong
        where = [(*place, float(by[place])) for place in _largest(by, n)]
        worst = float(by.abs().max())
        checks.append(Check(n, where, worst if worst == worst else float("inf"), tolerance, STATE))
    return checks


def _largest(by: Tensor, n: int) -> list[tuple[int, int, int]]:
    """Where the largest of (C, H, W) are: up to `SAID` of n."""
    import torch

    worst = by.abs().flatten().topk(min(n, SAID)).indices
    return list(zip(*(v.tolist() for v in torch.unravel_index(worst, by.shape)), strict=True))


def told(checks: Sequence[Check], pixels: Sequence[int], *, film: bool, evaluations: int) -> str:
    """What is said of images, or the frames of a film, that came back, each (height, width, channels)."""
    worst = max(c.worst for c in checks)
    if checks[0].unit == STATE:
        return (
            f"lossless: z comes back within {worst:.1e} of its size ({evaluations} evaluations);"
            f" the image's 8-bit values do not, for the autoencoder loses more"
        )
    height, width, channels = pixels
    return (
        f"lossless: all {len(checks) * height * width * channels:,} values of the {width} × {height}"
        f" {'frames' if film else 'image'} come back (worst {worst:.2f} levels, {evaluations} evaluations)"
    )


def told_of_many(model: Model, n: int) -> str:
    """What is said of n images that came back."""
    if model.autoencoder.digest is None:
        return f"lossless: every 8-bit value of all {n} images comes back"
    return f"lossless: z of all {n} images comes back; their 8-bit values do not, for the autoencoder loses more"


def complaint(name: str, check: Check) -> DDIMError:
    """The error for an image that did not come back."""
    if check.unit == STATE:
        return DDIMError(
            f"{name} is not lossless: {check.wrong} values of z differ; worst {check.worst:.1e} of its size",
            hint="try more --steps, less --guidance, or --keep-path, which always returns",
        )
    where = ", ".join(f"{by:+.2f} levels at row {y} column {x}" for _, y, x, by in check.where)
    return DDIMError(
        f"{name} is not lossless: {check.wrong} values differ ({where}); worst {check.worst:.2f} levels",
        hint="try more --steps, or another --spacing",
    )
