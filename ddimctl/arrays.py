"""numpy arrays and torch tensors alike: the one place that knows which is which.

Solvers, metrics and the start without torch run on either, in plain arithmetic; what the two libraries spell differently
stands here. torch is never imported for it: an array can only be a tensor if torch is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # a torch tensor or a numpy array of shape (B, …)


def is_tensor(x: Array) -> bool:
    """Whether `x` is torch's rather than numpy's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def per_image(values: Sequence[float], like: Array) -> Array:
    """One number an image, as an array of the kind of `like` that broadcasts against it."""
    shape = (len(values), *[1] * (like.ndim - 1))
    if is_tensor(like):
        return like.new_tensor(values).reshape(shape)
    return np.asarray(values, dtype=like.dtype).reshape(shape)


def float64(x: Array) -> Array:
    return x.double() if is_tensor(x) else x.astype("float64")


def float32(x: Array) -> Array:
    return x.float() if is_tensor(x) else x.astype("float32")


def cast(x: Array, name: str) -> Array:
    """`x` as numbers of that name: float16, float32, float64."""
    if is_tensor(x):
        return x.to(getattr(sys.modules["torch"], name))
    with np.errstate(over="ignore"):
        return x.astype(name)


def stacked(parts: Sequence[Array]) -> Array:
    """(B, …) each → (B, K, …)."""
    if is_tensor(parts[0]):
        return sys.modules["torch"].stack(list(parts), 1)
    return np.stack(parts, 1)


def on(device: str, x: Array) -> Array:
    """`x` on a device of torch's; a numpy array stays where it is."""
    return x.to(device) if is_tensor(x) else x


def concatenate(parts: Sequence[Array]) -> Array:
    """One array of all parts, along the images."""
    if is_tensor(parts[0]):
        return sys.modules["torch"].cat(list(parts))
    return np.concatenate(parts)


def rows(x: Array, n: int) -> Array:
    """`x`, which has n rows or one for all, with n, without a copy."""
    return x.expand(n, *x.shape[1:]) if is_tensor(x) else np.broadcast_to(x, (n, *x.shape[1:]))


def to_numpy(x: Array) -> np.ndarray:
    """A numpy array of the same values, without a copy where there need be none."""
    out: np.ndarray = x.detach().cpu().numpy() if is_tensor(x) else np.asarray(x)
    return out


def as_kind(values: np.ndarray, like: Array) -> Array:
    """`values` as an array of the kind, type and device of `like`."""
    return like.new_tensor(values) if is_tensor(like) else values.astype(like.dtype)


def largest(x: Array) -> Array:
    """The largest value of each row of (B, d)."""
    return x.amax(1) if is_tensor(x) else x.max(1)


def log10(x: Array) -> Array:
    """log₁₀, −∞ at 0."""
    if is_tensor(x):
        return x.log10()
    with np.errstate(divide="ignore"):
        return np.log10(x)
