"""Where the time of one image goes, and how near that is to the machine's limits: python benchmarks/latency.py [--quick].

Whole processes, `ddimctl encode` of one image, that are watched from within: start-up, the network, what the interpreter
does between its evaluations, and the rest. Then evaluations of batches of 1 and more, beside matrix multiplications of the
very sizes that the network's layers are, and beside reading its weights from memory once. All are processor seconds of one
thread, in turn within one run and the median of some, so that what the machine does besides weighs on none of the ratios.
The part of docs/performance.md between the markers is replaced, and its drawing. Under three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: processor seconds are then those of the work

import torch
from pages import put, table

from ddimctl import bench, engines, plots
from ddimctl.charts import MUTED, Axis, Chart, Series
from ddimctl.families import load
from ddimctl.model import Model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
ENGINES = ("torch", "openvino")
READ = 1 << 26  # numbers of the array whose reading says how fast memory is: far more than any cache holds
PARTS = ("interpreter", "imports, loading, the image", "first evaluation", "network", "between evaluations", "after")

# A `ddimctl encode` that says where its processor seconds went. The first evaluation prepares, and is told apart.
CHILD = """
import sys, time
marks = {"interpreter": time.process_time()}
from ddimctl import ode
from ddimctl.network import Network
asked, encode, spent = Network.__call__, ode.encode, []

def timed(self, *given):
    begin = time.process_time()
    out = asked(self, *given)
    spent.append(time.process_time() - begin)
    return out

def watched(*given, **named):
    marks["begin"] = time.process_time()
    out = encode(*given, **named)
    marks["end"] = time.process_time()
    return out

Network.__call__, ode.encode = timed, watched
from ddimctl.cli.app import main
try:
    code = main()
except SystemExit as e:
    code = e.code
