"""Every latent family against its pipeline's own sampling in diffusers, along the same levels."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines
from rounding import apart

from ddimctl import latent, ode
from ddimctl.errors import UsageError
from ddimctl.families import flux as flux_family
from ddimctl.families import load, resized, stable_diffusion_3
from ddimctl.families.autoencoders import quiet
from ddimctl.images import levels, writing
from ddimctl.model import NOTHING, Condition, Model, Pixels
from ddimctl.recipe import Way

PROMPT, NEGATIVE = "a red dog under the blue sky", "ugly and dark"
CONDITIONS = [Condition(prompt=PROMPT), Condition(None, PROMPT, NEGATIVE, 7.5), Condition(None, PROMPT, None, 3.0)]
FAR = 1e6  # what stands for infinite noise where the pipeline begins there

Made = tuple[Model, Any]  # a model, and diffusers' pipeline
Both = tuple[Any, Any]  # the latents that it samples, and ours


def states(model: Model) -> Model:
    return replace(model, autoencoder=Pixels())


def ddim(model: Model, xT: torch.Tensor, levels: list[float], condition: Condition) -> Any:
    """x_t at the lowest level."""
    way = Way("ddim", levels=tuple(levels), steps=len(levels) - 1)
    return ode.decode(states(model), xT, way, condition).x / model.schedule.scale(levels[0])


def sampled(pipe: Any, model: Model, xT: torch.Tensor, steps: int, condition: Condition, **more: Any) -> Any:
    negative = None if condition.negative is None else [condition.negative] * len(xT)
    with quiet():
        return pipe(
            [condition.prompt] * len(xT), negative_prompt=negative, num_inference_steps=steps, latents=xT,
            output_type="latent", height=xT.shape[2] * model.factor, width=xT.shape[3] * model.factor, **more,
        ).images  # fmt: skip


def leading(pipe: Any, model: Model, steps: int, spacing: str = "leading") -> list[float]:
    """Has the pipeline sample along levels that DDIMScheduler steps between, and says which."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipe.scheduler.set_timesteps(steps)
    return [model.schedule.sigma(1), *(model.schedule.sigma(int(t) + 1) for t in pipe.scheduler.timesteps.flip(0))]


def vp(made: Made, xT: torch.Tensor, steps: int, condition: Condition) -> Both:
    model, pipe = made
    levels = leading(pipe, model, steps)
    theirs = sampled(pipe, model, xT, steps, condition, guidance_scale=condition.guidance)
    return theirs, ddim(model, xT, levels, condition)


def zero_snr(made: Made, xT: torch.Tensor, steps: int, condition: Condition) -> Both:
    model, pipe = made
    model = replace(model, schedule=model.schedule.up_to(FAR))
    levels = leading(pipe, model, steps, "leading" if 1000 % steps else "trailing")
    assert (levels[-1] == pytest.approx(FAR)) == (1000 % steps == 0)
    theirs = sampled(pipe, model, xT, steps, condition, guidance_scale=condition.guidance)
    return theirs, ddim(model, xT, levels, condition)


def ldm(made: Made, xT: torch.Tensor, steps: int, condition: Condition) -> Both:
    """Its pipeline takes no latents, and gives none."""
    model, pipe = made
    from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond as module

    seen: list[torch.Tensor] = []
    levels = leading(pipe, model, steps)
    decode = pipe.vqvae.decode
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setattr(module, "randn_tensor", lambda *_, **__: xT)
        patch.setattr(pipe.vqvae, "decode", lambda z: (seen.append(z), decode(z))[1])
        images = torch.from_numpy(pipe(len(xT), num_inference_steps=steps, output_type="numpy").images)
    again = model.autoencoder.decode(seen[0].double() * pipe.vqvae.config.scaling_factor)
    if not pipe.vqvae.config.get("shift_factor"):  # which this old pipeline does not know
        assert apart((again.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), images) < 1e-4
    return seen[0] * pipe.vqvae.config.scaling_factor, ddim(model, xT, levels, NOTHING)


def flow(made: Made, xT: torch.Tensor, steps: int, condition: Condition) -> Both:
    model, pipe = made
    length = pipelines.T5_LENGTH if pipe.text_encoder_3 is not None else stable_diffusion_3.T5_TOKENS
    theirs = sampled(pipe, model, xT, steps, condition, guidance_scale=condition.guidance, max_sequence_length=length)
    return theirs, ddim(replace(model, schedule=model.schedule.up_to(FAR)), xT, flow_levels(pipe), condition)


