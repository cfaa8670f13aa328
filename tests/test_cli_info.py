"""`ddimctl info`, and what the commands make of latents from strangers: one line, or a safe one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from PIL import Image

from ddimctl import latent
from ddimctl.latent import Latent

Invoke = Callable[..., Result]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def made(invoke: Invoke, model_folder: Path, tmp_path: Path) -> Latent:
    """a.pt, which the tiny model encoded."""
    invoke("encode", model_folder / "held-out" / "000.png", "-o", "a.pt", "-m", model_folder, "--steps", 2).ok()
    return latent.load(tmp_path / "a.pt")


def changed(known: Latent, path: Path, **about: Any) -> Path:
    """A whole file that says something else of itself; `about` may change what it says of its model."""
    record = {**known.provenance, **{k: v for k, v in about.items() if k in known.provenance}}
    record["model"] = {**record["model"], **{k: v for k, v in about.items() if k not in known.provenance}}
    latent.save(path, Latent(known.xT, record))
    return path


# Latents from strangers


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;owned\x07.png", "\ud800.png", "two\nlines\u202e.png", "x" * 10_000])
def test_names_from_a_latent_steer_no_terminal(made: Latent, invoke: Invoke, tmp_path: Path, name: str) -> None:
    changed(made, tmp_path / "odd.pt", images=[{**made.images[0], "name": name}])
    out = invoke("info", "odd.pt").ok().out
    assert out.replace("\n", "").isprintable()
    assert len(out) < 5000
    assert len(out.splitlines()) == len(invoke("info", "a.pt").ok().out.splitlines())
    assert json.loads(invoke("info", "odd.pt", "--json").ok().out)["provenance"]["images"][0]["name"] == name


def test_names_of_a_model_steer_no_terminal(invoke: Invoke, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m\x1b[2J")
    (folder / "README.md").write_text("---\nlicense: \x1b]0;owned\x07\n---\n")
    for command in (("info",), ("models", "show")):
        assert invoke(*command, folder).ok().out.replace("\n", "").isprintable()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("said", ["reference", "config"])
def test_a_pipe_that_a_latent_names_is_not_waited_for(made: Latent, ddimctl: Invoke, tmp_path: Path, said: str) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    changed(made, tmp_path / "odd.pt", **{said: str(tmp_path / "pipe.json")})
    assert "a pipe or a device" in ddimctl("decode", "odd.pt", "-o", "x.png").failed(3)


def test_interpolate_checks_every_latent(made: Latent, invoke: Invoke, tmp_path: Path) -> None:
    latent.save(tmp_path / "larger.pt", Latent(torch.zeros(1, 1, 8, 8), made.provenance))
    assert "larger.pt has shape (1, 8, 8)" in invoke("interpolate", "a.pt", "larger.pt").failed(3)
    changed(made, tmp_path / "b.pt", schedule="another")
    changed(made, tmp_path / "c.pt", digest="another")
    for name in ("b.pt", "c.pt"):
        words = ("interpolate", "a.pt", name, "--frames", 2, "-o", f"{name}.gif")
        assert f"{name} was encoded with another model" in invoke(*words).failed(3)
        done = invoke(*words, "--force").ok()
        assert f"warning: {name} was encoded with another model" in done.err


def test_figures_out_of_range_are_marked(made: Latent, invoke: Invoke, tmp_path: Path) -> None:
    latent.save(tmp_path / "weak.pt", Latent(made.xT / made.xT.std() / 2, made.provenance))
    figures = json.loads(invoke("info", "weak.pt", "--json").ok().out)["health"][0]["figures"]
    lines = invoke("info", "weak.pt").ok().out.splitlines()
    marked = {n: next(t for t in lines if t.startswith(f"{n}  ")).endswith("  *") for n in figures}
    assert marked == {n: not f["range"][0] <= f["value"] <= f["range"][1] for n, f in figures.items()}
    assert marked["std"]


def test_the_help_says_where_latents_are_explained(invoke: Invoke) -> None:
    assert '"How much a latent resembles noise" in docs/inversion.md' in " ".join(
        invoke("info", "--help").ok().out.split()
    )
    assert "\n## How much a latent resembles noise\n" in (ROOT / "docs" / "inversion.md").read_text()


# Drawing


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)])
def test_any_number_of_channels_is_drawn(
    made: Latent, invoke: Invoke, tmp_path: Path, channels: int, shown: int
) -> None:
    xT = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    latent.save(tmp_path / "many.pt", Latent(xT, made.provenance))
    done = invoke("info", "many.pt", "-o", "x.png", "--no-labels").ok()
    assert (f"the first {shown} of {channels} channels" in done.err) == (shown < channels)
    pixels = np.asarray(Image.open(tmp_path / "x.png")).reshape(112, 112, shown)
    want = np.clip(np.round((xT[0, :shown].double().numpy() / 3 + 1) * 127.5), 0, 255)
    np.testing.assert_array_equal(pixels[::7, ::7], np.moveaxis(want, 0, -1))


# Models


def test_a_model_is_described_as_models_show_does(invoke: Invoke, tmp_path: Path) -> None:
    folders = {
        "plain": write_tiny_model(tmp_path / "plain"),
        "classes": write_tiny_model(tmp_path / "classes", num_class_embeds=3),
        "no size": write_tiny_model(tmp_path / "no-size", sample_size=None),
    }
    for folder in folders.values():
        for flags in ((), ("--json",)):
            shown = invoke("models", "show", folder, *flags).ok()
            assert invoke("info", folder, *flags).ok() == shown
    assert "3, chosen with --class" in invoke("info", folders["classes"]).ok().out
    assert json.loads(invoke("info", folders["plain"], "--json").ok().out)["kind"] == "model"


def test_a_model_is_not_drawn(invoke: Invoke, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    for option in ("-o", "--html"):
        done = invoke("info", folder, option, f"x.{'png' if option == '-o' else 'html'}")
        assert "about a latent file" in done.failed(2) or "draws a latent file" in done.err
        assert done.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_with_its_configuration(invoke: Invoke, tmp_path: Path) -> None:
    torch.save(layouts.openai_state(classes=2), tmp_path / "ema.pt")
    (tmp_path / "flags.json").write_text(json.dumps({"image_size": 16, "num_heads": 2}))
    assert "does not tell its heads" in invoke("info", "ema.pt").failed(3)
    words = ("ema.pt", "--config", "flags.json")
    assert invoke("info", *words).ok() == invoke("models", "show", *words).ok()


@pytest.mark.slow
def test_guesses_are_told_with_and_without_torch(invoke: Invoke, tmp_path: Path) -> None:
    """The second run takes the model from the cache."""
    pytest.importorskip("openvino")
    folder = write_tiny_model(tmp_path / "m")
    for part in (folder / "unet").iterdir():  # a network alone, which never was a part of anything
        part.rename(folder / part.name)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "model_index.json").unlink()
    image = folder / "held-out" / "000.png"
    for command in (("encode", image, "-o", "x.pt", "--force"), ("reconstruct", image)):
        words = (*command, "-m", folder, "--steps", 2, "--engine", "openvino", "--device", "cpu")
        for _ in range(2):
            done = invoke(*words, "-v").ok()
            assert "m: there is no scheduler_config.json" in done.err
        assert "from the cache" in done.err
        assert "scheduler_config" not in invoke(*words, "-q").ok().err


# Streams


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252:strict"])
def test_any_encoding_of_the_terminal_will_do(ddimctl: Invoke, model_folder: Path, encoding: str) -> None:
    done = ddimctl("info", model_folder, env={"PYTHONIOENCODING": encoding}).ok()
    assert b"\\u03c3 from 0.01 to 157.4" in done.stdout
    assert done.stderr == b""
