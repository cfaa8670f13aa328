"""Work on a Ray cluster (extra ``ray``): actors that open each model once, fed in order by the run that asks for them.

The run itself stays here: it reads, plans, writes and counts. What goes out is pixels and what comes back is latents, so
workers need no files but the model's. A job whose worker or machine died is given to another; what it gives is the same
bytes, whoever does it, with as many threads.
"""

from __future__ import annotations

import importlib
import io
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

from ddimctl.errors import DDIMError, UsageError
from ddimctl.runs.sent import pack, unpack
from ddimctl.runs.where import Job, Where
from ddimctl.runs.worker import Worker
from ddimctl.version import __version__

K = TypeVar("K")
R = TypeVar("R")

REACH = 10.0  # seconds for an address to answer
HEALTH = 60.0  # seconds for a cluster to say that it is one: its head may have much to do
AT_ONCE = 2  # jobs a worker has: one that it does, one that waits beside it
AHEAD = 2  # further jobs, for each worker, that may be done before those whose turn it is
TRIES = 3  # workers that one job may end
EVERY = 0.5  # seconds between two looks for Ctrl-C


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster. Without an address: the one in RAY_ADDRESS, or one that is started here."""

    address: str | None = None
    workers: int | None = None  # as many as there is room for
    cpus: int = 1  # of each, and its threads
    gpus: float = 0


@contextmanager
def cluster(request: Request) -> Iterator[Where]:
    """A place to work as long as it is open; then its actors are gone, and so is Ray, if it was started for it.

    Raises `UsageError` where Ray is not installed or the cluster has no such room, `DDIMError` where it does not answer.
    """
    with _stdout_is_ours(), _connected(request) as ray:
        pool = _Pool(ray, request)
        try:
            yield pool.do
        finally:
            pool.end()


def _import() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise UsageError("--on ray needs the extra 'ray'", hint="install it with: pip install 'ddimctl[ray]'") from e


@contextmanager
def _connected(request: Request) -> Iterator[Any]:
    """Ray's module, connected."""
    address = request.address or os.environ.get("RAY_ADDRESS") or "local"
    how: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    with ExitStack() as stack:
        if address == "local":
            how |= stack.enter_context(_alone())  # Ray reads its password when it is imported
        ray = _import()
        if address not in ("local", "auto"):
            _reach(address)
        stack.callback(_shutdown, ray)
        try:
            with _handlers_kept(), _stderr_is_ours():
                ray.init(**how)
        except Exception as e:  # a plain one, where a node was slow to start
            hint = "is it a cluster of the same Ray and Python?" if address != "local" else ""
            raise DDIMError(f"cannot use Ray at {address}: {_line(e)}", hint=hint) from e
        yield ray


@contextmanager
def _alone() -> Iterator[dict[str, Any]]:
    """How a Ray of our own is started: without files that stay, and out of reach of others, on this machine or elsewhere.

    Who can talk to a Ray has it run anything: hence the loopback address, and a password.
    """
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in secret}
    folder = tempfile.mkdtemp(prefix="ray-")
    os.environ.update(secret)
    try:
        short = len(folder) < 40  # its sockets' names have to fit into 107 bytes
        where = {"_temp_dir": folder} if short else {}
        yield {"include_dashboard": False, "_node_ip_address": "127.0.0.1", **where}
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray has handlers of signals of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def _stderr_is_ours() -> Iterator[None]:
    """What Ray's core tells while it starts is for nobody; what it tells of dead workers later is told by us."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reach(address: str) -> None:
    """Raises `UsageError` unless it is an address, `DDIMError` unless a cluster answers there: Ray itself waits long."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        hint = "HOST:PORT of a cluster's head, or auto; where there is only ray://, use ray job submit"
        raise UsageError(f"{address!r} is no address of a Ray cluster", hint=hint)
    hint = "ray start --head says which address it has"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except OSError as e:
        raise DDIMError(f"no Ray cluster answers at {address}: {e.strerror or e}", hint=hint) from e
    check = getattr(importlib.import_module("ray._raylet"), "check_health", None)
    try:
        answers = check is None or check(address, timeout=HEALTH, skip_version_check=True)
    except Exception as e:  # whatever its core raises
        raise DDIMError(f"no Ray cluster answers at {address}: {_line(e)}", hint=hint) from e
    if not answers:
        raise DDIMError(f"what answers at {address} is no Ray cluster", hint=hint)


def _line(error: BaseException) -> str:
    """The first line that an error has to say."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


class _Ours:
    """Standard output, on which Ray's threads write nothing."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name.startswith("ray_") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """Ray prints what happened to workers on standard output, whatever it is told; a program reads that."""
    before = sys.stdout
    sys.stdout = _Ours(before)
    try:
        yield
    finally:
        sys.stdout = before


def _shutdown(ray: Any) -> None:
    """Ray's end, without what it has kept to itself until then: that the same was so of several workers."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        ray.shutdown()


@dataclass
class _Task:
    """A job on its way. `key` is its run's."""

    key: Any
    job: bytes | None
    done: bool = False
    value: Any = None
    tries: int = 0


@dataclass
class _Actor:
    """A worker, and what it was given to do: the first is its greeting."""

    handle: Any
    greeting: Any
    greeted: bool = False
    given: dict[Any, _Task] = field(default_factory=dict)


