"""The tabs of the page: what each asks for, and which work of the studio that starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ddimctl.arithmetic import Term
from ddimctl.errors import UsageError
from ddimctl.model import NOTHING, Condition
from ddimctl.page.between import Between
from ddimctl.page.shared import Job, Page
from ddimctl.page.sums import OF_TWO, OPERATIONS, Asked, Sums
from ddimctl.page.work import MOST, Studio
from ddimctl.recipe import DEFAULT_STEPS, Way, spacing_under
from ddimctl.sampling import Noising
from ddimctl.schedule import SPACINGS
from ddimctl.solvers import DEFAULT_SOLVER, SOLVERS

EDITED = 5.0  # the guidance that an edit begins with
NEAREST, EXAMINE = "nearest", "examine"


class WayControls:
    """The choices of a way."""

    def __init__(self, steps: int = DEFAULT_STEPS):
        with gr.Row():
            self.solver = gr.Dropdown(list(SOLVERS), value=DEFAULT_SOLVER, label="Solver")
            self.spacing = gr.Dropdown([("by default", ""), *SPACINGS], value="", label="Spacing")
            self.steps = gr.Slider(1, 100, value=steps, step=1, label="Steps S")

    @property
    def inputs(self) -> list[Any]:
        return [self.solver, self.spacing, self.steps]


class Words:
    """What an image is, or shall be: a prompt where the model hears text, a class where it has classes."""

    def __init__(self, studio: Studio, of: str = "", guidance: float = 1.0, *, each: bool = False):
        classes = studio.model.about.classes
        label = "Prompt, or a line for each" if each else f"{of} prompt".strip().capitalize()
        with gr.Row(visible=studio.hears_text):
            self.prompt = gr.Textbox(label=label, max_length=1000, lines=2 if each else 1)
            self.negative = gr.Textbox(label=f"{of} negative prompt".strip().capitalize(), max_length=1000)
            self.guidance = gr.Slider(1, 15, value=guidance, step=0.5, label=f"{of} guidance".strip().capitalize())
        label = f"{of} class".strip().capitalize()
        numbers = list(range(classes or 1))
        self.class_label = gr.Dropdown(numbers, value=0, label=label, visible=classes is not None)
        self.has_classes, self.hears_text = classes is not None, studio.hears_text

    @property
    def inputs(self) -> list[Any]:
        return [self.prompt, self.negative, self.guidance, self.class_label]

    def condition(self, *values: Any) -> Condition:
        """What these values ask for; what is hidden asks for nothing."""
        prompt, negative, guidance, class_label = values
        number = int(class_label) if self.has_classes else None
        if not self.hears_text:
            return Condition(number)
        return Condition(number, prompt or None, negative or None, float(guidance))

    def conditions(self, n: int, *values: Any) -> list[Condition]:
        """Those of n images or latents, which have one prompt for all or a line for each. Raises `UsageError` otherwise."""
        lines = str(values[0] or "").strip().splitlines() or [""]
        if len(lines) not in (1, n):
            hint = "one line for all, or one for each, in their order"
            raise UsageError(f"{len(lines)} prompts do not fit {n} images and latents", hint=hint)
        return [self.condition(line.strip(), *values[1:]) for line in (lines * n if len(lines) == 1 else lines)]


class Controls:
    """A way and a condition, or one for each."""

    def __init__(self, page: Page, steps: int = DEFAULT_STEPS, *, each: bool = False):
        self.way, self.words = WayControls(steps), Words(page.studio, each=each)

    @property
    def inputs(self) -> list[Any]:
        return [*self.way.inputs, *self.words.inputs]

    def read(self, *values: Any) -> tuple[Way, Condition]:
        """What they say."""
        condition = self.words.condition(*values[3:])
        return way_of(*values[:3], condition=condition), condition


def way_of(solver: str, spacing: str, steps: float, *, condition: Condition = NOTHING) -> Way:
    return Way(solver, spacing_under(condition, solver, spacing), int(steps))


def under(term: Term, asked: Condition) -> Condition:
    """What a latent is decoded under: a prompt that it is given, or else what it was encoded under."""
    return asked if asked.prompt else term.latent.recipe.condition


def buttons(name: str) -> tuple[Any, Any]:
    """(what starts the work, what cancels it), side by side."""
    with gr.Row():
        return gr.Button(name, variant="primary", elem_classes="start", scale=4), gr.Button(
            "Cancel", elem_classes="cancel", scale=1
        )


def reconstruct(page: Page) -> None:
    image = gr.File(label="Image", type="filepath")
    controls = Controls(page)
    both = buttons("Reconstruct")

    def work(path: str | None, *values: Any, job: Job) -> Iterator[str]:
        way, condition = controls.read(*values)
        yield from page.studio.reconstruct(path, way, condition=condition, stop=job.stop)

    page.started("reconstruct", both, work, inputs=[image, *controls.inputs])


def interpolate(page: Page) -> None:
    files = gr.File(label="Two to four images or latents", type="filepath", file_count="multiple")
    controls = Controls(page, steps=10, each=True)
    both = buttons("Interpolate")

    def work(paths: list[str] | None, *values: Any, job: Job) -> Iterator[str]:
        studio, paths = page.studio, paths or []
        asked = controls.words.conditions(len(paths), *values[3:])
        way = way_of(*values[:3], condition=asked[0] if asked else NOTHING)
        terms = [
            studio.term(p, way, condition=c, stop=job.stop, dither=True) for p, c in zip(paths, asked, strict=True)
        ]
        found = Between(studio, terms, way=way, conditions=[under(t, c) for t, c in zip(terms, asked, strict=True)])
        yield found.html(job.keep(found))

    page.started("interpolate", both, work, inputs=[files, *controls.inputs])


def latent(page: Page) -> None:
    with gr.Row():
        some = gr.File(label="Latents, or images", type="filepath", file_count="multiple")
        others = gr.File(
            label="Others: those of which the direction leads away, or among which are the nearest",
            type="filepath", file_count="multiple", visible=False,
        )  # fmt: skip
    with gr.Row():
        operation = gr.Dropdown([EXAMINE, *OPERATIONS, NEAREST], value=EXAMINE, label="What to do with them")
        weights = gr.Textbox(label="Weights, with commas between", placeholder="1, 0.5", visible=False)
        renorm = gr.Checkbox(label="As strong as they are (renorm)", visible=False)
    controls = Controls(page)
    both = buttons("Compute")

    def asked_for(name: str) -> tuple[Any, ...]:
        return (
            gr.update(visible=name in (*OF_TWO, NEAREST)),
            gr.update(visible=name in ("mix", "add", "sub")),
            gr.update(visible=name in ("mean", "add", "sub")),
        )

    operation.change(
        asked_for, operation, [others, weights, renorm], queue=False, api_visibility="private", show_progress="hidden"
    )

    def work(
        paths: list[str] | None,
        second: list[str] | None,
        name: str,
        numbers: str,
        renormed: bool,
        *values: Any,
        job: Job,
    ) -> Iterator[str]:
        way, condition = controls.read(*values)
        sums = Sums(page.studio, way, condition, job.stop)
        if name == EXAMINE:
            yield sums.examine(paths)
        elif name == NEAREST:
            yield sums.nearest(paths, second)
        else:
            html, made = sums.compute(paths, second, Asked(name, numbers or "", bool(renormed)))
            load = '<div class="loads"><button type="button" data-load="latent.pt">This latent (.pt)</button></div>'
            yield f'<div data-kept="{job.keep(made)}">{html}{load}<p class="told" role="status"></p></div>'

    inputs = [some, others, operation, weights, renorm, *controls.inputs]
    page.started("latent", both, work, inputs=inputs)


def sample(page: Page) -> None:
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        number = gr.Slider(1, MOST, value=16, step=1, label="Images")
        eta = gr.Slider(0, 1, value=0, step=0.1, label="η: 0 is DDIM, 1 is DDPM")
    controls = Controls(page)
    both = buttons("Sample")

    def work(seed: float, number: float, eta: float, *values: Any, job: Job) -> Iterator[str]:
        way, condition = way_of(*values[:3]), controls.words.condition(*values[3:])
        if eta > 0:  # only this solver adds noise on the way
            way = Way("ddim", way.spacing, way.steps)
        yield page.studio.sample(
            int(seed or 0), int(number), Noising(way, float(eta)), condition=condition, stop=job.stop
        )

    page.started("sample", both, work, inputs=[seed, number, eta, *controls.inputs])


def edit(page: Page) -> None:
    image = gr.File(label="Image", type="filepath")
    source, target = Words(page.studio, "source"), Words(page.studio, "target", EDITED)
    way = WayControls()
    keep = gr.Checkbox(True, label="Keep the path: more of the image stays (direct inversion)")
    both = buttons("Edit")
    n = len(source.inputs)

    def work(path: str | None, keeps: bool, *values: Any, job: Job) -> Iterator[str]:
        before, after = source.condition(*values[:n]), target.condition(*values[n : 2 * n])
        yield page.studio.edit(
            path,
            way_of(*values[2 * n :], condition=before),
            source=before,
            target=after,
            keep=bool(keeps),
            stop=job.stop,
        )

    inputs = [image, keep, *source.inputs, *target.inputs, *way.inputs]
    page.started("edit", both, work, inputs=inputs)


@dataclass(frozen=True)
class Tab:
    """What builds a tab, and for which models it is there."""

    build: Callable[[Page], None]
    fits: Callable[[Studio], bool] = lambda studio: True


TABS = {
    "Reconstruct": Tab(reconstruct),
    "Interpolate": Tab(interpolate),
    "Edit": Tab(edit, lambda studio: studio.hears_text or studio.model.about.classes is not None),
    "Latent": Tab(latent),
    "Sample": Tab(sample),
}
