"""Every latent family against its pipeline's own sampling in diffusers, along the same levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines
from rounding import apart

from ddimctl import ode
from ddimctl.families import load, resized
from ddimctl.families.autoencoders import quiet
from ddimctl.model import Condition, Model, Pixels
from ddimctl.recipe import Way

PROMPT, NEGATIVE = "a red dog under the blue sky", "ugly and dark"
CONDITIONS = [Condition(prompt=PROMPT), Condition(None, PROMPT, NEGATIVE, 7.5), Condition(None, PROMPT, None, 3.0)]


@dataclass(frozen=True)
class Case:
    """A family, and how its pipeline is asked."""

    write: Callable[[Path], Path]
    family: str


CASES = {
    "sd": Case(pipelines.write_stable_diffusion, "stable-diffusion"),
    "xl": Case(pipelines.write_sdxl, "stable-diffusion-xl"),
    "xl, no zeros": Case(lambda f: pipelines.write_sdxl(f, force_zeros_for_empty_prompt=False), "stable-diffusion-xl"),
}
MADE: dict[str, tuple[Path, Model, Any]] = {}


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Any]:
    """(folder, model of its states, diffusers' pipeline), made once a session. Read only."""
    name: str = request.param
    if name not in MADE:
        from diffusers import DiffusionPipeline

        folder = CASES[name].write(tmp_path_factory.mktemp("family") / "model")
        with quiet():
            pipe: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        MADE[name] = folder, load(str(folder), "cpu"), pipe
    return MADE[name]


def states(model: Model) -> Model:
    return replace(model, autoencoder=Pixels())


def vp(pipe: Any, model: Model, xT: torch.Tensor, steps: int, condition: Condition) -> tuple[Any, Any]:
    """(theirs, ours): the leading levels, which DDIMScheduler steps between whatever the number of steps."""
    from diffusers import DDIMScheduler

    with quiet():
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="leading", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        theirs = pipe(
            [condition.prompt] * len(xT), negative_prompt=[condition.negative] * len(xT) if condition.negative else None,
            guidance_scale=condition.guidance, num_inference_steps=steps, latents=xT, output_type="latent",
            height=xT.shape[2] * model.factor, width=xT.shape[3] * model.factor,
        ).images  # fmt: skip
    sigma = model.schedule.sigma
    levels = (sigma(1), *(sigma(int(t) + 1) for t in pipe.scheduler.timesteps.flip(0)))
    ours = ode.decode(states(model), xT, Way("ddim", levels=levels, steps=steps), condition).x
    return theirs, ours / model.schedule.scale(levels[0])


@pytest.mark.parametrize("steps", [10, 20, 30])
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: f"g{c.guidance:g}")
@pytest.mark.parametrize("made", CASES, indirect=True)
def test_ddim_is_the_pipelines_own_sampling(made: tuple[Path, Model, Any], condition: Condition, steps: int) -> None:
    _, model, pipe = made
    xT = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = vp(pipe, model, xT, steps, condition)
    assert apart(ours, theirs) < 1e-5


@pytest.mark.parametrize("made", CASES, indirect=True)
def test_another_size_is_the_pipelines_too(made: tuple[Path, Model, Any]) -> None:
    _, model, pipe = made
    wide = resized(model, (16, 24))
    xT = torch.randn(1, *wide.state_shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = vp(pipe, wide, xT, 5, CONDITIONS[2])
    assert apart(ours, theirs) < 1e-5


@pytest.mark.parametrize("made", CASES, indirect=True)
def test_what_it_is_and_hears(made: tuple[Path, Model, Any]) -> None:
    _, model, _ = made
    assert model.about.family in {c.family for c in CASES.values()}
    xT = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(1))
    found = [ode.decode(states(model), xT, Way("ddim", steps=4), c).x for c in (Condition(), *CONDITIONS)]
    for i, a in enumerate(found):
        assert all(apart(a, b) > 1e-4 for b in found[:i])
