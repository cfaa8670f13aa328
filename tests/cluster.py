"""A Ray cluster for tests, in a network of its own where that is allowed: Ray takes whatever address a machine has."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import HANGS, Result, isolated

# A node that is gone is missed at once, rather than after a quarter of a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}
LONE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@functools.cache
def lone() -> tuple[str, ...]:
    """What stands before a command that is to have a network of its own, with nobody in it; nothing where that fails."""
    try:
        tried = subprocess.run([*LONE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return ()
    return LONE if tried.returncode == 0 else ()


def until(found: Callable[[], object], what: str) -> None:
    """Waits, however busy the machine is."""
    end = time.monotonic() + HANGS
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def family(pid: int) -> Iterator[tuple[int, str]]:
    """(process, its title) of all that descend from one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    todo = children.get(pid, [])
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        try:
            yield one, Path(f"/proc/{one}/cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue


@dataclass
class Cluster:
    """One machine that stands for several: a head, and further nodes. `shadow` is on the workers' path of modules."""

    home: Path
    shadow: Path
    network: tuple[str, ...] = ()  # stands before a command that is to reach it
    address: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    temporary: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ray-"))  # its sockets' names must be short

    @property
    def env(self) -> dict[str, str]:
        return {**isolated(self.home), **QUICK, "OMP_NUM_THREADS": "1"}

    def node(self, cpus: int) -> subprocess.Popen[bytes]:
        """One more; the first is the head."""
        where = ["--address", self.address]
        if not self.processes:
            self.address = f"127.0.0.1:{free_port()}"
            where = ["--head", "--port", self.address.rpartition(":")[2], "--temp-dir", self.temporary]
            where += ["--include-dashboard=false"]
        self.shadow.mkdir(exist_ok=True)  # before Python looks there
        log = self.home / f"node-{len(self.processes)}.txt"
        command = [*self.network, sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        with log.open("wb") as out:
            env = {**self.env, "PYTHONPATH": str(self.shadow)}
            started = subprocess.Popen(command, cwd=self.home, env=env, stdout=out, stderr=out)
        self.processes.append(started)
        until(lambda: b"Ray runtime started" in log.read_bytes() or started.poll() is not None, "no node")
        assert started.poll() is None, log.read_text()
        return started

    def start(self, *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A command line of ours."""
        command = [*self.network, sys.executable, "-m", "ddimctl", *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, env={**self.env, **(env or {})}, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Result:
        started = self.start(*args, cwd=cwd, env=env)
        out, err = started.communicate(timeout=HANGS)
        return Result(started.returncode, out, err)

    def workers(self) -> list[int]:
        """Processes that are workers of ours."""
        found = [one for node in self.processes for one in family(node.pid)]
        return [pid for pid, title in found if title.startswith("ray::Worker")]

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As a power cut would: the node and all that runs on it."""
        for pid in (node.pid, *(pid for pid, _ in family(node.pid))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def end(self) -> None:
        for node in reversed(self.processes):
            self.kill(node)
        shutil.rmtree(self.temporary, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def holder() -> tuple[subprocess.Popen[bytes] | None, tuple[str, ...]]:
    """A process that holds a network open, and what stands before a command that is to be in it."""
    if not lone():
        return None, ()
    held = subprocess.Popen([*lone(), "sh", "-c", "echo up; exec sleep 1000000"], stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"up\n"
    enter = ("nsenter", "--preserve-credentials", "-U", "-n", "-t", str(held.pid))
    return held, enter
