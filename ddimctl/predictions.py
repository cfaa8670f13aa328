"""What networks predict, as ε: one formula each.

With x_t = √α x_0 + √(1−α) ε (a VP schedule, α = 1/(1+σ²)) a network is trained on ε itself, on v = √α ε − √(1−α) x_0, or
on x_0; with x_t = (1−t) x_0 + t ε (a flow, σ = t/(1−t)) on v = ε − x_0. Each formula takes the prediction and x_t, both
(B, C, H, W), and the noise levels σ, one or one an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ddimctl.arrays import Array, per_image

Formula = Callable[[Array, Array, Sequence[float]], Array]


def epsilon(out: Array, x: Array, sigmas: Sequence[float]) -> Array:
    return out


def v_prediction(out: Array, x: Array, sigmas: Sequence[float]) -> Array:
    """ε = √α v + √(1−α) x_t (Salimans and Ho 2022)."""
    root, rest = _roots(sigmas, x)
    return root * out + rest * x


def sample(out: Array, x: Array, sigmas: Sequence[float]) -> Array:
    """ε = (x_t − √α x_0)/√(1−α)."""
    root, rest = _roots(sigmas, x)
    return (x - root * out) / rest


def flow(out: Array, x: Array, sigmas: Sequence[float]) -> Array:
    """ε = x_t + (1−t) v, 1−t = 1/(1+σ) (Lipman et al. 2023; Liu et al. 2023)."""
    return x + per_image([1 / (1 + s) for s in sigmas], x) * out


def _roots(sigmas: Sequence[float], x: Array) -> tuple[Array, Array]:
    """(√α, √(1−α))."""
    alpha = [1.0 / (1.0 + s**2) for s in sigmas]
    return per_image([math.sqrt(a) for a in alpha], x), per_image([math.sqrt(1 - a) for a in alpha], x)


PREDICTIONS: dict[str, Formula] = {"epsilon": epsilon, "v_prediction": v_prediction, "sample": sample, "flow": flow}
