"""A worse model, away from which samples are led: autoguidance (Karras et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ddimctl.cli import inputs, names, options
from ddimctl.cli.groups import group
from ddimctl.errors import UsageError

if TYPE_CHECKING:
    from ddimctl.cli.console import Console
    from ddimctl.cli.sized import Sized
    from ddimctl.model import Model

WEIGHT = 3.0


@group
class Away:
    """A worse model that leads."""

    PANEL: ClassVar[str] = "How"

    worse: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            parser=options.parse_model,
            help="Lead away from a worse model of the same images: autoguidance.",
            autocompletion=names.models,
        ),
    ] = None
    weight: Annotated[
        float | None,
        typer.Option(metavar="W", help=f"How far: ε_worse + W (ε − ε_worse). By default {WEIGHT:g}."),
    ] = None

    def lead(self, net: Model, what: Sized, machine: options.Machine, *, console: Console) -> Model:
        """The model, led if it is to be. Raises `UsageError` where the two have too little in common."""
        if self.worse is None:
            if self.weight is not None:
                raise UsageError("a weight is of a worse model", hint="name one with --worse")
            return net
        worse = inputs.open_model(replace(what, model=self.worse, config=None, schedule=None), machine, console)
        return net.away_from(worse, WEIGHT if self.weight is None else self.weight)
