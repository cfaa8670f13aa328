"""Reading ahead: the next batch is read by threads while one is worked on."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.files import refuse_special
from ddimctl.runs.plan import Item

T = TypeVar("T")
U = TypeVar("U")

READERS = 4  # threads that read ahead


@dataclass
class Loaded(Generic[T]):
    """An item with what was read of it, or why that failed."""

    item: Item
    value: T | None = None
    failure: DDIMError | None = None


def read_ahead(
    items: Iterable[Item], load: Callable[[Item], T], size: int, *, readers: int = READERS
) -> Iterator[list[Loaded[T]]]:
    """Batches of loaded items, in order, the next batch being read by threads meanwhile.

    A `FileError` or `UsageError` of `load` belongs to its item; anything else is raised.
    """

    def attempt(item: Item) -> Loaded[T]:
        try:
            if item.source != "-" and item.held is None:
                refuse_special(Path(item.source))  # a thread that waits for a pipe could not be interrupted
            return Loaded(item, load(item))
        except (FileError, UsageError) as e:
            return Loaded(item, failure=e)

    pool = ThreadPoolExecutor(readers)
    ahead: deque[list[Future[Loaded[T]]]] = deque()
    try:
        for batch in batched(items, size):
            ahead.append([pool.submit(attempt, item) for item in batch])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batched(items: Iterable[U], size: int) -> Iterator[list[U]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch
