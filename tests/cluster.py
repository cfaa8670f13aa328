"""A Ray cluster for tests, in a network of its own where that is allowed: Ray takes whatever address a machine has."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from running import HANGS, Result, isolated

# Who is slow to answer or to start is not gone, however busy the machine is.
PATIENT = {
    "RAY_health_check_timeout_ms": str(1000 * HANGS),
    "RAY_worker_register_timeout_seconds": str(HANGS),
    "RAY_gcs_server_request_timeout_seconds": str(HANGS),
}
# A node that is gone is missed at once, rather than after a quarter of a minute.
QUICK = {
    **PATIENT,
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# A command of ours that waits, once it has saved so many latents, until a file is there.
WAITS = """
import sys, time
from pathlib import Path
from ddimctl.cli.app import main
from ddimctl.runs import outputs
after, struck, *sys.argv[1:] = sys.argv[1:]
save, made = outputs.save, []
def saving(target, value):
    save(target, value)
    made.append(target)
    while len(made) >= int(after) and not Path(struck).exists():
        time.sleep(0.02)
outputs.save = saving
main()
"""
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


def workers_of(node: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid, title in family(node.pid) if title.startswith("ray::Worker")]


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

    def start(
        self,
        *args: object,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "ddimctl"),
    ) -> subprocess.Popen[bytes]:
        """A command line of ours."""
        command = [*self.network, sys.executable, *program, *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, env={**self.env, **(env or {})}, **pipes)  # type: ignore[call-overload, no-any-return]

    def run(self, *args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Result:
        started = self.start(*args, cwd=cwd, env=env)
        out, err = started.communicate(timeout=HANGS)
        return Result(started.returncode, out, err)

    def workers(self) -> list[int]:
        """Processes that are workers of ours."""
        return [pid for node in self.processes for pid in workers_of(node)]

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


@contextmanager
def up(home: Path, cpus: int) -> Iterator[Cluster]:
    """A cluster of one node in a network of its own."""
    held, network = holder()
    made = Cluster(home, home / "shadow", network)
    try:
        made.node(cpus)
        yield made
    finally:
        made.end()
        if held is not None:
            held.kill()
            held.wait()


# What may happen to a run of `args`, whose latents go `into` a folder. It happens once some are there.


@contextmanager
def begun(
    two: Cluster, args: tuple[object, ...], into: Path, after: int, *, on: subprocess.Popen[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has made so many more latents than were there, and makes no more before it is left; with a worker `on` a
    node. Its workers are at what comes next."""
    there = len([*into.rglob("*.pt")])
    struck = Path(tempfile.mkdtemp(dir=two.home)) / "struck"
    running = two.start(*args, cwd=into.parent, program=("-c", WAITS, str(after), str(struck)))

    def wait(found: Callable[[], object], what: str) -> None:
        until(lambda: running.poll() is not None or found(), what)
        assert running.poll() is None, f"ended before it was struck: {running.communicate()}"

    if on is not None:
        wait(lambda: workers_of(on), "no worker there")
    wait(lambda: len([*into.rglob("*.pt")]) >= there + after, "nothing was made")
    yield running
    struck.touch()


def losing_a_worker(two: Cluster, args: tuple[object, ...], into: Path, after: int = 1) -> Result:
    """kill −9 of an actor."""
    with begun(two, args, into, after) as running:
        os.kill(two.workers()[0], signal.SIGKILL)
    out, err = running.communicate()
    return Result(running.returncode, out, err)


def losing_a_machine(two: Cluster, args: tuple[object, ...], into: Path, after: int = 1) -> Result:
    """kill −9 of the second of two nodes, and of all that runs on it: what it was at is done by the first."""
    other = two.node(1)
    with begun(two, args, into, after, on=other) as running:
        two.kill(other)
        two.processes.remove(other)
    out, err = running.communicate()
    return Result(running.returncode, out, err)


def stopped(two: Cluster, args: tuple[object, ...], into: Path, after: int = 1, *, by: int = signal.SIGKILL) -> Result:
    """The run that was sent a signal. No worker outlives it."""
    with begun(two, args, into, after) as running:
        os.kill(running.pid, by)  # entering a network, `nsenter` becomes the command: its process is ours
        out, err = running.communicate()
    until(lambda: not two.workers(), "workers stayed")
    return Result(running.returncode, out, err)


def losing_the_run(two: Cluster, args: tuple[object, ...], into: Path, after: int = 1) -> Result:
    """kill −9 of the command itself, then the same command again."""
    first = stopped(two, args, into, after)
    assert first.code == -signal.SIGKILL, first
    return two.run(*args, cwd=into.parent)


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def difference(found: Result, into: Path, plain: Path) -> str:
    """What a run lost, did twice or made otherwise than a plain one that nobody disturbed; "" if nothing.

    What was made just before a command is killed is not in its manifest yet: here as there, the file says it itself.
    """
    if found.code:
        return f"exit code {found.code}: {found.err[-300:]}"
    made, wanted = outputs(into), outputs(plain)
    said, due = (files.pop("manifest.jsonl").splitlines() for files in (made, wanted))
    told = [f"{into.name}/{name}" for name in made if name.endswith(".pt")]
    if sorted(found.out.splitlines()) != sorted(told):
        return f"told of {len(found.out.splitlines())} latents, made {len(told)}"
    lost, other = wanted.keys() - made.keys(), {*said} - {*due}
    wrong = [name for name in made if made[name] != wanted.get(name)]
    twice = [
        name for name, n in Counter(entry.get("name") for entry in map(json.loads, said)).items() if name and n > 1
    ]
    ills = {"lost": sorted(lost), "not the same": wrong, "twice": twice, "of the manifest": sorted(other)}
    return "; ".join(f"{what}: {names[:3]}" for what, names in ills.items() if names)
