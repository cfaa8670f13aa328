"""How much of the way is gone: the options of those commands that may go a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from typer import Option

from ddimctl.cli.groups import group
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.schedule import Levels


@group
class Part:
    """How much of the way is gone."""

    PANEL: ClassVar[str] = "How"

    to_level: Annotated[
        float | None, Option("--to-level", metavar="σ", help="Only a part of the way, up to this noise level.")
    ] = None
    strength: Annotated[
        float | None, Option("--strength", metavar="0…1", help="The same as a share of the time: 1 is all the way.")
    ] = None

    def level(self, schedule: Levels) -> float | None:
        """The noise level where the way ends; None if that is its own end. Raises `UsageError` if it has none such."""
        if self.to_level is not None and self.strength is not None:
            raise UsageError("--to-level and --strength say the same in two ways", hint="choose one")
        if self.strength is not None:
            return None if self.strength == 1 else schedule.sigma_of(self.strength)
        return self.to_level
