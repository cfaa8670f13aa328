"""docs/interop.md: x_T to diffusers and back, the levels of its schedulers, and the lines for ComfyUI."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from problems import Mixture
from rounding import apart

import ddimctl
from ddimctl.checkpoints import sampler
from ddimctl.checkpoints import scheduler as schedulers
from ddimctl.errors import FileError, UsageError
from ddimctl.model import Condition, Pixels
from ddimctl.ode import decode, integrate
from ddimctl.recipe import Way
from ddimctl.schedule import Schedule

Invoke = Callable[..., Result]
DOC = (Path(__file__).parent.parent / "docs" / "interop.md").read_text(encoding="utf-8")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def theirs(config: dict[str, Any], steps: int, x: torch.Tensor) -> torch.Tensor:
    """What DDIMScheduler's own loop makes of x_T, with the ε of a known law in place of a network."""
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        sigma = float(((1 - scheduler.alphas_cumprod[t]) / scheduler.alphas_cumprod[t]) ** 0.5)
        eps = Mixture().eps(x * math.sqrt(1 + sigma**2), sigma)
        x = scheduler.step(eps, t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [2, 10, 40])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)])
def test_the_levels_are_those_of_the_schedulers_own_loop(spacing: str, offset: int, to_one: bool, steps: int) -> None:
    config = {**SD, "timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    schedule = schedulers.read({**config, "_class_name": "DDIMScheduler"}).schedule
    path = sampler.levels(config, schedule, steps)
    x = torch.linspace(-2, 2, 16, dtype=torch.float64).view(1, 1, 4, 4)
    ours = integrate(Mixture().eps, x * schedule.scale(path[-1]), path[::-1], "ddim").x / schedule.scale(path[0])
    assert apart(ours, theirs(config, steps, x)) < 1e-5
    if (spacing, offset, to_one) in [("leading", 1, False), ("trailing", 0, False)]:
        assert path == schedule.path(steps, spacing)


@pytest.mark.parametrize("S", [1, 7, 20, 999, 1000])
def test_leading_has_as_many_steps_as_asked_for(S: int) -> None:
    path = Schedule.linear().path(S, "leading")
    assert len(path) == S + 1
    assert path[0] == Schedule.linear().sigma(1 if S <= 500 else 0)


def test_a_step_to_itself_is_none() -> None:
    """From label 0 to label 0: DDIMScheduler's last step changes nothing."""
    config = {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False}
    assert len(sampler.levels(config, Schedule.linear(), 10)) == 10


@pytest.mark.parametrize(
    ("changed", "steps", "said"),
    [
        ({"timestep_spacing": "linspace"}, 10, "other than those it lists"),
        ({"timestep_spacing": "trailing"}, 30, "other than those it lists"),
        ({"timestep_spacing": 3}, 10, "other than those it lists"),
        ({"steps_offset": -1}, 10, "steps_offset"),
        ({"steps_offset": 0.5}, 10, "steps_offset"),
        ({"steps_offset": 200}, 10, "reach beyond"),
        ({}, 0, "0 steps"),
        ({}, 1001, "1001 steps"),
        ({"set_alpha_to_one": False}, 1, "lead nowhere"),
    ],
)
def test_levels_that_there_are_not(changed: dict[str, Any], steps: int, said: str) -> None:
    with pytest.raises((UsageError, FileError), match=said):
        sampler.levels({"steps_offset": 0, **changed}, Schedule.linear(), steps)


def test_a_tensor_is_decoded_as_diffusers_does(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    unet = UNet2DModel.from_pretrained(model_folder, subfolder="unet").eval()
    config = json.loads((model_folder / "scheduler" / "scheduler_config.json").read_text())
    settings = {**config, "steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "leading"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(settings))
    scheduler = DDIMScheduler.from_config(settings)
    scheduler.set_timesteps(10)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.save(noise, tmp_path / "theirs.pt")
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    want = ((x[0, 0].clamp(-1, 1) + 1) * 127.5).round().numpy()
    asked = ("theirs.pt", "-m", model_folder, "--steps", 10, "--from-diffusers")
    said = invoke("decode", *asked, tmp_path, "-o", "back.png").ok().err
    assert "10 steps of ddim, diffusers' leading" in said
    assert np.abs(np.asarray(Image.open(tmp_path / "back.png"), dtype=float) - want).max() <= 1
    invoke("decode", *asked, tmp_path / "scheduler_config.json", "-o", "same.png").ok()
    assert (tmp_path / "same.png").read_bytes() == (tmp_path / "back.png").read_bytes()
    # What lies between two of them begins and ends so.
    torch.save(torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)), tmp_path / "more.pt")
    said = invoke("interpolate", "more.pt", *asked, tmp_path, "--frames", 3, "-o", "film").ok().err
    assert "10 steps of ddim, diffusers' leading" in said
    last = max((tmp_path / "film").glob("*.png"))
    assert np.abs(np.asarray(Image.open(last), dtype=float) - want).max() <= 1
    beside = ("interpolate", "theirs.pt", model_folder / "held-out" / "001.png", *asked[1:], tmp_path)
    invoke(*beside, "--frames", 2, "-o", "other").ok()
    first = min((tmp_path / "other").glob("*.png"))
    assert np.abs(np.asarray(Image.open(first), dtype=float) - want).max() <= 1


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, 3, "EulerDiscreteScheduler"),
        ({"beta_end": 0.03}, 3, "other noise levels"),
        ({"num_train_timesteps": 500}, 3, "other noise levels"),
        ({"prediction_type": "v_prediction"}, 3, "predicts v_prediction"),
        ({"timestep_spacing": "linspace"}, 2, "other than those it lists"),
    ],
)
def test_a_scheduler_that_is_not_the_models(
    change: dict[str, Any], code: int, said: str, invoke: Invoke, model_folder: Path, tmp_path: Path
) -> None:
    config = json.loads((model_folder / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**config, **change}))
    torch.save(torch.zeros(1, 1, 16, 16), tmp_path / "theirs.pt")
    asked = ("decode", "theirs.pt", "--from-diffusers", tmp_path, "-o", "back.png")
    assert said in invoke(*asked, "-m", model_folder).failed(code)
    assert not (tmp_path / "back.png").exists()


