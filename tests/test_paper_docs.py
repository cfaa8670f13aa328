"""docs/paper.md: its commands are valid, and what it points at is there. `make docs` runs the commands themselves."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from ddimctl.cli.app import app

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "paper.md").read_text(encoding="utf-8")
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
            if line.startswith("$ ")]  # fmt: skip


def test_each_experiment_has_its_command() -> None:
    assert {shlex.split(c)[1] for c in COMMANDS} >= {"evaluate", "sample", "interpolate", "reconstruct"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_these_options(command: str) -> None:
    tool, name, *words = shlex.split(command)
    assert tool == "ddimctl"
    found = get_command(app).commands[name]  # type: ignore[attr-defined]
    found.make_context(name, list(words))  # raises for an option or a value that the command does not know


@pytest.mark.parametrize("command", COMMANDS)
def test_pictures_and_inputs_are_there(command: str) -> None:
    for word in shlex.split(command):
        if word.startswith(("docs/", "models/")):
            assert (DOCS.parent / word).is_file(), word


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_links_lead_somewhere(target: str) -> None:
    assert (DOCS / target).exists()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("train", ["Trainer"]), ("sampling", ["eq_12", "dial", "hat"]), ("schedule", ["linear", "quadratic"]),
        ("solvers", ["ddim"]), ("model", ["Model"]), ("interpolate", ["slerp", "grid"]),
    ],
)  # fmt: skip
def test_functions_named_exist(module: str, names: list[str]) -> None:
    found = importlib.import_module(f"ddimctl.{module}")
    for name in names:
        assert hasattr(found, name)
        assert f"`{name}" in PAGE
