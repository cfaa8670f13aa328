"""What the README shows is run: its console commands with their output, its Python, and the names it mentions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import Result

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "fashion-mnist"
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the README's commands find what they name."""
    for name, image in (("img", "000"), ("a", "001"), ("b", "002")):
        (tmp_path / f"{name}.png").write_bytes((MODEL / "held-out" / f"{image}.png").read_bytes())
    for name in "ab":
        run(f"ddimctl encode {name}.png -o {name}.pt", tmp_path)
    return tmp_path


def run(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", *shlex.split(command)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DDIMCTL_")}
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    # A busy machine is told of how far it is, and that its threads starve.
    return "".join(line for line in done.stdout.splitlines(True) if not re.match(r"\w+: \d+ %|hint: |.*threads", line))


@pytest.mark.slow
def test_console_blocks_print_what_they_show(folder: Path) -> None:
    """Digit for digit but for the measured numbers, which may differ in the last place between processors."""
    (block,) = blocks("console")
    shown = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    assert len(shown) == 3, "the three promised lines"
    for part in shown:
        command, _, output = part.partition("\n")
        got = run(command, folder)
        # stderr and stdout are two streams, whose lines may come in either order
        assert sorted(NUMBER.sub("#", output).split()) == sorted(NUMBER.sub("#", got).split()), command
        for ours, theirs in zip(sorted(output.split()), sorted(got.split()), strict=True):
            if NUMBER.fullmatch(ours) and NUMBER.fullmatch(theirs):
                assert float(theirs) == pytest.approx(float(ours), rel=0.1), command


@pytest.mark.slow
def test_python_block_works(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    (block,) = blocks("python")
    exec(block, {})
    assert 0 < float(capsys.readouterr().out) < 1e-3


def test_commands_and_files_mentioned_exist() -> None:
    from ddimctl.cli.app import app

    group: Any = typer.main.get_command(app)
    known = set(group.commands)
    mentioned = {row.split()[0] for row in re.findall(r"^\| `([a-z]+[^`]*)`", README, re.MULTILINE)}
    assert mentioned == known
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_help_of_every_command_mentioned(invoke: Callable[..., Result]) -> None:
    for command in ("encode", "decode", "interpolate", "reconstruct", "sample", "info", "models", "train"):
        assert "Usage" in invoke(command, "--help").ok().out
