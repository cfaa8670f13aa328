"""A worker: a process elsewhere that opens each model once and does the jobs that it is sent."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from ddimctl.errors import DDIMError
from ddimctl.version import __version__


class Worker:
    """Does jobs with so many threads, whatever its machine would take: the last digits depend on them."""

    def __init__(self, threads: int):
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before a library reads it
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)
        self._threads = threads
        self._models: dict[Any, Any] = {}

    def hello(self) -> tuple[str, str]:
        """(the version of ddimctl here, this machine's name)."""
        return __version__, socket.gethostname()

    def do(self, job: bytes) -> bytes:
        """What a packed job gives, packed; or the `DDIMError` that it ended with."""
        from ddimctl.runs.sent import pack, unpack

        try:
            return pack(unpack(job, self._opened)(progress=iter))
        except DDIMError as e:
            return pack(e)

    def _opened(self, reference: Any) -> Any:
        from ddimctl.runs import sent

        if reference not in self._models:
            try:
                model = sent.opened(reference)
            except DDIMError as e:
                raise type(e)(f"the worker on {socket.gethostname()}: {e}", hint=e.hint) from e
            if (torch := sys.modules.get("torch")) is not None:
                torch.set_num_threads(self._threads)
            self._models[reference] = model
        return self._models[reference]
