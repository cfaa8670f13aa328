"""Checkpoint formats: one module each, all giving a `Checkpoint`. Nothing here runs code from a file.

`formats` holds the registry and `formats.read`, the one way in; `hub` downloads; `identify` names what we refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ddimctl.schedule import Schedule
    from ddimctl.unet import UNetConfig


@dataclass(frozen=True)
class Said:
    """What was said about a checkpoint beside naming it; every format heeds all of it.

    `config` has the format's own fields or flags, `schedule` those of `scheduler.read`. Without `guess` a schedule or
    prediction that nothing near the weights tells is refused.
    """

    config: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None
    guess: bool = False


NOTHING_SAID = Said()


@dataclass(frozen=True)
class Checkpoint:
    """What any format comes down to: the network's fields and weights (diffusers' names), schedule and prediction.

    `notes` tells what was chosen on the way, `guesses` what the file did not say and we assumed: one sentence each.
    """

    config: UNetConfig
    weights: dict[str, Tensor]
    schedule: Schedule
    prediction: str = "epsilon"  # what the network's output is: see `ddimctl.predictions`
    label_scale: float = 1.0  # the network was trained on labels times this
    notes: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)


def told(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What was chosen on the way to the model, a sentence each."""
    notes = [*checkpoint.notes, f"predicts {checkpoint.prediction}; {checkpoint.schedule.T} noise levels"]
    if checkpoint.config.out_channels != checkpoint.config.in_channels:
        notes.append("the learned variances are left out")
    return tuple(notes)
