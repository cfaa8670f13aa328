"""What the tabs of the page share: the studio, what stops the work of each, and what they keep.

One piece of work is done at a time, and others wait for their turn. The cancel button beside what started one, or closing
the tab, ends it, while it waits or between two of its steps.
"""

from __future__ import annotations

import time
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
LINE = 16  # pieces of work that are begun, or wait here for their turn; each holds a thread


class Page:
    """What the tabs share: the studio, a `Stop` for each piece of work, and what they keep."""

    def __init__(self, studio: Studio):
        self.studio, self.shelf = studio, Shelf()
        self.stops: dict[tuple[str, str], Stop] = {}  # by the tab of a browser, and what the work is called

    def cancelling(self, name: str) -> Callable[[gr.Request], None]:
        """A handler that ends the work of that name of the tab that asks."""

        def cancel(request: gr.Request) -> None:
            if stop := self.stops.get((request.session_hash or "", name)):
                stop.now()

        return cancel

    def left(self, request: gr.Request) -> None:
        """The tab was closed."""
        session = request.session_hash or ""
        for (whose, _), stop in list(self.stops.items()):
            if whose == session:
                stop.now()
        self.shelf.drop(session)

    def watched(self, name: str, work: Work) -> Callable[..., Iterator[str]]:
        """A handler that does `work` with a `Job` of the tab's, and says what went wrong as the command line does."""

        def handler(request: gr.Request, bar: Any = gr.Progress(), *values: Any) -> Iterator[str]:  # noqa: B008
            session = request.session_hash or ""
            stop = self.stops[session, name] = Stop(lambda done, total: bar((done, total)))
            parts = work(*values, job=Job(stop, lambda thing: self.shelf.put(session, name, thing)))

            def waits() -> None:
                bar(0, desc="waits until other work is done")

            try:
                while True:
                    with stop.turn(self.studio.turn, waits):  # never held while what was made is on its way
                        part = next(parts, None)
                    if part is None:
                        return
                    yield part
            except Stopped:
                yield "<p role='status'>cancelled</p>"
            except DDIMError as e:
                yield f"<p role='alert'>{told(e)}</p>"
            finally:
                if self.stops.get((session, name)) is stop:
                    del self.stops[session, name]

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
            concurrency_limit=LINE,
            trigger_mode="once",
            api_visibility="private",
            show_progress_on=bar,
            outputs=gr.HTML(elem_classes="shown", elem_id=f"{name}-shown"),
            inputs=inputs,
        )
        cancel.click(self.cancelling(name), queue=False, api_visibility="private", show_progress="hidden")

    def kept(self, key: str, name: str) -> Response:
        """Something of what a tab keeps; the browser is told how long that took to make."""
        begun = time.perf_counter()
        try:
            content, kind = self.shelf.get(key).file(name)
        except Stopped:
            return PlainTextResponse("later", 409)
        except DDIMError as e:
            return PlainTextResponse(f"error: {e}" + (f"\nhint: {e.hint}" if e.hint else ""), 400)
        took = f"made;dur={1000 * (time.perf_counter() - begun):.1f}"
        return Response(content, media_type=kind, headers={"cache-control": "no-store", "server-timing": took})


def told(error: DDIMError) -> str:
    """An error in HTML, as the command line says it."""
    return f"error: {safe(error)}" + (f"<br>hint: {safe(error.hint)}" if error.hint else "")