def flow_levels(pipe: Any) -> list[float]:
    return [FAR if t == 1 else float(t / (1 - t)) for t in pipe.scheduler.sigmas.double().flip(0)]


def flux(made: Made, xT: torch.Tensor, steps: int, condition: Condition) -> Both:
    model, pipe = made
    h, w = xT.shape[2:]
    told = 3.5 if condition.distilled is None else condition.distilled
    if condition.guidance != 1 and condition.negative is None:
        condition = replace(condition, negative="")  # without one its pipeline guides nothing
    packed = flux_sampled(pipe, model, xT, steps, condition, told)
    theirs = pipe._unpack_latents(packed, h * model.factor, w * model.factor, model.factor)
    return theirs, ddim(replace(model, schedule=model.schedule.up_to(FAR)), xT, flow_levels(pipe), condition)


def flux_sampled(pipe: Any, model: Model, xT: torch.Tensor, steps: int, condition: Condition, told: float) -> Any:
    n, c, h, w = xT.shape
    negative = None if condition.negative is None else [condition.negative] * n
    with quiet():
        return pipe(
            [condition.prompt] * n, negative_prompt=negative, num_inference_steps=steps, guidance_scale=told,
            true_cfg_scale=condition.guidance, latents=pipe._pack_latents(xT, n, c, h, w), output_type="latent",
            height=h * model.factor, width=w * model.factor, max_sequence_length=pipelines.T5_LENGTH,
        ).images  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family, how its pipeline is asked, and how near the two come."""

    family: str
    compare: Callable[[Made, torch.Tensor, int, Condition], Both] = vp
    conditions: tuple[Condition, ...] = tuple(CONDITIONS)
    most: float = 1e-5


TOLD = Condition(prompt=PROMPT, distilled=1.5)
CASES = {
    "sd": Case("stable-diffusion"),
    "zero snr": Case("stable-diffusion", zero_snr),
    "xl": Case("stable-diffusion-xl"),
    "xl, no zeros": Case("stable-diffusion-xl"),
    "vq": Case("latent-diffusion", ldm, (NOTHING,)),
    "kl": Case("latent-diffusion", ldm, (NOTHING,)),
    "sd3": Case("stable-diffusion-3", flow, most=1e-4),
    "sd3, no t5": Case("stable-diffusion-3", flow, most=1e-4),
    "flux": Case("flux", flux, (*CONDITIONS, TOLD), 1e-4),
    "flux, no guidance": Case("flux", flux, most=1e-4),
}
MADE: dict[str, tuple[Path, Model, Any]] = {}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def made(case: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(model, diffusers' pipeline), made once a session. Read only."""
    return both(case, tmp_path_factory)[1:]


def both(case: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model, Any]:
    if case not in MADE:
        from diffusers import DiffusionPipeline

        folder = pipelines.folder_of(case, tmp_path_factory)
        with quiet():
            missing = {"text_encoder_3": None, "tokenizer_3": None} if case == "sd3, no t5" else {}
            pipe: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **missing)
        pipe.set_progress_bar_config(disable=True)
        MADE[case] = folder, load(str(folder), "cpu"), pipe
    return MADE[case]


