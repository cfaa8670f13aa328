"""The help at any width, and completion: of commands, of the values that have names, for the shell that is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import typer
from conftest import Result
from record_cli import options

from ddimctl.cli import help, names
from ddimctl.cli.app import app
from ddimctl.families import bundled

Invoke = Callable[..., Result]
COMMANDS = [name for name in options() if name]


def help_of(invoke: Invoke, command: str, width: int) -> list[str]:
    return invoke(*command.split(), "--help", env={"COLUMNS": str(width)}).ok().out.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole_at_any_width(command: str, width: int, invoke: Invoke) -> None:
    lines = help_of(invoke, command, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert not re.search(r"<\w", text), "kinds of values are not told by the names of types"
    for name in options()[command]:
        for option in name.split(", "):
            if option.startswith("-"):
                assert re.search(rf"[ │,]{option}[ ,]", text), option
    assert len(re.findall(r"╭─ Output ─", text)) == 1
    assert "╭─ Options ─" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_sentence_is_broken_but_by_the_width(command: str, width: int, invoke: Invoke) -> None:
    """Between two lines of a paragraph there is no room left for the next word."""
    lines = help_of(invoke, command, width)
    prose = lines[3 : next(i for i, line in enumerate(lines) if line.startswith("╭"))]
    for line, following in zip(prose, prose[1:], strict=False):
        if line.strip() and following.strip():
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > width - 1, (line, following)


def test_the_headings_are_in_the_order_of_what_is_asked(invoke: Invoke) -> None:
    for command in ("encode", "decode", "interpolate", "reconstruct", "sample", "evaluate"):
        headings = re.findall(r"╭─ (\w+) ─", "\n".join(help_of(invoke, command, 80)))
        assert [h for h in headings if h != "Arguments"] == ["What", "How", "Files", "Machine", "Output"]


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    root = typer.main.get_command(app)
    assert {name: root.commands[name].help.split("\n")[0] for name in help.COMMANDS} == help.COMMANDS


def completed(invoke: Invoke, *words: str) -> list[str]:
    env = {
        "_DDIMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["ddimctl", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return invoke(env=env).out.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["encode", "--solver", "ab"], ["ab2", "ab2mix", "ab3"]),
        (["encode", "--spacing", "l"], ["linear", "log", "leading"]),
        (["decode", "--solver", "h"], ["heun"]),
        (["sample", "--spacing", "q"], ["quadratic"]),
        (["reconstruct", "--solver", "ab2,d"], ["ab2,ddim"]),
        (["reconstruct", "--report", "mse,ps"], ["mse,psnr"]),
        (["encode", "--engine", "o"], ["openvino"]),
        (["bench", "--engine", "torch,c"], ["torch,compile"]),
        (["encode", "--precision", "b"], ["bf16"]),
        (["encode", "--device", "c"], ["cpu", "cuda"]),
        (["encode", "--fit", "s"], ["stretch"]),
        (["evaluate", "--features", "i"], ["inception"]),
        (["encode", "--lossl"], ["--lossless"]),
        (["models", "s"], ["show"]),
    ],
    ids=lambda w: " ".join(w),
)
def test_values_complete(words: list[str], expected: list[str], invoke: Invoke) -> None:
    assert completed(invoke, *words) == expected


@pytest.mark.parametrize("words", [["encode", "-m"], ["info"], ["models", "show"]], ids=" ".join)
def test_models_complete(words: list[str], invoke: Invoke) -> None:
    if not bundled():
        pytest.skip("no model is in this checkout")
    first = bundled()[0][:2]
    assert completed(invoke, *words, first) == [name for name in bundled() if name.startswith(first)]


@pytest.mark.parametrize(
    ("shell", "marks"), [("zsh", "#compdef"), ("bash", "complete -o"), ("fish", "complete --command")]
)
def test_completion_is_of_the_shell_that_is_named(shell: str, marks: str, invoke: Invoke) -> None:
    assert marks in invoke("--show-completion", shell, env={"SHELL": "/bin/bash"}).ok().out


def test_completion_is_installed_for_the_shell_that_is_named(invoke: Invoke, tmp_path: Any) -> None:
    assert "zsh" in invoke("--install-completion", "zsh").ok().out
    assert "#compdef ddimctl" in (tmp_path / ".zfunc/_ddimctl").read_text()


def test_a_shell_that_is_not_known_is_refused(invoke: Invoke) -> None:
    result = invoke("--show-completion", "tcsh")
    assert result.failed(2) == "there is no completion for 'tcsh'"
    assert all(shell in result.err for shell in names.SHELLS)
