"""Encode images into DDIM latents and back (Song, Meng and Ermon, ICLR 2021).

The public functions are imported when they are first used, so that importing the package costs nothing:

    model = ddimctl.load("fashion-mnist")
    pixels, _ = ddimctl.read("img.png", model.channels, model.size)
    x0 = ddimctl.to_tensor(pixels[None])
    xT = ddimctl.encode(model, x0).x
    back = ddimctl.decode(model, xT).x
    print(ddimctl.mse(x0, back).item())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ddimctl.ddim import Solution, decode, encode, integrate, noise
    from ddimctl.errors import DDIMError
    from ddimctl.images.levels import to_pixels, to_tensor
    from ddimctl.images.reading import read
    from ddimctl.interpolate import grid, keyframes, slerp
    from ddimctl.metrics import mse
    from ddimctl.model import Model, bundled, load
    from ddimctl.sampling import sample
    from ddimctl.schedule import Schedule

_HOME = {
    "Solution": "ddim", "decode": "ddim", "encode": "ddim", "integrate": "ddim", "noise": "ddim",
    "DDIMError": "errors",
    "read": "images.reading", "to_pixels": "images.levels", "to_tensor": "images.levels",
    "grid": "interpolate", "keyframes": "interpolate", "slerp": "interpolate",
    "mse": "metrics",
    "Model": "model", "bundled": "model", "load": "model",
    "sample": "sampling",
    "Schedule": "schedule",
}  # fmt: skip

__all__ = [
    "DDIMError", "Model", "Schedule", "Solution", "bundled", "decode", "encode", "grid", "integrate", "keyframes", "load",
    "mse", "noise", "read", "sample", "slerp", "to_pixels", "to_tensor",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ddimctl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ddimctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
