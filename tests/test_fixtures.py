"""What version 0.1.0 wrote is read as it was: latent files of format version 1, and runs that are to be gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image
from record_cli import FIXTURES, later

from ddimctl.images import writing

Invoke = Callable[..., Result]
LATENTS = sorted(p.name for p in (FIXTURES / "latents").iterdir())
ENV = {"DDIMCTL_DEVICE": "cpu", "DDIMCTL_ENGINE": "torch"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working folder with the models, the latents and the runs in it."""
    for name in ("models", "latents", "runs"):
        shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", LATENTS)
def test_old_latents_decode_to_the_same_pixels(name: str, engine: str, invoke: Invoke, folder: Path) -> None:
    """None of their decoded values is near the edge between two levels (see fixtures/README.md)."""
    invoke("decode", name, "-o", "back", env={**ENV, "DDIMCTL_ENGINE": engine}).ok()
    found = sorted((folder / "back").glob("*.png"))
    known = sorted((FIXTURES / "decoded").glob(f"{name.replace('.', '-')}*.png"))
    assert len(found) == len(known) > 0
    for a, b in zip(found, known, strict=True):
        assert np.array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b))), b.name


@pytest.mark.parametrize("name", LATENTS)
def test_damaged_and_later_ones_are_refused_by_name(name: str, invoke: Invoke, folder: Path) -> None:
    file = folder / name
    data = file.read_bytes()
    for at in (
        data.index(b"spacing"),
        data.index(b"ddimctl-latent"),
        data.index(b"sha256"),
    ):  # not a date or padding of the zip
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert name in invoke("decode", name, "-o", "back.png", env=ENV).failed(3)
    file.write_bytes(data[: len(data) // 2])
    assert name in invoke("decode", name, "-o", "back.png", env=ENV).failed(3)
    file.write_bytes(later(data))
    assert f"{name} has format version '9'" in invoke("decode", name, "-o", "back.png", env=ENV).failed(3)
    assert not (folder / "back.png").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "classes/held-out", "-o", "run", "-m", "classes", "--class", 1, "--steps", 23),
        ("encode", "classes/held-out", "-o", "packed.safetensors", "-m", "classes", "--class", 1, "--steps", 23),
        ("decode", "run", "-o", "images"),
    ],
    ids=str,
)
def test_old_runs_are_gone_on_with(command: tuple[object, ...], invoke: Invoke, folder: Path) -> None:
    """Nothing is done again, and nothing changes; what is missing is made, and is the same."""

    def content() -> dict[Path, bytes]:
        return {
            p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix in (".pt", ".safetensors", ".png")
        }

    before = content()
    done = json.loads(invoke(*command, "--json", env=ENV).ok().out)
    assert (done["skipped"], done[f"{command[0]}d"], done["failed"]) == (3, 0, 0)
    assert content() == before
    missing = next((p for p in (folder / "run/001.pt", folder / "images/001.png") if p.parent.name == command[3]), None)
    if missing is not None:
        missing.unlink()
        done = json.loads(invoke(*command, "--json", env=ENV).ok().out)
        assert (done["skipped"], done[f"{command[0]}d"], done["failed"]) == (2, 1, 0)
        assert missing.exists()
        assert missing.suffix != ".png" or writing.is_same(missing, before[missing])  # it now says how it was made
