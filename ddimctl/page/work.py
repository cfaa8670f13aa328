"""What the page asks of the library, as HTML to show: a round trip, what lies between images, a latent, samples.

Each piece of work is watched by a `Stop`, which ends it between two steps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ddimctl import health, latent, ode, roundtrip, sampling
from ddimctl.arrays import float32, on
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import animation, levels, reading, sheets, writing
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Recipe, Way
from ddimctl.report import html, latents, runs, svg

T = TypeVar("T")
CURVE = (5, 10, 20, 50)  # S of the error that grows beside a round trip
FRAMES = 33  # between each image and the next
FPS = 15.0
MOST = 64  # samples


class Stopped(Exception):
    """The work was cancelled."""


class Stop:
    """Ends work between two of its steps, from another thread."""

    def __init__(self) -> None:
        self._wanted = threading.Event()

    def now(self) -> None:
        self._wanted.set()

    def over(self, steps: Iterable[T]) -> Iterator[T]:
        """The steps, as long as they are wanted. Raises `Stopped`."""
        for step in steps:
            if self._wanted.is_set():
                raise Stopped
            yield step


@dataclass(frozen=True)
class Between:
    """Frames between images: their pixels (N, H, W, C), and the latents that they are decoded from."""

    pixels: Any
    xT: Any
    model: Model
    way: Way
    names: Sequence[str]

    def html(self) -> str:
        """All frames, of which the page shows one."""
        return "".join(
            f'<div class="frame"{" hidden" if i else ""}>{html.picture(p, f"frame {i} of {len(self.pixels) - 1}")}</div>'
            for i, p in enumerate(self.pixels)
        )

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes what can be downloaded: a film, a strip, the latents."""
        factor = sheets.factor_to_see(self.pixels.shape[1:3], 224)
        large = sheets.enlarge(self.pixels, factor)
        files = {kind: folder / f"between.{kind}" for kind in ("gif", "png", "pt")}
        animation.save_frames(files["gif"], large, FPS)
        few = self.pixels[:: max(1, len(self.pixels) // 8)]
        writing.save_image(files["png"], sheets.sheet(sheets.enlarge(few, factor), len(few)))
        solution = ode.Solution(self.xT, [0] * len(self.xT), None, self.way.used_tolerance)
        records = [{"name": f"frame {i} between {' and '.join(self.names)}"} for i in range(len(self.xT))]
        about = latent.provenance(self.model, Recipe.of(self.model, self.way, NOTHING), solution, records=records)
        latent.save(files["pt"], latent.Latent(float32(self.xT), about))
        return files


@dataclass(frozen=True)
class Studio:
    """A model, and how images are made to fit it."""

    model: Model
    how: Preprocessing = field(default_factory=Preprocessing)
    batch_size: int = 64

    @property
    def hears_text(self) -> bool:
        """Whether the model can be asked for something in words."""
        try:
            self.model.embed(Condition(prompt="a"))
        except DDIMError:
            return False
        return True

    def image(self, path: str | None) -> Any:
        """An image as the model takes it, (1, C, H, W)."""
        if path is None:
            raise UsageError("there is no image", hint="drop one, or choose one")
        return levels.to_tensor(reading.read(path, self.model.channels, self.model.size, how=self.how)[0][None])

    def reconstruct(self, path: str | None, way: Way, *, condition: Condition, stop: Stop) -> Iterator[str]:
        """The round trip by that way, then the error against S, which grows."""
        way.check()
        x0 = self.image(path)

        def trip(some: Way) -> Any:
            reports = ("mse", "psnr", "max_abs", "wrong_pixels")
            return roundtrip.measure(
                self.model, [x0], [some], reports=reports, condition=condition, keep=1, progress=stop.over
            )[0]

        found = trip(way)
        pixels, gains = sheets.comparison(x0, [found.shown[0][None]])
        columns = ["original", "reconstruction", f"difference\n× {sheets.stated(gains[0])}"]
        shown = html.Pictures("Round trip", pixels, columns, [Path(str(path)).name], "").table("trip")
        values = [f"{name} {found.total(name):.4g}" for name in found.values]
        begin = f"{shown}<p>{html.safe(', '.join(values))}; {found.evaluations:.4g} evaluations</p>"
        yield begin
        points = [(found.evaluations, found.total("mse"))]
        for steps in CURVE:
            if steps == way.steps:
                continue
            other = trip(Way(way.solver, way.spacing, steps, way.tolerance))
            points.append((other.evaluations, other.total("mse")))
            if sum(y > 0 for _, y in points) > 1:
                line = {f"{way.solver}, {way.spacing}": points}
                yield begin + svg.chart(runs.error_against_evaluations(line))

    def latent_of(self, path: str, way: Way, *, condition: Condition, stop: Stop) -> Any:
        """x_T (1, C, H, W): of a latent file of this model, or of an image, which is encoded."""
        if Path(path).suffix.lower() in latent.SUFFIXES:
            found = latent.load(Path(path))
            if found.recipe.model != self.model.digest:
                raise FileError(f"{Path(path).name} was encoded with another model")
            return on(self.model.device, found.xT[:1])
        solution = ode.encode(self.model, self.image(path), way, condition, progress=stop.over)
        return float32(solution.x)

    def between(self, paths: Sequence[str] | None, way: Way, *, condition: Condition, stop: Stop) -> Between:
        """Slerps through the latents of two to four images or latent files, decoded."""
        from ddimctl.interpolate import keyframes

        if not paths or not 2 <= len(paths) <= 4:
            raise UsageError(f"two to four images or latents, not {len(paths or [])}", hint="drop all of them at once")
        way.check()
        keys = [self.latent_of(p, way, condition=condition, stop=stop)[0] for p in paths]
        xT = keyframes(keys, FRAMES + (FRAMES - 1) * (len(keys) - 2))
        images = ode.decode(self.model, xT, way, condition, batch_size=self.batch_size, progress=stop.over).x
        levels.check_finite(images, self.model.name)
        names = [Path(p).name for p in paths]
        return Between(levels.to_pixels(images), on("cpu", xT), self.model, way, names)

    def health(self, path: str | None, way: Way, *, condition: Condition, stop: Stop) -> str:
        """What x_T looks like, and how much it resembles noise."""
        if path is None:
            raise UsageError("there is no latent and no image", hint="drop one, or choose one")
        xT = on("cpu", self.latent_of(path, way, condition=condition, stop=stop))
        (portrait,) = latents.portraits(xT, [Path(path).name], health.examine(xT))
        channels = "".join(html.picture(c[..., None], f"channel {i}") for i, c in enumerate(portrait.channels))
        charts = html.Charts(
            "", [f'<div class="frames">{channels}</div>', *map(svg.chart, portrait.charts)], portrait.words
        )
        return charts.html()

    def sample(self, seed: int, number: int, how: sampling.Noising, *, condition: Condition, stop: Stop) -> str:
        """The first images of a seed."""
        how.check()
        number = max(1, min(MOST, number))
        x = sampling.sample(
            self.model, number, how, condition, seed=max(0, seed), batch_size=self.batch_size, progress=stop.over
        ).x
        levels.check_finite(x, self.model.name)
        return html.Gallery("", levels.to_pixels(x), [str(i) for i in range(number)]).html()
