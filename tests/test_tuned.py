"""Tuned paths: what lies between them, their file, what a way and a latent make of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from problems import Gaussian

from ddimctl import latent, load, ode, tuned
from ddimctl.catalogue import DIGESTS
from ddimctl.errors import FileError, UsageError
from ddimctl.files import bundled_folder
from ddimctl.images import writing
from ddimctl.ode import integrate
from ddimctl.provenance import check_provenance
from ddimctl.recipe import Way
from ddimctl.schedule import Schedule
from ddimctl.tuned import Tuned, between

PLAIN = Schedule.linear()


def path(steps: int, spacing: str = "log", part: float = 0.0) -> Tuned:
    return Tuned(PLAIN.path(steps, spacing), tuple(part + 0.1 * i for i in range(steps)))


def test_a_tuned_number_of_steps_has_its_own_path() -> None:
    paths = [path(5), path(10, "karras"), path(20)]
    assert [between(paths, p.steps) for p in paths] == paths


@given(st.integers(1, 200))
def test_between_and_beyond_levels_rise_from_end_to_end(steps: int) -> None:
    found = between([path(10, "karras"), path(20, "arsinh", 0.5)], steps)
    assert found.steps == steps  # that they rise, a `Tuned` itself sees to
    assert (found.levels[0], found.levels[-1]) == (PLAIN.sigma(1), PLAIN.sigma(1000))


def test_even_levels_stay_even_and_straight_parts_straight() -> None:
    """Of paths that are even in log σ, and one part for all, every one between is so too."""
    paths = [Tuned(PLAIN.path(s, "log"), (0.3,) * s) for s in (5, 20)]
    for steps in (2, 7, 13, 40):
        found = between(paths, steps)
        assert found.levels == pytest.approx(PLAIN.path(steps, "log"), rel=1e-12)
        assert found.mix == pytest.approx([0.3] * steps, rel=1e-12)


def test_between_two_methods_is_the_one_with_more_parts() -> None:
    """What `ab2` has none of counts as none."""
    a, b = Tuned(PLAIN.path(4, "log"), (0.2,) * 4), Tuned(PLAIN.path(16, "log"), (0.2,) * 16 + (1.0,) * 16)
    found = between([a, b], 8)
    assert found.solver == "ab3"
    assert found.mix == pytest.approx([0.2] * 8 + [0.5] * 8)


def test_half_way_in_log_s_is_the_mean() -> None:
    a, b = Tuned(PLAIN.path(4, "log"), (0.0,) * 4), Tuned(PLAIN.path(16, "karras"), (1.0,) * 16)
    found = between([a, b], 8)
    assert found.mix == pytest.approx([0.5] * 8)
    middle = math.sqrt(a.levels[2] * b.levels[8])
    assert found.levels[4] == pytest.approx(middle, rel=1e-12)


def test_ab2_with_equal_parts_is_ab2mix_and_without_ab2() -> None:
    eps, x0 = Gaussian(0.3, 0.5).eps, np.array([[-0.7], [0.9]])
    for levels in (PLAIN.path(9, "karras"), PLAIN.path(9, "karras")[::-1], PLAIN.path(9, "linear")):
        same = integrate(eps, x0, levels, "ab2", mix=[0.7] * 9).x
        assert np.array_equal(same, integrate(eps, x0, levels, "ab2mix").x)
        assert np.array_equal(integrate(eps, x0, levels, "ab2", mix=[0.0] * 9).x, integrate(eps, x0, levels, "ab2").x)


def test_each_step_has_its_part_whichever_way_the_path_runs() -> None:
    """Only the middle step of three mixes: going up and going down differ from `ab2` from there on, as by hand."""
    eps, x0, levels = Gaussian(0.3, 0.5).eps, np.array([[0.9]]), (0.5, 1.0, 2.0, 4.0)
    v = [s / math.sqrt(1 + s * s) for s in levels]

    def by_hand(order: list[int]) -> list[float]:
        x, out = 0.9, []
        before: float | None = None
        for k, (i, j) in enumerate(zip(order, order[1:], strict=False)):
            s, t = levels[i], levels[j]
            e = float(eps(np.array([[x]]), s)[0, 0])
            x += (t - s) * e
            if before is not None:
                r, old = levels[order[k - 1]], before
                log = (t * math.log(t / s) - (t - s)) / math.log(s / r)
                sine = (math.hypot(1, t) - math.hypot(1, s) - (t - s) * v[i]) / (v[i] - v[order[k - 1]])
                x += (sine if {i, j} == {1, 2} else log) * (e - old)
            before = e
            out.append(x)
        return out

    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        states: list[Any] = []

        def kept(steps: Any, states: list[Any] = states) -> Any:
            for state in steps:
                states.append(state)
                yield state

        integrate(eps, x0, [levels[i] for i in order], "ab2", mix=(0.0, 1.0, 0.0), progress=kept)
        assert [float(s[0, 0]) for s in states] == pytest.approx(by_hand(order), rel=1e-12)


def test_a_mix_fits_its_path_and_its_solver() -> None:
    eps, x0 = Gaussian(0.3, 0.5).eps, np.array([[0.9]])
    with pytest.raises(UsageError, match="ddim mixes nothing"):
        integrate(eps, x0, (0.5, 1.0), "ddim", mix=(0.5,))
    with pytest.raises(ValueError, match="too few, or too many"):
        integrate(eps, x0, (0.5, 1.0), "ab2", mix=(0.5, 0.5))


def test_a_way_brings_the_mix_of_a_tuned_path_and_drops_one_that_is_of_other_levels() -> None:
    schedule = replace(PLAIN, paths=(path(5),))
    way = Way(spacing="tuned", steps=5).on(schedule)
    assert (way.levels, way.mix) == (path(5).levels, path(5).mix)
    assert way.on(PLAIN) == way  # what is spelled out needs no file
    assert replace(way, solver="ddim").on(PLAIN).mix == ()
    assert Way("exact", "tuned", 5).on(schedule).mix == ()
    third = replace(PLAIN, paths=(Tuned(path(5).levels, path(5).mix * 2),))
    for asked in ("ab2", "ab3"):
        found = Way(asked, "tuned", 5).on(third)
        assert (found.solver, found.mix) == ("ab3", path(5).mix * 2)
        assert (Way(asked, "tuned", 5).on(schedule).solver, found.on(PLAIN)) == ("ab2", found)
    assert replace(found, solver="ab2").on(PLAIN).mix == ()
    assert way.along((0.1, 1.0)).mix == ()
    assert Way(steps=5).on(schedule).mix == ()
    assert schedule == PLAIN
    assert schedule.digest == PLAIN.digest
    for without in (PLAIN, schedule.until(2.0)):
        with pytest.raises(UsageError, match="no path was tuned"):
            Way(spacing="tuned", steps=5).path(without)


def known(steps: int, part: float = 0.0, **about: Any) -> Tuned:
    """A path that won on enough images, but for what is said otherwise."""
    own, other = {"mse": 1e-4, "xT_error": 0.01}, {"mse": 2e-4, "xT_error": 0.01}
    held = {"tuned": own, "karras": other, "log": {**other, "mse": 1e-4}}
    return replace(path(steps, "log", part), about={"held_out": held, "held_out_images": 16, **about})


def beside(own: dict[str, float], **others: dict[str, float]) -> dict[str, Any]:
    """Figures of a path beside `karras`, whose round trip is worse, and others."""
    return {"tuned": own, "karras": {"mse": 1e-3, "xT_error": 0.01}, **others}


@pytest.mark.parametrize(
    ("about", "wins"),
    [
        ({}, True),
        ({"held_out_images": 15}, False),
        ({"held_out_images": None}, False),
        ({"held_out": {"tuned": {"mse": 1e-4, "xT_error": 0.01}}}, False),  # beside nothing
        ({"held_out": {"karras": {"mse": 1e-4, "xT_error": 0.01}}}, False),
        ({"held_out": {"tuned": {"mse": 1e-4, "xT_error": 0.02}, "karras": {"mse": 1e-3, "xT_error": 0.01}}}, False),
        ({"held_out": beside({"mse": 2e-4, "xT_error": 0.01}, log={"mse": 2e-4, "xT_error": 0.001})}, True),
        ({"held_out": beside({"mse": 2e-4, "xT_error": 0.0}, log={"mse": 1e-4, "xT_error": 0.01})}, False),
        ({"held_out": beside({"mse": 2e-4, "xT_error": 0.0}, log={"xT_error": 0.01})}, False),
        ({"held_out": {"tuned": {"mse": 1e-4, "xT_error": 0.01}, "log": {"mse": 1, "xT_error": 1}}}, False),
        ({"held_out": {"tuned": {"mse": math.nan, "xT_error": 0}, "karras": {"mse": 1, "xT_error": 1}}}, False),
        ({"held_out": {"tuned": {"mse": 1}, "karras": {"mse": 1}}}, False),
        ({"held_out": {"tuned": [1], "karras": "2"}}, False),
        ({"held_out": [1, 2]}, False),
        ({"condition": {"prompt": "a"}}, False),  # under another it was not measured
    ],
)
def test_a_path_wins_by_the_least_round_trip_and_an_error_of_xT_no_worse_than_karras_has_on_enough_images(
    about: dict[str, Any], wins: bool
) -> None:
    assert known(4, **about).wins is wins


def test_without_a_spacing_the_default_solver_takes_a_path_that_wins_or_lies_between_two_that_do() -> None:
    lost = {"held_out_images": 1}
    schedule = replace(PLAIN, paths=(known(4, 0.1), known(8, 0.2), known(20, 0.3, **lost), known(30)))
    for steps in range(1, 40):
        tuned_there = 4 <= steps <= 8 or steps == 30
        way = Way(steps=steps).on(schedule)
        wanted = Way(spacing="tuned" if tuned_there else "karras", steps=steps).on(schedule)
        assert way == wanted, steps
        assert Way(steps=steps).path(schedule) == wanted.levels
        assert bool(way.mix) is tuned_there
    assert Way(steps=4).on(PLAIN) == Way("ab2", "karras", 4).on(schedule)
    assert Way("ab2", "karras", 4).on(schedule).mix == ()
    assert Way(steps=4, to=2.0).on(schedule).spacing == "karras"  # a part of the way
    for solver, spacing in (("ddim", "karras"), ("ab3", "karras"), ("exact", "log")):
        assert Way(solver, steps=4).on(schedule).spacing == spacing
    assert replace(Way(steps=4), solver="exact").on(schedule).spacing == "log"


def test_other_steps_of_a_way_that_was_tuned_are_by_the_default_again() -> None:
    schedule = replace(PLAIN, paths=(replace(known(4), mix=(0.5,) * 8), known(8)))
    way = Way(steps=4).on(schedule)
    assert (way.solver, way.spacing) == ("ab3", "tuned")
    assert way.anew(steps=8).on(schedule) == Way(steps=8).on(schedule)
    assert way.anew(steps=9).on(schedule) == Way("ab2", "karras", 9).on(schedule)
    assert way.anew(spacing="karras").on(schedule) == Way("ab2", "karras", 4).on(schedule)
    assert way.anew(steps=3, spacing="tuned").on(schedule) == Way("ab2", "tuned", 3).on(schedule)
    assert way.anew(steps=5, solver="exact").on(schedule) == Way("exact", "log", 5).on(schedule)
    assert way.anew() == way
    plain = Way("ddim", "log", 4).on(schedule)
    assert plain.anew(steps=9).on(schedule) == Way("ddim", "log", 9).on(schedule)


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    paths = [replace(path(s), about={"score": -1.5, "rounds": 3}) for s in (5, 10)]
    (tmp_path / "paths.json").write_bytes(tuned.to_bytes(paths, model="m", schedule=PLAIN.digest))
    found = tuned.load(tmp_path, schedule=PLAIN.digest)
    assert list(found) == paths
    assert [p.about["score"] for p in found] == [-1.5, -1.5]
    assert tuned.to_bytes(found, model="m", schedule=PLAIN.digest) == (tmp_path / "paths.json").read_bytes()
    assert tuned.load(tmp_path, schedule="0" * 64) == ()  # the model was given another
    assert tuned.load(None, schedule="") == tuned.load(tmp_path / "nothing", schedule="") == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.update(format="x"), "format"),
        (lambda d: d.update(version=2), "format"),
        (lambda d: d["paths"][0].update(levels=[3.0, 2.0, 1.0]), "rise"),
        (lambda d: d["paths"][0].update(levels=[0.0, 1.0, 2.0]), "rise"),
        (lambda d: d["paths"][0].update(levels=[0.5, math.nan, 2.0]), "rise"),
        (lambda d: d["paths"][0].update(levels=[0.5, 1.0, math.inf]), "rise"),
        (lambda d: d["paths"][0].update(levels=[1.0, 2.0], mix=[0.0] * 3), "part for each"),
        (lambda d: d["paths"][0].update(levels=[], mix=[]), "part for each"),
        (lambda d: d["paths"][0].update(mix=[math.nan, 0.0]), "parts"),
        (lambda d: d["paths"][0].update(mix=[1e9, 0.0]), "parts"),
        (lambda d: d["paths"][0].pop("mix"), "mix"),
        (lambda d: d.update(paths=7), ""),
    ],
)
def test_what_makes_no_sense_is_refused(change: Callable[[Any], Any], why: str, tmp_path: Path) -> None:
    found = json.loads(tuned.to_bytes([path(2)], model="m", schedule=PLAIN.digest))
    change(found)
    (tmp_path / "paths.json").write_text(json.dumps(found))
    with pytest.raises(FileError, match=rf"paths\.json makes no sense.*{why}"):
        tuned.load(tmp_path, schedule=PLAIN.digest)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '{"format": "ddimctl-paths"}', "\ufeff"])
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "paths.json").write_text(text)
    with pytest.raises(FileError, match="makes no sense"):
        tuned.load(tmp_path, schedule=PLAIN.digest)


@pytest.fixture
def own(tame_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tame model, with a path tuned (by nobody) for 4 and 8 steps."""
    import shutil

    folder = tmp_path / "own"
    shutil.copytree(tame_folder, folder)
    paths = [path(4, "log", 0.3), path(8, "arsinh", -0.3)]
    (folder / "paths.json").write_bytes(tuned.to_bytes(paths, model="m", schedule=PLAIN.digest))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    writing.save_image(tmp_path / "a.png", pixels)
    return folder


