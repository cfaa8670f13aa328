"""The levels that diffusers' DDIMScheduler samples along, by what its scheduler_config.json says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import scheduler
from ddimctl.checkpoints.configs import read_json
from ddimctl.errors import FileError, UsageError
from ddimctl.schedule import Levels, Schedule

FILE = "scheduler_config.json"
# Those whose samplers start from noise of variance 1 at a trained level, as DDIM does.
LIKE_DDIM = (
    "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DEISMultistep", "UniPCMultistep",
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """What is in a scheduler's file, or in a folder of one or of a model. Raises `FileError` where it cannot be one."""
    if path.is_dir():
        path = next((p for p in (path / FILE, path / "scheduler" / FILE) if p.is_file()), path / FILE)
    if not path.is_file():
        raise UsageError(f"there is no {path}", hint=f"name a {FILE}, or the folder of a model in diffusers' layout")
    config = read_json(path)
    kind = str(config.get("_class_name", "DDIMScheduler")).removesuffix("Scheduler")
    if kind not in LIKE_DDIM:
        raise FileError(
            f"{path} is of a {kind}Scheduler, whose noise is not DDIM's x_T", f"known: {', '.join(LIKE_DDIM)}"
        )
    return config


def check(config: Mapping[str, Any], schedule: Levels, prediction: str) -> Schedule:
    """`schedule`. Raises `FileError` if a scheduler is not one of a model with that schedule and prediction."""
    if not isinstance(schedule, Schedule):
        raise FileError("the model is a flow, and DDIMScheduler none", hint="name its levels with --spacing")
    found = scheduler.read(config)
    theirs, predicts = found.schedule, found.prediction
    pairs = zip(theirs.alpha[:-1], schedule.alpha[:-1], strict=False)  # the last may stand for 0
    same = theirs.T == schedule.T and all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)
    if not same or predicts != prediction:
        raise FileError(
            f"the scheduler has other noise levels than the model, or predicts {predicts} where that predicts {prediction}",
            hint="name the scheduler that the latents were sampled with, and its model with -m",
        )
    return schedule


def levels(config: Mapping[str, Any], schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The rising levels of `steps` steps. Raises `UsageError` for what DDIMScheduler itself does not do consistently.

    From label t it steps to t − ⌊T/S⌋ whatever it lists next, and from the last to α = 1 (`set_alpha_to_one`) or to label 0.
    """
    T, spacing = schedule.T, config.get("timestep_spacing", "leading")
    offset = config.get("steps_offset", 0)
    to_one = config.get("set_alpha_to_one", config.get("_class_name") != "PNDMScheduler")
    if not 1 <= steps <= T:
        raise UsageError(f"{steps} steps are not possible", hint=f"this model allows 1 to {T}")
    apart = T // steps
    if spacing not in ("leading", "trailing") or (spacing == "trailing" and T % steps):
        raise UsageError(
            f"with {spacing} spacing and {steps} of {T} steps DDIMScheduler steps to levels other than those it lists",
            hint="leading, and trailing where the number of steps divides that of levels, have a path",
        )
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < T:
        raise FileError(f"steps_offset = {offset!r} makes no sense")
    first = offset if spacing == "leading" else apart - 1
    labels = [first + i * apart for i in range(steps)]
    if labels[-1] >= T:
        raise UsageError(f"{steps} steps from label {first} on reach beyond the last, {T - 1}", hint="take fewer steps")
    last = 0 if to_one else 1  # in the paper's time, where label t is t + 1
    times = [last, *(label + 1 for label in labels)][1 if labels[0] + 1 == last else 0 :]  # a step to itself is none
    if len(times) < 2:
        raise UsageError(f"{steps} steps lead nowhere", hint="take more of them")
    return tuple(schedule.sigma(t) for t in times)
