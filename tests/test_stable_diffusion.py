"""Stable Diffusion from a folder: against diffusers' own pipeline, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from pipelines import write_stable_diffusion

import ddimctl as library
from ddimctl import latent, lossless, ode
from ddimctl.arrays import Array
from ddimctl.errors import FileError, UsageError
from ddimctl.families import load, resized
from ddimctl.families.autoencoders import quiet
from ddimctl.images import writing
from ddimctl.model import Condition, Model
from ddimctl.recipe import Way

PROMPT, NEGATIVE = "a red dog under the blue sky", "ugly and dark"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each prediction. Read only: all tests share them."""
    top = tmp_path_factory.mktemp("stable-diffusion")
    return {kind: write_stable_diffusion(top / kind, kind) for kind in ("epsilon", "v_prediction")}


@pytest.fixture(scope="session")
def folder(folders: dict[str, Path]) -> Path:
    return folders["epsilon"]


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load(str(folder), "cpu")


def relative(a: Array, b: Array) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def stock(folder: Path, xT: torch.Tensor, steps: int, condition: Condition, output: str = "latent") -> torch.Tensor:
    """What diffusers' own pipeline makes of these latents, with its DDIMScheduler on trailing levels."""
    with quiet():
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
        )
        pipe.set_progress_bar_config(disable=True)
        out: torch.Tensor = pipe(
            [condition.prompt or ""] * len(xT), negative_prompt=[condition.negative or ""] * len(xT),
            guidance_scale=condition.guidance, num_inference_steps=steps, latents=xT, output_type=output,
        ).images  # fmt: skip
    return out


CONDITIONS = [Condition(prompt=PROMPT), Condition(None, PROMPT, NEGATIVE, 7.5), Condition(None, PROMPT, None, 3.0)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: f"g{c.guidance:g}")
def test_ddim_is_the_pipelines_own_sampling(folders: dict[str, Path], prediction: str, condition: Condition) -> None:
    model = load(str(folders[prediction]), "cpu")
    states = replace(model, autoencoder=library.model.Pixels())
    xT = torch.randn(2, *model.state_shape)
    for steps in (10, 20):
        ours = ode.decode(states, xT, Way("ddim", "trailing", steps), condition).x
        # What is clean to us is x̄ at the lowest level; the pipeline's is x_t.
        ours = ours / model.schedule.scale(model.schedule.sigma(1))
        assert relative(ours, stock(folders[prediction], xT, steps, condition)) <= 1e-5


def test_prompt_negative_and_guidance_are_heard(model: Model) -> None:
    xT = torch.randn(1, *model.state_shape)
    way = Way("ddim", steps=4)
    asked = [Condition(), *CONDITIONS]
    images = [ode.decode(model, xT, way, c).x for c in asked]
    for i, a in enumerate(images):
        for b in images[:i]:
            assert relative(a, b) > 1e-4


# A random network is no field of noise: at strong guidance it tears apart what is close by, as a decoder more than as an
# encoder. Seen: 3e-5 and 8e-4 with `exact`, 4e-2 with `ab2`.
@pytest.mark.parametrize(("guidance", "most"), [(1.0, 1e-3), (7.5, 1e-2)])
def test_stock_diffusers_decodes_our_latents(model: Model, folder: Path, guidance: float, most: float) -> None:
    condition = Condition(prompt=PROMPT, guidance=guidance)
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    encoded = ode.encode(model, images, Way("exact", "trailing", 20, 1e-6), condition)
    assert not encoded.unconverged
    again = stock(folder, encoded.x.float(), 20, condition) * model.schedule.scale(model.schedule.sigma(1))
    assert relative(again, model.autoencoder.encode(images)) < most


@pytest.mark.parametrize(
    ("way", "guidance", "most"),
    [
        (Way("exact", "log", tolerance=1e-6), 1.0, 1e-3),
        (Way("exact", "log", tolerance=1e-6), 7.5, 1e-2),
        (Way("ab2"), 1.0, 0.4),
    ],
    ids=["exact", "exact, guided", "ab2"],
)
def test_states_come_back(model: Model, way: Way, guidance: float, most: float) -> None:
    condition = Condition(prompt=PROMPT, guidance=guidance)
    states = replace(model, autoencoder=library.model.Pixels())
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(5))
    z = model.autoencoder.encode(images * 2 - 1)
    xT = ode.encode(states, z, way, condition).x.float()
    assert relative(ode.decode(states, xT, way, condition).x, z) < most


def test_the_autoencoder_is_the_mean_scaled_and_its_own_inverse_up_to_its_loss(model: Model, folder: Path) -> None:
    with quiet():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    images = torch.rand(2, *model.image_shape) * 2 - 1
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        back = vae.decode(z / vae.config.scaling_factor).sample
    assert relative(model.autoencoder.encode(images), z) < 1e-5
    assert relative(model.autoencoder.decode(z.double()), back) < 1e-5
    with pytest.raises(UsageError, match="multiples of 2"):
        model.autoencoder.encode(images[..., :15])


