"""How the help looks, and completion for the shell that is named: what Typer's classes leave open.

A flag takes no value and an argument's kind is told by its sentence, so neither shows a type; ``--help`` stands with the
options it belongs to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ddimctl.cli import defaults, names
from ddimctl.errors import UsageError

# A module in `ddimctl/cli/` → what the list of commands says of it: the first sentence of its docstring, which a test
# compares, since importing every command to ask it would slow the help down.
COMMANDS = {
    "encode": "Encode images into latents x_T.",
    "decode": "Decode latents into images.",
    "interpolate": "Interpolate between latents with slerp and decode every frame.",
    "translate": "Encode images as one class, prompt or model, and decode them as another.",
    "reconstruct": "Encode images, decode them again, and report the error.",
    "evaluate": "Measure how good samples are, and what they cost, for every η and number of steps S.",
    "sample": "Make images out of noise.",
    "info": "Tell what a file is: where a latent comes from and how much it resembles noise, what a model is, or how a "
    "picture was made.",
    "train": "Train a model on images.",
    "bench": "Measure how fast a model is evaluated here.",
    "latent": "Add, average and compare latents.",
    "tune": "Tune a model's levels: search those, and the weights of the two-step method, that bring images back best.",
    "models": "List, examine, convert and download models.",
    "ui": "Open a page on this machine: round trips, what lies between images, latents, samples.",
}
PANEL = "Output"  # where --help stands in a command's help


class Command(TyperCommand):
    """A command, with its help tidied."""

    def get_params(self, ctx: Any) -> list[Any]:
        return tidied(super().get_params(ctx), PANEL)


class Group(TyperGroup):
    """A group of commands, with its help tidied."""

    def get_params(self, ctx: Any) -> list[Any]:
        return tidied(super().get_params(ctx), None)


class Commands(Mapping[str, Any]):
    """The commands by name: ``NAME`` or ``app`` in ``ddimctl/cli/NAME.py``, imported when it is asked for."""

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.made:
            app = self.app(name)
            if not isinstance(app, typer.Typer):
                app = typer.Typer(add_completion=False)
                app.command(cls=Command)(self.app(name))
            self.made[name] = typer.main.get_command(app)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def app(name: str) -> Any:
        module = importlib.import_module(f"ddimctl.cli.{name}")
        return getattr(module, "app", None) or getattr(module, name)


class Root(Group):
    """The whole application. ``--show-completion zsh`` is zsh's; without a name it is of the shell one is in."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands: Any = Commands(COMMANDS)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        whole, self.commands = self.commands, {name: Command(name, help=said) for name, said in COMMANDS.items()}
        super().format_help(ctx, formatter)
        self.commands = whole

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) == 2 and args[0] in ("--show-completion", "--install-completion"):
            from typer.completion import install_callback, show_callback

            if args[1] not in names.SHELLS:
                raise UsageError(
                    f"there is no completion for {args[1]!r}", hint=f"there is for {', '.join(names.SHELLS)}"
                )
            callback: Callable[..., Any] = show_callback if args[0] == "--show-completion" else install_callback
            callback(ctx, None, args[1])  # exits
        if args and not ctx.resilient_parsing and not {"--help", "-h", "--version"}.intersection(args):
            ctx.default_map = defaults.default_map(self.commands)
        return super().parse_args(ctx, args)


def tidied(parameters: list[Any], panel: str | None) -> list[Any]:
    """Parameters whose types are shown only where they tell something."""
    nothing: Callable[..., None] = lambda ctx: None  # noqa: E731
    for p in parameters:
        if p.param_type_name == "argument":
            p.display_type_rich = nothing
        elif p.is_flag:
            p.metavar = ""
        if panel and "--help" in p.opts:
            p.rich_help_panel = panel
    return parameters
