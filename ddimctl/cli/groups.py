"""Option groups: a command takes values that belong together, the command line shows flat options.

A group is a frozen dataclass whose fields are written as options of Typer's are, ``name: Annotated[type, typer.Option(…)] =
default``, and which says in `PANEL` under which heading the help shows them. A command takes groups among its parameters;
`flat` makes the function of it that Typer reads. What a group inherits from another comes after its own options. An option
that differs in one command is `like` the one that is written already.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose signature has every option of the groups that `command` takes, and which calls it with those."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    flags: list[inspect.Parameter] = []
    for name, given in inspect.signature(command).parameters.items():
        flags += options_of(groups[name]) if name in groups else [given.replace(annotation=hints[name])]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        built = {k: g(**{f.name: values.pop(f.name) for f in fields(g)}) for k, g in groups.items()}
        command(**values, **built)

    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flags]
    )
    call.__annotations__ = {p.name: p.annotation for p in flags}
    call.__doc__ = unwrapped(command.__doc__ or "")
    return call


def options_of(group: Any) -> Iterator[inspect.Parameter]:
    """The options of a group, its own before those it inherits."""
    hints = hints_of(group)
    known = {f.name: f for f in fields(group)}
    order = [name for cls in group.__mro__ for name in inspect.get_annotations(cls) if name in known]
    for name in dict.fromkeys(order):
        kind, option = get_args(hints[name])
        if option.rich_help_panel is None:
            option = like(group, name, rich_help_panel=group.PANEL)
        default = known[name].default
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[kind, option],
        )


def like(group: Any, name: str, **changes: Any) -> OptionInfo:
    """The option that a group's field is, with something changed."""
    option: OptionInfo = copy.copy(get_args(hints_of(group)[name])[1])
    for key, value in changes.items():
        if not hasattr(option, key):
            raise TypeError(f"an option has no {key}")
        setattr(option, key, value)
    return option


@functools.cache
def hints_of(group: Any) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


def unwrapped(text: str) -> str:
    """Each paragraph on one line: the terminal's width decides where lines end."""
    return "\n\n".join(" ".join(p.split()) for p in inspect.cleandoc(text).split("\n\n"))
