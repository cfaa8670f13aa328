"""Defaults from files: ``ddimctl.toml`` in the folder one is in, and in ``~/.config/ddimctl``, which counts for less.

A key is an option's long name. At the top it is for every command in which that option has a default; in a table, such as
``[encode]`` or ``[models.show]``, for this command. A flag beats an environment variable beats the folder's file beats the
home's. What a file may not decide is where a result goes and what is written over.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddimctl.errors import FileError, UsageError

NAME = "ddimctl.toml"
MAX_BYTES = 1 << 20
NEVER = {"output", "force", "help", "version", "resume", "dry-run", "show-completion", "install-completion"}


def places() -> list[Path]:
    """The files, the home's first."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 (no home is no error)
    return [Path(config) / "ddimctl" / NAME, Path(NAME)]


def default_map(commands: Mapping[str, Any]) -> dict[str, Any]:
    """What the files say, by command and by the name of its parameter. Raises `DDIMError` for what makes no sense."""
    found: dict[str, Any] = {}
    for path in places():
        if path.is_file():
            _merge(found, _by_command(_read(path), commands, path))
    return found


def of_top(key: str) -> str | None:
    """What the files say at their top for a key of every command."""
    said = [_read(path).get(key) for path in places() if path.is_file()]
    return next((str(value) for value in reversed(said) if value is not None), None)


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    from ddimctl.files import read_bytes

    try:
        return tomllib.loads(read_bytes(path, MAX_BYTES).decode())
    except (ValueError, RecursionError) as e:
        raise FileError(f"{path} is no TOML: {e}", hint="such as: steps = 50") from None


def _by_command(said: Mapping[str, Any], commands: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content of a file as a map of defaults."""
    top = {key: value for key, value in said.items() if not isinstance(value, Mapping)}
    used: set[str] = set()
    out = _below(top, said, commands, path=path, used=used)
    for key in top.keys() - used:
        every = {name for command in _all(commands) for name in _options(command)}
        if key.replace("_", "-") in every - NEVER:
            raise UsageError(f"{path}: {key!r} is for single commands", hint="put it under one, such as [encode]")
        raise _unknown(path, key, every)
    return out


def _below(
    top: Mapping[str, Any], said: Mapping[str, Any], commands: Mapping[str, Any], *, path: Path, used: set[str]
) -> dict[str, Any]:
    """A map of defaults for some commands: what is said at the `top`, then what is said in their tables."""
    out: dict[str, Any] = {}
    for key, value in said.items():
        if isinstance(value, Mapping) and key not in commands:
            raise _unknown(path, f"[{key}]", [f"[{name}]" for name in commands])
    for name in commands:
        command, table = commands[name], said.get(name, {})
        if inner := getattr(command, "commands", None):
            out[name] = _below(top, table, inner, path=path, used=used)
            continue
        options, mine = _options(command), {}
        for key, value in top.items():
            parameter = options.get(key.replace("_", "-"))
            if parameter is not None and parameter.default is not None and key not in NEVER:
                used.add(key)
                mine[parameter.name] = _value(value)
        for key, value in table.items():
            parameter = options.get(key.replace("_", "-"))
            if parameter is None or key.replace("_", "-") in NEVER:
                raise _unknown(path, key, options, command=name)
            mine[parameter.name] = _value(value)
        out[name] = mine
    return out


def _all(commands: Mapping[str, Any]) -> Iterator[Any]:
    for command in (commands[name] for name in commands):
        inner = getattr(command, "commands", None)
        yield from _all(inner) if inner else (command,)


def _options(command: Any) -> dict[str, Any]:
    """A command's options by their long names, without the dashes."""
    options = (p for p in command.params if p.param_type_name == "option")
    return {opt.removeprefix("--"): p for p in options for opt in p.opts if opt.startswith("--")}


def _value(value: Any) -> Any:
    """As it would be typed; a list has commas between."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _unknown(path: Path, key: str, known: Any, *, command: str | None = None) -> UsageError:
    where = "" if command is None else f" in [{command}]"
    if key.replace("_", "-") in NEVER:
        return UsageError(f"{path}: {key!r}{where} is not for a file to decide", hint="give it on the command line")
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "keys are the long names of options, such as steps"
    return UsageError(f"{path}: there is no option {key!r}{where}", hint=hint)
