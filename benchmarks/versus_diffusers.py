"""Measures docs/performance.md and the README's table of speed: python benchmarks/versus_diffusers.py [--pairs 5] [--quick].

Rows of a round trip "no worse on others" take the fewest steps, and the spacing, that are no worse on *other* images than
those timed: half of the bundled ones, or --others FOLDER. What both errors are on the images timed stands beside.
There is diffusers as its users run it, and diffusers at its best: its spacing and fewest steps are chosen alike, of those
that encode. `leading` with few steps does not: it ends far below the noisiest level, with one step where it began, and so
comes back to what it never left.

Whole processes, from the shell's fork to the exit: diffusers' round trip (diffusers_round_trip.py) and `ddimctl
reconstruct`, in turn, with the same number of threads. Ratios are taken within a pair and their median is told, so that
what the machine does besides weighs on both. ddimctl's cache is warm but where it says otherwise. The parts of the pages
between the markers are replaced, so they never show a figure that this did not measure.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pages import put, table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "fashion-mnist"
THEIRS = [sys.executable, str(ROOT / "benchmarks" / "diffusers_round_trip.py"), str(MODEL)]
OURS = [sys.executable, "-m", "ddimctl", "reconstruct", "-m", "fashion-mnist", "--report", "mse", "--json", "-q"]


@dataclass(frozen=True)
class Run:
    """What a process took."""

    seconds: float
    peak: int  # bytes
    out: str


@dataclass
class Row:
    """A line of the table: two commands that are run in turn."""

    what: str
    theirs: list[str]
    ours: list[str]
    wanted: str
    pairs: list[tuple[Run, Run]] = field(default_factory=list)

    def ratio(self) -> float:
        return statistics.median(a.seconds / b.seconds for a, b in self.pairs)

    def error(self) -> tuple[float, float]:
        a, b = self.pairs[-1]
        return float(a.out.split()[-1]), float(json.loads(b.out)["results"][0]["mse"])

    def cells(self) -> list[str]:
        theirs, ours = (statistics.median(p[i].seconds for p in self.pairs) for i in (0, 1))
        memory = [max(p[i].peak for p in self.pairs) / 2**20 for i in (0, 1)]
        low, high = self.error()
        return [self.what, f"{theirs:.2f} s", f"{ours:.2f} s", f"{self.ratio():.1f}", self.wanted,
                f"{low:.1e}", f"{high:.1e}", f"{memory[0]:.0f} MiB", f"{memory[1]:.0f} MiB"]  # fmt: skip


def run(command: Sequence[str], env: dict[str, str]) -> Run:
    """Runs a command to its end. Raises if it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read()}")
        return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), out.read())


LABELS = 1000  # of the bundled model
SPACINGS = "log,karras,arsinh,tuned"


def smallest(images: Sequence[str], error: float, env: dict[str, str]) -> tuple[str, int]:
    """Our fewest steps, and the spacing, whose round trip of these images is no worse than `error`."""
    for steps in range(5, 50):
        command = [*OURS, *images, "--spacing", SPACINGS, "--steps", str(steps)]
        best = min(json.loads(run(command, env).out)["results"], key=lambda r: r["mse"])
        if best["mse"] <= error:
            return best["spacing"], steps
    raise SystemExit(f"no number of steps comes down to {error}")


