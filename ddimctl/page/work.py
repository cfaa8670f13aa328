"""What the page asks of the library, as HTML to show: a round trip, an edit, samples; and what was dropped, as latents.

Each piece of work is watched by a `Stop`, which ends it between two steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ddimctl import latent, ode, roundtrip, sampling
from ddimctl.arithmetic import Term
from ddimctl.arrays import float32, on
from ddimctl.dither import Dither, dithers_of
from ddimctl.errors import FileError, UsageError
from ddimctl.files import read_bytes, sha256
from ddimctl.images import levels, reading, sheets
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.keeping import Keep
from ddimctl.model import Condition, Model
from ddimctl.recipe import Recipe, Way
from ddimctl.report import html, runs, svg
from ddimctl.solvers import TOLERANCES, decoder
from ddimctl.translation import Side, translate

T = TypeVar("T")
CURVE = (5, 10, 20, 50)  # S of the error that grows beside a round trip
MOST = 64  # images that are made at once
PATIENCE = 0.1  # seconds between two looks whether what waits is still wanted
REPORTS = ("mse", "psnr", "max_abs", "wrong_pixels")


def said(condition: Condition) -> str:
    """What is asked for, in a few words."""
    words = condition.prompt if condition.class_label is None else f"class {condition.class_label}"
    return words or "nothing said"


class Stopped(Exception):
    """The work was cancelled."""


class Stop:
    """Ends work between two of its steps, from another thread, and tells how many were done of about how many."""

    def __init__(self, told: Callable[[int, int], None] = lambda done, total: None) -> None:
        self._wanted = threading.Event()
        self._told = told
        self._done, self._total = 0, 0

    def now(self) -> None:
        self._wanted.set()

    def check(self) -> None:
        """Raises `Stopped` where the work is no longer wanted."""
        if self._wanted.is_set():
            raise Stopped

    @contextmanager
    def turn(self, lock: Any, waits: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Holds `lock`; `waits` is called where that has to be waited for. Raises `Stopped`, while it is waited for, too."""
        if not lock.acquire(timeout=PATIENCE):
            waits()
            while not lock.acquire(timeout=PATIENCE):
                self.check()
        try:
            self.check()
            yield
        finally:
            lock.release()

    def expect(self, steps: int) -> None:
        """That many steps more will be done."""
        self._total += steps

    def over(self, steps: Iterable[T]) -> Iterator[T]:
        """The steps, as long as they are wanted. Raises `Stopped`."""
        for step in steps:
            self.check()
            self._done += 1
            self._told(self._done, max(self._done, self._total))
            yield step


class Kept(Protocol):
    """What a tab made and keeps, so that more can be asked of it: pictures in between, files to download."""

    def file(self, name: str) -> tuple[bytes, str]:
        """(the content of what is called so, its media type). Raises `DDIMError`, `Stopped`."""