def test_from_diffusers_asks_for_what_it_needs(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    torch.save(torch.zeros(1, 1, 16, 16), tmp_path / "theirs.pt")
    asked = ("decode", "theirs.pt", "-o", "back.png", "--from-diffusers")
    assert "no model" in invoke(*asked, model_folder).failed(2)
    assert "two ways" in invoke(*asked, model_folder, "-m", model_folder, "--spacing", "log").failed(2)
    assert "there is no" in invoke(*asked, tmp_path / "nothing", "-m", model_folder).failed(2)
    invoke("encode", model_folder / "held-out" / "001.png", "-o", "ours.pt", "-m", model_folder, "--steps", 2).ok()
    ours = ("decode", "ours.pt", "-o", "back.png", "-m", model_folder, "--from-diffusers", model_folder)
    assert "no bare tensor" in invoke(*ours).failed(2)
    between = ("interpolate", "-o", "no.gif", "--from-diffusers", model_folder)
    assert "hint: a tensor of another program's is decoded with -m" in invoke(*between, "theirs.pt", "theirs.pt").err
    assert "two ways" in invoke(*between, "theirs.pt", "theirs.pt", "-m", model_folder, "--spacing", "log").failed(2)
    assert "no bare tensor" in invoke(*between, "ours.pt", "theirs.pt", "-m", model_folder).failed(2)
    image = model_folder / "held-out" / "001.png"
    assert "there are none" in invoke(*between, image, image, "-m", model_folder).failed(2)


# The page's own lines, on a tiny model with text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the page calls FOLDER and photo.png; the one that one is in."""
    pytest.importorskip("transformers")
    from pipelines import write_stable_diffusion

    here = tmp_path_factory.mktemp("interop")
    write_stable_diffusion(here / "FOLDER")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(here / "photo.png")
    before = Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


def commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(r"^    (ddimctl .*)$", DOC, re.M)]


def scripts() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOC, re.S)


def the_state() -> tuple[Any, torch.Tensor]:
    net = ddimctl.load("FOLDER", "cpu")
    return replace(net, autoencoder=Pixels()), net.autoencoder.encode(ddimctl.open("photo.png", net))


def test_stock_diffusers_finds_z_again(place: Path) -> None:
    from conftest import in_process

    in_process(*commands()[0], "--force").ok()
    # The page's lines, but for the last step, which is the autoencoder's.
    script = scripts()[0].replace("guidance_scale=1)", 'guidance_scale=1, output_type="latent")')
    found: dict[str, Any] = {}
    exec(script, found)
    net, z = the_state()
    again = found["images"].double() * net.schedule.scale(net.schedule.sigma(1))
    assert float((again - z).norm() / z.norm()) < 1e-3


def test_theirs_come_back_here(place: Path) -> None:
    from conftest import in_process

    torch.save(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), "theirs.pt")
    said = in_process(*commands()[1], "--force").ok().err
    assert "diffusers' leading" in said
    assert Image.open("back.png").size == (16, 16)


def test_comfyui_finds_z_again(place: Path) -> None:
    """Its KSampler, transcribed: Euler's method in x̄ along Karras' levels with their own 0 left out."""
    from conftest import in_process
    from safetensors.torch import load_file

    in_process(*commands()[2], "--force").ok()
    exec(scripts()[1], {})
    held = load_file("x.latent")
    assert "latent_format_version_0" in held
    net, z = the_state()
    n, low, high = 21, net.schedule.sigma(1), net.schedule.sigma(net.schedule.T)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    x, eps = held["latent_tensor"].double() * 0.18215, net.eps(Condition(prompt="a red dog"))
    for s, t in zip(sigmas[:20].tolist(), sigmas[1:].tolist(), strict=True):
        denoised = x - s * eps(x, min(s, high))
        x = x + (x - denoised) / s * (t - s)
    assert float((x - z).norm() / z.norm()) < 1e-3
    xT = held["latent_tensor"] * 0.18215 / net.schedule.scale(high)
    assert apart(decode(net, xT, Way("ddim", "karras", 20), Condition(prompt="a red dog")).x, x) < 1e-3