def test_a_latent_records_levels_and_mix_and_needs_the_file_no_more(
    invoke: Callable[..., Result], own: Path, tmp_path: Path
) -> None:
    model = load(str(own), "cpu")
    assert [p.steps for p in model.schedule.paths] == [4, 8]
    invoke("encode", "a.png", "-m", own, "--spacing", "tuned", "--steps", 4, "-o", "a.pt").ok()
    way = latent.load(tmp_path / "a.pt").recipe.way
    assert (way.levels, way.mix, way.spacing) == (path(4, "log", 0.3).levels, path(4, "log", 0.3).mix, "tuned")
    x0 = ode.decode(model, latent.load(tmp_path / "a.pt").xT, way).x
    assert not np.allclose(x0, ode.decode(model, latent.load(tmp_path / "a.pt").xT, replace(way, mix=())).x)
    invoke("decode", "a.pt", "-o", "with.png").ok()
    (own / "paths.json").unlink()
    invoke("decode", "a.pt", "-o", "without.png").ok()
    assert np.array_equal(np.asarray(Image.open("with.png")), np.asarray(Image.open("without.png")))
    invoke("decode", "a.pt", "-o", "x.png", "--steps", 5).ok()  # by the default
    assert "no path" in invoke("decode", "a.pt", "-o", "y.png", "--spacing", "tuned", "--steps", 5).failed(2)
    assert "no path was tuned" in invoke("encode", "a.png", "-m", own, "--spacing", "tuned", "-o", "b.pt").failed(2)


