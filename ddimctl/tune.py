"""The search for a path: levels, and the parts of √(1−α) that `ab2` mixes in, that bring a model's images back best.

Both are curves along the way, given at a few knots: log gaps between the levels, and parts. What is made small is the mean
over images of the round trip's error, times that of x_T's against the adaptive solver's to the power `KAPPA`. Per image
these are root mean squares, so that one image which is lost anyway does not decide. That is a sum of squares with weights,
and few knots decide about it: Levenberg and Marquardt's method takes the derivatives as differences, a round trip a knot.
The ends are kept, so that every x_T of a model stays comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddimctl import ode
from ddimctl.arrays import Array, concatenate, float32, float64, on, to_numpy
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Way
from ddimctl.schedule import Levels
from ddimctl.solvers import Eps
from ddimctl.tuned import Tuned

KAPPA = 0.5
KNOTS = 10  # of each curve, at most; with fewer steps, one a step
NUDGE = 0.02  # of a knot, for the derivatives
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
LONGEST = 1.5  # change of a knot in a round
TOLERANCE = 1e-4  # of the references: far below what is compared with them
FLOOR = 1e-6  # errors below it are as good as none: a float32 network's rounding
STARTS = (("karras", 0.0), ("log", 0.0), ("arsinh", 0.0), ("arsinh", 0.5))


@dataclass(frozen=True)
class Errors:
    """Of each image, (N, d): what is left of the round trip, as pixels in 0 … 1, and of x_T beside the reference."""

    back: np.ndarray
    away: np.ndarray

    @property
    def score(self) -> float:
        """What the search makes small."""
        return float(np.log(rms(self.back).mean() + FLOOR) + KAPPA * np.log(rms(self.away).mean() + FLOOR))


@dataclass(frozen=True)
class Problem:
    """The images that a path is tuned on, as states of a model's ODE, and what their x_T should be."""

    eps: Eps
    schedule: Levels
    states: Array  # (N, c, h, w) float64
    references: Array  # x_T, the same shape
    batch_size: int = ode.DEFAULT_BATCH

    def errors(self, path: Tuned) -> Errors:
        """A round trip along `path`, x_T being float32 as in a file."""
        scale = self.schedule.scale(path.levels[-1])
        back, away = [], []
        for i in range(0, len(self.states), self.batch_size):
            x0, xT = self.states[i : i + self.batch_size], self.references[i : i + self.batch_size]
            up = ode.integrate(self.eps, x0, path.levels, "ab2", mix=path.mix).x * (1 / scale)
            down = float64(float32(up)) * scale
            down = ode.integrate(self.eps, down, path.levels[::-1], "ab2", mix=path.mix).x
            back.append(to_numpy(down - x0).reshape(len(x0), -1) / 2)
            away.append(to_numpy(up - xT).reshape(len(x0), -1))
        return Errors(np.concatenate(back), np.concatenate(away))


def problem(
    model: Model,
    images: Array,
    condition: Condition = NOTHING,
    *,
    batch_size: int = ode.DEFAULT_BATCH,
    progress: ode.Progress = iter,
) -> Problem:
    """Images (N, C, H, W) in [−1, 1] → what a path is tuned to. Encodes them once with the adaptive solver."""
    schedule = model.schedule
    way = Way("adaptive", tolerance=TOLERANCE).along((schedule.sigma(1), schedule.sigma(schedule.T)))
    xT = ode.encode(model, images, way, condition, batch_size=batch_size, progress=progress).x
    parts = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    device = model.network.module.state_device
    states = concatenate([float64(on(device, model.autoencoder.encode(part))) for part in parts])
    return Problem(model.eps(condition), schedule, states, xT, batch_size)


@dataclass(frozen=True)
class Curves:
    """Paths of so many steps between two levels, by numbers at knots: first the log gaps', then the parts'."""

    steps: int
    low: float
    high: float

    @property
    def knots(self) -> np.ndarray:
        """Where they stand along the way, 0 … 1; those of the steps are their middles."""
        return middles(min(self.steps, KNOTS))

    def path(self, theta: np.ndarray) -> Tuned:
        gaps, parts = (np.interp(middles(self.steps), self.knots, v) for v in np.split(theta, 2))
        way = np.cumsum(np.exp(gaps - gaps.max()))
        inner = self.low * np.exp(math.log(self.high / self.low) * way / way[-1])
        return Tuned((self.low, *map(float, inner[:-1]), self.high), tuple(map(float, parts)))

    def theta(self, path: Tuned) -> np.ndarray:
        """The numbers of a path of as many steps; of one with more steps than knots, about."""
        values = np.log(np.diff(np.log(path.levels))), path.mix
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
    problem: Problem, begin: Sequence[Tuned], *, rounds: int, tick: Callable[[], object] = lambda: None
) -> Iterator[Found]:
    """The best of `begin`, paths of as many steps, and then what each round makes of it.

    A round costs a round trip for each knot and a few more; `tick` is called after each of them.
    """
    schedule = problem.schedule
    curves = Curves(begin[0].steps, schedule.sigma(1), schedule.sigma(schedule.T))

    def tried(theta: np.ndarray) -> tuple[Tuned, Errors]:
        path = curves.path(theta)
        errors = problem.errors(path)
        tick()
        return path, errors

    thetas = [curves.theta(path) for path in begin]
    (path, errors), theta = min(((tried(t), t) for t in thetas), key=lambda found: _score(found[0][1]))
    yield Found(path, errors, 0)
    for n in range(1, rounds + 1):
        step = descent(theta, errors, lambda t: tried(t)[1])
        done = True
        for damping in DAMPINGS:
            there = theta + step(damping)
            better_path, better = tried(there)
            if _score(better) < _score(errors):
                path, errors, best, done = better_path, better, there, False
            elif not done:
                break
        if not done:
            theta = best
        yield Found(path, errors, n, done)
        if done:
            return


def descent(theta: np.ndarray, errors: Errors, tried: Callable[[np.ndarray], Errors]) -> Callable[[float], np.ndarray]:
    """The step of Levenberg and Marquardt by its damping, from a difference for each entry of `theta`.

    The weights make the sum of squares fall as the score does.
    """
    weights = []
    for e, power in ((errors.back, 1.0), (errors.away, KAPPA)):
        each = rms(e) + FLOOR
        weights.append(np.sqrt(power / (each * each.sum() * e.shape[1]))[:, None])

    def residual(found: Errors) -> np.ndarray:
        pairs = zip((found.back, found.away), weights, strict=True)
        return np.concatenate([(e * w).ravel() for e, w in pairs]).astype(np.float32)

    here = residual(errors)
    rows = [(residual(tried(theta + NUDGE * unit)) - here) / NUDGE for unit in np.eye(len(theta))]
    jacobian = np.stack(rows)
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
