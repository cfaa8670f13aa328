"""docs/paper.md: its commands are valid, and what it points at is there. `make docs` runs the commands themselves; what
they print is put where it belongs."""

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
        ("training.denoising", ["Denoising"]), ("sampling", ["eq_12", "dial", "hat"]), ("schedule", ["linear", "quadratic"]),
        ("solvers", ["ddim"]), ("model", ["Model"]), ("interpolate", ["slerp", "grid"]),
    ],
)  # fmt: skip
def test_functions_named_exist(module: str, names: list[str]) -> None:
    found = importlib.import_module(f"ddimctl.{module}")
    for name in names:
        assert hasattr(found, name)
        assert f"`{name}" in PAGE


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS.parent / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_what_a_command_prints_replaces_what_it_printed() -> None:
    paper = importlib.import_module("paper")
    page = "a\n\n```console\n$ ddimctl x\nold\nold\n$ ddimctl x y\n```\n\nb\n\n```console\n$ ddimctl z\n```\n"
    once = paper.put(page, "ddimctl x", "new\n")
    assert once == page.replace("old\nold\n", "new\n")
    assert paper.put(once, "ddimctl x y", "1\\2\n") == once.replace("x y\n", "x y\n1\\2\n")
    assert paper.put(once, "ddimctl z", "3\n") == once.replace("z\n```", "z\n3\n```")
    assert paper.commands(page) == ["ddimctl x", "ddimctl x y", "ddimctl z"]
    assert paper.commands(PAGE) == COMMANDS


@pytest.mark.usefixtures("benchmarks")
def test_a_part_of_a_page_is_replaced_between_its_markers(tmp_path: Path) -> None:
    pages = importlib.import_module("pages")
    page = tmp_path / "page.md"
    begin, end = "<!-- measured by benchmarks/x.py: begin -->", pages.END
    page.write_text(f"a\n{begin}\n\nold\n\n{end}\nb\n<!-- measured by benchmarks/y.py: begin -->{end}\n")
    pages.put(page, "/somewhere/x.py", pages.table(["h"], [["σ"]]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"a\n{begin}\n\n| h |\n| --- |\n| σ |\n\n{end}\nb\n")
    assert text.endswith(f"y.py: begin -->{end}\n")


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("page", "script"),
    [("inversion.md", "inversion"), ("inversion.md", "spacings"), ("inversion.md", "paths"),
     ("performance.md", "versus_diffusers"),
     ("performance.md", "latency"), ("../README.md", "versus_diffusers"), ("paper.md", "table_2"),
     ("latents.md", "dithering"), ("latents.md", "direction")],
)  # fmt: skip
def test_every_page_has_the_markers_of_its_script(page: str, script: str, tmp_path: Path) -> None:
    pages = importlib.import_module("pages")
    copy = tmp_path / "page.md"
    copy.write_bytes((DOCS / page).read_bytes())
    pages.put(copy, f"{script}.py", "NEW")
    assert "NEW" in copy.read_text(encoding="utf-8")
    assert (DOCS.parent / "benchmarks" / f"{script}.py").is_file()


LATENTS = (DOCS / "latents.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall(r"^\$ (ddimctl .*)$", LATENTS, re.MULTILINE))
def test_commands_of_the_page_on_latents_take_these_options(command: str) -> None:
    _, *words = shlex.split(command)
    found = get_command(app)
    while hasattr(found, "commands"):
        name, words = words[0], words[1:]
        found = found.commands[name]
    found.make_context("x", list(words))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", LATENTS))))
def test_links_of_the_page_on_latents_lead_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