@pytest.fixture
def winning(own: Path) -> Path:
    """The same, with figures that say it wins."""
    paths = [known(4, 0.3), replace(known(8), mix=(0.3,) * 16)]
    (own / "paths.json").write_bytes(tuned.to_bytes(paths, model="m", schedule=PLAIN.digest))
    return own


def test_a_path_that_wins_is_what_encode_takes_unless_a_spacing_is_named(
    invoke: Callable[..., Result], winning: Path, tmp_path: Path
) -> None:
    def way_of(*options: object) -> Way:
        out = invoke("encode", "a.png", "-m", winning, *options, "-o", "x.pt", "--force", "--json").ok().out
        found = latent.load(tmp_path / "x.pt").recipe.way
        said = json.loads(out)
        assert [said[k] for k in ("steps", "solver", "spacing")] == [found.steps, found.solver, found.spacing]
        return found

    way = way_of("--steps", 4)
    assert (way.spacing, way.levels, way.mix) == ("tuned", known(4, 0.3).levels, known(4, 0.3).mix)
    assert way_of("--steps", 8).solver == "ab3"
    assert way_of("--steps", 6).spacing == "tuned"
    for options in (["--steps", 9], ["--steps", 3], ["--steps", 4, "--spacing", "karras"]):
        way = way_of(*options)
        assert (way.solver, way.spacing, way.mix) == ("ab2", "karras", ())
        assert way.levels == PLAIN.path(way.steps, "karras")
    assert way_of("--steps", 4, "--strength", 0.5).spacing == "karras"
    said = invoke("encode", "a.png", "-m", winning, "--steps", 4, "-o", "v.pt", "-v").ok().err
    assert "tuned to own; --spacing karras does without" in said