class _Pool:
    """Workers of a cluster."""

    def __init__(self, ray: Any, request: Request):
        self.ray, self.request = ray, request
        room = self.room()
        _check_room(request, room)
        self.actors: list[_Actor] = []
        self.failed = 0  # workers, one after the other, that did not get as far as a greeting
        self.remote = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_restarts=0)(Worker)
        self.wanted = request.workers or room
        for _ in range(self.wanted):
            self.start()

    def room(self) -> int:
        """How many workers the machines that are up can hold together."""
        n, cpus, gpus = 0, self.request.cpus, self.request.gpus
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            n += int(min(has.get("CPU", 0) // cpus, has.get("GPU", 0) // gpus if gpus else sys.maxsize))
        return n

    def start(self) -> None:
        handle = self.remote.remote(self.request.cpus)
        self.actors.append(_Actor(handle, handle.hello.remote()))

    def end(self) -> None:
        for actor in self.actors:
            with suppress(Exception):
                self.ray.kill(actor.handle)

    def do(self, jobs: Iterable[tuple[K, Job[R] | None]]) -> Iterator[tuple[K, R | None]]:
        """As `where.Where`."""
        tasks: deque[_Task] = deque()
        waiting: deque[_Task] = deque()
        source, more, ended = iter(jobs), True, None
        while True:
            while more and len(tasks) < (AT_ONCE + AHEAD) * self.wanted and not (tasks and tasks[0].done):
                try:
                    key, job = next(source)
                except StopIteration:
                    more = False
                    break
                except DDIMError as e:  # what was handed in before it is finished first
                    more, ended = False, e
                    break
                task = _Task(key, None if job is None else pack(job), done=job is None)
                tasks.append(task)
                if not task.done:
                    waiting.append(task)
                    self.give(waiting)
            self.give(waiting)
            while tasks and tasks[0].done:
                first = tasks.popleft()
                if isinstance(first.value, DDIMError):  # those before it are kept, as they are here
                    raise first.value
                yield first.key, first.value
            if tasks and not tasks[0].done:
                self.look(waiting)
            elif not tasks and not more:
                break
        if ended is not None:
            raise ended

    def give(self, waiting: deque[_Task]) -> None:
        """Gives what is waiting to whoever has least to do."""
        while waiting:
            free = [a for a in self.actors if a.greeted and len(a.given) < AT_ONCE]
            if not free:
                return
            actor, task = min(free, key=lambda a: len(a.given)), waiting.popleft()
            actor.given[actor.handle.do.remote(task.job)] = task

    def look(self, waiting: deque[_Task]) -> None:
        """Waits a little for whatever is finished, or has failed."""
        asked = {ref: a for a in self.actors for ref in (*a.given, *(() if a.greeted else (a.greeting,)))}
        ready, _ = self.ray.wait(list(asked), num_returns=1, timeout=EVERY)
        for ref in ready:
            actor = asked[ref]
            if actor not in self.actors:
                continue  # it ended with another job
            try:
                found = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as e:
                raise e.cause from None
            except self.ray.exceptions.RayError as e:
                self.replace(actor, waiting, e)
                continue
            if ref == actor.greeting:
                _check_version(*found)
                actor.greeted, self.failed = True, 0
                continue
            task = actor.given.pop(ref)
            task.value, task.done, task.job = unpack(found), True, None

    def replace(self, actor: _Actor, waiting: deque[_Task], error: Exception) -> None:
        """Another worker for one that died; what it had to do comes first. Raises `DDIMError` where that is hopeless."""
        self.actors.remove(actor)
        if not actor.greeted:
            self.failed += 1
            if (why := _cannot_start(error)) is not None:
                raise why
            if self.failed >= TRIES:
                hint = "the logs of the cluster say more: ray logs"
                raise DDIMError(f"{TRIES} workers did not start: {_line(error)}", hint=hint)
        with suppress(Exception):
            self.ray.kill(actor.handle)
        for n, task in enumerate(reversed(actor.given.values())):
            task.tries += n == len(actor.given) - 1  # it was at the first of them
            if task.tries >= TRIES:
                raise DDIMError(f"a batch ended {TRIES} workers: {_line(error)}", hint="try a smaller --batch-size")
            waiting.appendleft(task)
        if not self.actors and not self.room():
            raise DDIMError("no machine of the cluster is left", hint="the same command again goes on where it stopped")
        self.start()


def _check_room(request: Request, room: int) -> None:
    if room < (request.workers or 1):
        each = f"{request.cpus} processor{'s' * (request.cpus > 1)}" + (
            f" and {request.gpus:g} GPUs" if request.gpus else ""
        )
        asked = f"{request.workers} workers" if request.workers else "a worker"
        raise UsageError(
            f"the cluster has room for {room}, not for {asked} with {each}",
            hint="fewer --workers, --worker-cpus or --worker-gpus, or more machines",
        )


def _check_version(version: str, host: str) -> None:
    if version != __version__:
        raise DDIMError(
            f"the worker on {host} has ddimctl {version}, not {__version__}",
            hint="install the same version on every machine",
        )


def _cannot_start(error: Exception) -> DDIMError | None:
    """Why no worker will ever get as far as a greeting, where that is so."""
    if "No module named 'ddimctl" in str(error) or "from 'ddimctl" in str(error):
        return DDIMError(f"a worker has no ddimctl {__version__}", hint="install the same version on every machine")
    return None
