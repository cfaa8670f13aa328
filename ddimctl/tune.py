"""The search for a path: levels, and the parts that a multistep method mixes, that bring a model's images back best.

All are curves along the way, given at a few knots: log gaps between the levels, parts of √(1−α), parts of the third order.
What is made small is the mean over images of the round trip's error, times that of x_T's against the adaptive solver's to
the power κ (`Aim`). Per image these are root mean squares, so that one image which is lost anyway does not decide; the
round trip's may be raised to a power first, with 2 for what tables call the mean squared error. That is a sum of squares
with weights, and few knots decide about it: Levenberg and Marquardt's method takes the derivatives as
differences, a round trip a knot. All round trips of a round go through the network together, in batches of any size. The
ends are kept, so that every x_T of a model stays comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddimctl import ode
from ddimctl.arrays import Array, concatenate, float32, float64, on, per_image, to_numpy
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.multistep import MIXING, Step, weights
from ddimctl.recipe import Way
from ddimctl.schedule import Levels
from ddimctl.solvers import Eps, march
from ddimctl.tuned import Tuned

KAPPA = 0.5
KNOTS = 10  # of each curve, at most; with fewer steps, one a step
NUDGE = 0.02  # of a knot, for the derivatives
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LONGEST = 1.5  # change of a knot in a round
TOLERANCE = 1e-4  # of the references: far below what is compared with them
FLOOR = 1e-6  # errors below it are as good as none: a float32 network's rounding
STARTS = (("karras", 0.0), ("log", 0.0), ("arsinh", 0.0), ("arsinh", 0.5))
SOLVER = "ab3"  # what is tuned where nobody says

Tick = Callable[[float], object]  # told how many round trips of all images were made


@dataclass(frozen=True)
class Aim:
    """What a search makes small: log ⟨rms(back)^power⟩^(1/power) + kappa · log ⟨rms(away)⟩, means over images."""

    power: float = 1.0
    kappa: float = KAPPA


@dataclass(frozen=True)
class Errors:
    """Of each image, (N, d): what is left of the round trip, as pixels in 0 … 1, and of x_T beside the reference."""

    back: np.ndarray
    away: np.ndarray
    aim: Aim = Aim()

    @property
    def score(self) -> float:
        """What the search makes small."""
        p = self.aim.power
        back = (rms(self.back) ** p).mean() ** (1 / p)
        return float(np.log(back + FLOOR) + self.aim.kappa * np.log(rms(self.away).mean() + FLOOR))


@dataclass(frozen=True)
class Problem:
    """The images that a path is tuned on, as states of a model's ODE, and what their x_T should be."""

    eps: Eps
    schedule: Levels
    states: Array  # (N, c, h, w) float64
    references: Array  # x_T, the same shape
    batch_size: int = ode.DEFAULT_BATCH
    aim: Aim = Aim()

    def errors(self, paths: Sequence[Tuned], tick: Tick = lambda trips: None) -> list[Errors]:
        """A round trip of all images along each of the `paths`, of as many steps; x_T is float32 as in a file."""
        n, scale = len(self.states), self.schedule.scale(paths[0].levels[-1])
        ways_up, ways_down = [course(p) for p in paths], [course(p, down=True) for p in paths]
        back, away = [], []
        for first in range(0, n * len(paths), self.batch_size):
            rows = range(first, min(first + self.batch_size, n * len(paths)))
            which, images = [k // n for k in rows], [k % n for k in rows]
            x0, xT = self.states[images], self.references[images]
            up = together(self.eps, x0, [ways_up[c] for c in which]) * (1 / scale)
            down = together(self.eps, float64(float32(up)) * scale, [ways_down[c] for c in which])
            back.append(to_numpy(down - x0).reshape(len(rows), -1) / 2)
            away.append(to_numpy(up - xT).reshape(len(rows), -1))
            tick(len(rows) / n)
        whole = [np.concatenate(parts).reshape(len(paths), n, -1) for parts in (back, away)]
        return [Errors(b, a, self.aim) for b, a in zip(*whole, strict=True)]


Course = tuple[
    Sequence[float], Sequence[Step]
]  # the levels of a path in the order of travel, and the weights of its steps


def course(path: Tuned, *, down: bool = False) -> Course:
    levels = path.levels[::-1] if down else path.levels
    return levels, weights(levels, path.mix, order=1 + MIXING[path.solver])


def together(eps: Eps, x: Array, courses: Sequence[Course]) -> Array:
    """Where row j of `x` comes to along courses[j], all of as many steps: one evaluation a step for all of them."""
    levels: Sequence[Any]
    steps: Sequence[Any]
    levels, steps = courses[0]
    if any(c is not courses[0] for c in courses):
        levels = list(zip(*(levels for levels, _ in courses), strict=True))
        of_steps = zip(*(steps for _, steps in courses), strict=True)
        steps = [tuple(each(w, x) for w in zip(*step, strict=True)) for step in of_steps]
    for state in march(eps, x, levels, by=steps):
        x = state
    return x


def each(values: Sequence[float | None], like: Array) -> Array | None:
    """A weight for each image; None where no path has it."""
    return None if all(v is None for v in values) else per_image([v or 0.0 for v in values], like)


def problem(
    model: Model,
    images: Array,
    condition: Condition = NOTHING,
    *,
    batch_size: int = ode.DEFAULT_BATCH,
    aim: Aim = Aim(),
    progress: ode.Progress = iter,
) -> Problem:
    """Images (N, C, H, W) in [−1, 1] → what a path is tuned to. Encodes them once with the adaptive solver."""
    schedule = model.schedule
    way = Way("adaptive", tolerance=TOLERANCE).along((schedule.sigma(1), schedule.sigma(schedule.T)))
    xT = ode.encode(model, images, way, condition, batch_size=batch_size, progress=progress).x
    parts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    device = model.network.module.state_device
    states = concatenate([float64(on(device, model.autoencoder.encode(part))) for part in parts])
    return Problem(model.eps(condition), schedule, states, xT, batch_size, aim)


@dataclass(frozen=True)
class Curves:
    """Paths of so many steps between two levels, by numbers at knots: first the log gaps', then the parts of each order."""

    steps: int
    low: float
    high: float
    solver: str = SOLVER
    most: int = KNOTS

    @property
    def knots(self) -> np.ndarray:
        """Where they stand along the way, 0 … 1; those of the steps are their middles."""
        return middles(min(self.steps, self.most))

    def path(self, theta: np.ndarray) -> Tuned:
        values = np.split(theta, 1 + MIXING[self.solver])
        gaps, *parts = (np.interp(middles(self.steps), self.knots, v) for v in values)
        way = np.cumsum(np.exp(gaps - gaps.max()))
        inner = self.low * np.exp(math.log(self.high / self.low) * way / way[-1])
        return Tuned((self.low, *map(float, inner[:-1]), self.high), tuple(map(float, np.concatenate(parts))))

    def theta(self, path: Tuned) -> np.ndarray:
        """The numbers of a path of as many steps; of one with more steps than knots, about."""
        parts = [np.asarray(curve) for curve in path.curves(MIXING[self.solver])]
        values = [np.log(np.diff(np.log(path.levels))), *parts]
        return np.concatenate([np.interp(self.knots, middles(self.steps), v) for v in values])


def starts(schedule: Levels, steps: int, known: Sequence[Tuned] = ()) -> list[Tuned]:
    """Where a search may begin: spacings with one part for all steps, and what was tuned for other numbers of steps."""
    from ddimctl.tuned import between

    plain = [Tuned(schedule.path(steps, name), (part,) * steps) for name, part in STARTS]
    return [*([between(known, steps)] if known else []), *plain]


@dataclass(frozen=True)
class Found:
    """The best path after so many rounds; `done` where more of them will not better it."""

    path: Tuned
    errors: Errors
    round: int
    done: bool = False


def search(
    problem: Problem,
    begin: Sequence[Tuned],
    *,
    rounds: int,
    solver: str = SOLVER,
    knots: int = KNOTS,
    tick: Tick = lambda trips: None,
    enough: Callable[[int], bool] = lambda trips: False,
) -> Iterator[Found]:
    """The best of `begin`, paths of as many steps, and then what each round makes of it.

    A round costs a round trip of all images for each knot and one for each damping; `tick` is told how many were made, and
    `enough` is asked before so many whether to stop.
    """
    schedule = problem.schedule
    curves = Curves(begin[0].steps, schedule.sigma(1), schedule.sigma(schedule.T), solver, knots)

    def tried(thetas: Sequence[np.ndarray]) -> list[Errors]:
        return problem.errors([curves.path(theta) for theta in thetas], tick)

    def best(thetas: Sequence[np.ndarray]) -> tuple[Errors, np.ndarray]:
        return min(zip(tried(thetas), thetas, strict=True), key=lambda found: _score(found[0]))

    errors, theta = best([curves.theta(path) for path in begin])
    yield Found(curves.path(theta), errors, 0)
    for n in range(1, rounds + 1):
        if enough(len(theta) + len(DAMPINGS)):
            return
        step = descent(theta, errors, tried)
        better, there = best([theta + step(damping) for damping in DAMPINGS])
        done = not _score(better) < _score(errors)
        if not done:
            errors, theta = better, there
        yield Found(curves.path(theta), errors, n, done)
        if done:
            return


def descent(
    theta: np.ndarray, errors: Errors, tried: Callable[[Sequence[np.ndarray]], Sequence[Errors]]
) -> Callable[[float], np.ndarray]:
    """The step of Levenberg and Marquardt by its damping, from a difference for each entry of `theta`.

    The weights make the sum of squares fall as the score does.
    """
    weights = []
    for e, p, share in ((errors.back, errors.aim.power, 1.0), (errors.away, 1.0, errors.aim.kappa)):
        each = rms(e) + FLOOR
        weights.append(np.sqrt(share / (each ** (2 - p) * (each**p).sum() * e.shape[1]))[:, None])

    def residual(found: Errors) -> np.ndarray:
        pairs = zip((found.back, found.away), weights, strict=True)
        return np.concatenate([(e * w).ravel() for e, w in pairs]).astype(np.float32)

    here = residual(errors)
    nudged = tried([theta + NUDGE * unit for unit in np.eye(len(theta))])
    jacobian = np.stack([(residual(found) - here) / np.float32(NUDGE) for found in nudged])
    square: Any = (jacobian @ jacobian.T).astype(np.float64)
    slope = (jacobian @ here).astype(np.float64)

    def step(damping: float) -> np.ndarray:
        damped = square + damping * np.diag(np.diag(square)) + 1e-6 * np.eye(len(theta))
        found: np.ndarray = -np.linalg.solve(damped, slope)
        return found * min(1.0, LONGEST / max(float(np.abs(found).max()), 1e-300))

    return step


def middles(n: int) -> np.ndarray:
    """Of n equal parts of 0 … 1."""
    found: np.ndarray = (np.arange(n) + 0.5) / n
    return found


def rms(errors: np.ndarray) -> np.ndarray:
    """Each image's root mean square."""
    found: np.ndarray = np.sqrt(np.square(errors).mean(1))
    return found


def _score(errors: Errors) -> float:
    """Worse than anything where the round trip is lost."""
    return errors.score if math.isfinite(errors.score) else math.inf