def test_a_path_that_wins_is_what_reconstruct_translate_and_decode_take(
    invoke: Callable[..., Result], winning: Path, tmp_path: Path
) -> None:
    command = ("reconstruct", "-m", winning, "--json", "-q", "--engine", "torch")
    found = json.loads(invoke(*command, "--steps", "4,8,20").ok().out)["results"]
    assert [(r["steps"], r["solver"], r["spacing"]) for r in found] == [
        (4, "ab2", "tuned"), (8, "ab3", "tuned"), (20, "ab2", "karras"),
    ]  # fmt: skip
    named = json.loads(invoke(*command, "--steps", "4,8", "--spacing", "tuned").ok().out)["results"]
    assert [r["mse"] for r in named] == [r["mse"] for r in found[:2]]
    invoke("encode", "a.png", "-m", winning, "--steps", 4, "-o", "a.pt").ok()
    invoke("decode", "a.pt", "--steps", 8, "-o", "eight.png").ok()
    made = invoke("info", "eight.png").ok().out
    assert "ab3" in made
    assert "tuned" in made
    invoke("decode", "a.pt", "--steps", 9, "-o", "nine.png").ok()
    assert "karras" in invoke("info", "nine.png").ok().out


def test_decoding_otherwise_leaves_the_mix_behind(invoke: Callable[..., Result], own: Path, tmp_path: Path) -> None:
    invoke("encode", "a.png", "-m", own, "--spacing", "tuned", "--steps", 4, "-o", "a.pt").ok()
    for options in (["--steps", 6], ["--spacing", "log"], ["--solver", "ddim"], ["--steps", 8, "--spacing", "karras"]):
        invoke("decode", "a.pt", "-o", "x.png", "--force", *options).ok()
    invoke("encode", "a.png", "-m", own, "--spacing", "log", "--steps", 4, "-o", "b.pt").ok()  # the levels of a.pt
    assert latent.load(tmp_path / "b.pt").path == latent.load(tmp_path / "a.pt").path
    assert "b.pt was made with" in invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "x.gif").failed(3)


