"""The application: registers the commands, and turns every expected failure into one line and an exit code.

Only what is free of torch, numpy and Pillow is imported here and at the top of the command modules, so that
help, version and completion answer at once.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from ddimctl.cli.console import plain
from ddimctl.cli.help import Root
from ddimctl.errors import FAILED, USAGE, DDIMError
from ddimctl.version import __version__

app = typer.Typer(
    name="ddimctl",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Encode images into DDIM latents and back: encode, decode, interpolate, reconstruct.",
    epilog="Start with: ddimctl reconstruct --steps 20",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ddimctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Encode images into DDIM latents and back."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM. A BaseException, so that everything is cleaned up and nothing mistakes it for an error."""

    def __init__(self, signum: int):
        self.exit_code = 128 + signum


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    # A second signal, sent by an impatient user, must not break the cleaning up after the first.
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    raise Interrupted(signum)


def main() -> NoReturn:
    """The entry point: runs a command and exits with a code from `ddimctl.errors`."""
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, _interrupt)
    _prepare_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries think of a damaged image is not for users
    code, complaint = _run()
    if complaint is not None:
        _complain(*complaint, code=code)
    _exit(code)


def _run() -> tuple[int, tuple[str, str] | None]:
    """Runs the command; its exit code, and what is to be complained of: the message and a hint, which may be empty."""
    try:
        code: int = app(prog_name="ddimctl", standalone_mode=False) or 0
        sys.stdout.flush()
    except DDIMError as e:
        return e.exit_code, (str(e), e.hint)
    except TyperException as e:
        message = e.format_message()  # empty where the help was asked for by naming no command
        return USAGE, (message, "see ddimctl --help, or --help after a command") if message else None
    except Interrupted as e:
        return e.exit_code, ("interrupted", "")
    except BrokenPipeError:
        return FAILED, None
    except MemoryError:
        return FAILED, OUT_OF_MEMORY
    except RuntimeError as e:
        if "out of memory" not in str(e) and "allocate memory" not in str(e):
            raise
        return FAILED, OUT_OF_MEMORY
    except OSError as e:
        return FAILED, (f"{e.filename or 'the system'}: {e.strerror or e}", "")
    return code, None


OUT_OF_MEMORY = ("out of memory", "try a smaller --batch-size")


def _prepare_streams() -> None:
    """No character can break a command, and a stream that the shell closed swallows what it gets.

    On stdout a file name that is no Unicode goes out as it came in, and a σ in latin-1 as an escape.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            as_it_came = name == "stdout" and codecs.lookup(stream.encoding).name == "utf-8"
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="surrogateescape" if as_it_came else "backslashreplace")


def _complain(message: str, hint: str, *, code: int) -> None:
    """One line, and perhaps a second one that says what to do; with --json one JSON object, on stderr all the same."""
    with contextlib.suppress(OSError, ValueError):
        if "--json" in sys.argv[1:]:
            print(json.dumps({"error": message, "hint": hint or None, "exit_code": code}), file=sys.stderr)
            return
        print(f"error: {plain(message)}", file=sys.stderr)
        if hint:
            print(f"hint: {plain(hint)}", file=sys.stderr)


def _exit(code: int) -> NoReturn:
    """Exits without a complaint from the interpreter, or its exit code 120, about a stream that takes no more.

    What stdout does not take is a failure; notices are not.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or (FAILED if stream is sys.stdout else 0)
    sys.exit(code)
