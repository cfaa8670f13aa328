"""The page as it is served, of gradio's parts (extra ``ui``)."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from ddimctl.page.guard import MAX_UPLOAD, guarded
from ddimctl.page.shared import Page
from ddimctl.page.tabs import TABS
from ddimctl.page.work import Studio
from ddimctl.report.html import safe

FONTS = ("system-ui", "sans-serif")
OLD = 3600  # seconds after which what was dropped is deleted
HERE = Path(__file__).parent


def built(page: Page) -> Any:
    """The page's parts."""
    model = page.studio.model
    with gr.Blocks(title=f"ddimctl: {model.name}", analytics_enabled=False, delete_cache=(OLD, OLD)) as blocks:
        gr.Markdown(
            f"# ddimctl\n\nThe model `{safe(model.name)}`: images of {' × '.join(map(str, model.image_shape))}."
        )
        for name, tab in TABS.items():
            if tab.fits(page.studio):
                with gr.Tab(name):
                    tab.build(page)
        blocks.unload(page.left)
    return blocks


def server(page: Page, port: int, folder: Path) -> uvicorn.Server:
    """What serves the page; files that are dropped on it lie in `folder`."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # gradio has no other way to be told
    api = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    api.get("/kept/{key}/{name}")(page.kept)
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    app = gr.mount_gradio_app(
        api, built(page), "/",
        server_name="127.0.0.1", server_port=port, max_file_size=MAX_UPLOAD, footer_links=[], run_history=False,
        show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        theme=gr.themes.Base(font=FONTS, font_mono=("monospace",)).set(  # white on blue that is dark enough
            button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
            button_primary_background_fill_hover_dark="*primary_700",
        ),
        css_paths=HERE / "page.css", head=f"<script>{script}</script>",
    )  # fmt: skip
    return uvicorn.Server(
        uvicorn.Config(guarded(app, port), log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    )


def serve(studio: Studio, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves the page on a socket that is bound already, until it is interrupted; `ready` is called just before."""
    with tempfile.TemporaryDirectory(prefix="ddimctl-") as folder:
        running = server(Page(studio), bound.getsockname()[1], Path(folder))
        ready()
        running.run(sockets=[bound])
