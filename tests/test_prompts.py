"""Models that hear text: our integration against the pipeline's own, there and back, and folders that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddimctl import families, ode
from ddimctl.cli import prompts
from ddimctl.errors import FileError, UsageError
from ddimctl.images import metadata, sheets
from ddimctl.latent import load
from ddimctl.model import Condition
from ddimctl.recipe import Recipe, Way
from ddimctl.training import autoencoder
from ddimctl.training.data import Data
from ddimctl.training.loop import Trainer
from ddimctl.training.settings import TextSettings
from ddimctl.training.text import Text

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

PROMPT = Condition(prompt="red square", negative="blue circle", guidance=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of training: weights that are not symmetric, and text that matters. Read only."""
    path = tmp_path_factory.mktemp("text") / "model"
    s = TextSettings(
        channels=3, size=(8, 8), block_channels=(8, 16), attention=(1,), head_dim=8, text_width=32, text_layers=1, words=6,
        steps=30, batch=8, warmup=2, lr=1e-2, ema=0.5, bf16=False, balance=0.0,
    )  # fmt: skip
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = ("red square", "blue circle") * 4
    task = Text(s, Data(images, images[:2], captions, captions[:2]), torch.device("cpu"), vae=autoencoder.of_pixels(3))
    trainer = Trainer(task, path)
    assert len(list(trainer.train())) == 30
    with torch.no_grad():  # so short a training leaves the text little to say
        trainer.average.module.text.get_input_embeddings().weight.mul_(100)
        trainer.average.module.unet.add_embedding.norm2.weight.fill_(2.0)
        for name, p in trainer.average.module.unet.named_parameters():
            if "add_v_proj.weight" in name:
                p.mul_(5)
    trainer.export("card")
    return path