def test_other_sizes(model: Model) -> None:
    wide = resized(model, (16, 24))
    assert wide.state_shape == (4, 8, 12)
    assert wide.digest == model.digest
    assert ode.decode(wide, torch.randn(1, 4, 8, 12), Way("ddim", steps=2)).x.shape == (1, 3, 16, 24)
    with pytest.raises(UsageError, match="no multiples of 2") as error:
        resized(model, (16, 25))
    assert "16x24" in error.value.hint


# The command line


def test_a_photograph_there_and_back(folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    asked = ["--prompt", PROMPT, "--negative", NEGATIVE, "--guidance", "3"]
    small = ["--size", "16x24", "--steps", "5"]
    invoke("encode", "a.png", "-m", str(folder), *asked, *small).ok()
    found = latent.load(tmp_path / "a.pt")
    assert found.xT.shape == (1, 4, 8, 12)
    assert found.recipe.condition == Condition(None, PROMPT, NEGATIVE, 3.0)
    assert found.recipe.autoencoder == load(str(folder), "cpu").autoencoder.digest
    plain = invoke("decode", "a.pt", "-o", "back.png").ok()
    assert "another image" not in plain.err
    edited = invoke("decode", "a.pt", "-o", "edited.png", "--guidance", "1.5").ok()
    assert "at guidance 3; decoded" in edited.err
    assert (tmp_path / "back.png").read_bytes() != (tmp_path / "edited.png").read_bytes()


def test_the_other_commands(folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    for i in range(2):
        writing.save_image(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8))
    asked = ["-m", str(folder), "--prompt", PROMPT, "--guidance", "2"]
    table = invoke("reconstruct", "0.png", *asked, "--steps", "4", "--solver", "ddim,ab2").ok()
    assert "ab2" in table.out
    invoke("sample", *asked, "-n", "2", "--steps", "3", "-o", "s", "--save-noise", "n.pt").ok()
    assert latent.load(tmp_path / "n.pt").recipe.condition.prompt == PROMPT
    invoke("interpolate", "0.png", "1.png", *asked, "--steps", "3", "-o", "i.png").ok()


def test_what_cannot_be_asked_is_one_line(folder: Path, model_folder: Path, invoke: Callable[..., Result]) -> None:
    sd, pixel = ["sample", "-m", str(folder)], ["sample", "-m", str(model_folder)]
    assert "takes no text" in invoke(*pixel, "--prompt", "a").failed(2)
    assert "nothing to guide" in invoke(*pixel, "--guidance", "2").failed(2)
    assert "makes images of 16 × 16" in invoke(*pixel, "--size", "32").failed(2)
    assert "no classes" in invoke(*sd, "--class", "1").failed(2)
    assert "makes no sense" in invoke(*sd, "--guidance", "inf").failed(2)
    assert "no multiples" in invoke(*sd, "--size", "15").failed(2)
    assert "fp16 is for GPUs" in invoke(*sd, "--device", "cpu", "--precision", "fp16").failed(2)


def test_the_end_of_a_long_prompt_is_told(folder: Path, model: Model, invoke: Callable[..., Result]) -> None:
    assert model.unread(PROMPT) == ""
    long = "a red square on white a small grey dog under the blue sky"
    cut = model.unread(long)
    assert cut
    assert long.endswith(cut)
    said = invoke("sample", "-m", str(folder), "--prompt", long, "-n", "1", "--steps", "1").ok().err
    assert f"its end is not read: {cut}" in said


def test_lossless_is_of_the_state(folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    """z comes back, which is told with what does not; and it is recorded."""
    from safetensors.torch import load_file, save_file

    # Whether DDIM's steps can be inverted is luck in a random network: one that says little is a tame field.
    folder = Path(shutil.copytree(folder, tmp_path / "tame"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.weight"] = state["conv_out.weight"] * 0.1
    weights.unlink()
    save_file(state, weights)
    model = load(str(folder), "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    writing.save_image(tmp_path / "a.png", pixels)
    asked = ("--prompt", PROMPT, "--lossless", "--steps", "20")
    (said,) = [x for x in invoke("encode", "a.png", "-m", str(folder), *asked).ok().err.splitlines() if "lossless" in x]
    assert "z comes back within" in said
    assert "8-bit values do not" in said
    found = latent.load(tmp_path / "a.pt")
    (check,) = found.provenance["lossless"]
    assert (check["unit"], check["wrong"]) == ("z", 0)
    assert "8-bit values do not" in invoke("info", "a.pt").ok().out
    z = model.autoencoder.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    states = replace(model, autoencoder=library.model.Pixels())
    plain = replace(found.recipe.way, solver="ddim", tolerance=None)
    back = ode.decode(states, found.xT, plain, found.recipe.condition).x
    assert float((back - z).abs().max() / z.square().mean().sqrt()) <= lossless.ROUNDING


def test_a_state_that_does_not_come_back_is_named() -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    back = z.clone()
    back[0, 0, 0, 7] += 2 * lossless.ROUNDING * z[0].square().mean().sqrt()
    back[1, 3, 2, 1] = float("nan")
    first, second = lossless.compare_states(z, back, 1e-4)
    assert (first.unit, first.wrong, first.where[0][:3]) == ("z", 1, (0, 0, 7))
    assert first.worst == pytest.approx(2 * lossless.ROUNDING)
    assert (second.wrong, second.worst) == (1, float("inf"))
    assert "1 values of z differ; worst 9.8e-04" in str(lossless.complaint("a.png", first))


# Variants and broken or hostile folders


def changed(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the folder with one JSON file changed."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    change(content)
    (target / file).write_text(json.dumps(content))
    return target


CODE = "raise SystemExit('code was run')"
HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "module of its own": ("model_index.json", lambda c: c.update(unet=["my_unet", "My"]), "code of its own"),
    "part of its own": ("model_index.json", lambda c: c.update(hook=["my_unet", "My"]), "code of its own"),
    "checker of its own": ("model_index.json", lambda c: c.update(safety_checker=["my_unet", "My"]), "code of its own"),
    "class of diffusers": ("model_index.json", lambda c: c.update(vae=["diffusers", "VQModel"]), "a diffusers.VQModel"),
    "any function": ("model_index.json", lambda c: c.update(vae=["os", "system"]), "code of its own"),
    "no text encoder": ("model_index.json", lambda c: c.update(text_encoder=[None, None]), "has no text_encoder"),
    "auto_map": ("unet/config.json", lambda c: c.update(auto_map={"A": "my_unet.My"}), "code of its own"),
    "quantised": ("vae/config.json", lambda c: c.update(quantization_config={"a": 1}), "code of its own"),
    "another tokenizer": ("tokenizer/tokenizer_config.json", lambda c: c.update(tokenizer_class="T5Tokenizer"), "T5"),
    "tokenizer's code": ("tokenizer/tokenizer_config.json", lambda c: c.update(auto_map={"A": "m.T"}), "code of its"),
    "huge": ("unet/config.json", lambda c: c.update(layers_per_block=10**9), "makes no sense"),
    "nonsense": ("unet/config.json", lambda c: c.update(down_block_types=["a", "b"]), "makes no network"),
    "inpainting": ("unet/config.json", lambda c: c.update(in_channels=9), "not a denoiser of images alone"),
    "other text": ("unet/config.json", lambda c: c.update(cross_attention_dim=32), "reads text 32 wide"),
    "other weights": ("unet/config.json", lambda c: c.update(layers_per_block=2), "do not fit"),
    "other encoder": ("text_encoder/config.json", lambda c: c.update(num_hidden_layers=3), "do not fit"),
    "infinite sigma": ("scheduler/scheduler_config.json", lambda c: c.update(rescale_betas_zero_snr=True), "infinite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_are_refused_and_nothing_is_run(
    name: str, folder: Path, tmp_path: Path, invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, change, said = HOSTILE[name]
    bad = changed(folder, tmp_path / "bad", file, change)
    for place in (bad, bad / "unet", bad / "vae", tmp_path):
        (place / "my_unet.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert said in invoke("sample", "-m", str(bad), "-n", "1", "--steps", "1").failed(3)


@pytest.mark.parametrize("part", ["vae", "unet/diffusion_pytorch_model.safetensors", "tokenizer",
                                  "text_encoder/model.safetensors", "scheduler/scheduler_config.json"])  # fmt: skip
def test_what_is_missing_is_one_line(part: str, folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    gone = tmp_path / "bad" / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    invoke("sample", "-m", str(tmp_path / "bad"), "-n", "1", "--steps", "1").failed(3)


def test_a_tokenizer_needs_a_vocabulary(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    for name in ("vocab.json", "tokenizer.json"):
        (tmp_path / "bad" / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(FileError, match="no vocabulary"):
        load(str(tmp_path / "bad"), "cpu")


def test_half_precision_files_and_old_names_load(folder: Path, model: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "half")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        path = tmp_path / "half" / f"{name}.safetensors"
        state = {k: w.half() for k, w in load_file(path).items()}
        if "text" in name:
            state = {f"text_model.{k.removeprefix('text_model.')}": w for k, w in state.items()}
            state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        path.unlink()
        save_file(state, path.with_suffix(".fp16.safetensors"))
    half = load(str(tmp_path / "half"), "cpu")
    xT, condition = torch.randn(1, *model.state_shape), Condition(prompt=PROMPT)
    way = Way("ddim", steps=3)
    assert half.digest != model.digest
    assert relative(ode.decode(half, xT, way, condition).x, ode.decode(model, xT, way, condition).x) < 1e-2


def test_the_digest_covers_the_text_and_other_pipelines_are_not_ours(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    other = changed(folder, tmp_path / "o", "tokenizer/tokenizer_config.json", lambda c: c.update(model_max_length=8))
    assert load(str(other), "cpu").digest != model.digest
    name = "StableDiffusionInpaintPipeline"
    xl = changed(folder, tmp_path / "xl", "model_index.json", lambda c: c.update(_class_name=name))
    with pytest.raises(FileError, match=name):
        load(str(xl), "cpu")