assert not code, code
import json, statistics
usual = statistics.median(spent)
print(json.dumps([
    marks["interpreter"], marks["begin"] - marks["interpreter"], spent[0] - usual,
    sum(spent[1:]) + usual,
    marks["end"] - marks["begin"] - sum(spent), time.process_time() - marks["end"],
]), file=sys.stderr)
"""


def encoded(engine: str, steps: int, env: dict[str, str], folder: Path) -> list[float]:
    """Processor seconds of the parts of one encode."""
    image = ROOT / "models" / "fashion-mnist" / "held-out" / "000.png"
    command = [sys.executable, "-c", CHILD, "encode", str(image), "-o", str(folder / "x.pt"), "--force", "-q",
               "--engine", engine, "--steps", str(steps), "--spacing", "karras"]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"encode failed:\n{done.stderr}")
    found: list[float] = json.loads(done.stderr.splitlines()[-1])
    return found


def spent(work: Callable[[], object], least: float) -> float:
    """Processor seconds of a call, its mean over at least so many."""
    begin, n = time.process_time(), 0
    while n == 0 or time.process_time() - begin < least:
        work()
        n += 1
    return (time.process_time() - begin) / n


class Products(torch.overrides.TorchFunctionMode):
    """Notes which matrix multiplications convolutions and linear layers are, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: Counter[tuple[int, int, int]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, torch.nn.functional.linear):
            w = args[1]
            self.sizes[(out.numel() // w.shape[0], w[0].numel(), w.shape[0])] += 1
        return out


def products(model: Model, batch: int) -> Counter[tuple[int, int, int]]:
    """(rows, inner, columns) of the matrix multiplications that an evaluation of such a batch is, and how often."""
    with Products() as seen:
        model.eps()(torch.zeros(batch, *model.state_shape, dtype=torch.float64), 1.0)
    return seen.sizes


def multiplied(sizes: Counter[tuple[int, int, int]], least: float) -> float:
    """Processor seconds of all these, each with matrices of its own."""
    total = 0.0
    for (m, k, n), times in sizes.items():
        a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        torch.mm(a, b, out=out)
        total += times * spent(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), least / len(sizes))  # type: ignore[misc]
    return total


def limits(model: Model, nets: Sequence[Model], batches: Sequence[int], *, rounds: int, least: float) -> dict[str, Any]:
    """Milliseconds an image, by what and batch size: the engines, and what nothing could be faster than."""
    big, memory = torch.randn(bench.SIDE, bench.SIDE), torch.ones(READ)
    weights = 4 * model.network.module.facts.parameters
    found: dict[str, dict[int, list[float]]] = {}
    for batch in batches:  # what is made for a size is made now
        for net in nets:
            net.eps()(torch.zeros(batch, *model.state_shape, dtype=torch.float64), 1.0)
    for _ in range(rounds):
        for batch in batches:
            x = torch.randn(batch, *model.state_shape, dtype=torch.float64)
            rows = {net.network.engine: spent(lambda net=net, x=x: net.eps()(x, 1.0), least) for net in nets}
            rows["its multiplications"] = multiplied(products(model, batch), least)
            rate = 2 * bench.SIDE**3 / spent(lambda: big @ big, least)
            rows["as one large multiplication"] = batch * model.network.module.flops / rate
            rows["its weights read once"] = weights * spent(memory.sum, least) / (4 * READ)
            for what, seconds in rows.items():
                found.setdefault(what, {}).setdefault(batch, []).append(1e3 * seconds / batch)
    return {what: {b: statistics.median(v) for b, v in line.items()} for what, line in found.items()}


def of_a_process(found: dict[tuple[str, int], list[float]], engine: str) -> Chart:
    """Processor seconds of an encode against S, one part above the other."""
    steps = sorted(s for e, s in found if e == engine)
    heights = {s: [sum(found[engine, s][: k + 1]) for k in range(len(PARTS))] for s in steps}
    shown = [(1, "start-up"), (2, "first evaluation"), (3, "the network"), (4, "between its evaluations")]
    series = [Series([(s, heights[s][k]) for s in steps], label, i, "dotted") for i, (k, label) in enumerate(shown)]
    top = 1.08 * max(h[-1] for h in heights.values())
    return Chart(f"One image, {engine}", Axis("steps S", 0, 1.04 * steps[-1], ticks=steps),
                 Axis("processor seconds, summed up", 0, top), series)  # fmt: skip


def of_evaluations(lines: dict[str, dict[int, float]]) -> Chart:
    """Milliseconds an image against the batch size."""
    batches = sorted(next(iter(lines.values())))
    known = [v for line in lines.values() for v in line.values()]
    series = []
    for i, (what, line) in enumerate(lines.items()):
        points = [(b, line[b]) for b in batches]
        series.append(Series(points, what, i, "dotted") if what in ENGINES else Series(points, what, MUTED, "dashed"))
    return Chart("An evaluation, beside the limits", Axis("batch size", 0.9, 1.1 * batches[-1], True, batches),
                 Axis("milliseconds an image, one thread", min(known) / 1.5, 1.5 * max(known), True), series)  # fmt: skip


def page(found: dict[tuple[str, int], list[float]], lines: dict[str, dict[int, float]], *, parameters: int) -> str:
    rows = []
    for (engine, steps), parts in found.items():
        whole = sum(parts)
        rows.append([engine, str(steps), f"{whole:.2f} s", *(f"{100 * p / whole:.1f} %" for p in parts)])
    batches = sorted(lines["torch"])
    of = [[what, *(f"{line[b]:.2f} ms" for b in batches)] for what, line in lines.items()]
    shares = []
    for engine in (e for e in ENGINES if e in lines):
        one = lines[engine][1]
        shares.append(f"{engine}'s is {one / lines['its multiplications'][1]:.2f} times its multiplications,"
                      f" {one / lines['as one large multiplication'][1]:.2f} times as many operations in one large one, and"
                      f" {one / lines['its weights read once'][1]:.1f} times its weights read once")  # fmt: skip
    return "\n\n".join((
        f"On {bench.processor()}, one thread, processor seconds; the median of some rounds. `ddimctl encode` of one image,"
        " from the interpreter's start to its exit (openvino: the network is in the cache):",
        table(["engine", "S", "in all", *PARTS], rows),
        f"An evaluation, milliseconds an image, by batch size; {parameters / 1e6:.1f} million weights:",
        table(["", *map(str, batches)], of),
        f"Of a batch of one, {'; '.join(shares)}.",
        "![Processor seconds of an encode, and an evaluation beside the limits](latency.png)",
    ))  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="tiny settings, and nothing is written: a test")
    quick = options.parse_args().quick
    torch.set_num_threads(1)
    rounds, least = (1, 0.01) if quick else (5, 0.1)
    steps, batches = ((2, 3), (1, 2)) if quick else ((5, 20, 50, 100), (1, 2, 4, 16, 64))
    model = load("fashion-mnist", "cpu")
    nets = [model.with_network(engines.make(model.network.module, name, "float32")) for name in available()]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        for name in [n for n in env if n.startswith("DDIMCTL_")]:
            del env[name]
        all_parts: dict[tuple[str, int], list[list[float]]] = {}
        for name in available():
            encoded(name, 1, env, Path(folder))  # which makes the cache
        for _ in range(min(rounds, 3)):
            for name in available():
                for s in steps:
                    all_parts.setdefault((name, s), []).append(encoded(name, s, env, Path(folder)))
    found = {k: [statistics.median(part) for part in zip(*v, strict=True)] for k, v in all_parts.items()}
    print(f"{time.monotonic() - begin:.0f} s for processes", flush=True)
    lines = limits(model, nets, batches, rounds=rounds, least=least)
    body = page(found, lines, parameters=model.network.module.facts.parameters)
    print(body, f"{time.monotonic() - begin:.0f} s", sep="\n\n")
    charts = [*(of_a_process(found, name) for name in available()), of_evaluations(lines)]
    if not quick:
        plots.draw(ROOT / "docs" / "latency.png", charts, title=f"{model.name}, {bench.processor()}, one thread")
        put(PAGE, __file__, body)


def available() -> list[str]:
    import importlib.util

    return [name for name in ENGINES if name != "openvino" or importlib.util.find_spec("openvino") is not None]


if __name__ == "__main__":
    main()
