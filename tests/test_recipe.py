"""The way along the noise levels, and the recipe: equal where all that decides a latent is, in a file as in memory."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiny_model
from record_cli import FIXTURES

from ddimctl import engines, latent
from ddimctl.errors import UsageError
from ddimctl.families import load
from ddimctl.model import NOTHING, Condition, Model, Pixels
from ddimctl.ode import Check, Solution
from ddimctl.recipe import OF_IMAGES, Recipe, Way, of_image, read_condition
from ddimctl.schedule import SPACINGS, Schedule
from ddimctl.solvers import SOLVERS, TOLERANCES, decoder

SCHEDULE = Schedule.linear()


class Coder(Pixels):
    """An autoencoder that is not nothing."""

    digest = "e" * 64  # type: ignore[assignment]


@pytest.fixture
def model(model_folder: Path) -> Model:
    return load(str(model_folder), "cpu")


def through_json(recipe: Recipe, model: Model, n: int = 1) -> Recipe:
    """The recipe as a file would give it back: by the provenance, as text and checked."""
    checks = [Check(0, [], 0.1, 1e-4)] * n if recipe.lossless else None
    solution = Solution(None, [2] * n, tolerance=recipe.way.tolerance, checks=checks)
    about = json.loads(
        json.dumps(latent.provenance(model, recipe, solution, records=[{"name": f"{i}"} for i in range(n)]))
    )
    latent.check_provenance(about, n)
    return Recipe.read(about)


# Ways


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_ways_levels_are_the_schedules(spacing: str) -> None:
    way = Way(spacing=spacing, steps=7)
    assert way.path(SCHEDULE) == SCHEDULE.path(7, spacing)
    along = way.along(way.path(SCHEDULE))
    assert along == replace(way, levels=SCHEDULE.path(7, spacing))
    assert along.path(Schedule.linear(100)) == way.path(SCHEDULE)  # its own levels, whatever the schedule


def test_levels_of_ones_own_count_the_steps() -> None:
    way = Way("heun", "log", 20).along([0.1, 1.0, 2.0, 50.0])
    assert way == Way("heun", "log", 3, None, (0.1, 1.0, 2.0, 50.0))
    assert way.path(SCHEDULE) == (0.1, 1.0, 2.0, 50.0)


def test_a_way_is_a_value() -> None:
    assert Way() == Way("ab2", "", 20, None, None)
    assert Way().on(SCHEDULE) == Way("ab2", "karras", 20).on(SCHEDULE)  # where the model has no path of its own
    assert Way("exact") == Way("exact", "log")  # each solver has a spacing of its own
    assert replace(Way("exact"), solver="ddim") == Way("ddim", "log")  # and what decodes it goes the same way
    assert len({Way(), Way("ab2"), Way(steps=20), Way(steps=21), Way().along([0.1, 1.0])}) == 3
    with pytest.raises(FrozenInstanceError):
        Way().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_tolerance_that_is_used(solver: str) -> None:
    assert Way(solver).used_tolerance == TOLERANCES.get(solver)
    Way(solver).check()
    if solver in TOLERANCES:
        assert Way(solver, tolerance=1e-3).used_tolerance == 1e-3
        for wrong in (0.0, 1.0, -1.0):
            with pytest.raises(UsageError, match="makes no sense"):
                Way(solver, tolerance=wrong).check()
    else:
        with pytest.raises(UsageError, match="takes no tolerance"):
            Way(solver, tolerance=1e-3).check()


@pytest.mark.parametrize(
    ("way", "said"),
    [(Way(spacing="even"), "unknown spacing"), (Way(steps=0), "0 steps"), (Way(steps=1001), "1001 steps")],
)
def test_ways_that_a_schedule_has_not(way: Way, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        way.path(SCHEDULE)


def test_unknown_solvers() -> None:
    with pytest.raises(UsageError, match="unknown solver 'euler'"):
        Way("euler").check()


# Recipes


def test_two_that_say_the_same_are_equal(model: Model, model_folder: Path) -> None:
    """Spelled out or not, loaded once or twice, whichever engine evaluates the network."""
    recipe = Recipe.of(model, Way())
    assert recipe == Recipe.of(load(str(model_folder), "cpu"), Way().along(model.schedule.path(20)))
    assert hash(recipe) == hash(Recipe.of(model, Way("ab2", "karras", 20)))
    assert Recipe.of(model, Way("exact")) == Recipe.of(model, Way("exact", tolerance=TOLERANCES["exact"]))
    other = replace(model.network, engine="openvino", call=lambda x, labels, embedded: x)
    assert recipe == Recipe.of(model.with_network(other), Way())


def test_whatever_decides_is_in_it(model: Model, tmp_path: Path) -> None:
    def of(way: Way = Way("exact", steps=5), m: Model = model, *args: Any, **more: Any) -> Recipe:  # noqa: B008
        return Recipe.of(m, way, *args, **more)

    bf16 = model.with_network(engines.make(model.network.module, "torch", "bf16"))
    all_different = [
        of(),
        of(Way("ddim", steps=5)),
        of(Way("exact", "karras", 5)),
        of(Way("exact", steps=6)),
        of(Way("exact", steps=5, tolerance=1e-4)),
        of(Way("exact", steps=5).along([*model.schedule.path(5)[:-1], 100.0])),
        of(m=load(str(write_tiny_model(tmp_path / "other", seed=1)), "cpu")),
        of(m=replace(model, schedule=Schedule.linear(beta_end=0.03)), way=of().way),
        of(m=replace(model, autoencoder=Coder())),
        of(m=bf16),
        of(lossless=True),
        *(
            Recipe.of(model, Way("exact", steps=5), Condition(**asked))  # type: ignore[arg-type]
            for asked in ({"class_label": 0}, {"prompt": ""}, {"prompt": "a"}, {"negative": "a"}, {"guidance": 2.0})
        ),
    ]
    assert len(set(all_different)) == len(all_different)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_file_gives_it_back(solver: str, spacing: str, model: Model) -> None:
    recipe = Recipe.of(model, Way(solver, spacing, 5))
    assert through_json(recipe, model) == recipe
    record = recipe.record()
    assert record["decoder"] == decoder(solver)
    assert record["tolerance"] == TOLERANCES.get(solver)
    assert record["path"] == list(model.schedule.path(5, spacing))
    assert {"condition", "autoencoder"}.isdisjoint(record)  # files of pixels look as they always did


@pytest.mark.parametrize(
    "condition",
    [
        NOTHING,
        Condition(3),
        Condition(prompt="a dog"),
        Condition(prompt="", guidance=7.5),
        Condition(2, "two\nlines, „quoted“", "blurred", 3),
    ],
)
@pytest.mark.parametrize("lossless", [False, True])
def test_a_file_gives_the_condition_back(condition: Condition, lossless: bool, model: Model) -> None:
    coded = replace(model, autoencoder=Coder())
    for m in (model, coded):
        recipe = Recipe.of(m, Way("exact", steps=4), condition, lossless=lossless)
        assert through_json(recipe, m, 3) == recipe
    about = latent.provenance(model, Recipe.of(model, Way(), condition), Solution(None, [2]), records=[])
    assert about["model"]["class"] == condition.class_label
    assert ("condition" in about) == (replace(condition, class_label=None) != NOTHING)
    assert read_condition(about) == condition


@pytest.mark.parametrize("name", sorted(p.name for p in (FIXTURES / "latents").iterdir()))
def test_old_files_have_a_recipe(name: str) -> None:
    found = latent.load(FIXTURES / "latents" / name)
    recipe, about = found.recipe, found.provenance
    assert recipe.model == about["model"]["digest"]
    assert recipe.condition == Condition(about["model"].get("class"))
    assert recipe.way == Way(
        about["solver"], about["spacing"], about["steps"], about["tolerance"], tuple(about["path"])
    )
    assert (recipe.lossless, recipe.autoencoder) == (about["lossless"] is not None, None)
    written = {k: about[k] for k in recipe.record()}
    assert {**recipe.record(), "decoder": about["decoder"]} == written


def test_of_an_image_only_what_decides_counts() -> None:
    record = {"name": "a.png", "sha256": "0", "fit": "crop", "background": "white", "frame": None,
              "value_range": (0.0, 9.0), "pixels": (8, 8, 1), "box": [0, 0, 8, 8]}  # fmt: skip
    assert of_image(record) == of_image(json.loads(json.dumps({**record, "name": "b.png", "box": [1, 1, 2, 2]})))
    for name in OF_IMAGES:
        assert of_image(record) != of_image({**record, name: "other"})
