"""The scripts that measure models with text, at a small size: figures against what is known, pictures, tables."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ddimctl
from ddimctl.model import Condition, Model
from ddimctl.solvers import Failure

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import editing_gallery  # noqa: E402
import guidance  # noqa: E402
import text_model  # noqa: E402

CAPTIONS = ("red square", "red heart", "face", "woman on white", "blue circle", "blue circle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with text and six captioned images. Read only."""
    from pipelines import folder_of

    out = tmp_path_factory.mktemp("captioned") / "model"
    shutil.copytree(folder_of("sd", tmp_path_factory), out)
    (out / "held-out").mkdir()
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(out / "held-out" / f"{i:03}.png")
        (out / "held-out" / f"{i:03}.txt").write_text(caption + "\n")
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return ddimctl.load(str(folder), "cpu")


def test_images_of_other_captions_in_one_batch_are_what_each_is_alone(model: Model) -> None:
    cases, together = guidance.of_model(model, guidance.held_out(model))
    assert [len(c.states) for c in cases] == [1, 1, 1, 1, 2]
    assert [*together.names] == ["000", "001", "002", "003", "004", "005"]
    for g in (1.0, 3.0):
        alone = torch.cat([c.eps(g)(c.states, 2.0) for c in cases])
        torch.testing.assert_close(together.eps(g)(together.states, 2.0), alone, rtol=1e-4, atol=1e-5)