def noise(model: Model, n: int = 2) -> torch.Tensor:
    return torch.randn(n, *model.state_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_ddim_is_the_pipelines_own_sampling(case: str, made: Made, steps: int) -> None:
    about = CASES[case]
    for condition in about.conditions:
        theirs, ours = about.compare(made, noise(made[0]), steps, condition)
        assert apart(ours, theirs) < about.most, condition


def test_another_size_is_the_pipelines_too(case: str, made: Made) -> None:
    model, pipe = made
    about = CASES[case]
    if model.multiple is None:
        with pytest.raises(UsageError, match="makes images of 16 × 16"):
            resized(model, (16, 24))
        return
    wide = resized(model, (16, 24))
    assert wide.digest == model.digest
    theirs, ours = about.compare((wide, pipe), noise(wide, 1), 5, about.conditions[-1])
    assert apart(ours, theirs) < about.most


def test_every_condition_is_another_image(case: str, made: Made) -> None:
    model, about = made[0], CASES[case]
    assert model.about.family == about.family
    asked = dict.fromkeys((NOTHING, *about.conditions))
    found = [ode.decode(states(model), noise(model), Way("ddim", steps=4), c).x for c in asked]
    for i, a in enumerate(found):
        assert all(apart(a, b) > 1e-4 for b in found[:i])


def test_states_come_back(case: str, made: Made) -> None:
    model, about = made[0], CASES[case]
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    z = model.autoencoder.encode(images.double())
    way = Way("exact", tolerance=1e-6)
    xT = ode.encode(states(model), z, way, about.conditions[0]).x.float()
    assert apart(ode.decode(states(model), xT, way, about.conditions[0]).x, z) < 1e-2


def test_the_command_line_of_a_flow(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]
) -> None:
    """Its end and what a distilled network is told are in the file; decode needs neither."""
    folder = both("flux", tmp_path_factory)[0]
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    asked = ["-m", folder, "--prompt", PROMPT, "--distilled", "2", "--sigma-max", "50", "--size", "16x24"]
    invoke("encode", "a.png", *asked, "--steps", "4").ok()
    found = latent.load(tmp_path / "a.pt")
    assert (found.recipe.condition.distilled, found.recipe.way.levels[-1]) == (2.0, 50.0)
    assert "another" not in invoke("decode", "a.pt", "-o", "b.png").ok().err
    assert "told 3" in invoke("decode", "a.pt", "-o", "c.png", "--distilled", "3", "--steps", "3").ok().err
    assert (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    invoke("sample", "-m", folder, "-n", "1", "--sigma-hat", "--steps", "2").failed(2)
    plain = both("sd", tmp_path_factory)[0]
    assert "not told of guidance" in invoke("sample", "-m", plain, "--distilled", "2").failed(2)
    assert "ends where it was trained" in invoke("sample", "-m", plain, "--sigma-max", "20").failed(2)


@pytest.mark.parametrize("name", ["sd", "vq", "flux"])
def test_what_is_told_of_it(name: str, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]) -> None:
    folder, model, _ = both(name, tmp_path_factory)
    for command in (["info"], ["models", "show"]):
        record = json.loads(invoke(*command, folder, "--json").ok().out)
        assert (record["family"], record["digest"]) == (CASES[name].family, model.digest)
        assert record["autoencoder"] == model.autoencoder.digest
    assert "pixels a side" in invoke("info", folder).ok().out


def test_the_loss_told_apart(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]
) -> None:
    """Random weights keep nothing of the image; of the states `exact` does."""
    folder, model, _ = both("sd", tmp_path_factory)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    writing.save_image(tmp_path / "a.png", pixels)
    asked = ["-m", folder, "--steps", "8", "--solver", "ddim,exact", "--json"]
    results = json.loads(invoke("reconstruct", "a.png", *asked).ok().out)["results"]
    ddim, exact = results
    x0 = levels.to_tensor(pixels[None])
    alone = model.autoencoder.decode(model.autoencoder.encode(x0))
    assert (
        ddim["autoencoder_mse"] == exact["autoencoder_mse"] == pytest.approx(float(((alone - x0) / 2).square().mean()))
    )
    assert exact["state_error"] < 1e-3 < ddim["state_error"]
    assert exact["mse"] == pytest.approx(exact["autoencoder_mse"], rel=1e-2)


