"""100,000 tiny images in tars or parquet files, encoded into shards: what memory does, and when a stopped run goes on.

Each run is the command line in a process of its own, which notes after every batch how much memory it holds. The model
is tiny, so that reading, planning and writing are what is measured. Times are of the processor.
``python benchmarks/many.py`` prints a table, which stands in docs/scale.md; ``tests/test_many.py`` runs it with fewer
images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reliability import tiny_model

from ddimctl.images import writing

SEED = 7
FIRST = 1000  # images, after which memory is what it is
BATCH = 64
CHILD = """
import json, os, signal, time
from ddimctl.cli import app
from ddimctl.runs import where

plain, said, left = where.here, {"memory": []}, int(os.environ["JOBS"])

def tell():
    with open(os.environ["SAID"], "w") as f:
        json.dump({**said, "took": time.process_time()}, f)

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def here(jobs, *, progress=iter):
    def begun():
        global left
        for key, job in jobs:
            if job is not None:
                left -= 1
                if left < 0:
                    tell()
                    os.kill(os.getpid(), signal.SIGKILL)
                said.setdefault("first", time.process_time())
            yield key, job
    for both in plain(begun(), progress=progress):
        said["memory"].append(resident())
        said.setdefault("told", time.process_time())
        yield both

where.here = here
try:
    app.main()
finally:
    tell()
"""


@dataclass(frozen=True)
class Run:
    """What one command did: MiB of memory, processor seconds from its start."""

    memory: list[float]  # after each batch, or each shard that was there
    told: float  # when it was known what becomes of the first image
    first: float  # when the first image was worked on
    took: float

    def growth(self) -> tuple[float, float]:
        """(after the first images, at most later)."""
        at = -(-FIRST // BATCH)
        return self.memory[at - 1], max(self.memory[at:])


def pictures(n: int) -> Iterator[bytes]:
    rng = np.random.default_rng(SEED)
    for _ in range(n):
        yield writing.to_bytes(rng.integers(0, 256, (8, 8, 1), dtype=np.uint8), ".png")


def write_tar(path: Path, images: Iterable[bytes], start: int) -> None:
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(images, start):
            about = tarfile.TarInfo(f"{i:08}.png")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def write_parquet(path: Path, images: Iterable[bytes], start: int) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"bytes": data, "path": f"{i:08}.png"} for i, data in enumerate(images, start)]
    parquet.write_table(pyarrow.table({"image": rows}), path, row_group_size=1000)


WRITERS = {"tar": write_tar, "parquet": write_parquet}


def data_set(folder: Path, n: int, kind: str, per: int) -> Path:
    """n images in files of `per`."""
    folder.mkdir(parents=True)
    images = pictures(n)
    for start in range(0, n, per):
        some = [next(images) for _ in range(min(per, n - start))]
        WRITERS[kind](folder / f"{start // per:04}.{kind}", some, start)
    return folder


def encode(source: Path, model: Path, pattern: Path, per: int, *, says: str, jobs: int = 1 << 40) -> Run:
    """The command line, in a process of its own; `says` is what it has to say at its end, unless killed −9 after `jobs`."""
    home = model.parent
    said = home / "said.json"
    how = ("-m", model, "--steps", 1, "--batch-size", BATCH, "--engine", "torch", "--device", "cpu")
    args = ("encode", source, *how, "-o", pattern, "--per-shard", per)
    command = [sys.executable, "-c", CHILD, *map(str, args)]
    env = {**os.environ, "HOME": str(home), "SAID": str(said), "OMP_NUM_THREADS": "1", "JOBS": str(jobs)}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if jobs == 1 << 40 else -9), done.stderr
    assert says in done.stderr or done.returncode, done.stderr
    return Run(**json.loads(said.read_text()))


@dataclass(frozen=True)
class Figures:
    """What was found of a kind of data set."""

    early: float
    late: float
    took: float
    told: float  # by the run that goes on
    first: float

    @property
    def growth(self) -> float:
        return self.late / self.early - 1


def measure(kind: str, n: int, home: Path, *, per: int, held: int) -> Figures:
    """n images in files of `held`, into shards of `per`; then again without the last of these."""
    model = tiny_model(home / "tiny")
    source = data_set(home / "in", n, kind, held)
    pattern = home / "out" / f"{{shard:05}}.{kind}"
    run = encode(source, model, pattern, per, says=f"encoded: {n}, there already: 0, failed: 0")
    last = sorted((home / "out").glob(f"*.{kind}"))[-1]
    wanted = last.read_bytes()
    last.unlink()
    there = per * (-(-n // per) - 1)
    again = encode(source, model, pattern, per, says=f"encoded: {n - there}, there already: {there}, failed: 0")
    assert last.read_bytes() == wanted
    return Figures(*run.growth(), run.took, again.told, again.first)


def stopped(kind: str, n: int, home: Path, *, per: int, held: int, after: int) -> Figures:
    """As `measure`, of a run that is killed −9 after so many images, and one that goes on as far as its first batch."""
    model = tiny_model(home / "tiny")
    source = data_set(home / "in", n, kind, held)
    pattern = home / "out" / f"{{shard:05}}.{kind}"
    run = encode(source, model, pattern, per, says="", jobs=after // BATCH)
    again = encode(source, model, pattern, per, says="", jobs=1)
    return Figures(*run.growth(), run.took, again.told, again.first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100_000, help="images")
    parser.add_argument("--per-shard", type=int, default=10_000, help="latents in a shard")
    parser.add_argument("--held", type=int, default=10_000, help="images in a file of the data set")
    parser.add_argument("--kinds", default="tar,parquet")
    parser.add_argument("--kill-after", type=int, help="images, after which the first run is killed -9")
    args = parser.parse_args()
    print(
        "| images in | MiB after the first 1,000 | at most later | growth | took | again: first told | first new image |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in args.kinds.split(","):
        with tempfile.TemporaryDirectory() as home:
            how = {"per": args.per_shard, "held": args.held}
            if args.kill_after:
                f = stopped(kind, args.n, Path(home), **how, after=args.kill_after)
            else:
                f = measure(kind, args.n, Path(home), **how)
        cells = (f"{args.n:,} {kind}", f"{f.early:.1f}", f"{f.late:.1f}", f"{100 * f.growth:+.1f} %", f"{f.took:.0f} s",
                 f"{f.told:.1f} s", f"{f.first:.1f} s")  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
