"""The measurement of many round trips, wherever it is done: a batch is a job, and what batches came to is put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from ddimctl import roundtrip
from ddimctl.arrays import Array
from ddimctl.model import Condition, Model
from ddimctl.recipe import Way
from ddimctl.roundtrip import RoundTrip
from ddimctl.runs.where import Job, Where, here


def measure_each(
    model: Model,
    parts: Iterable[tuple[Array, Condition]],
    ways: Sequence[Way],
    *,
    reports: Sequence[str] = ("mse",),
    keep: int = 0,
    where: Where = here,
) -> list[RoundTrip]:
    """As `roundtrip.measure_each`."""
    trips = roundtrip.measure_each(model, [], ways, reports=reports)  # what is asked for in vain is refused at once

    def jobs() -> Iterator[tuple[None, Job[list[RoundTrip]]]]:
        left = keep
        for part in parts:
            yield None, partial(roundtrip.measure_each, model, [part], ways, reports=reports, keep=left)
            left = max(0, left - len(part[0]))

    for _, found in where(jobs()):
        for trip, more in zip(trips, found or [], strict=True):
            trip.add(more)
    return trips
