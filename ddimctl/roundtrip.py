"""The measurement of a round trip (section 5.4, table 2): encode, decode with the same way, compare.

Commands, model cards, benchmarks and pages all ask `measure`. Images come in batches, so that a folder of any size can be
measured; all ways see the same batch before the next one is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ddimctl import ode
from ddimctl.arrays import Array, float32, float64, on
from ddimctl.errors import choose
from ddimctl.images.levels import check_finite
from ddimctl.implicit import rms
from ddimctl.metrics import METRICS
from ddimctl.model import NOTHING, Condition, Model, Pixels
from ddimctl.ode import Progress
from ddimctl.recipe import Way
from ddimctl.solvers import Failure

OF_LATENTS = ("norm", "latent_error", "xT_error")  # reports beside the metrics of images
# Where an autoencoder is: what it loses by itself, as mse, and what the ODE does in its space, relative to the states.
APART = ("autoencoder_mse", "state_error")
REPORTS = (*METRICS, *OF_LATENTS, *APART)
ON_ARRAYS = ("mse", "mse_8bit", "psnr", "max_abs", "wrong_pixels", *APART)  # reports that need no torch
REFERENCE = Way("adaptive", tolerance=1e-5)  # what latent_error compares with
# How a report's value for each image becomes one number: the mean, but for these.
COMBINE: dict[str, Callable[[list[float]], float]] = {"wrong_pixels": sum, "max_abs": max}


@dataclass
class RoundTrip:
    """A way to encode and decode, and what it came to: an entry an image."""

    way: Way  # with its levels
    values: dict[str, list[float]] = field(default_factory=dict)  # by report
    encode_evaluations: list[int] = field(default_factory=list)
    decode_evaluations: list[int] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    unconverged: int = 0
    failures: list[Failure] = field(default_factory=list)  # of those, where and why
    seconds: float = 0.0
    shown: list[Array] = field(default_factory=list)  # the first few reconstructions
    of: str = ""  # which model's it is, where several are compared

    @property
    def said(self) -> str:
        """Whose, and which way: what tells it from the others."""
        return ", ".join(filter(None, (self.of, self.way.solver, self.way.spacing)))

    @property
    def evaluations(self) -> float:
        """Of the network for an image, both ways."""
        return (sum(self.encode_evaluations) + sum(self.decode_evaluations)) / len(self.encode_evaluations)

    def add(self, more: RoundTrip) -> None:
        """What the same way came to for further images."""
        for report, values in more.values.items():
            self.values.setdefault(report, []).extend(values)
        self.encode_evaluations += more.encode_evaluations
        self.decode_evaluations += more.decode_evaluations
        self.residuals += more.residuals
        self.unconverged += more.unconverged
        self.failures += more.failures
        self.seconds += more.seconds
        self.shown += more.shown

    def total(self, report: str) -> float:
        """A report's values as one number."""
        values = self.values[report]
        return float(COMBINE[report](values)) if report in COMBINE else sum(values) / len(values)


def measure(
    model: Model,
    batches: Iterable[Array],
    ways: Sequence[Way],
    *,
    reports: Sequence[str] = ("mse",),
    condition: Condition = NOTHING,
    keep: int = 0,
    progress: Progress = iter,
) -> list[RoundTrip]:
    """What each of `ways` makes of images (B, C, H, W) in [−1, 1], which come in batches.

    `reports` are of `REPORTS`; the first `keep` reconstructions are kept. Raises `UsageError` for an unknown report or a
    way that the model's schedule has not, `DDIMError` where the model gives values that are not finite.
    """
    parts = ((x0, condition) for x0 in batches)
    return measure_each(model, parts, ways, reports=reports, keep=keep, progress=progress)


def measure_each(
    model: Model,
    parts: Iterable[tuple[Array, Condition]],
    ways: Sequence[Way],
    *,
    reports: Sequence[str] = ("mse",),
    keep: int = 0,
    progress: Progress = iter,
) -> list[RoundTrip]:
    """As `measure`, where each batch has a condition of its own."""
    for name in reports:
        choose(dict.fromkeys(REPORTS), name, "report")
    trips = [RoundTrip(way.on(model.schedule)) for way in ways]
    for x0, condition in parts:
        z = model.autoencoder.encode(x0)
        alone = model.autoencoder.decode(z) if "autoencoder_mse" in reports else None
        part = Part(x0, z, alone, condition)
        for trip in trips:
            ends = ends_of(trip.way)
            if "latent_error" in reports and ends not in part.references:
                exactly = REFERENCE.along(ends)
                part.references[ends] = ode.encode(_of_states(model), z, exactly, condition, batch_size=len(x0)).x
            _measure(trip, model, part, reports=reports, keep=keep, progress=progress)
    return trips


@dataclass(frozen=True)
class Part:
    """A batch of images, and what all ways have to do with."""

    images: Array
    z: Array  # what the autoencoder makes of them
    alone: Array | None  # what it makes of that, without the ODE, if that is asked for
    condition: Condition = NOTHING
    references: dict[tuple[float, ...], Array] = field(default_factory=dict)  # x_T by the adaptive solver, by the ends


def ends_of(way: Way) -> tuple[float, ...]:
    """The lowest and the highest level: all of a way that its x_T depends on, were it exact."""
    levels = way.levels or ()
    return levels[:1] + levels[-1:]


def _of_states(model: Model) -> Model:
    """The model between states and x_T."""
    return model if model.autoencoder.digest is None else replace(model, autoencoder=Pixels())


def steps(ways: Sequence[Way], reports: Sequence[str]) -> int:
    """How many steps `measure` takes for a batch, so that a progress bar knows."""
    return sum(
        ((3 if "xT_error" in reports else 2) + (way.keep is not None)) * way.steps for way in ways
    )  # up, down, and up again


def _measure(
    trip: RoundTrip,
    model: Model,
    part: Part,
    *,
    reports: Sequence[str],
    keep: int,
    progress: Progress,
) -> None:
    """Encodes and decodes one batch, and adds what it comes to."""
    n, states, condition = len(part.images), _of_states(model), part.condition

    def up(of: Model, x: Array) -> ode.Solution:
        return ode.encode(of, x, trip.way, condition, batch_size=n, progress=progress, check=False)

    begin = time.perf_counter()
    encoded = up(states, part.z)
    xT = float32(encoded.x)
    decoded = ode.decode(
        states, xT, trip.way, condition, corrections=encoded.corrections, batch_size=n, progress=progress
    )
    images = model.autoencoder.decode(decoded.x)
    check_finite(images, model.name)
    trip.seconds += time.perf_counter() - begin
    trip.encode_evaluations += encoded.evaluations
    trip.decode_evaluations += decoded.evaluations
    trip.residuals += encoded.residuals or []
    trip.unconverged += len(encoded.unconverged)
    trip.failures += [f for f in encoded.failures or [] if f is not None]
    trip.shown += list(images[: max(0, keep - len(trip.shown))])
    for name in reports:
        if name == "norm":
            found = rms(float64(xT))
        elif name == "latent_error":
            found = rms(float64(xT - part.references[ends_of(trip.way)]))
        elif name == "xT_error":
            found = rms(float64(up(model, images).x - xT))
        elif name == "state_error":
            found = ode.relative(on("cpu", decoded.x), float64(on("cpu", part.z)))
        elif name == "autoencoder_mse":
            found = METRICS["mse"](part.images, on("cpu", part.alone)).tolist()
        else:
            found = METRICS[name](part.images, on("cpu", images)).tolist()
        trip.values.setdefault(name, []).extend(found)
