"""Encode images into DDIM latents and back (Song, Meng and Ermon, ICLR 2021).

The public functions are imported when they are first used, so that importing the package costs nothing:

    model = ddimctl.load("fashion-mnist")
    x0 = ddimctl.open("img.png", model)
    latent = ddimctl.encode(model, x0, steps=50)
    ddimctl.save("latent.pt", latent)
    back = ddimctl.decode(model, ddimctl.open("latent.pt"))
    print(ddimctl.mse(x0, back.x).item())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddimctl import telemetry
from ddimctl.version import __version__ as __version__

if TYPE_CHECKING:
    from ddimctl.errors import DDIMError
    from ddimctl.families import bundled, load
    from ddimctl.images.levels import to_pixels, to_tensor
    from ddimctl.images.reading import read
    from ddimctl.interpolate import grid, keyframes, slerp
    from ddimctl.metrics import mse
    from ddimctl.model import Condition, Model
    from ddimctl.notebook import decode, encode, save
    from ddimctl.notebook import open as open
    from ddimctl.ode import Solution, integrate
    from ddimctl.recipe import Recipe, Way
    from ddimctl.sampling import Noising, sample
    from ddimctl.schedule import Schedule
    from ddimctl.seeds import noise

telemetry.off()

_HOME = {
    "DDIMError": "errors",
    "bundled": "families", "load": "families",
    "to_pixels": "images.levels", "to_tensor": "images.levels",
    "read": "images.reading",
    "grid": "interpolate", "keyframes": "interpolate", "slerp": "interpolate",
    "mse": "metrics",
    "Condition": "model", "Model": "model",
    "decode": "notebook", "encode": "notebook", "open": "notebook", "save": "notebook",
    "Solution": "ode", "integrate": "ode",
    "Recipe": "recipe", "Way": "recipe",
    "Noising": "sampling", "sample": "sampling",
    "Schedule": "schedule",
    "noise": "seeds",
}  # fmt: skip

__all__ = [
    "Condition", "DDIMError", "Model", "Noising", "Recipe", "Schedule", "Solution", "Way", "__version__", "bundled",
    "decode", "encode", "grid", "integrate", "keyframes", "load", "mse", "noise", "read", "sample", "save", "slerp",
    "to_pixels", "to_tensor",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ddimctl.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ddimctl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