def theirs_at_best(most: int, is_enough: Callable[[str], bool]) -> str:
    """diffusers' fewest steps, up to `most`, and its spacing, with a round trip that is enough: "40:trailing".

    By tenths of `most` from below, then between the last two by halves, with the spacing that was enough.
    """
    places = sorted({most * tenth // 10 for tenth in range(11)})
    for low, high in pairwise(places):
        for spacing in ("trailing", "leading"):
            if encodes(high, spacing) and is_enough(f"{high}:{spacing}"):
                while high - low > 1:
                    middle = (low + high) // 2
                    enough = encodes(middle, spacing) and is_enough(f"{middle}:{spacing}")
                    low, high = (low, middle) if enough else (middle, high)
                return f"{high}:{spacing}"
    return str(most)


def encodes(steps: int, spacing: str) -> bool:
    """Whether such a path goes up to nine tenths of the labels at least, to where an image is noise."""
    return spacing == "trailing" or (steps - 1) * (LABELS // steps) >= 0.9 * LABELS


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="tiny settings, and nothing is written: a test")
    options.add_argument("--others", type=Path, help="a folder of PNGs to choose steps and spacing on")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both; one, where others compute")
    chosen = options.parse_args()
    threads = chosen.threads
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "XDG_CACHE_HOME": cache, "NO_COLOR": "1",
               "PYTHONPATH": str(ROOT), "COLUMNS": "120"}  # fmt: skip
        for name in [n for n in env if n.startswith("DDIMCTL_")]:
            del env[name]
        measure(chosen.pairs, chosen.quick, threads, chosen_on=chosen.others, env=env)


def measure(pairs: int, quick: bool, threads: int, *, chosen_on: Path | None, env: dict[str, str]) -> None:
    images = [str(p) for p in sorted((MODEL / "held-out").glob("*.png"))]
    if chosen_on is None:
        others, images = images[1::2], images[::2]
    else:
        others = [str(p) for p in sorted(chosen_on.glob("*.png"))]
    one, many = images[:1], images[:4] if quick else images
    others = others[:2] if quick else others
    full, half = ("5", "5") if quick else ("100", "50")
    n = len(many)
    cold = run([*OURS, *one, "--steps", full, "--engine", "openvino"], env)  # which also makes the cache
    run([*OURS, *many, "--steps", "5", "--engine", "openvino"], env)
    rows = [
        Row(f"1 image, S = {full}, as many evaluations", [*THEIRS, full, *one],
            [*OURS, *one, "--steps", full], "≥ 3"),
        Row(f"{n} images, S = {half}, as many evaluations", [*THEIRS, half, *many],
            [*OURS, *many, "--steps", half], "≥ 1.5"),
    ]  # fmt: skip
    error = float(run([*THEIRS, full, *others], env).out)
    spacing, steps = smallest(others, error, env)
    best = theirs_at_best(int(full), lambda wanted: float(run([*THEIRS, wanted, *others], env).out) <= error)
    ours = ["--spacing", spacing, "--steps", str(steps)]
    for set_, wanted in ((one, "≥ 5"), (many, "≥ 10")):
        images_ = "1 image" if len(set_) == 1 else f"{n} images"
        for of, name in ((full, f"theirs at S = {full}"), (best, f"theirs at its best, S = {best.replace(':', ', ')}")):
            rows.append(
                Row(f"{images_}, ours at S = {steps}, `{spacing}`: no worse on others than {name}",
                    [*THEIRS, of, *set_], [*OURS, *set_, *ours], wanted)
            )  # fmt: skip
            print(rows[-1].what, flush=True)
    for i in range(pairs):
        for row in rows:
            row.pairs.append((run(row.theirs, env), run(row.ours, env)))
        print(
            f"pair {i + 1} of {pairs}:",
            *(f"{r.pairs[-1][0].seconds / r.pairs[-1][1].seconds:.2f}" for r in rows),
            flush=True,
        )
    header = [
        "whole process",
        "diffusers",
        "ddimctl",
        "times faster",
        "goal",
        "their mse",
        "our mse",
        "their memory",
        "ours",
    ]
    print(table(header, [r.cells() for r in rows]), flush=True)
    versus = table([*header[:4], *header[5:]], [[*r.cells()[:4], *r.cells()[5:]] for r in rows])

    command = [sys.executable, "-m", "ddimctl", "bench", "-m", "fashion-mnist"]
    quickly = ["--batch-size", "1,4", "--steps", "2,4", "--seconds", "0.1"] if quick else ["--seconds", "0.7"]
    picture = Path(env["XDG_CACHE_HOME"], "performance.png") if quick else ROOT / "docs" / "performance.png"
    speed = run([*command, *quickly, "--plot", str(picture), "--force"], env).out
    shares = json.loads(run([*command, "--batch-size", str(n), "--steps", "2", "--seconds", "0.1", "--json"], env).out)
    outside = ", ".join(f"{100 * (1 - r['network']):.1f} % with {r['engine']}" for r in shares["rates"])
    print(speed, outside, sep="\n", flush=True)

    precision = []
    for steps in ("5", "10") if quick else ("10", "20", "50"):
        cells = [steps]
        for kind in ("float32", "bf16"):
            result = json.loads(
                run(
                    [
                        *OURS,
                        *many,
                        "--spacing",
                        "karras",
                        "--steps",
                        steps,
                        "--precision",
                        kind,
                        "--engine",
                        "openvino",
                    ],
                    env,
                ).out
            )["results"][0]
            cells += [f"{result['mse']:.1e}", f"{result['seconds']:.2f} s"]
        precision.append(cells)
    body = "\n\n".join((
        f"On {shares['processor']}, {threads} threads for both, the median of {pairs} pairs:",
        versus,
        f"S and spacing of the rows \"no worse on others\" are the fewest whose mean error is no worse on {len(others)}"
        " other images, which are not timed; so are those of diffusers at its best. Both errors are of the images timed.",
        f"The same command as the first row's on an empty cache, conversion included, took {cold.seconds:.2f} s. Of an"
        f" encoding of {n} images this much is outside the network: {outside}.",
        "![Images a second by batch size, and time against steps](performance.png)",
        f"`ddimctl bench`:\n\n```text\n{speed.rstrip()}\n```",
        f"`--precision bf16` (openvino, {n} images, `ab2`, `karras`; seconds are both ways, without start-up):",
        table(["S", "mse, float32", "time", "mse, bf16", "time"], precision),
    ))  # fmt: skip
    print(body)
    if not quick:
        put(ROOT / "docs" / "performance.md", __file__, body)
        short = [[*r.cells()[:4], *r.cells()[5:7]] for r in rows]
        put(ROOT / "README.md", __file__, table([*header[:4], *header[5:7]], short))


if __name__ == "__main__":
    main()
