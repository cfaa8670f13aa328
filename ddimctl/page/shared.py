"""What the tabs of the page share: the studio, what stops the work of each, and what they keep.

One piece of work is done at a time. A tab's cancel button, or closing the tab, ends its own between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi.responses import PlainTextResponse, Response

from ddimctl.errors import DDIMError
from ddimctl.page.shelf import Shelf
from ddimctl.page.work import Kept, Stop, Stopped, Studio
from ddimctl.report.html import safe


@dataclass(frozen=True)
class Job:
    """What a piece of work is given: what stops it, and where to keep what it makes, which gives a key."""

    stop: Stop
    keep: Callable[[Kept], str]


Work = Callable[..., Iterator[str]]


class Page:
    """What the tabs share: the studio, a `Stop` for the work of each tab of a browser, and what they keep."""

    def __init__(self, studio: Studio):
        self.studio, self.shelf = studio, Shelf()
        self.stops: dict[str, Stop] = {}

    def cancel(self, request: gr.Request) -> None:
        """Ends the work of the tab that asks."""
        if stop := self.stops.get(request.session_hash or ""):
            stop.now()

    def left(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.cancel(request)
        self.shelf.drop(request.session_hash or "")

    def watched(self, name: str, work: Work) -> Callable[..., Iterator[str]]:
        """A handler that does `work` with a `Job` of the tab's, and says what went wrong as the command line does."""

        def handler(request: gr.Request, bar: Any = gr.Progress(), *values: Any) -> Iterator[str]:  # noqa: B008
            session = request.session_hash or ""
            stop = self.stops[session] = Stop(lambda done, total: bar((done, total)))
            parts = work(*values, job=Job(stop, lambda thing: self.shelf.put(session, name, thing)))
            try:
                while True:
                    with self.studio.turn:  # never held while what was made is on its way
                        part = next(parts, None)
                    if part is None:
                        return
                    yield part
            except Stopped:
                yield "<p role='status'>cancelled</p>"
            except DDIMError as e:
                yield f"<p role='alert'>{told(e)}</p>"
            finally:
                if self.stops.get(session) is stop:
                    del self.stops[session]

        handler.__annotations__ = {"request": gr.Request}  # by its type gradio knows that it is no value
        return handler

    def started(self, name: str, both: tuple[Any, Any], work: Work, *, inputs: list[Any]) -> None:
        """Has the first button start `work`, one at a time on this machine, and the second cancel it.

        Below them comes a bar while it is under way, and what it makes.
        """
        button, cancel = both
        bar = gr.HTML(min_height=52)
        button.click(
            self.watched(name, work),
            concurrency_id="work",
            concurrency_limit=1,
            trigger_mode="once",
            api_visibility="private",
            show_progress_on=bar,
            outputs=gr.HTML(elem_classes="shown", elem_id=f"{name}-shown"),
            inputs=inputs,
        )
        cancel.click(self.cancel, queue=False, api_visibility="private", show_progress="hidden")

    def kept(self, key: str, name: str) -> Response:
        """Something of what a tab keeps."""
        try:
            content, kind = self.shelf.get(key).file(name)
        except Stopped:
            return PlainTextResponse("later", 409)
        except DDIMError as e:
            return PlainTextResponse(f"error: {e}" + (f"\nhint: {e.hint}" if e.hint else ""), 400)
        return Response(content, media_type=kind, headers={"cache-control": "no-store"})


def told(error: DDIMError) -> str:
    """An error in HTML, as the command line says it."""
    return f"error: {safe(error)}" + (f"<br>hint: {safe(error.hint)}" if error.hint else "")
