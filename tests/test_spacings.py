"""The script that measures every spacing with every method: its methods, what it counts, what it writes."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from problems import Gaussian

from ddimctl import load, roundtrip, tuned
from ddimctl.images import datasets, levels
from ddimctl.recipe import Way
from ddimctl.schedule import Schedule
from ddimctl.tuned import Tuned

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import spacings  # noqa: E402

PLAIN = Schedule.linear()


def own(steps: int, spacing: str = "log") -> Tuned:
    return Tuned(PLAIN.path(steps, spacing), tuple(0.1 * i for i in range(steps)))


@pytest.fixture
def folder(tame_folder: Path, tmp_path: Path) -> Path:
    """The tame model, with paths tuned by nobody."""
    out = tmp_path / "own"
    shutil.copytree(tame_folder, out)
    (out / "paths.json").write_bytes(tuned.to_bytes([own(3), own(6)], model="m", schedule=PLAIN.digest))
    return out


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("name", ["corrected", "heun start"])
def test_the_methods_that_no_solver_has_are_of_second_order(name: str, up: bool) -> None:
    """On a Gaussian law, whose flow is known, from one level to a much higher one or back."""
    law = Gaussian(0.3, 0.5)

    def error(steps: int) -> float:
        rising: Sequence[float] = np.geomspace(0.2, 20.0, steps + 1).tolist()
        way = rising if up else rising[::-1]
        x = x0 = law.flow(np.full((1, 1, 2, 2), 0.8), 0.0, way[0])
        for state in spacings.method(name, PLAIN, rising)(law.eps, x, way):
            x = state
        return float(np.abs(x - law.flow(x0, way[0], way[-1])).max())

    errors = [error(n) for n in (64, 128, 256)]
    assert math.log2(errors[1] / errors[2]) > 1.8, errors


def test_parts_are_taken_over_by_the_noise_they_belong_to() -> None:
    path = own(6)
    assert spacings.parts_at(path, path.levels) == path.mix
    finer = spacings.parts_at(path, PLAIN.path(12, "log"))
    assert len(finer) == 12
    np.testing.assert_allclose(np.reshape(finer, (6, 2)).mean(1)[1:-1], path.mix[1:-1], rtol=1e-9)


def test_figures_are_those_of_the_round_trip_and_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "figures.json"
    arguments = [str(folder), "--steps", "3,5", "-o", str(target), "--rest", "2", "--batch", "2", "--images", "4"]
    monkeypatch.setattr(sys, "argv", ["spacings.py", *arguments])
    spacings.main()
    found = json.loads(target.read_text())
    cells = {(c["steps"], c["spacing"], c["method"]): c for c in found["cells"]}
    assert len(cells) == 2 * len(spacings.SPACINGS) * len(spacings.METHODS)
    assert {c["all"]["images"] for k, c in cells.items() if k[1:] in spacings.MAIN} == {4}
    assert {c["all"]["images"] for k, c in cells.items() if k[1:] not in spacings.MAIN} == {2}
    assert {c["first"]["images"] for c in cells.values()} == {2}
    model = load(str(folder), "cpu")
    x0 = levels.signed(datasets.load_dataset(folder / "held-out", 1, (16, 16)).float())[:4]
    for way, key in (
        (Way("ab2", "tuned", 5), (5, "tuned", "own")),
        (Way("ab3", "log", 5), (5, "log", "ab3")),
        (Way("ab2mix", "arsinh", 3), (3, "arsinh", "ab2mix")),
    ):
        (trip,) = roundtrip.measure(model, [x0], [way], reports=("mse", "latent_error"))
        assert cells[key]["all"]["mse"] == pytest.approx(trip.total("mse"), rel=1e-4)
        assert cells[key]["all"]["worst"] == pytest.approx(max(trip.values["mse"]), rel=1e-4)
        away = math.sqrt(np.mean(np.square(trip.values["latent_error"])))
        assert cells[key]["all"]["xT_error"] == pytest.approx(away, rel=1e-2)
    said = spacings.page([target])
    assert said.count("| `tuned` | own |") == 2
    assert "4 images that it never saw" in said
    assert "on 2 images" in said


def test_time_that_is_over_ends_the_run_after_the_first_images(folder: Path, tmp_path: Path) -> None:
    model = load(str(folder), "cpu")
    x0 = levels.signed(datasets.load_dataset(folder / "held-out", 1, (16, 16)).float())
    cells = [spacings.Cell(3, s, m) for s in spacings.SPACINGS for m in spacings.METHODS]
    assert [*spacings.measured(model, [x0[:2], x0[2:]], cells, rest=4, clock=spacings.Clock(0.0))][-1] == 2
    assert {len(c.mse) for c in cells if c.is_main} == {2}
    assert {len(c.mse) for c in cells if not c.is_main} == {0}


def test_the_table_of_the_models_paths_is_what_their_files_say() -> None:
    import paths

    def figures(mse: float, away: float) -> dict[str, float]:
        return {"mse": mse, "median": mse / 2, "worst": 9 * mse, "xT_error": away}

    held = {"karras": figures(2e-4, 0.02), "tuned": figures(1e-4, 0.01)}
    won = Tuned(own(3).levels, own(3).mix, {"held_out": held, "held_out_images": 64, "images": 1000, "rounds": 2})
    lost = Tuned(own(6).levels, own(6).mix * 2, {**won.about, "held_out": {**held, "tuned": figures(1e-4, 0.03)}})
    lines = paths.body({"m": [won, lost]}).splitlines()
    assert "64 of `m`" in lines[0]
    assert lines[4] == (
        "| `m`, 3, the default | `tuned`, `ab2` | **1.0e-04** | **5.0e-05** | **9.0e-04** | **0.01** | 1,000, 2 |"
    )
    assert lines[5] == "|  | `karras`, `ab2` | 2.0e-04 | 1.0e-04 | 1.8e-03 | 0.02 |  |"
    assert lines[6] == "| `m`, 6 | `tuned`, `ab3` | **1.0e-04** | **5.0e-05** | **9.0e-04** | 0.03 | 1,000, 2 |"