def test_a_file_with_a_wrong_mix_is_refused(invoke: Callable[..., Result], own: Path, tmp_path: Path) -> None:
    invoke("encode", "a.png", "-m", own, "--spacing", "tuned", "--steps", 4, "-o", "a.pt").ok()
    file = latent.load(tmp_path / "a.pt")
    for wrong in ([0.1], [0.1, 0.2, 0.3, 1e9], [None] * 4, "0123"):
        with pytest.raises(ValueError, match="mix"):
            check_provenance({**file.provenance, "mix": wrong}, 1)


def test_reconstruct_and_a_model_without_torch_know_it(
    invoke: Callable[..., Result], own: Path, tmp_path: Path
) -> None:
    command = ("reconstruct", "-m", own, "--spacing", "tuned,log", "--steps", 6, "--json", "-q")
    out = json.loads(invoke(*command, "--engine", "torch").ok().out)
    assert [r["spacing"] for r in out["results"]] == ["tuned", "log"]
    assert out["results"][0]["mse"] != out["results"][1]["mse"]


@pytest.mark.parametrize(("name", "won"), [("emoji", {10, 20, 50}), ("fashion-mnist", {10, 20, 50, 100})])
def test_the_bundled_models_bring_paths_that_won_on_images_that_had_no_part_in_it(name: str, won: set[int]) -> None:
    model = load(name, "cpu")
    assert {own.steps for own in model.schedule.paths if own.wins} == won
    for own in model.schedule.paths:
        assert (own.levels[0], own.levels[-1]) == (model.schedule.sigma(1), model.schedule.sigma(1000))
        held = own.about["held_out"]
        assert held["tuned"]["median"] == min(f["median"] for f in held.values())
        assert held["tuned"]["xT_error"] < held["karras"]["xT_error"]
        assert (Way(steps=own.steps).on(model.schedule).spacing == "tuned") is (own.steps in won)
    assert json.loads((bundled_folder() / name / "paths.json").read_text())["model"] == DIGESTS[name]
