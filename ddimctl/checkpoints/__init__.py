"""Checkpoint formats: one module each, all giving a `Checkpoint`. Nothing here runs code from a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.schedule import Schedule
    from ddimctl.unet import UNetConfig


@dataclass(frozen=True)
class Checkpoint:
    """What any format comes down to: the network's fields and weights (diffusers' names), schedule and prediction.

    `notes` tells what was chosen or guessed on the way, one sentence each.
    """

    config: UNetConfig
    weights: dict[str, Tensor]
    schedule: Schedule
    prediction: str = "epsilon"  # what the network's output is: see `ddimctl.model.PREDICTIONS`
    notes: list[str] = field(default_factory=list)
