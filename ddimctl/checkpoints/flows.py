"""The flow in a ``scheduler_config.json`` of diffusers' ``FlowMatchEulerDiscreteScheduler``.

Its spacings (Karras', exponential, stretched to an end) say where a sampler's levels lie, and are left to ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ddimctl.checkpoints import identify
from ddimctl.errors import FileError
from ddimctl.schedule import FlowSchedule

KIND = "FlowMatchEulerDiscreteScheduler"


def read(config: Mapping[str, Any], patch: int) -> tuple[FlowSchedule, float]:
    """The schedule, for states in patches of that side, and what a label of 1 is to the network. Raises `FileError`."""
    if (kind := config.get("_class_name", KIND)) != KIND:
        raise FileError(f"the scheduler is a {kind}, whose noise is not a flow's", identify.NOT_HERE)
    if config.get("invert_sigmas") or config.get("time_shift_type", "exponential") != "exponential":
        raise FileError("the scheduler's flow is of a kind that ddimctl does not implement", identify.NOT_HERE)
    T = config.get("num_train_timesteps", 1000)
    if not isinstance(T, int) or not 1 <= T <= 1_000_000:
        raise FileError(f"a flow of {T!r} levels makes no sense")
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", 1.0)
        if not _is_number(shift) or not 1e-3 <= shift <= 1e3:
            raise FileError(f"a flow with a shift of {shift!r} makes no sense")
        return FlowSchedule(float(shift)), float(T)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    sane = all(_is_number(v) and abs(v) < 10 for v in (low, high)) and all(map(_is_number, (fewest, most)))
    if not sane or not 0 < fewest < most:
        raise FileError("the flow's shift by size makes no sense")
    slope = (high - low) / (most - fewest)
    return FlowSchedule(growth=(slope, low - slope * fewest, patch)), float(T)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
