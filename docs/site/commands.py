"""The reference of the commands, as Markdown, from the commands themselves: what `--help` says, on a page a command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from ddimctl.cli.app import app
from ddimctl.cli.help import COMMANDS

PANELS = ("What", "How", "Files", "Machine", "Output")  # in the order of --help


def pages() -> dict[str, str]:
    """The name of each page, `commands/NAME.md`, and what stands on it; `commands/index.md` lists them."""
    root: Any = typer.main.get_command(app)
    rows = [f"| [`{name}`]({name}.md) | {plain(said)} |" for name, said in COMMANDS.items()]
    out = {"commands/index.md": "\n".join(["# Commands", "", "| command | does |", "| --- | --- |", *rows, ""])}
    for name in COMMANDS:
        out[f"commands/{name}.md"] = "\n\n".join(command(name, root.commands[name], "#")) + "\n"
    return out


def command(name: str, found: Any, depth: str) -> Iterator[str]:
    """The parts of a command's page; those of a group's commands follow, a heading deeper."""
    text, _, example = found.help.partition("\n\nExample: ")
    yield f"{depth} ddimctl {name}"
    if not hasattr(found, "commands"):
        yield f"```sh\nddimctl {name} {usage(found)}\n```"
    yield from (plain(p) for p in text.split("\n\n"))
    if example:
        yield f"Example:\n\n```sh\n{example}\n```"
    if hasattr(found, "commands"):
        for inner, its in found.commands.items():
            yield from command(f"{name} {inner}", its, depth + "#")
        return
    arguments = [p for p in found.params if p.param_type_name == "argument"]
    options = [p for p in found.params if p.param_type_name == "option" and not p.hidden]
    if arguments:
        yield table("argument", [(f"`{shown(p)}`", p.help or "") for p in arguments])
    known = {p.rich_help_panel for p in options}
    for panel in [p for p in PANELS if p in known] + sorted(k for k in known if k not in PANELS and k):
        yield table(panel, [(f"`{spelled(p)}`", said(p)) for p in options if p.rich_help_panel == panel])


def usage(found: Any) -> str:
    """What may follow the command's name."""
    return " ".join([*(shown(p) for p in found.params if p.param_type_name == "argument"), "[OPTIONS]"])


def shown(argument: Any) -> str:
    """An argument, as usage has it: in brackets where there may be none, with dots where there may be many."""
    name = (argument.metavar or argument.name).upper().strip("[]").removesuffix("...")
    name += "…" if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def spelled(option: Any) -> str:
    """An option's names, and its value's."""
    names = ", ".join(sorted([*option.opts, *option.secondary_opts], key=len))
    return names if option.is_flag or not option.metavar else f"{names} {option.metavar}"


def said(option: Any) -> str:
    """What it does, its default where it has one, and the variable that says it instead."""
    parts = [plain(option.help or "")]
    if option.default not in (None, False, "", ()) and not callable(option.default):
        parts.append(f"Default: `{option.default}`.")
    if option.envvar:
        parts.append(f"Variable: `{option.envvar}`.")
    return " ".join(parts)


def table(first: str, rows: list[tuple[str, str]]) -> str:
    """Rows of a name in code, in which only the bar is special, and of what is said of it."""
    lines = [(name.replace("|", r"\|"), what.replace("\n", " ")) for name, what in rows]
    return "\n".join(f"| {a} | {b} |" for a, b in [(first, ""), ("---", "---"), *lines])


def plain(text: str) -> str:
    """A text in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)
