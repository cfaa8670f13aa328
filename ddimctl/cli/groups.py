"""Option groups: a command takes values that belong together, the command line shows flat options.

A group is a frozen dataclass whose fields are written as options of Typer's are, ``name: Annotated[type, typer.Option(…)] =
default``, and which says in `PANEL` under which heading the help shows them. A command takes groups among its parameters;
`flat` makes of it what Typer reads. What a group inherits from another comes after its own options. An option that differs
in one command is `like` the one that is written already.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from typer.models import OptionInfo

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def group(cls: type[T]) -> type[T]:
    """A frozen dataclass of options; without the methods that no command needs, as making them slows every start."""
    return dataclass(frozen=True, kw_only=True, repr=False, eq=False)(cls)


class flat:  # noqa: N801 (a decorator)
    """A command whose signature has every option of the groups that `command` takes, and which calls it with those."""

    def __init__(self, command: Callable[..., None]):
        self.__wrapped__, self.__name__ = command, command.__name__
        self.__doc__ = unwrapped(command.__doc__ or "")

    def __call__(self, **values: Any) -> None:
        built = {k: g(**{f.name: values.pop(f.name) for f in _fields(g)}) for k, g in self._groups.items()}
        self.__wrapped__(**values, **built)

    @functools.cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.__wrapped__, include_extras=True)

    @functools.cached_property
    def _groups(self) -> dict[str, Any]:
        return {name: hint for name, hint in self._hints.items() if is_dataclass(hint)}

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        found: list[inspect.Parameter] = []
        for name, given in inspect.signature(self.__wrapped__).parameters.items():
            taken = self._groups.get(name)
            found += options_of(taken) if taken else [given.replace(annotation=self._hints[name])]
        return inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in found])

    @functools.cached_property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return {p.name: p.annotation for p in self.__signature__.parameters.values()}


def options_of(group: Any) -> Iterator[inspect.Parameter]:
    """The options of a group, its own before those it inherits."""
    known = {f.name: f for f in _fields(group)}
    order = [name for cls in group.__mro__ for name in inspect.get_annotations(cls) if name in known]
    for name in dict.fromkeys(order):
        kind, option = get_args(_hints(group)[name])
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
    option: OptionInfo = copy.copy(get_args(_hints(group)[name])[1])
    for key, value in changes.items():
        if not hasattr(option, key):
            raise TypeError(f"an option has no {key}")
        setattr(option, key, value)
    return option


def given(ctx: Any, by: str = "COMMANDLINE") -> set[str]:
    """The parameters that the command line itself says, and no file of defaults (``DEFAULT_MAP``) nor nobody."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == by}


def unwrapped(text: str) -> str:
    """Each paragraph on one line: the terminal's width decides where lines end."""
    return "\n\n".join(" ".join(p.split()) for p in inspect.cleandoc(text).split("\n\n"))


def _fields(group: Any) -> tuple[Field[Any], ...]:
    return fields(group)


@functools.cache
def _hints(group: Any) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)
