"""The page, of gradio's parts (extra ``ui``): what it asks goes to `work`, what comes back is shown.

One piece of work is done at a time. A tab's cancel button, or closing the tab, ends its own between two steps.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn

from ddimctl.errors import DDIMError
from ddimctl.model import Condition
from ddimctl.page.guard import MAX_UPLOAD, guarded
from ddimctl.page.work import MOST, Stop, Stopped, Studio
from ddimctl.recipe import Way
from ddimctl.report.html import safe
from ddimctl.sampling import Noising
from ddimctl.schedule import SPACINGS
from ddimctl.solvers import DEFAULT_SOLVER, SOLVERS

FONTS = ("system-ui", "sans-serif")
# The slider shows one of the frames that are there already: nothing is asked of anybody.
FOLLOW = """(t) => { const frames = document.querySelectorAll('#between .frame'), at = Math.round(t * (frames.length - 1));
  frames.forEach((frame, i) => { frame.hidden = i !== at; }); return []; }"""
CSS = """
.shown { --ink: var(--body-text-color); --quiet: #565656; --rule: var(--border-color-primary);
  --c0: #1a5fa8; --c1: #be4800; --c2: #1e7837; }
.dark .shown { --quiet: #a6a6a6; --c0: #70b2f5; --c1: #ff9e5c; --c2: #72d08a; }
.shown img.pixels { image-rendering: pixelated; width: 10rem; height: auto; display: block; }
.shown .frames img.pixels { width: 6rem; } .shown .frame img.pixels { width: 18rem; }
.shown .frame[hidden] { display: none; }
.shown .frames { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; padding: 0; }
.shown table, .shown th, .shown td { border: 0 !important; }
.shown th, .shown td { text-align: left; vertical-align: bottom; padding: 0 .5rem .4rem 0; white-space: pre-line; }
.shown .tool { display: none; } .shown svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.shown svg text { fill: var(--ink); } .shown svg .muted { fill: var(--quiet); }
.shown svg polyline { fill: none; stroke-width: 2; } .shown svg .grid { stroke: var(--rule); stroke-width: 1; }
.shown svg .axis, .shown svg .s-1 { stroke: var(--quiet); } .shown svg .f-1 { fill: var(--quiet); }
.shown svg .dashed { stroke-dasharray: 6 4; } .shown svg polygon { opacity: .35; }
.shown svg .s0 { stroke: var(--c0); } .shown svg .s1 { stroke: var(--c1); } .shown svg .f0 { fill: var(--c0); }
.shown svg .f1 { fill: var(--c1); } .shown .charts { display: flex; flex-wrap: wrap; gap: 1rem; }
"""

Work = Callable[..., Iterator[Any]]


class Page:
    """What the tabs share: the studio, and a `Stop` for the work of each tab of a browser."""

    def __init__(self, studio: Studio, folder: Path):
        self.studio, self.folder = studio, folder
        self.stops: dict[str, Stop] = {}

    def cancel(self, request: gr.Request) -> None:
        """Ends the work of the tab that asks."""
        if stop := self.stops.get(request.session_hash or ""):
            stop.now()

    def watched(self, work: Work) -> Work:
        """A handler that does `work` with a `Stop` of the tab's, and says what went wrong as the command line does."""

        def handler(request: gr.Request, *values: Any) -> Iterator[Any]:
            stop = self.stops[request.session_hash or ""] = Stop()
            try:
                yield from work(*values, stop=stop)
            except Stopped:
                yield "<p role='status'>cancelled</p>"
            except DDIMError as e:
                hint = f"<br>hint: {safe(e.hint)}" if e.hint else ""
                yield f"<p role='alert'>error: {safe(e)}{hint}</p>"
            finally:
                self.stops.pop(request.session_hash or "", None)

        handler.__annotations__ = {"request": gr.Request}  # by its type gradio knows that it is no value
        return handler


class Controls:
    """The choices of a way, and what is asked for where the model hears text."""

    def __init__(self, page: Page, steps: int = 20):
        with gr.Row():
            self.solver = gr.Dropdown(list(SOLVERS), value=DEFAULT_SOLVER, label="Solver")
            self.spacing = gr.Dropdown(list(SPACINGS), value="karras", label="Spacing")
            self.steps = gr.Slider(1, 100, value=steps, step=1, label="Steps S")
        shown = page.studio.hears_text
        with gr.Row(visible=shown):
            self.prompt = gr.Textbox(label="Prompt", max_length=1000)
            self.negative = gr.Textbox(label="Negative prompt", max_length=1000)
            self.guidance = gr.Slider(1, 15, value=1, step=0.5, label="Guidance")

    @property
    def inputs(self) -> list[Any]:
        return [self.solver, self.spacing, self.steps, self.prompt, self.negative, self.guidance]


def asked(solver: str, spacing: str, steps: float, *text: Any) -> tuple[Way, Condition]:
    """What `Controls` say."""
    prompt, negative, guidance = text
    return Way(solver, spacing, int(steps)), Condition(None, prompt or None, negative or None, float(guidance))


def buttons(name: str) -> tuple[Any, Any]:
    """(what starts the work, what cancels it), side by side."""
    with gr.Row():
        return gr.Button(name, variant="primary", scale=4), gr.Button("Cancel", variant="stop", scale=1)


def started(page: Page, both: tuple[Any, Any], work: Work, **ends: Any) -> None:
    """Has the first button start `work`, one at a time on this machine, and the second cancel it."""
    button, cancel = both
    button.click(
        page.watched(work),
        concurrency_id="work",
        concurrency_limit=1,
        trigger_mode="once",
        api_visibility="private",
        **ends,
    )
    cancel.click(page.cancel, queue=False, api_visibility="private", show_progress="hidden")


def reconstruct_tab(page: Page) -> None:
    image = gr.File(label="Image", type="filepath")
    controls = Controls(page)
    both = buttons("Reconstruct")
    shown = gr.HTML(elem_classes="shown", elem_id="trip-shown")

    def work(path: str | None, *values: Any, stop: Stop) -> Iterator[str]:
        way, condition = asked(*values)
        yield from page.studio.reconstruct(path, way, condition=condition, stop=stop)

    started(page, both, work, inputs=[image, *controls.inputs], outputs=shown)


def interpolate_tab(page: Page) -> None:
    images = gr.File(label="Two to four images or latents", type="filepath", file_count="multiple")
    controls = Controls(page, steps=10)
    both = buttons("Interpolate")
    slider = gr.Slider(0, 1, value=0, step=1 / 64, label="From the first to the last", elem_id="between-slider")
    shown = gr.HTML(elem_classes="shown", elem_id="between")
    slider.input(None, slider, None, js=FOLLOW)
    with gr.Row():
        loads = [
            gr.DownloadButton(f"Download {kind}", size="sm")
            for kind in ("film (.gif)", "strip (.png)", "latents (.pt)")
        ]

    def work(paths: list[str] | None, *values: Any, stop: Stop) -> Iterator[Any]:
        way, condition = asked(*values)
        try:
            found = page.studio.between(paths, way, condition=condition, stop=stop)
        except DDIMError as e:
            yield f"<p role='alert'>error: {safe(e)}<br>hint: {safe(e.hint)}</p>", 0, None, None, None
            return
        files = found.save(Path(tempfile.mkdtemp(dir=page.folder)))
        yield found.html(), 0, *(str(files[kind]) for kind in ("gif", "png", "pt"))

    started(page, both, work, inputs=[images, *controls.inputs], outputs=[shown, slider, *loads])


def latent_tab(page: Page) -> None:
    file = gr.File(label="Latent, or image", type="filepath")
    controls = Controls(page)
    both = buttons("Examine")
    shown = gr.HTML(elem_classes="shown")

    def work(path: str | None, *values: Any, stop: Stop) -> Iterator[str]:
        way, condition = asked(*values)
        yield page.studio.health(path, way, condition=condition, stop=stop)

    started(page, both, work, inputs=[file, *controls.inputs], outputs=shown)


def sample_tab(page: Page) -> None:
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        number = gr.Slider(1, MOST, value=16, step=1, label="Images")
        eta = gr.Slider(0, 1, value=0, step=0.1, label="η: 0 is DDIM, 1 is DDPM")
    controls = Controls(page)
    both = buttons("Sample")
    shown = gr.HTML(elem_classes="shown")

    def work(seed: float, number: float, eta: float, *values: Any, stop: Stop) -> Iterator[str]:
        way, condition = asked(*values)
        if eta > 0:  # only this solver adds noise on the way
            way = Way("ddim", way.spacing, way.steps)
        yield page.studio.sample(int(seed), int(number), Noising(way, float(eta)), condition=condition, stop=stop)

    started(page, both, work, inputs=[seed, number, eta, *controls.inputs], outputs=shown)


def built(page: Page) -> Any:
    """The page's parts."""
    model = page.studio.model
    with gr.Blocks(title=f"ddimctl: {model.name}", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# ddimctl\n\nThe model `{safe(model.name)}`: images of {' × '.join(map(str, model.image_shape))}."
        )
        for name, tab in TABS.items():
            with gr.Tab(name):
                tab(page)
        blocks.unload(page.cancel)
    return blocks


def serve(studio: Studio, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves the page on a socket that is bound already, until it is interrupted; `ready` is called just before."""
    port = bound.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ddimctl-") as folder:
        page = Page(studio, Path(folder))
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), built(page), "/",
            server_name="127.0.0.1", server_port=port, max_file_size=MAX_UPLOAD, allowed_paths=[folder], footer_links=[],
            run_history=False, show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
            theme=gr.themes.Base(font=FONTS, font_mono=("monospace",)), css=CSS,
        )  # fmt: skip
        settings = uvicorn.Config(guarded(app, port), log_level="error", lifespan="on", timeout_graceful_shutdown=1)
        ready()
        uvicorn.Server(settings).run(sockets=[bound])


TABS: dict[str, Callable[[Page], None]] = {
    "Reconstruct": reconstruct_tab,
    "Interpolate": interpolate_tab,
    "Latent": latent_tab,
    "Sample": sample_tab,
}
