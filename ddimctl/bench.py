"""How fast a model is evaluated here, and where the time goes. All figures to be compared are of one run.

Times are wall time. GFLOP/s count a multiplication and an addition as two; beside them stands what a plain matrix
multiplication reaches on the same machine a moment before, since the clock rate and other programs change both alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddimctl.errors import DDIMError
from ddimctl.network import DTYPES

if TYPE_CHECKING:
    from ddimctl.arrays import Array
    from ddimctl.model import Condition, Model
    from ddimctl.network import Embedded
    from ddimctl.ode import Progress

SIDE = 1024  # of the matrices
# Run in a fresh process; what it prints are seconds, and bytes at the peak.
START = """
import sys, time
begin = time.perf_counter()
from ddimctl import engines, families, seeds
from ddimctl.model import Condition
imported = time.perf_counter()
import json
from pathlib import Path
asked = json.loads(sys.argv[1])
beside = {name: asked[name] for name in ("config", "schedule", "guess")}
net = families.load(asked["reference"], asked["device"], **beside)
net = net.with_network(engines.make(net.network.module, asked["engine"], asked["precision"]))
eps = net.eps(Condition(**asked["condition"]))
loaded = time.perf_counter()
x = seeds.noise(net.state_shape, asked["batch"], 0).double().to(net.network.module.state_device)
eps(x, 1.0)
first = time.perf_counter()
eps(x, 1.0)
second = time.perf_counter()
status = Path("/proc/self/status")
peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 if status.exists() else None
print(json.dumps([imported - begin, loaded - imported, (first - loaded) - (second - first), peak]))
"""


@dataclass(frozen=True)
class Rate:
    """How fast one engine is at one batch size."""

    engine: str
    precision: str
    batch: int
    evaluations: float  # of a batch, a second
    gflops: float  # floating-point operations a second, in 10⁹
    matmul: float  # the same, of a matrix multiplication just before
    network: float  # share of an encoding's time that is spent in the network

    @property
    def images(self) -> float:
        """Evaluations of single images, a second."""
        return self.evaluations * self.batch


@dataclass(frozen=True)
class Start:
    """A fresh process's way to its first evaluation, in seconds, and its peak memory in bytes (None if not known)."""

    engine: str
    interpreter: float
    imports: float
    loading: float
    first: float  # what the first evaluation takes longer than the second
    peak: int | None


@dataclass(frozen=True)
class Line:
    """Seconds to decode a batch against S: fixed + step · S, by least squares (figure 4 of the paper)."""

    engine: str
    batch: int
    points: list[tuple[int, float]]
    fixed: float
    step: float
    off: float  # the largest distance of a point from the line, relative to the point


def repeated(work: Callable[[], object], seconds: float) -> float:
    """The median time of `work`, called for about so many seconds, at least three times after a first one."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def matmul(model: Model, seconds: float) -> float:
    """GFLOP/s of a matrix multiplication, in the model's precision and on its device, with torch."""
    import torch

    kind = getattr(torch, DTYPES.get(model.network.precision, "float32"))
    a = torch.randn(SIDE, SIDE, device=model.device).to(kind)

    def work() -> None:
        (a @ a)[0, 0].item()

    return float(2 * SIDE**3 / repeated(work, seconds) / 1e9)


def rate(model: Model, condition: Condition, batch: int, *, seconds: float) -> Rate:
    """Measures `model`, by the engine it uses, with so many images at once."""
    from ddimctl import seeds

    network = model.network
    x = seeds.noise(model.state_shape, batch, 0).double().to(network.module.state_device)
    eps = model.eps(condition)
    reached = matmul(model, seconds / 4)
    spent = repeated(lambda: eps(x, 1.0).cpu(), seconds)
    flops = batch * operations(model, condition) / spent / 1e9
    share = network_share(model, condition, batch)
    return Rate(network.engine, network.precision, batch, 1 / spent, flops, reached, share)


def operations(model: Model, condition: Condition) -> int:
    """Of one evaluation of ε for one image: the network's, twice where there is guidance."""
    return model.network.module.flops * (1 if condition.guidance == 1 else 2)


def network_share(model: Model, condition: Condition, batch: int, *, steps: int = 10) -> float:
    """The part of the time of an encoding that the network takes; the rest is the solver's and the scaling.

    Of a model with an autoencoder, from its state on: that is no part of the ODE.
    """
    from ddimctl import ode, seeds
    from ddimctl.model import Pixels
    from ddimctl.recipe import Way

    network, inside = model.network, 0.0

    def timed(x: Array, labels: Sequence[float], embedded: Embedded) -> Array:
        nonlocal inside
        begin = time.perf_counter()
        out = network(x, labels, embedded)
        if network.module.kind == "cuda":  # which answers before it is done
            import torch

            torch.cuda.synchronize()
        inside += time.perf_counter() - begin
        return out

    watched = replace(model, network=replace(network, call=timed), autoencoder=Pixels())
    states = seeds.noise(model.state_shape, batch, 0)
    begin = time.perf_counter()
    ode.encode(watched, states, Way(steps=steps), condition, batch_size=batch).x.cpu()
    return inside / (time.perf_counter() - begin)


def line(model: Model, condition: Condition, batch: int, *, steps: Sequence[int], progress: Progress = iter) -> Line:
    """Decodes a batch in each number of steps, and lays a line through the times."""
    import numpy as np

    from ddimctl import ode, seeds
    from ddimctl.recipe import Way

    xT = seeds.noise(model.state_shape, batch, 0)

    def seconds(s: int) -> float:
        begin = time.perf_counter()
        ode.decode(model, xT, Way(steps=s), condition, batch_size=batch, progress=progress).x.cpu()
        return time.perf_counter() - begin

    seconds(steps[0])  # not measured: the first evaluation compiles, and touches memory
    points = [(s, min(seconds(s) for _ in range(2))) for s in steps]
    x, y = np.array(points).T
    step, fixed = np.polyfit(x, y, 1) if len(points) > 1 else (y[0] / x[0], 0.0)
    off = max(abs(fixed + step * s - t) / t for s, t in points)
    return Line(model.network.engine, batch, points, float(fixed), float(step), float(off))


def start(model: Model, condition: Condition, batch: int) -> Start:
    """Measures a fresh process that opens the same model with the same engine. Raises `DDIMError` if it fails."""
    about, network = model.about, model.network
    asked = {
        "reference": about.reference, "config": about.config, "schedule": about.schedule, "guess": about.guess,
        "device": model.device, "engine": network.engine,
        "precision": network.precision, "condition": asdict(condition), "batch": batch,
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", START, json.dumps(asked)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DDIMError(f"a fresh process failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    imports, loading, first, peak = json.loads(done.stdout.splitlines()[-1])
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=False)
    return Start(network.engine, time.perf_counter() - begin, imports, loading, max(first, 0.0), peak)


def processor() -> str:
    """What the processor calls itself, and how many of it there are."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):  # Linux alone says it there, and nowhere else
        name = Path("/proc/cpuinfo").read_text().split("model name", 1)[1].splitlines()[0].strip("\t: ")
    return f"{name}, {os.cpu_count()} processors"
