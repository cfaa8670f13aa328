"""The processors that an engine may use: how many threads help, and whether they starve.

Threads of a network wait for each other at every layer, spinning. Where there are more of them than processors that are
free, or than the container may use, most of the time is spent waiting for one that is not running: one image took 5 to
36 s that took 3 with a single thread.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
STARVED = 0.3  # of the time that its threads could have run, this much spent in a queue: they wait for each other
ENOUGH = 2.0  # seconds of work before that is said
SAMPLES = 5  # of what runs, some milliseconds apart


def threads() -> int:
    """``OMP_NUM_THREADS``, which torch heeds too, or the processors that are allowed."""
    return asked() or allowed()


def asked() -> int | None:
    """``OMP_NUM_THREADS``, where it is a number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else None


def free_threads() -> int:
    """For what spins while it waits, as torch's threads do: no more than there are processors free at this moment."""
    return asked() or advised(allowed(), os.cpu_count() or 1, busy())


def in_use() -> int:
    """The threads that evaluate a network in this process."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else threads()


def limit_torch() -> int:
    """Has torch use no more threads than there are processors free, and says how many; more than it has now it never gets.

    For a process of our own: a library leaves torch's threads to who called it.
    """
    import torch

    wanted = free_threads()
    if wanted < torch.get_num_threads():
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def advised(at_most: int, processors: int, running: float) -> int:
    """At most so many, of `processors` of which `running` are busy; one at least."""
    return max(1, min(at_most, math.floor(processors - running)))


def allowed() -> int:
    """The processors this process may run on, bounded by its containers' quota."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(there, quota())))


def quota(root: Path = CGROUP, own: Path = OWN) -> float:
    """Processors that the control groups of this process, the outer ones too, allow; infinity where nothing limits them.

    Version 2 says it in ``cpu.max`` ("200000 100000", "max 100000"), version 1 in ``cpu.cfs_quota_us`` (−1 for none).
    """
    least = math.inf
    for folder in _folders(root, own):
        with suppress(OSError, ValueError):
            least = min(least, _share(*(folder / "cpu.max").read_text().split()))
        with suppress(OSError, ValueError):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            least = min(least, _share(*((folder / name).read_text().strip() for name in names)))
    return least


def _share(limit: str, period: str) -> float:
    if limit == "max" or int(limit) <= 0 or int(period) <= 0:
        return math.inf
    return int(limit) / int(period)


def _folders(root: Path, own: Path) -> Sequence[Path]:
    """Of each hierarchy the group's own folder and those above it."""
    found = {root, root / "cpu"}
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / controllers if controllers else root
            inner = Path(path.lstrip("/"))
            found |= {top / part for part in (inner, *inner.parents) if ".." not in part.parts}
    return sorted(found)


def busy(source: Path = Path("/proc/loadavg")) -> float:
    """How many others run at this moment, this thread not among them; 0 where nobody knows.

    Not the average of the last minute: that would hold against a command what the one before it used.
    """
    seen = []
    for _ in range(SAMPLES):
        try:
            seen.append(int(source.read_text().split()[3].split("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return 0.0
        time.sleep(0.002)
    return float(max(0, statistics.median_low(seen)))


@dataclass(frozen=True)
class Times:
    """Of this process's threads together, in seconds: on a processor, and in a queue for one."""

    wall: float
    ran: float
    queued: float

    def since(self, before: Times) -> Times:
        return Times(self.wall - before.wall, self.ran - before.ran, self.queued - before.queued)

    @property
    def starving(self) -> float:
        """The share spent in a queue, 0 to 1."""
        return self.queued / (self.ran + self.queued) if self.queued > 0 else 0.0


def times(tasks: Path = Path("/proc/self/task")) -> Times:
    """Until now. Linux counts what was queued; elsewhere it is 0."""
    ran = queued = 0.0
    for file in tasks.glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):
            fields = file.read_text().split()
            ran, queued = ran + int(fields[0]) / 1e9, queued + int(fields[1]) / 1e9
    return Times(time.monotonic(), ran, queued)


def complaint(spent: Times, used: int) -> str:
    """What to tell a user whose `used` threads starved, and the cure; nothing where they did not."""
    if used < 2 or spent.wall < ENOUGH or spent.starving < STARVED:
        return ""
    share = f"{100 * spent.starving:.0f} %"
    return f"the processors are busy: {used} threads waited {share} of the time; OMP_NUM_THREADS=1 may be faster"
