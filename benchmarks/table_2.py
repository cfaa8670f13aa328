"""Measures section 5.4 on a whole test set, for docs/paper.md: python benchmarks/table_2.py IMAGES [--images N] [--many N].

IMAGES is a folder or an IDX file. Each image's error is kept in runs/table_2/, so that Ctrl-C loses minutes at most and
the same command goes on. S = 10 and 20 are measured on the first N images, S = 50 and 100 on the first N of --many,
since they cost most: all of Fashion-MNIST's 10,000 are ten million evaluations. The part of the page between the markers
is replaced by what has been measured so far.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pages import put, table

from ddimctl import engines, roundtrip
from ddimctl.families import load
from ddimctl.files import make_folder, sha256, write_bytes
from ddimctl.images.datasets import load_dataset
from ddimctl.images.levels import signed
from ddimctl.model import Model
from ddimctl.paper import TABLE_2
from ddimctl.recipe import Way

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "paper.md"
KEPT = ROOT / "runs" / "table_2"
ROWS = (("ddim", "linear"), ("ddim", "quadratic"), ("ab2", "karras"))
FEW, MANY = (10, 20), (50, 100)
CHUNK = 256  # images of a file of results
BATCH = 64  # of them, at once


def kept(model: Model, data: np.ndarray, solver: str, spacing: str, steps: int, start: int) -> Path:
    """Where the errors of a chunk are, named by what decides about them."""
    images = sha256(data[start : start + CHUNK].tobytes())
    return KEPT / f"{model.digest[:16]}-{images[:16]}-{solver}-{spacing}-{steps}.json"


def measure(model: Model, data: np.ndarray, file: Path, solver: str, spacing: str, steps: int, start: int) -> None:
    """The mse of each image of a chunk, into `file`."""
    x0 = signed(torch.from_numpy(data[start : start + CHUNK]).double())
    (trip,) = roundtrip.measure(model, x0.split(BATCH), [Way(solver, spacing, steps)])
    write_bytes(file, json.dumps(trip.values["mse"]).encode())


def cell(files: list[Path]) -> str:
    """Mean, standard error and number of images of what is there."""
    errors = np.array([e for f in files if f.is_file() for e in json.loads(f.read_bytes())])
    if len(errors) < 2:
        return "–"
    return f"{errors.mean():.2e} ± {errors.std(ddof=1) / len(errors) ** 0.5:.0e} ({len(errors):,})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source", type=Path, metavar="IMAGES")
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--many", type=int, default=10_000, help="images for S = 50 and 100")
    chosen = options.parse_args()
    model = load("fashion-mnist", "cpu")
    module = model.network.module
    model = model.with_network(engines.make(module, engines.pick(module, 1e9)[0]))
    data = load_dataset(chosen.source, model.channels, model.size)[: chosen.images].numpy()
    make_folder(KEPT)
    files = {
        (solver, spacing, steps): [
            kept(model, data, solver, spacing, steps, start)
            for start in range(0, len(data) if steps in FEW else min(len(data), chosen.many), CHUNK)  # whole chunks
        ]
        for solver, spacing in ROWS
        for steps in (*FEW, *MANY)
    }
    chunks = range(-(-len(data) // CHUNK))
    order = [(key, i) for group in (FEW, MANY) for i in chunks for key in files if key[2] in group]
    todo = [(key, i) for key, i in order if i < len(files[key]) and not files[key][i].is_file()]
    begin, spent, work = time.perf_counter(), 0, sum(key[2] for key, _ in todo)
    try:
        for key, i in todo:
            measure(model, data, files[key][i], *key, i * CHUNK)
            spent += key[2]
            left = (time.perf_counter() - begin) * (work / spent - 1) / 60
            print(*key, f"from image {i * CHUNK}, {left:.0f} min left", flush=True)
    except KeyboardInterrupt:
        print("stopped; the page says what has been measured", file=sys.stderr)
    header = ["solver", "spacing", *(f"S = {s}" for s in (*FEW, *MANY))]
    rows = [[f"`{a}`", f"`{b}`", *(cell(files[a, b, s]) for s in (*FEW, *MANY))] for a, b in ROWS]
    rows.append(["paper (CIFAR-10)", "", *(f"{TABLE_2[s]:g}" for s in (*FEW, *MANY))])
    put(PAGE, __file__, table(header, rows))


if __name__ == "__main__":
    main()
