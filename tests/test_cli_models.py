"""`ddimctl models`: what it prints where, and what a conversion makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch
from conftest import Result, write_tiny_model
from rounding import NETWORK, apart

from ddimctl import catalogue
from ddimctl.families import load
from ddimctl.model import Condition
from ddimctl.unet import shapes

Invoke = Callable[..., Result]


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A tiny checkpoint as ermongroup/ddim saves it."""
    fields = {
        "sample_size": 32, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32),
        "norm_num_groups": 32, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0,
        "attention_head_dim": None,
    }  # fmt: skip
    known = load(str(write_tiny_model(tmp_path / "known", **fields)), "cpu")
    path = tmp_path / "ckpt.pth"
    torch.save(layouts.ermongroup(layouts.to_ddim(known.network.module.torch.state_dict(), 2)), path)
    return path


@pytest.fixture
def openai(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny checkpoint as OpenAI's scripts save it, and its flags."""
    torch.save(layouts.openai_state(classes=2, learn_sigma=True), tmp_path / "ema.pt")
    flags = {
        "image_size": 16, "num_heads": 2, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True,
    }  # fmt: skip
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    return tmp_path / "ema.pt", tmp_path / "flags.json"


def test_list(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        write_tiny_model(tmp_path / "bundled" / name)
    (tmp_path / "bundled" / "not-a-model").mkdir()
    monkeypatch.setattr(catalogue, "bundled_folder", lambda: tmp_path / "bundled")
    rows = invoke("models", "list").ok().out.splitlines()
    assert [row.split()[0] for row in rows] == ["model", "a", "b"]
    record = json.loads(invoke("models", "list", "--json").ok().out)
    assert [m["name"] for m in record["models"]] == ["a", "b"]
    monkeypatch.setattr(catalogue, "bundled_folder", lambda: tmp_path / "nothing")
    nothing = invoke("models", "list").ok()
    assert (nothing.out, nothing.err) == ("", "no model is bundled, and none was downloaded\n")
    assert json.loads(invoke("models", "list", "--json").ok().out) == {"models": []}


def test_show(invoke: Invoke, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    model = load(str(folder), "cpu")
    plain = invoke("models", "show", folder).ok()
    for said in (
        "16 x 16",
        f"{model.network.module.facts.parameters:,}",
        "epsilon",
        "T = 1000",
        "0.01 to 157.4",
        model.digest,
        "cc-by-4.0",
        " MB",
    ):
        assert said in plain.out
    assert plain.err == ""
    record = json.loads(invoke("models", "show", folder, "--json").ok().out)
    assert record["digest"] == model.digest
    assert record["parameters"] == model.network.module.facts.parameters
    assert record["licence"] == "cc-by-4.0"
    assert record["schedule"]["digest"] == model.schedule.digest
    assert record["memory_bytes"] == shapes.memory(model.network.module.torch.config)
    assert "weights: diffusion_pytorch_model.safetensors" in invoke("models", "show", folder, "-v").ok().err


def test_guesses_go_to_stderr(invoke: Invoke, authors: Path) -> None:
    shown = invoke("models", "show", authors).ok()
    assert "guessed: image size 32" in shown.err
    assert "guessed: schedule" in shown.err
    assert "EMA" not in shown.err
    assert "averaged weights (EMA) were taken" in invoke("models", "show", authors, "-v").ok().err
    assert invoke("models", "show", authors, "-q").ok().err == ""


def test_show_openai(invoke: Invoke, openai: tuple[Path, Path]) -> None:
    checkpoint, flags = openai
    out = invoke("models", "show", checkpoint, "--config", flags).ok().out
    for said in ("classes     2", "labels      times 0.25", "T = 4000", "variances, which are left out"):
        assert said in out
    assert "does not tell its heads" in invoke("models", "show", checkpoint).failed(3)
    assert "unknown configuration" in invoke("models", "show", checkpoint, "--config", "64x64_difusion").failed(2)


def test_convert_the_authors(invoke: Invoke, authors: Path, tmp_path: Path) -> None:
    done = invoke("models", "convert", authors, "-o", tmp_path / "new", "--license", "mit").ok()
    assert done.out == f"{tmp_path / 'new'}\n"
    assert "guessed: image size 32" in done.err
    new, known = load(str(tmp_path / "new"), "cpu"), load(str(tmp_path / "known"), "cpu")
    assert new.digest == known.digest
    assert new.schedule.digest == known.schedule.digest
    assert new.about.guesses == ()
    card = (tmp_path / "new" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert new.digest in card
    assert "guessed: image size 32" in card
    assert str(tmp_path) not in card
    assert "licence     mit" in invoke("models", "show", tmp_path / "new").ok().out


def test_convert_openai(invoke: Invoke, openai: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, flags = openai
    target = tmp_path / "new"
    done = invoke("models", "convert", checkpoint, "--config", flags, "-o", target, "--json").ok()
    before = load(str(checkpoint), "cpu", config=str(flags))
    after = load(str(target), "cpu")
    assert json.loads(done.out) == {"folder": str(target), "digest": before.digest}
    assert after.digest == before.digest
    assert after.schedule.digest == before.schedule.digest
    assert "diffusers cannot scale labels" in done.err
    xbar = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert apart(after.eps(Condition(1))(xbar, 2.0), before.eps(Condition(1))(xbar, 2.0)) < NETWORK


def test_convert_never_overwrites_unasked(invoke: Invoke, authors: Path, tmp_path: Path) -> None:
    target = write_tiny_model(tmp_path / "there")
    before = load(str(target), "cpu").digest
    assert "something in it" in invoke("models", "convert", authors, "-o", target).failed(2)
    assert load(str(target), "cpu").digest == before
    assert "is the model itself" in invoke("models", "convert", target, "-o", target, "--force").failed(2)
    assert "is a file" in invoke("models", "convert", authors, "-o", authors).failed(2)
    for name in ("unet_ema/config.json", "features.safetensors"):  # averaged weights would be taken before the new ones
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copy(target / "unet" / "config.json", target / name)
    invoke("models", "convert", authors, "-o", target, "--force").ok()
    assert not (target / "unet_ema").exists()
    assert not (target / "features.safetensors").exists()
    assert load(str(target), "cpu").digest == load(str(tmp_path / "known"), "cpu").digest


def test_convert_refuses_before_it_writes(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<!doctype html>")
    assert "a web page" in invoke("models", "convert", "page.pt", "-o", "new").failed(3)
    folder = write_tiny_model(tmp_path / "m")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    assert "do not fit" in invoke("models", "convert", folder, "-o", "new").failed(3)
    assert not (tmp_path / "new").exists()


def test_pull_needs_an_id(invoke: Invoke) -> None:
    assert "not a hub id" in invoke("models", "pull", "fashion-mnist").failed(2)


def test_an_unknown_model(invoke: Invoke) -> None:
    assert "no model 'nothing'" in invoke("models", "show", "nothing").failed(2)
