"""``ddimctl ui``: a page on this machine, over the library."""

from __future__ import annotations

import importlib.util
import socket
import sys
from dataclasses import fields
from typing import Annotated, ClassVar

import typer

from ddimctl.cli import inputs, options
from ddimctl.cli.groups import flat, group, like
from ddimctl.errors import DDIMError, UsageError

MANY = 10_000  # evaluations: enough that an engine which compiles is worth it


@group
class Which(options.Config):
    """The model; what it is asked for is said on the page."""

    model: Annotated[str, like(options.What, "model")] = options.DEFAULT_MODEL


@group
class Served:
    """Where the page is."""

    PANEL: ClassVar[str] = "Output"

    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="The port on this machine; 0: a free one.")
    ] = 7860


@flat
def ui(*, what: Which, fit: options.Fit, where: Served, machine: options.Machine, said: options.Said) -> None:
    """Open a page on this machine: round trips, what lies between images, latents, samples.

    Only this machine can reach it, at http://127.0.0.1:7860 unless --port says another; Ctrl-C ends it.

    Example: ddimctl ui -m emoji
    """
    console = said.console()
    if importlib.util.find_spec("gradio") is None:
        raise UsageError(
            "the page needs the extra 'ui'", hint="install it with: pip install -c constraints-ui.txt 'ddimctl[ui]'"
        )
    bound = listening(where.port)
    net = inputs.open_model(options.What(**{f.name: getattr(what, f.name) for f in fields(what)}), machine, console)
    net = inputs.start_engine(net, machine, console, work=MANY)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"

    def ready() -> None:
        console.notice(f"the page of {net.name}, for this machine alone; Ctrl-C ends it")
        console.data(url, {"url": url})
        sys.stdout.flush()

    from ddimctl.page import app, work

    app.serve(work.Studio(net, fit.preprocessing(), machine.batch_size), bound, ready)


def listening(port: int) -> socket.socket:
    """A socket of this machine alone. Raises `DDIMError` if the port is taken."""
    # Named as TCP: of other sockets asyncio leaves Nagle's algorithm on, and answers then come 40 ms late.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError as e:
        raise DDIMError(f"port {port} cannot be had: {e.strerror}", hint="--port 0 takes a free one") from e
    return bound