def test_diffusers_pair_is_diffusers(model: Model, folder: Path) -> None:
    """Its second half is what the pipeline does with the same x_T, and its first what the inverse scheduler's steps give."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    _, together = guidance.of_model(model, guidance.held_out(model, 1))
    ends: list[Any] = []
    whole = model.network.module.torch

    def back(z: torch.Tensor) -> torch.Tensor:
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            "red square", num_inference_steps=guidance.S, guidance_scale=3.0, latents=z.float(), output_type="latent"
        ).images.double()

    handle = whole.register_forward_pre_hook(lambda _, args: ends.append(args[0].clone()))
    try:
        found = together.theirs(3.0)  # type: ignore[misc]
    finally:
        handle.remove()
    assert len(ends) == 4 * guidance.S
    torch.testing.assert_close(found, back(ends[2 * guidance.S]), rtol=1e-3, atol=1e-4)


def test_the_table_of_guidance(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "S", 4)
    said = guidance.page(model, 2, (1.0, 5.0))
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")][2:]
    assert [r[0] for r in rows] == ["1"] * 5 + ["5"] * 5
    ways = ["`ddim`, `karras`", "`ab2`, `karras`", "`exact`, `log`", "`ab2`, `karras`, path kept, float32"]
    assert [r[1] for r in rows[:5]] == [guidance.PAIR, *ways]
    assert [r[1] for r in rows[5:]] == [guidance.PAIR, *(w.replace("log", "guided") for w in ways)]
    kept = [r[3] for r in rows if "kept" in r[1]]
    assert all(k == "below 1e-16" or float(k) < 1e-5 for k in kept)
    assert "`exact` solved every step" in said or "What `exact` did not" in said


def test_each_failure_is_named() -> None:
    found = guidance.Found([1e-5, 2e-2, 1e-4], 60, [None, None, Failure(0.5, 1e-2, -0.1)], 1)
    assert guidance.failures(found, ["a", "b", "c"]) == [
        "b (2e-02)", f"c (1e-04; {Failure(0.5, 1e-2, -0.1)})",
    ]  # fmt: skip
    assert found.row(5.0, "x")[3:6] == ["1e-04", "7e-03", "2e-02"]


def test_retrieval_knows_an_image_that_a_prompt_made(model: Model) -> None:
    """Scores are errors of ε: with a network that is right about one caption, that one is first."""

    class Right:
        state_shape, schedule = model.state_shape, model.schedule

        def eps(self, condition: Condition) -> Any:
            wrong = {"a": 1.0, "b": 0.0, "c": 0.5}[str(condition.prompt)]
            return lambda x, sigma: (x - z[: len(x)]) / sigma + wrong

    z = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = text_model.errors(Right(), z, ["a", "b", "c"], at=[0.5, 2.0], noises=2)  # type: ignore[arg-type]
    assert scores[0].tolist() == pytest.approx([3 * 1 / 1.25, 0, 3 * 0.25 / 1.25])
    assert text_model.ranks(scores, [1], 3) == [0]
    assert text_model.ranks(scores, [0], 3) == [2]
    # Of two captions each image is asked about its own, "c", and one other, which "b" beats and "a" does not.
    assert {*text_model.ranks(scores.expand(20, 3), [2] * 20, 2)} == {0, 1}


def test_the_text_models_figures_and_samples(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--captions", "3", "--levels", "2", "--prompts", "3", "--each", "2", "--steps", "2")
    text_model.main([str(folder), "-o", str(tmp_path / "out"), *small])
    found = json.loads((tmp_path / "out" / "text-model.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["images"] == len(CAPTIONS)
    assert found["retrieval"]["captions"] == 3
    assert found["retrieval"]["by_chance"] == {"first": 1 / 3, "first_five": 1.0}
    assert set(found["retrieval"]["places"].values()) <= {1, 2, 3}
    assert (
        found["samples"]["prompts"]
        == ["red square", "red heart", "woman on white"][:1] + found["samples"]["prompts"][1:]
    )
    net = ddimctl.load(str(folder), "cpu")
    x = ddimctl.open(str(folder / "held-out" / "000.png"), net)
    back = ddimctl.to_pixels(net.autoencoder.decode(net.autoencoder.encode(x).double()))
    mse = np.square((back.astype(float) - np.asarray(Image.open(folder / "held-out" / "000.png"))) / 255).mean()
    psnr = text_model.psnr_of_autoencoder(net, text_model.images_of(net, [folder / "held-out" / "000.png"]))
    assert psnr == [pytest.approx(-10 * math.log10(mse), rel=1e-6)]
    with Image.open(tmp_path / "out" / "samples.png") as picture:
        assert picture.width > 4 * 16


def test_edits_are_of_captions_that_have_the_word_and_not_the_other() -> None:
    captions = {
        "a": "red heart",
        "b": "red blue flag",
        "c": "scared face",
        "d": "red car",
        "e": "cat face",
        "f": "face",
    }
    found = editing_gallery.edits(captions, editing_gallery.SWAPS, 2)
    assert [(e.name, e.target) for e in found] == [
        ("a", "blue heart"), ("d", "blue car"), ("c", "scared cat face"), ("f", "cat face"),
    ]  # fmt: skip


def test_the_changed_part_is_where_captions_disagree(model: Model) -> None:
    z = torch.zeros((1, *model.state_shape), dtype=torch.float64)

    class Halves:
        size, schedule, state_shape = model.size, model.schedule, model.state_shape

        def eps(self, condition: Condition) -> Any:
            left = torch.zeros(model.state_shape)
            left[:, :, :4] = len(str(condition.prompt))
            return lambda x, sigma: x * 0 + left

    edit = editing_gallery.Edit("a", "one", "another", "")
    part = editing_gallery.changed_part(Halves(), z, edit, noises=2)  # type: ignore[arg-type]
    assert part.shape == model.size
    assert part[:, :7].all()
    assert not part[:, 9:].any()
    x = torch.zeros(3, *model.size)
    x[:, :, 12] = 2.0
    assert editing_gallery.rms(x, part) == 0
    assert editing_gallery.rms(x, ~part) == pytest.approx(math.sqrt(1 / float((~part)[0].sum())))


def test_the_gallery_of_editing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = editing_gallery.Size(
        guidances=(1.0, 3.0), each=1, measured=1, steps=2, noises=2, frames=3, pairs=1, prompts=2, xTs=2
    )
    editing_gallery.main([str(folder), "-o", str(tmp_path / "out")], size)
    said = (tmp_path / "out" / "tables.md").read_text()
    assert [p.name for p in sorted((tmp_path / "out").glob("*.png"))] == [
        "editing-between.png", "editing-edits.png", "editing-prompts.png",
    ]  # fmt: skip
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| red → blue")]
    ways = [[w, g] for w in ("`ab2`", "`ab2`, path kept") for g in ("1", "3")]
    assert [r[1:3] for r in rows] == [["not edited", ""], *ways]
    assert rows[0][3:5] == ["0.000", "0.000"]
    assert all(float(r[3]) > 0 for r in rows[1:])
    assert "| `slerp` |" in said
    assert "| the same prompt, other x_T |" in said
    assert "Another caption" in capsys.readouterr().out
