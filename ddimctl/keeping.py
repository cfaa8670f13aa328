"""The path that an encoding took, kept: what DDIM's steps down miss of it.

Encoding visits x̄_0, x̄_1, …, x̄_S. From the level of x̄_{i+1}, DDIM's step comes down to x̄ + (s_i − s_{i+1}) ε(x̄, s_{i+1}), and
misses x̄_i by the correction c_i. A decoding that adds the corrections ends at x̄_0, whatever the solver that went up, at any
guidance, and where no solver could go up at all. Added under another prompt they are what direct inversion adds (Ju et
al. 2023), which keeps of the image what the prompts do not change.

Corrections are taken on the way down, from the states that decoding will see and not from those that encoding saw. So
what rounding loses of one is in the next, and nothing adds up; what it loses of the last is kept as one more. That and the
last alone would bring the image back, too; with more of them the states on the way are nearer to those of the image.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ddimctl.arrays import Array, cast, float64, on, stacked
from ddimctl.errors import UsageError, choose
from ddimctl.solvers import Eps, States

PRECISIONS = {"float32": 4, "float16": 2}  # bytes a number


@dataclass(frozen=True)
class Keep:
    """How much of a path is kept, and how precisely."""

    precision: str = "float32"
    steps: int | None = None  # the corrections of so many steps next to the image; None is all of them

    def of(self, steps: int) -> Keep:
        """The same with its number of steps, for a path of so many. Raises `UsageError` where that is not possible."""
        choose(PRECISIONS, self.precision, "precision")
        kept = steps if self.steps is None else self.steps
        if not 1 <= kept <= steps:
            raise UsageError(f"{kept} of {steps} steps cannot be kept", hint=f"1 to {steps} can")
        return Keep(self.precision, kept)


def take(
    eps: Eps, states: Sequence[Array], path: Sequence[float], *, xbar: Array, keep: Keep
) -> Generator[Array, None, Array]:
    """Comes down from `xbar`, as it will be decoded, along the rising `path`, and yields the state after each step.

    `states` are those that encoding visited, one for each level. Returns the corrections (B, K + 1, …): that of the step to
    path[k] is [:, k + 1], and [:, 0] what rounding lost of the last. They are not finite where the precision does not reach.
    """
    kept = keep.of(len(path) - 1)
    corrections: list[Array] = []
    for i in range(len(path) - 2, -1, -1):
        xbar = xbar + (path[i] - path[i + 1]) * eps(xbar, path[i + 1])
        for _ in range((i < (kept.steps or 0)) + (i == 0)):
            correction = cast(on("cpu", states[i] - xbar), kept.precision)
            corrections.append(correction)
            xbar = xbar + as_state(correction, xbar)
        yield xbar
    return stacked(corrections[::-1])


def corrected(eps: Eps, xbar: Array, path: Sequence[float], *, corrections: Array) -> States:
    """DDIM down the falling `path`, each step that has a correction of those (B, K + 1, …) corrected: the last K."""
    left = len(path) - 1
    for s, t in pairwise(path):
        xbar = xbar + (t - s) * eps(xbar, s)
        if left < corrections.shape[1]:
            xbar = xbar + as_state(corrections[:, left], xbar)
        left -= 1
        if left == 0:
            xbar = xbar + as_state(corrections[:, 0], xbar)
        yield xbar
    return None


def as_state(correction: Array, xbar: Array) -> Array:
    """In float64, where x̄ is."""
    place: Any = getattr(xbar, "device", "cpu")
    return on(place, float64(correction))


def check(corrections: Array, steps: int, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` unless these can correct so many steps of states (B, …) of that shape."""
    found = tuple(corrections.shape)
    if len(found) < 2 or (found[0], *found[2:]) != shape or not 2 <= found[1] <= steps + 1:
        raise UsageError(
            f"corrections {found} do not belong to {steps} steps of states {shape}",
            hint="decode along the levels that were encoded along",
        )