def test_a_folder_of_captioned_photographs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]
) -> None:
    """Each under its own prompt, as if it were alone; those of one prompt in one batch."""
    folder = both("sd", tmp_path_factory)[0]
    for name in ("a", "b", "c", "d", "deep/e"):
        (tmp_path / "photos/deep").mkdir(parents=True, exist_ok=True)
        writing.save_image(
            tmp_path / f"photos/{name}.png",
            np.random.default_rng(ord(name[-1])).integers(0, 256, (16, 16, 3), np.uint8),
        )
    (tmp_path / "photos/a.txt").write_text(PROMPT)
    rows = [{"file_name": f"{n}.png", "text": t} for n, t in (("b", NEGATIVE), ("c", PROMPT), ("deep/e", PROMPT))]
    (tmp_path / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    way = ["-m", folder, "--steps", "3", "--guidance", "2"]
    done = invoke("encode", "photos", *way, "--captions", "--prompt", "a circle", "-o", "z").ok()
    assert "1 of 5 images have no caption" in done.err
    prompts = {"a": PROMPT, "b": NEGATIVE, "c": PROMPT, "d": "a circle", "deep/e": PROMPT}
    for name, prompt in prompts.items():
        found = latent.load(tmp_path / f"z/{name}.pt")
        assert found.recipe.condition == Condition(None, prompt, None, 2.0)
        invoke("encode", f"photos/{name}.png", *way, "--prompt", prompt, "-o", "alone.pt", "--force").ok()
        assert apart(found.xT, latent.load(tmp_path / "alone.pt").xT) < 1e-4
    again = invoke("encode", "photos", *way, "--captions", "--prompt", "a circle", "-o", "z").ok()
    assert "there already: 5" in again.err
    assert "one prompt" in invoke("encode", "photos", *way, "--captions", "-o", "all.pt").failed(2)
    invoke("decode", "z", "-o", "back").ok()
    assert len(list((tmp_path / "back").rglob("*.png"))) == 5
    invoke("encode", "photos/d.png", *way, "--captions").failed(2)


def test_each_image_is_reconstructed_under_its_caption(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]
) -> None:
    """As if it were alone; those of one prompt together, and the record says which they are."""
    folder = both("sd", tmp_path_factory)[0]
    (tmp_path / "photos").mkdir()
    for name, prompt in (("a", PROMPT), ("b", NEGATIVE), ("c", PROMPT), ("d", None)):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (16, 16, 3), np.uint8)
        writing.save_image(tmp_path / f"photos/{name}.png", pixels)
        if prompt is not None:
            (tmp_path / f"photos/{name}.txt").write_text(prompt)
    (tmp_path / "said.txt").write_text("a circle\n")
    way = ["-m", folder, "--steps", "3", "--guidance", "2", "--solver", "ddim,ab2", "--report", "state_error,norm"]
    done = invoke("reconstruct", "photos", *way, "--captions", "--prompt", "@said.txt", "--json", "-o", "s.png").ok()
    assert "1 of 4 images have no caption; 'a circle' stands for it" in done.err
    record = json.loads(done.out)
    prompts = {"a": PROMPT, "c": PROMPT, "b": NEGATIVE, "d": "a circle"}
    assert record["captions"] == [{"image": f"{n}.png", "prompt": p} for n, p in prompts.items()]
    for i, (name, prompt) in enumerate(prompts.items()):
        alone = invoke("reconstruct", f"photos/{name}.png", *way, "--prompt", prompt, "--json").ok()
        for ours, theirs in zip(record["results"], json.loads(alone.out)["results"], strict=True):
            for report, value in theirs["each"].items():
                assert ours["each"][report][i] == pytest.approx(value[0], rel=1e-3)
    other = json.loads(invoke("reconstruct", "photos/b.png", *way, "--prompt", PROMPT, "--json").ok().out)
    assert other["results"][0]["norm"] != pytest.approx(record["results"][0]["each"]["norm"][2], rel=1e-3)
    invoke("reconstruct", "photos/d.png", *way, "--captions").failed(2)


def test_prompts_from_files_and_what_is_told(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Any]
) -> None:
    folder = both("sd", tmp_path_factory)[0]
    writing.save_image(tmp_path / "a.png", np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "said.txt").write_text(f"{PROMPT}\n")
    invoke("encode", "a.png", "-m", folder, "--steps", "2", "--prompt", "@said.txt", "--negative", "@@home").ok()
    assert latent.load(tmp_path / "a.pt").recipe.condition == Condition(None, PROMPT, "@home")
    told = invoke("decode", "a.pt", "-o", "b.png", "--guidance", "7.5").ok().err
    assert "encoded at guidance 1; decoded at guidance 7.5" in told
    assert "--keep-path" in told
    assert "no file no said" in invoke("encode", "a.png", "-m", folder, "--prompt", "@no said").failed(2)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    assert "not text in UTF-8" in invoke("encode", "a.png", "-m", folder, "--prompt", "@bytes.txt").failed(3)


def test_t5_reads_as_much_as_their_pipelines_have_it_read() -> None:
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    for pipeline, ours in ((FluxPipeline, flux_family), (StableDiffusion3Pipeline, stable_diffusion_3)):
        asked = inspect.signature(pipeline.__call__).parameters
        assert asked["max_sequence_length"].default == ours.T5_TOKENS
    assert inspect.signature(FluxPipeline.__call__).parameters["guidance_scale"].default == flux_family.DISTILLED
