"""Where the work is done: here, or on workers of a cluster (`runs.ray`). What runs, run after run, does not know which.

A run hands in jobs in their order, lazily, each under a key of its own choice; it gets each key back with what its job
gave, in the same order. What has nothing to compute goes through as None, so that it keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ddimctl.ode import Progress

K = TypeVar("K")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[R_co]):
    """Work that is whole in itself, such as ``partial(work.encode, pixels, encoding)``: a value that can be sent."""

    def __call__(self, *, progress: Progress) -> R_co: ...


class Where(Protocol):
    """A place to work. It may take jobs before it gives back what those before them came to."""

    def __call__(self, jobs: Iterable[tuple[K, Job[R] | None]]) -> Iterator[tuple[K, R | None]]: ...


def counted(where: Where, tick: Callable[[], object]) -> Where:
    """`where`, with a `tick` for all that comes back."""

    def counting(jobs: Iterable[tuple[K, Job[R] | None]]) -> Iterator[tuple[K, R | None]]:
        for both in where(jobs):
            tick()
            yield both

    return counting


def here(jobs: Iterable[tuple[K, Job[R] | None]], *, progress: Progress = iter) -> Iterator[tuple[K, R | None]]:
    """In this process: a job is done before the next is asked for."""
    for key, job in jobs:
        yield key, None if job is None else job(progress=progress)
