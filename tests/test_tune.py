"""The search for a path: on laws whose ε is known, and as a command."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from problems import Gaussian, Mixture, in_a_network
from record_cli import FIXTURES

from ddimctl import load, tune, tuned
from ddimctl.cli import tune as cli_tune
from ddimctl.errors import UsageError
from ddimctl.images import writing
from ddimctl.ode import integrate
from ddimctl.recipe import Way
from ddimctl.roundtrip import measure
from ddimctl.schedule import Schedule
from ddimctl.tune import Aim, Curves, Errors, Problem, search, starts
from ddimctl.tuned import Tuned

SCHEDULE = Schedule.linear()
LOW, HIGH = SCHEDULE.sigma(1), SCHEDULE.sigma(SCHEDULE.T)


def gaussian(n: int = 6, seed: int = 0) -> Problem:
    """Data N(0.2, s²) with four widths, and what the exact flow takes it to."""
    law = Gaussian(0.2, np.array([0.05, 0.2, 0.6, 1.5]).reshape(1, 2, 2))
    x0 = 0.2 + law.s * np.random.default_rng(seed).standard_normal((n, 1, 2, 2))
    return Problem(law.eps, SCHEDULE, x0, law.flow(x0, LOW, HIGH) / SCHEDULE.scale(HIGH))


def test_the_exact_flow_is_the_reference_and_comes_back() -> None:
    """Many steps bring every image back, to where the exact flow leads."""
    fine = Tuned(SCHEDULE.path(800, "log"), (0.0,) * 800)
    (errors,) = gaussian().errors([fine])
    assert tune.rms(errors.back).max() < 1e-4
    assert tune.rms(errors.away).max() < 1e-3


def test_numbers_at_knots_are_the_path() -> None:
    path = Tuned(SCHEDULE.path(7, "karras"), tuple(0.1 * i for i in range(14)))
    curves = Curves(7, LOW, HIGH)
    assert Curves(7, LOW, HIGH, "ab2").path(np.zeros(14)).solver == "ab2"
    assert (path.solver, curves.path(np.zeros(21)).solver) == ("ab3", "ab3")
    again = curves.path(curves.theta(path))
    assert again.levels == pytest.approx(path.levels, rel=1e-12)
    assert again.mix == pytest.approx(path.mix, rel=1e-12)
    assert (again.levels[0], again.levels[-1]) == (LOW, HIGH)
    shifted = curves.theta(path) + np.repeat([3.0, 0.0, 0.0], 7)  # all gaps alike: the ends stay, so nothing changes
    assert curves.path(shifted).levels == pytest.approx(path.levels, rel=1e-12)
    assert len(Curves(50, LOW, HIGH).knots) == tune.KNOTS
    even = Tuned(SCHEDULE.path(50, "log"), (0.4,) * 100)  # straight curves need few knots
    many = Curves(50, LOW, HIGH)
    assert many.path(many.theta(even)).levels == pytest.approx(even.levels, rel=1e-12)


@pytest.mark.parametrize("aim", [Aim(), Aim(2.0, 0.1), Aim(1.5, 0.0)])
def test_the_weighted_squares_fall_as_the_score_does(aim: Aim) -> None:
    """The gradient of the squares, as the step of steepest descent shows it, is the score's own."""
    problem, curves = replace(gaussian(), aim=aim), Curves(3, LOW, HIGH, "ab2")
    theta = curves.theta(Tuned(SCHEDULE.path(3, "log"), (0.2,) * 3))

    def tried(thetas: Sequence[np.ndarray]) -> list[Errors]:
        return problem.errors([curves.path(t) for t in thetas])

    (errors,) = tried([theta])
    step = tune.descent(theta, errors, tried)
    huge = 1e9  # so damped a step is the gradient over the square's diagonal
    h = 1e-4
    downhill = step(huge)
    slope = [
        (above.score - below.score) / (2 * h)
        for above, below in (tried([theta + h * u, theta - h * u]) for u in np.eye(6))
    ]
    assert (np.sign(downhill) == -np.sign(slope)).all()
    small = 1e-3 * step(1e-3)
    fell = tried([theta + small])[0].score - errors.score
    assert fell == pytest.approx(float(np.dot(slope, small)), rel=0.1)
    assert fell < 0


def test_a_search_beats_every_start_on_images_that_had_no_part_in_it() -> None:
    problem, other = gaussian(), gaussian(40, seed=1)
    begin = starts(SCHEDULE, 5)
    found = list(search(problem, begin, rounds=6))
    scores = [f.errors.score for f in found]
    assert scores == sorted(scores, reverse=True)
    assert [f.round for f in found] == list(range(len(found)))
    best = min(e.score for e in other.errors(begin))
    assert other.errors([found[-1].path])[0].score < best - 1  # measured: 2.4 below


