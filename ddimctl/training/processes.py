"""Several processes that train one model: those that ``torchrun`` started, and what they tell each other.

torchrun says in ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` which of how many a process is. Each has an equal share of every
batch, and torch's `DistributedDataParallel` takes the mean of their gradients. What else they have to agree on is said here:
that they do the same, what the loss is, whether one was told to stop. The first of them alone writes and speaks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ddimctl.engines import pytorch
from ddimctl.errors import FAILED, DDIMError, UsageError
from ddimctl.files import sha256

T = TypeVar("T")
PATIENCE = timedelta(hours=24)  # the others wait where the first measures, writes, or reads the images for all
SAID = 2048  # bytes of what a process can tell the others at once


@dataclass(frozen=True)
class Group:
    """Which of how many processes this one is. The processes of a group call its methods in step."""

    rank: int = 0
    size: int = 1
    local: int = 0  # which of those on this machine
    here: int = 1  # how many of them there are
    modules: list[nn.parallel.DistributedDataParallel] = field(default_factory=list, compare=False, repr=False)

    def device(self, asked: str) -> str:
        """The device of this process, of those on its machine. Raises `UsageError` where there is none for each."""
        if self.size == 1:
            return pytorch.device(asked)
        if ":" in asked:
            raise UsageError(f"--device {asked} is one device, for {self.size} processes", hint="leave the number away")
        found = pytorch.device("cpu" if asked == "auto" and not torch.cuda.is_available() else asked)
        if found.startswith("cuda"):
            if self.here > (there := torch.cuda.device_count()):
                hint = f"--nproc-per-node {there}, or --device cpu"
                raise UsageError(f"{self.here} processes, and {there} GPUs on this machine", hint=hint)
            torch.cuda.set_device(self.local)
            return f"cuda:{self.local}"
        if found != "cpu":
            raise UsageError(f"{found} is one device, for {self.size} processes", hint="--device cpu, or one process")
        return found

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Meets the others, and parts from them in the end. Raises `DDIMError` if they are not to be reached.

        What was `shared` computes no more then: as long as it held the group, its threads would live on, and one that is not
        done when Python ends brings the process down.
        """
        if self.size == 1:
            yield
            return
        # What is told goes from processor to processor, gradients from device to device.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        try:
            dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        except (RuntimeError, ValueError) as e:
            raise DDIMError(f"cannot meet the other processes: {_first_line(e)}", hint=START) from e
        try:
            yield
        finally:
            for module in self.modules:
                _let_go(module)
            self.modules.clear()
            dist.destroy_process_group()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside in one process fails in all, with the words of the first that it failed in."""
        failure: DDIMError | None = None
        try:
            yield
        except DDIMError as e:
            failure = e
        if self.size > 1:
            told = self.tell(json.dumps([failure.exit_code, str(failure), failure.hint]) if failure else "")
            if failure is None and (where := next((i for i, text in enumerate(told) if text), None)) is not None:
                failure = _failure(told[where], f"process {where}: ")
        if failure is not None:
            self.ending()
            raise failure

    def ending(self) -> None:
        """All know that they are to end: torchrun ends the others when one is gone, which none of them is to heed now."""
        if self.size > 1:
            with contextlib.suppress(ValueError):  # in another thread signals are not its own
                for s in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(s, signal.SIG_IGN)
            with contextlib.suppress(DDIMError):
                self.tell("")

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` makes: first in one process of each machine, so that the others find what it leaves in the cache."""
        made: list[T] = []
        for turn in (self.local == 0, self.local > 0):
            with self.together():
                if turn:
                    made.append(work())
        return made[0]

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raises `UsageError` where a process has anything but what the first has."""
        if self.size == 1:
            return
        told = [json.loads(text) for text in self.tell(json.dumps({k: sha256(v.encode()) for k, v in facts.items()}))]
        for i, theirs in enumerate(told):
            for name in facts:
                if theirs.get(name) != told[0].get(name):
                    self.ending()
                    hint = "all machines need the same package, options, images and folder of the model"
                    raise UsageError(f"process {i} differs from process 0 in its {name}", hint=hint)

    def tell(self, text: str) -> list[str]:
        """What each process tells, of which `SAID` bytes count."""
        data = text.encode()[:SAID]
        mine = torch.zeros(SAID, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        every = [torch.zeros_like(mine) for _ in range(self.size)]
        with self.connected():
            dist.all_gather(every, mine)
        return [bytes(t.numpy()).rstrip(b"\0").decode(errors="replace") for t in every]

    def settle(self, loss: float, stop: int) -> tuple[float, int]:
        """The mean of the processes' losses, and the highest number of a signal that one of them got."""
        if self.size == 1:
            return loss, stop
        mine = torch.tensor([loss, stop], dtype=torch.float64)
        every = [torch.zeros_like(mine) for _ in range(self.size)]
        with self.connected():
            dist.all_gather(every, mine)
        both = torch.stack(every)
        return float(both[:, 0].mean()), int(both[:, 1].max())

    def share(self, n: int, parts: int) -> list[slice]:
        """Which of the n rows of a batch are this process', in so many equal parts."""
        size = n // (self.size * parts)
        begin = self.rank * size * parts
        return [slice(begin + i * size, begin + (i + 1) * size) for i in range(parts)]

    def check(self, n: int, parts: int) -> None:
        """Raises `UsageError` where a batch of n has no equal parts."""
        if n % (self.size * parts):
            of = [f"{self.size} processes"] * (self.size > 1) + [f"--accumulate {parts}"] * (parts > 1)
            raise UsageError(f"a batch of {n} is not to be divided by {' and '.join(of)}", hint="see --batch-size")

    def shared(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are the mean over the processes; what it is called with stays where it is."""
        if self.size == 1:
            return module
        with self.connected():
            self.modules.append(nn.parallel.DistributedDataParallel(module, broadcast_buffers=False))
        return self.modules[-1]

    def alone(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """While gradients are added up: the others are not asked for theirs yet."""
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Turns what torch raises where another process is gone into one line."""
        try:
            yield
        except RuntimeError as e:
            if self.size == 1 or not any(word in str(e).lower() for word in LOST):
                raise
            hint = "what it said stands above; --resume continues from the last checkpoint"
            raise DDIMError("another process of this run has ended", hint=hint) from e


START = "torchrun --nproc-per-node N -m ddimctl train …"
LOST = ("gloo", "nccl", "connection", "peer", "socket")  # what torch's words for that have in common
ALONE = Group()


def asked() -> Group:
    """The group that this process was started in. Raises `UsageError` where the environment makes no sense."""
    if (size := _number("WORLD_SIZE", 1)) <= 1:  # whatever else a shell has in its environment
        return ALONE
    rank = _number("RANK", 0)
    local, here = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    if rank >= size or not dist.is_available():
        said = f"RANK is {rank} of {size}" if rank >= size else "this PyTorch knows no other processes"
        raise UsageError(said, hint=START)
    return Group(rank, size, local, here)


def _let_go(module: nn.parallel.DistributedDataParallel) -> None:
    """Drops what a module holds of its group, as it does itself where it is copied."""
    for name in ("process_group", "reducer", "logger"):
        module.__dict__.pop(name, None)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}, which is no number", hint=START)
    return int(text)


def _failure(text: str, where: str) -> DDIMError:
    try:
        code, message, hint = json.loads(text)
    except ValueError:  # cut off
        code, message, hint = FAILED, text, ""
    failure = DDIMError(f"{where}{message}", hint)
    failure.exit_code = code
    return failure


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