def noise() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_text_is_heard(folder: Path) -> None:
    model = families.load(str(folder), "cpu")
    assert (model.about.family, model.image_shape, model.state_shape) == ("stable-diffusion", (3, 8, 8), (3, 8, 8))
    one, other, none = (model.eps(Condition(prompt=p))(noise() * 3, 3.0) for p in ("red square", "blue circle", None))
    assert (one - other).norm() > 1e-3 * one.norm()
    guided = model.eps(Condition(prompt="red square", guidance=3.0))(noise() * 3, 3.0)
    torch.testing.assert_close(guided, none + 3 * (one - none), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ddim_gives_what_the_pipeline_gives(folder: Path, guidance: float) -> None:
    """Along its own levels, with a negative prompt."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    model = families.load(str(folder), "cpu")
    theirs = pipeline(
        [PROMPT.prompt] * 2, negative_prompt=[PROMPT.negative] * 2, num_inference_steps=10, guidance_scale=guidance,
        latents=noise().float(), output_type="latent",
    ).images  # fmt: skip
    levels = (0.0, *(model.schedule.sigma(int(t) + 1) for t in pipeline.scheduler.timesteps.flip(0)))
    asked = Condition(PROMPT.class_label, PROMPT.prompt, PROMPT.negative, guidance)
    ours = ode.decode(model, noise(), Way("ddim", levels=levels, steps=10), asked).x
    pixels = torch.as_tensor(model.autoencoder.decode(theirs.double()))
    assert (ours - pixels).norm() < 1e-4 * pixels.norm()


def test_there_and_back_under_a_prompt(folder: Path) -> None:
    model = families.load(str(folder), "cpu")
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    way = Way("ab2", steps=100)
    for condition in (Condition(prompt="red square"), PROMPT):
        back = ode.decode(model, ode.encode(model, images, way, condition).x, way, condition).x
        assert (back - images).norm() < 0.05 * images.norm()


def test_numpy_goes_in_and_comes_out(folder: Path) -> None:
    model = families.load(str(folder), "cpu")
    z = model.autoencoder.encode(np.zeros((1, 3, 8, 8)))
    assert isinstance(z, np.ndarray)
    assert np.abs(model.autoencoder.decode(z)).max() < 1e-3


def test_the_recipe_knows_prompt_and_autoencoder(folder: Path) -> None:
    model = families.load(str(folder), "cpu")
    recipe = Recipe.of(model, Way(steps=3), PROMPT)
    assert recipe.record()["condition"] == {"prompt": "red square", "negative": "blue circle", "guidance": 3.0}
    assert recipe.autoencoder == model.autoencoder.digest
    assert recipe != Recipe.of(model, Way(steps=3), Condition(prompt="red square"))


def test_a_class_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="has no classes"):
        families.load(str(folder), "cpu").eps(Condition(3))


def test_the_command_encodes_and_decodes_under_a_prompt(folder: Path, tmp_path: Path, invoke: Any) -> None:
    """The file says the prompt; another one edits."""
    image, latent = folder / "held-out" / "000.png", tmp_path / "a.safetensors"
    invoke("encode", image, "-m", folder, "-o", latent, "--prompt", "red square", "--steps", "30").ok()
    invoke("decode", latent, "-o", tmp_path / "same.png").ok()
    invoke("decode", latent, "-o", tmp_path / "other.png", "--prompt", "blue circle", "--guidance", "5").ok()
    before, same, other = (
        np.asarray(Image.open(p), float) for p in (image, tmp_path / "same.png", tmp_path / "other.png")
    )
    assert np.abs(same - before).mean() < 0.2 * np.abs(other - before).mean() + 1
    invoke(
        "sample", "-m", folder, "-o", tmp_path / "s.png", "--prompt", "red square", "--guidance", "3", "--steps", "2"
    ).ok()
    done = invoke("sample", "-m", folder, "-o", tmp_path / "t.png", "--class", "1").failed(2)
    assert "has no classes" in done


def test_exact_under_guidance_has_levels_of_its_own(folder: Path, tmp_path: Path, invoke: Any) -> None:
    """The file says which, and is decoded along them; who names a spacing gets it."""
    how = ("-m", folder, "--prompt", "red square", "--solver", "exact", "--steps", 4)
    for name, more, spacing in (
        ("a", ("--guidance", 3), "guided"),
        ("b", ("--guidance", 3, "--spacing", "log"), "log"),
        ("c", (), "log"),
    ):
        latent = tmp_path / f"{name}.pt"
        assert invoke("encode", folder / "held-out" / "000.png", *how, *more, "-o", latent).code in (0, 4)
        assert load(latent).recipe.way.spacing == spacing
        invoke("decode", latent, "-o", tmp_path / f"{name}.png").ok()
    record = json.loads(invoke("reconstruct", *how, "--guidance", 3, "--json").ok().out)
    assert [r["spacing"] for r in record["results"]] == ["guided"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_line_of_a_file_is_a_prompt_where_there_may_be_several(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\ufeff red square \r\n\n@home\nblue\n", encoding="utf-8")
    (tmp_path / "none.txt").write_text(" \n")
    name = f"@{tmp_path / 'many.txt'}"
    assert prompts.parse_prompts([]) == []
    assert prompts.parse_prompts(["a", "", "@@b", name]) == ["a", "", "@b", "red square", "@home", "blue"]
    assert prompts.parse_prompt(name) == "red square \r\n\n@home\nblue"
    with pytest.raises(FileError, match="has no prompt"):
        prompts.parse_prompts([f"@{tmp_path / 'none.txt'}"])


def test_samples_of_several_prompts(folder: Path, tmp_path: Path, invoke: Any) -> None:
    """A folder each, what that prompt alone makes; a row of the sheet each; again, and it is there."""
    (tmp_path / "p.txt").write_text("red square\n\nblue circle\n")
    how = ("sample", "-m", folder, "--guidance", 3, "--steps", 2, "--device", "cpu")
    done = invoke(*how, "--prompt", "@p.txt", "-n", 2, "-o", "out").ok()
    names = [f"out/prompt-00{i}/00{k}.png" for i in range(2) for k in range(2)]
    assert done.out.split() == names
    for i, prompt in enumerate(("red square", "blue circle")):
        invoke(*how, "--prompt", prompt, "-n", 2, "-o", f"alone-{i}").ok()
        for k in range(2):
            ours, theirs = (tmp_path / f"{place}/00{k}.png" for place in (f"out/prompt-00{i}", f"alone-{i}"))
            assert ours.read_bytes() == theirs.read_bytes()
    assert not np.array_equal(pixels(tmp_path / names[0]), pixels(tmp_path / names[2]))
    (tmp_path / names[3]).unlink()
    assert "sampled: 1, there already: 3" in invoke(*how, "--prompt", "@p.txt", "-n", 2, "-o", "out").ok().err

    two = ("--prompt", "red square", "--prompt", "blue circle")
    done = invoke(*how, *two, "-n", 2, "-o", "s.png", "--no-labels", "--json", "--html", "s.html").ok()
    said = json.loads(done.out)
    assert (said["images"], said["prompts"], len(said["results"])) == (4, ["red square", "blue circle"], 2)
    assert (metadata.find(tmp_path / "s.png") or {})["prompts"] == ["red square", "blue circle"]
    factor = sheets.factor_to_see((8, 8))
    tiles = sheets.enlarge(np.stack([pixels(tmp_path / n) for n in names]).astype(np.uint8), factor)
    assert np.array_equal(pixels(tmp_path / "s.png"), sheets.sheet(tiles, 2, gap=4))
    assert "blue circle" in (tmp_path / "s.html").read_text(encoding="utf-8")
    one_each = json.loads(invoke(*how, *two, "-o", "t.png", "--json").ok().out)
    assert one_each["images"] == 2

    assert "two kinds of rows" in invoke(*how[:-4], *two, "--steps", "2,3", "-o", "no.png").failed(2)
    assert "one prompt" in invoke(*how, *two, "--save-noise", "n.pt", "-o", "no.png").failed(2)
    assert not (tmp_path / "no.png").exists()


FAULTS: dict[str, Any] = {
    "another class": lambda f: edit(f / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
    "code of its own": lambda f: edit(f / "model_index.json", unet=["my_unet", "UNet"]),
    "code in a part": lambda f: edit(f / "unet" / "config.json", auto_map={"AutoModel": "my_unet.UNet"}),
    "another shape": lambda f: edit(f / "unet" / "config.json", block_out_channels=[8, 24]),
    "nonsense": lambda f: edit(f / "unet" / "config.json", block_out_channels="x"),
    "no weights": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
    "weights of text": lambda f: (f / "text_encoder" / "model.safetensors").write_text("text"),
    "no tokenizer": lambda f: (f / "tokenizer" / "vocab.json").write_text("["),
    "no scheduler": lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
    "another text encoder": lambda f: edit(f / "text_encoder" / "config.json", architectures=["T5EncoderModel"]),
}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_one_is_refused_in_a_line(folder: Path, fault: str, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns("training"))
    (broken / "my_unet.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    FAULTS[fault](broken)
    with pytest.raises(FileError):
        families.load(str(broken), "cpu")
    assert not (tmp_path / "ran").exists()