def test_it_goes_on_where_it_stopped() -> None:
    problem, begin = gaussian(), starts(SCHEDULE, 4)
    whole = list(search(problem, begin, rounds=3))
    first = list(search(problem, begin, rounds=1))[-1]
    then = list(search(problem, [first.path], rounds=2))
    assert then[-1].path.levels == pytest.approx(whole[-1].path.levels, rel=1e-3)
    assert then[0].errors.score == pytest.approx(first.errors.score, rel=1e-9)


def test_a_round_costs_a_round_trip_a_knot_and_a_few() -> None:
    trips = 0.0

    def tick(more: float) -> None:
        nonlocal trips
        trips += more

    begin = starts(SCHEDULE, 4)
    list(search(gaussian(), begin, rounds=1, tick=tick))
    assert trips == pytest.approx(len(begin) + 3 * 4 + len(tune.DAMPINGS))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_paths_go_together_as_they_go_alone(batch_size: int, order: int) -> None:
    """Rows of several paths in a batch come to what `integrate` makes of each path."""
    whole = gaussian()
    problem = replace(whole, batch_size=batch_size)
    parts = np.linspace(-0.3, 0.8, order * 5)
    paths = [Tuned(SCHEDULE.path(5, name), tuple(map(float, parts * k))) for k, name in ((1, "log"), (2, "karras"))]
    for path, found in zip(paths, problem.errors(paths), strict=True):
        up = integrate(whole.eps, whole.states, path.levels, path.solver, mix=path.mix).x / SCHEDULE.scale(HIGH)
        down = up.astype(np.float32).astype(np.float64) * SCHEDULE.scale(HIGH)
        back = integrate(whole.eps, down, path.levels[::-1], path.solver, mix=path.mix).x
        np.testing.assert_allclose(found.away, (up - whole.references).reshape(6, -1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.back, (back - whole.states).reshape(6, -1) / 2, rtol=1e-9, atol=1e-12)


def test_it_stops_where_there_is_no_time_for_a_round() -> None:
    asked = []

    def enough(trips: int) -> bool:
        asked.append(trips)
        return len(asked) > 1

    found = list(search(gaussian(), starts(SCHEDULE, 4), rounds=5, enough=enough))
    assert [f.round for f in found] == [0, 1]
    assert asked == [3 * 4 + len(tune.DAMPINGS)] * 2


def test_no_rounds_choose_the_best_start_and_a_lost_one_never_wins() -> None:
    problem, begin = gaussian(), starts(SCHEDULE, 6)
    (found,) = search(problem, begin, rounds=0)
    assert found.errors.score == pytest.approx(min(e.score for e in problem.errors(begin)), rel=1e-9)
    lost = Errors(np.full((2, 3), np.nan), np.zeros((2, 3)))
    assert tune._score(lost) == np.inf


def test_of_a_model_the_adaptive_solver_is_the_reference() -> None:
    """Two peaks, so the flow is not linear; the reference is the exact flow's to the solver's tolerance."""
    law = Mixture()
    model = in_a_network(law)
    import torch

    x0 = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4)))
    problem = tune.problem(model, x0, batch_size=2)
    exact = law.flow(x0, LOW, HIGH) / SCHEDULE.scale(HIGH)
    assert (problem.references - exact).abs().max().item() < 1e-3
    known = [Tuned(SCHEDULE.path(8, "log"), (0.1,) * 8)]
    path = list(search(problem, starts(SCHEDULE, 4, known), rounds=1))[-1].path
    (trip,) = measure(model, [x0], [Way().along(path.levels)])
    assert trip.total("mse") < 1


@pytest.fixture
def work(tame_folder: Path, tmp_path: Path) -> Path:
    """A model of one's own, and images it might have been trained on."""
    shutil.copytree(tame_folder, tmp_path / "own")
    (tmp_path / "train").mkdir()
    for i, pixels in enumerate(np.random.default_rng(5).integers(0, 256, (5, 16, 16, 1), dtype=np.uint8)):
        writing.save_image(tmp_path / "train" / f"{i}.png", pixels)
    for path in sorted((tmp_path / "own" / "held-out").iterdir())[1:]:
        path.unlink()
    return tmp_path


