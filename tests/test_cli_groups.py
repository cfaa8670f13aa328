"""Option groups: flat for Typer, values for the command; and the names that options know."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from ddimctl.cli import names
from ddimctl.cli.groups import flat, group, like, unwrapped


@group
class Shape:
    PANEL: ClassVar[str] = "What"

    sides: Annotated[int, typer.Option("--sides", "-s", metavar="N", min=3, help="How many sides.")] = 4


@group
class Coloured(Shape):
    colour: Annotated[str, typer.Option(envvar="COLOUR", help="Which colour.")] = "red"


@group
class Others:
    PANEL: ClassVar[str] = "How"

    corners: Annotated[
        int | None, like(Shape, "sides", help="Another number.", param_decls=("--corners",), default="-c")
    ] = None


def made(command: Any) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_a_command_gets_the_groups_it_takes() -> None:
    seen: list[Any] = []

    @flat
    def draw(name: Annotated[str, typer.Argument()], *, shape: Coloured, others: Others) -> None:
        """Draw."""
        seen.append((name, type(shape), vars(shape), vars(others)))

    run = CliRunner().invoke
    assert run(made(draw), ["a", "--sides", "5", "--corners", "7"]).exit_code == 0
    assert run(made(draw), ["b"], env={"COLOUR": "blue"}).exit_code == 0
    assert run(made(draw), ["c", "--sides", "2"]).exit_code == 2
    assert seen == [
        ("a", Coloured, {"sides": 5, "colour": "red"}, {"corners": 7}),
        ("b", Coloured, {"sides": 4, "colour": "blue"}, {"corners": None}),
    ]


def test_its_own_options_come_before_those_that_are_inherited_and_all_under_the_groups_heading() -> None:
    @flat
    def draw(*, shape: Coloured, others: Others) -> None:
        """Draw."""

    parameters = inspect.signature(draw).parameters
    assert list(parameters) == ["colour", "sides", "corners"]
    assert [p.annotation.__metadata__[0].rich_help_panel for p in parameters.values()] == ["What", "What", "How"]
    assert parameters["corners"].annotation.__metadata__[0].metavar == "N"
    assert parameters["sides"].annotation.__metadata__[0].help == "How many sides."  # the first is not changed


def test_an_option_twice_is_found_at_once() -> None:
    def draw(*, one: Shape, two: Coloured) -> None:
        """Draw."""

    with pytest.raises(ValueError, match="sides"):
        inspect.signature(flat(draw))


def test_nothing_is_changed_that_an_option_does_not_have() -> None:
    with pytest.raises(TypeError, match="halp"):
        like(Shape, "sides", halp="?")


def test_paragraphs_are_broken_by_the_terminal_alone() -> None:
    assert unwrapped("One\n    two.\n\n    Three\n    four.\n    ") == "One two.\n\nThree four."


def test_names_are_those_of_the_registries() -> None:
    from ddimctl.engines import ENGINES, PRECISIONS
    from ddimctl.families import bundled
    from ddimctl.families.frugal import WAYS
    from ddimctl.features import KINDS
    from ddimctl.images.fitting import FITS
    from ddimctl.roundtrip import REPORTS
    from ddimctl.schedule import SPACINGS, TUNED
    from ddimctl.solvers import SOLVERS

    for known, registry in (
        (names.SOLVERS, SOLVERS),
        (names.SPACINGS, [*SPACINGS, TUNED]),
        (names.ENGINES, ENGINES),
        (names.PRECISIONS, PRECISIONS),
        (names.FITS, FITS),
        (names.SAVINGS, WAYS),
        (names.FEATURES, KINDS),
        (names.REPORTS, REPORTS),
    ):
        assert set(known) == set(registry)
    assert list(names.models("")) == bundled()


def test_names_complete() -> None:
    assert names.one_of(*names.SOLVERS)("ab") == ["ab2", "ab2mix", "ab3"]
    assert names.one_of(*names.SOLVERS)("nothing") == []
    assert names.some_of("mse", "psnr", "mse_8bit")("mse,m") == ["mse,mse_8bit"]
    assert names.some_of("mse", "psnr")("") == ["mse", "psnr"]
