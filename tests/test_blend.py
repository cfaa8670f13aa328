"""Between two prompts: what a blend of them is, that networks are told it, and that frames under one decode again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ddimctl
from ddimctl import families, latent
from ddimctl.errors import FileError, UsageError
from ddimctl.images import metadata
from ddimctl.model import NOTHING, Condition, Share
from ddimctl.recipe import Recipe, Way

Invoke = Callable[..., Result]
A, B = Condition(prompt="a red square"), Condition(prompt="a grey dog")
WEIGHT = st.floats(0.01, 0.99)


@given(WEIGHT)
def test_between_two_prompts(w: float) -> None:
    found = A.toward(B, w)
    assert found.prompt is None
    assert found.blend == (Share("a red square", 1 - w), Share("a grey dog", w))
    assert A.toward(B, 0) == A
    assert A.toward(B, 1) == B


@given(WEIGHT, WEIGHT)
def test_blends_of_blends_are_blends_of_their_prompts(v: float, w: float) -> None:
    c = Condition(prompt="nothing")
    found = A.toward(B, v).toward(A.toward(c, v), w)
    weights = {s.prompt: s.weight for s in found.blend}
    assert weights["a red square"] == pytest.approx(1 - v)
    assert weights["a grey dog"] == pytest.approx(v * (1 - w))
    assert weights["nothing"] == pytest.approx(v * w)
    assert sum(weights.values()) == pytest.approx(1)


def test_guidance_goes_along_and_nothing_else_can() -> None:
    assert A.toward(replace(A, guidance=5.0), 0.25) == replace(A, guidance=2.0)
    assert A.toward(replace(B, guidance=3.0), 0.5).guidance == 2.0
    for other in (Condition(1), replace(B, negative="ugly"), replace(B, distilled=2.0)):
        with pytest.raises(UsageError, match="there is nothing"):
            A.toward(other, 0.5)


@pytest.mark.parametrize("name", ["sd", "xl", "sd3", "flux"])
def test_embeddings_are_added(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import folder_of

    model = families.load(str(folder_of(name, tmp_path_factory)), "cpu")
    a, b, both = (model.embed(c) for c in (A, B, A.toward(B, 0.25)))
    assert a.keys() == both.keys()
    for k in a:
        torch.testing.assert_close(both[k], 0.75 * a[k] + 0.25 * b[k], rtol=0, atol=0)
    x = torch.randn((2, *model.state_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eps = [model.eps(c)(x, 1.0) for c in (A, B, A.toward(B, 0.25))]
    assert min(float((eps[2] - e).norm() / e.norm()) for e in eps[:2]) > 1e-4
    with pytest.raises(UsageError, match="instead of a prompt"):
        model.embed(replace(A, blend=(Share("a", 1.0), Share("b", 0.0))))


def test_models_without_text_hear_no_blend(model_folder: Path) -> None:
    with pytest.raises(UsageError, match="takes no text"):
        ddimctl.load(str(model_folder), "cpu").eps(A.toward(B, 0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with text. Read only."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import folder_of

    return folder_of("sd", tmp_path_factory)


def test_the_recipe_remembers_it(folder: Path) -> None:
    model = families.load(str(folder), "cpu")
    asked = A.toward(replace(B, guidance=3.0), 0.25)
    found = latent.provenance(
        model, Recipe.of(model, Way(steps=2), asked), ddimctl.Solution(torch.zeros(1), [0]), records=[{"name": "a"}]
    )
    again = json.loads(json.dumps(found))
    assert Recipe.read(again).condition == asked
    assert "blend" not in Recipe.of(model, Way(steps=2), A).record()["condition"]
    for wrong in (
        [], "a", [{"prompt": "a", "weight": 1}], [{"prompt": "a"}] * 2, [{"prompt": 1, "weight": 1}] * 2,
        [{"prompt": "a", "weight": "1"}] * 2, [{"prompt": "a", "weight": 0.0}] * 65,
    ):  # fmt: skip
        again["condition"]["blend"] = wrong
        with pytest.raises(FileError, match="wrong condition"):
            latent.to_bytes(latent.Latent(torch.zeros(1, 1, 2, 2), again), ".safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
    return ["a.png", "b.png"]


def frames_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))]


TWO = ("--prompt", "a red square", "--prompt", "a grey dog")


def test_two_photographs_with_two_prompts(invoke: Invoke, folder: Path, pictures: list[str], tmp_path: Path) -> None:
    asked = ("-m", folder, "--steps", 4, "--guidance", 2, "--dither", "none")
    done = invoke("interpolate", *pictures, *asked, *TWO, "--frames", 4, "-o", "frames", "--latents", "frames")
    assert done.ok().out.split() == ["frames"]
    found = frames_in(tmp_path / "frames")
    # The ends are the round trips under their own prompts.
    for end, (name, prompt) in zip((0, -1), (("a", "a red square"), ("b", "a grey dog")), strict=True):
        invoke("encode", f"{name}.png", "-m", folder, "--steps", 4, "--guidance", 2, "--prompt", prompt).ok()
        invoke("decode", f"{name}.pt", "-o", f"{name}-back.png").ok()
        back = np.asarray(Image.open(tmp_path / f"{name}-back.png")).astype(int)
        assert np.abs(found[end] - back).max() <= 1
    # A frame kept as a latent says its blend, and decodes to itself.
    kept = latent.load(tmp_path / "frames" / "frame-1.safetensors")
    want = Condition(prompt="a red square", guidance=2.0).toward(Condition(prompt="a grey dog", guidance=2.0), 1 / 3)
    assert kept.recipe.condition.guidance == pytest.approx(2)
    for share, wanted in zip(kept.recipe.condition.blend, want.blend, strict=True):
        assert share.prompt == wanted.prompt
        assert share.weight == pytest.approx(wanted.weight, rel=1e-12)
    assert [p["name"] for p in kept.provenance["made"]["parents"]] == ["a.png", "b.png"]
    invoke("decode", "frames/frame-1.safetensors", "-o", "again.png").ok()
    again = np.asarray(Image.open(tmp_path / "again.png")).astype(int)
    assert np.abs(again - found[1]).max() <= 1
    assert "a grey dog" in invoke("info", "frames/frame-1.safetensors", "--json").ok().out
    assert "a grey dog" in invoke("info", "again.png").ok().out
    # And another prompt instead is another image.
    said = invoke("decode", "frames/frame-1.safetensors", "--prompt", "a circle", "-o", "other.png").ok().err
    assert "a blend of 'a red square' (0.667) and 'a grey dog' (0.333)" in said
    # Latents that record their prompts need none.
    invoke("interpolate", "a.pt", "b.pt", "--frames", 4, "-o", "own").ok()
    for one, other in zip(found, frames_in(tmp_path / "own"), strict=True):
        assert np.abs(one - other).max() <= 1
    assert "exists already" in invoke(
        "interpolate", "a.pt", "b.pt", "--frames", 4, "-o", "x.gif", "--latents", "frames"
    ).failed(2)


def test_the_blend_is_seen(invoke: Invoke, folder: Path, pictures: list[str], tmp_path: Path) -> None:
    """Under one prompt for all, the frames between are others."""
    invoke("encode", "a.png", "-m", folder, "--steps", 4, "--prompt", "a red square", "--guidance", 5).ok()
    invoke("interpolate", "a.pt", "a.pt", *TWO, "--frames", 3, "-o", "two").ok()
    invoke("interpolate", "a.pt", "a.pt", "--prompt", "a red square", "--frames", 3, "-o", "one").ok()
    two, one = frames_in(tmp_path / "two"), frames_in(tmp_path / "one")
    far = [np.abs(p - q).max() for p, q in zip(two, one, strict=True)]
    assert far[0] <= 1
    assert far[2] > far[0]
    assert far[1] > far[0]


def test_captions_are_the_prompts_of_images(invoke: Invoke, folder: Path, pictures: list[str], tmp_path: Path) -> None:
    """As --prompt for each would be; those without one get that of --prompt; latents keep their own."""
    asked = ("-m", folder, "--steps", 2, "--frames", 3, "--dither", "none")
    (tmp_path / "a.txt").write_text("a red square")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a grey dog"}\n')
    (tmp_path / "lines.txt").write_text("a red square\n\na grey dog\n")
    said = invoke("interpolate", *pictures, *asked, "--captions", "-o", "c").ok().err
    assert "2 prompts for 2 images" in said
    invoke("interpolate", *pictures, *asked, *TWO, "-o", "p").ok()
    invoke("interpolate", *pictures, *asked, "--prompt", "@lines.txt", "-o", "l").ok()
    for ours, theirs, lines in zip(*(frames_in(tmp_path / name) for name in "cpl"), strict=True):
        assert np.array_equal(ours, theirs)
        assert np.array_equal(ours, lines)
    said = metadata.find(min((tmp_path / "c").glob("*.png"))) or {}
    assert said["prompts"] == ["a red square", "a grey dog"]

    invoke("encode", "a.png", "-m", folder, "--steps", 2, "--prompt", "a circle", "-o", "x.pt").ok()
    (tmp_path / "metadata.jsonl").unlink()
    Image.open(tmp_path / "b.png").save(tmp_path / "plain.png")
    kept = ("--latents", "kept", "-o", "x")
    said = invoke("interpolate", "x.pt", "a.png", "plain.png", *asked, "--captions", *kept).ok().err
    assert "1 of 2 images have no caption; what --prompt says, or nothing, stands for it" in said
    found = [latent.load(p).recipe.condition.prompt for p in sorted((tmp_path / "kept").iterdir())]
    assert found == ["a circle", "a red square", "a circle"]  # as the latent was encoded
    assert "about images" in invoke("interpolate", "x.pt", "x.pt", "--captions", "-o", "no.gif").failed(2)
    (tmp_path / "a.txt").unlink()
    assert "no captions" in invoke("interpolate", *pictures, *asked, "--captions", "-o", "no.gif").failed(2)


def test_of_four_corners_with_four_prompts(invoke: Invoke, folder: Path, pictures: list[str], tmp_path: Path) -> None:
    four = ("--prompt", "red", "--prompt", "grey", "--prompt", "blue", "--prompt", "dark")
    more = ("-m", folder, "--steps", 2, "--grid", "--size", "3x3", "-o", "g.png", "--latents", "kept")
    invoke("interpolate", *pictures, *pictures, *four, *more).ok()
    middle = latent.load(tmp_path / "kept" / "frame-4.safetensors").recipe.condition.blend
    assert [(s.prompt, s.weight) for s in middle] == [(p, 0.25) for p in ("red", "blue", "grey", "dark")]
    corner = latent.load(tmp_path / "kept" / "frame-8.safetensors").recipe.condition
    assert corner == Condition(prompt="dark")


def test_even_frames_have_blends_of_their_own(
    invoke: Invoke, folder: Path, pictures: list[str], tmp_path: Path
) -> None:
    invoke(
        "interpolate",
        *pictures,
        "-m",
        folder,
        *TWO,
        "--steps",
        2,
        "--frames",
        3,
        "--even",
        "-o",
        "e.gif",
        "--latents",
        "k",
    ).ok()
    (tmp_path / "k" / "frame-1.safetensors").rename(tmp_path / "middle.safetensors")
    found = latent.load(tmp_path / "middle.safetensors")
    weights = [p["weight"] for p in found.provenance["made"]["parents"]]
    assert [s.weight for s in found.recipe.condition.blend] == weights
    assert found.recipe.condition != NOTHING


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*TWO, "--prompt", "more"), "3 prompts do not fit 2"),
        ((*TWO, "--class", 1), "has no classes"),
    ],
)
def test_what_makes_no_sense(
    args: tuple[Any, ...], said: str, invoke: Invoke, folder: Path, pictures: list[str]
) -> None:
    assert said in invoke("interpolate", *pictures, "-m", folder, "--steps", 2, *args).failed(2)


def test_nothing_between_two_negative_prompts(invoke: Invoke, folder: Path, pictures: list[str]) -> None:
    for name, more in (("a", ()), ("b", ("--negative", "ugly"))):
        invoke("encode", f"{name}.png", "-m", folder, "--steps", 2, "--guidance", 2, "--prompt", "a dog", *more).ok()
    assert "another class or negative prompt" in invoke("interpolate", "a.pt", "b.pt").failed(3)