def test_the_command_writes_a_path_that_others_use(invoke: Callable[..., Result], work: Path) -> None:
    command = ("tune", "train", "-m", "own", "--steps", "2,3", "--rounds", 1, "--images", 2, "--engine", "torch")
    out = json.loads(invoke(*command, "--json").ok().out)
    assert [p["steps"] for p in out["paths"]] == [2, 3]
    found = tuned.load(work / "own", schedule=SCHEDULE.digest)
    assert [list(p.levels) for p in found] == [p["levels"] for p in out["paths"]]
    for path in found:
        assert (path.about["images"], path.about["held_out_images"]) == (2, 1)
        assert set(path.about["held_out"]) == {"tuned", "karras", "log", "arsinh"}
        assert path.about["held_out"]["tuned"]["mse"] > 0
        assert "condition" not in path.about
        assert not path.wins  # of one image nobody knows
    used = invoke(
        "reconstruct", "-m", "own", "--spacing", "tuned", "--steps", "2,3", "--json", "--engine", "torch"
    ).ok()
    mse = [r["mse"] for r in json.loads(used.out)["results"]]
    assert mse == pytest.approx([p.about["held_out"]["tuned"]["mse"] for p in found], rel=1e-3)


def test_what_was_measured_under_a_condition_says_so_and_is_no_default(
    invoke: Callable[..., Result], work: Path
) -> None:
    shutil.copytree(FIXTURES / "models" / "classes", work / "classes")
    command = ("tune", "train", "-m", "classes", "--class", 1, "--steps", 2, "--rounds", 0, "--images", 1)
    invoke(*command, "--engine", "torch").ok()
    (path,) = tuned.load(work / "classes", schedule=load(str(work / "classes"), "cpu").schedule.digest)
    assert path.about["condition"]["class_label"] == 1
    assert not path.wins


def test_it_does_not_search_twice_and_goes_on(invoke: Callable[..., Result], work: Path) -> None:
    command = ("tune", "train", "-m", "own", "--steps", 2, "--images", 1, "--engine", "torch")
    invoke(*command, "--rounds", 1).ok()
    first = (work / "own" / "paths.json").read_bytes()
    again = invoke(*command, "--rounds", 1).ok()
    assert "S = 2 is tuned already" in again.err
    assert (work / "own" / "paths.json").read_bytes() == first
    invoke(*command, "--rounds", 2).ok()
    after = json.loads((work / "own" / "paths.json").read_text())["paths"][0]
    assert after["rounds"] == 2 or after["done"]
    assert after["score"] <= json.loads(first)["paths"][0]["score"]
    assert "tuned already" not in invoke(*command, "--rounds", 1, "--force").ok().err


def test_it_ends_in_time_with_the_best_so_far(invoke: Callable[..., Result], work: Path) -> None:
    """No time at all: the best of the starts, measured on what there is."""
    command = ("tune", "train", "-m", "own", "--steps", "3,2", "--images", 1, "--engine", "torch", "--minutes", 0)
    out = json.loads(invoke(*command, "--json").ok().out)
    assert [(p["steps"], p["rounds"], p["done"]) for p in out["paths"]] == [(2, 0, False), (3, 0, False)]
    assert all(p["held_out_images"] == 1 for p in out["paths"])


def test_a_share_of_the_time() -> None:
    clock = cli_tune.Clock(minutes=10)
    share = cli_tune.Share(clock, 0.5, later=1000)
    share.start()
    clock.steps, clock.spent = 1000, 60.0  # a minute for what comes later, so 9 of 10 are to be shared
    assert not share.over(1000 * 4.5 / cli_tune.SPARE * 0.99)
    assert share.over(1000 * 4.5 / cli_tune.SPARE * 1.01)
    assert not cli_tune.Share(cli_tune.Clock(math.inf), 0.5, later=1000).over(1e12)


def test_what_cannot_be_tuned_is_told(invoke: Callable[..., Result], work: Path) -> None:
    assert "0 steps" in invoke("tune", "train", "-m", "own", "--steps", "0").failed(2)
    assert "held out" in invoke("tune", "own/held-out", "-m", "own", "--steps", 2).failed(2)
    assert "nothing" in invoke("tune", "nothing", "-m", "own", "--steps", 2).failed(2)
    shutil.rmtree(work / "own" / "held-out")
    assert "without held-out images" in invoke("tune", "train", "-m", "own", "--steps", 2).failed(2)
    assert not (work / "own" / "paths.json").exists()


def test_curves_of_one_step() -> None:
    curves = Curves(1, LOW, HIGH, "ab2")
    assert curves.path(np.zeros(2)).levels == (LOW, HIGH)
    with pytest.raises(UsageError):
        starts(SCHEDULE, 0)