@dataclass(frozen=True)
class Studio:
    """A model, and how images are made to fit it. Whoever computes holds its `turn`."""

    model: Model
    how: Preprocessing = field(default_factory=Preprocessing)
    batch_size: int = MOST
    turn: Any = field(default_factory=threading.Lock)

    @cached_property
    def hears_text(self) -> bool:
        """Whether the model can be asked for something in words."""
        return self.model.hears_text

    def image(self, path: str | None) -> tuple[Any, dict[str, Any]]:
        """(an image as the model takes it, (1, C, H, W), and its record)."""
        if path is None:
            raise UsageError("there is no image", hint="drop one, or choose one")
        pixels, record = reading.read(path, self.model.channels, self.model.size, how=self.how)
        return levels.to_tensor(pixels[None]), {**record, "name": Path(path).name}

    def term(self, path: str, way: Way, *, condition: Condition, stop: Stop, dither: bool = False) -> Term:
        """A latent file of this model, or the latent of an image, with noise of σ(1) if that is wanted (see `dither`)."""
        name = Path(path).name
        if name.lower().endswith(latent.SUFFIXES):
            data = read_bytes(Path(path), latent.MAX_BYTES)
            found = latent.from_bytes(data, name)
            if found.recipe.model != self.model.digest:
                raise FileError(f"{name} was encoded with another model")
            return Term(found, name, sha256(data))
        way.check()
        x0, record = self.image(path)
        path_up = way.path(self.model.schedule)
        marks: list[Dither | None] = dithers_of(x0, 0, path_up) if dither and path_up[0] > 0 else []
        stop.expect(way.steps)
        solution = ode.encode(self.model, x0, way, condition, dithers=marks, progress=stop.over)
        recipe = Recipe.of(self.model, way, condition, dither=0 if marks else None)
        about = latent.provenance(self.model, recipe, solution, records=[record])
        made = latent.Latent(on("cpu", float32(solution.x)), about)
        return Term(made, name, sha256(latent.to_bytes(made, ".pt")))

    def decode(
        self, xT: Any, way: Way, *, of: Recipe, condition: Condition, stop: Stop, dithers: Iterable[Dither | None] = ()
    ) -> Any:
        """Pixels (N, H, W, C) of latents that were encoded that way; by tiles where their recipe says so."""
        import torch

        model = of.in_tiles(self.model)
        solver = decoder(way.solver)
        back = replace(way, solver=solver, tolerance=way.tolerance if solver in TOLERANCES else None)
        stop.expect(way.steps * -(-len(xT) // self.batch_size))
        x = ode.decode(
            model, on(model.device, torch.as_tensor(xT)), back, condition,
            dithers=list(dithers), batch_size=self.batch_size, progress=stop.over,
        ).x  # fmt: skip
        levels.check_finite(x, self.model.name)
        return levels.to_pixels(x)

    def reconstruct(self, path: str | None, way: Way, *, condition: Condition, stop: Stop) -> Iterator[str]:
        """The round trip by that way, then the error against S, which grows."""
        way.check()
        x0, record = self.image(path)
        others = [replace(way, steps=s) for s in CURVE if s != way.steps]
        stop.expect(roundtrip.steps([way, *others], REPORTS))

        def trip(some: Way) -> Any:
            return roundtrip.measure(
                self.model, [x0], [some], reports=REPORTS, condition=condition, keep=1, progress=stop.over
            )[0]

        found = trip(way)
        pixels, gains = sheets.comparison(x0, [found.shown[0][None]])
        columns = ["original", "reconstruction", f"difference\n× {sheets.stated(gains[0])}"]
        shown = html.Pictures("Round trip", pixels, columns, [record["name"]]).table("trip")
        values = [f"{name} {found.total(name):.4g}" for name in found.values]
        begin = f"{shown}<p>{html.safe(', '.join(values))}; {found.evaluations:.4g} evaluations</p>"
        yield begin
        points = [(found.evaluations, found.total("mse"))]
        for other in map(trip, others):
            points.append((other.evaluations, other.total("mse")))
            if sum(y > 0 for _, y in points) > 1:
                line = {f"{way.solver}, {way.spacing or 'by default'}": points}
                yield begin + svg.chart(runs.error_against_evaluations(line))

    def edit(self, path: str | None, way: Way, *, source: Condition, target: Condition, keep: bool, stop: Stop) -> str:
        """An image beside what it is decoded to again under what it is, and under what it shall be."""
        way = replace(way, keep=Keep() if keep else None)
        way.check()
        x0, record = self.image(path)
        sides = [Side(self.model, condition) for condition in (source, target)]
        stop.expect(way.steps * (3 + keep))
        found: list[Any] = []
        translate(sides[0], x0, sides, way=way, progress=stop.over, each=lambda _, x: found.append(on("cpu", x)))
        for x in found:
            levels.check_finite(x, self.model.name)
        pixels, gains = sheets.comparison(x0, found)
        columns = [
            "original", f"back as\n{said(source)}", f"edited to\n{said(target)}",
            f"what changed\n× {sheets.stated(gains[1])}",
        ]  # fmt: skip
        return html.Pictures("Edit", pixels[[0, 1, 3, 4]], columns, [record["name"]]).table("edited")

    def sample(self, seed: int, number: int, how: sampling.Noising, *, condition: Condition, stop: Stop) -> str:
        """The first images of a seed."""
        how.check()
        number = max(1, min(MOST, number))
        stop.expect(how.way.steps * -(-number // self.batch_size))
        x = sampling.sample(
            self.model, number, how, condition, seed=max(0, seed), batch_size=self.batch_size, progress=stop.over
        ).x
        levels.check_finite(x, self.model.name)
        return html.Gallery("", levels.to_pixels(x), [str(i) for i in range(number)]).html()
