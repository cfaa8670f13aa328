"""What models are here: as loading them finds, in a fraction of the time, and whatever else lies in the folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from record_cli import FIXTURES

from ddimctl import catalogue, load
from ddimctl.catalogue import DIGESTS, bundled, here
from ddimctl.checkpoints import folders

Invoke = Callable[..., Result]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model of ours, in two snapshots, and others that are not."""
    cache = tmp_path / "hub"
    mine = cache / "models--some--colour"
    for revision in ("old", "new"):
        shutil.copytree(FIXTURES / "models/colour", mine / "snapshots" / revision)
    (mine / "refs").mkdir()
    (mine / "refs/main").write_text("old")
    (mine / "snapshots/old/README.md").write_text("---\nlicense: mit\n---\n")
    text = cache / "models--some--text/snapshots/x/unet"
    text.mkdir(parents=True)
    (text / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (cache / "models--some--empty/snapshots").mkdir(parents=True)
    (cache / "datasets--some--images").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache


@pytest.mark.parametrize("name", bundled())
def test_the_bundled_ones_are_what_loading_them_finds(name: str) -> None:
    (entry,) = (e for e in here() if e.name == name)
    model = load(name, "cpu")
    assert entry.digest == model.digest == DIGESTS[name]
    assert entry.parameters == model.network.module.facts.parameters
    assert (entry.channels, entry.size, entry.where) == (model.channels, model.size, "bundled")
    assert entry.licence


def test_downloaded_ones_are_listed_as_they_are_asked_for(hub: Path) -> None:
    found = [e for e in here() if e.where == "hub"]
    assert [e.name for e in found] == ["some/colour"]
    assert found[0].folder == hub / "models--some--colour/snapshots/old"
    assert (found[0].size, found[0].channels, found[0].licence) == ((8, 8), 3, "mit")
    model = load(str(found[0].folder), "cpu")
    assert found[0].parameters == model.network.module.facts.parameters
    assert found[0].digest is None
    catalogue.remember(found[0].folder, model.digest)
    assert [e.digest for e in here() if e.where == "hub"] == [model.digest]
    weights = found[0].folder / "unet/diffusion_pytorch_model.safetensors"
    os.utime(weights, (1, 1))  # what changed is not what was remembered
    assert [e.digest for e in here() if e.where == "hub"] == [None]


def test_what_was_used_is_remembered_while_it_is_the_same(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "models/grey", tmp_path / "grey")
    catalogue.remember(tmp_path / "grey", "0" * 64)
    assert catalogue.remembered(tmp_path / "grey") == "0" * 64
    assert catalogue.used("0" * 64) == (tmp_path / "grey").resolve()
    (tmp_path / "grey/unet/config.json").touch()
    os.utime(tmp_path / "grey/unet/config.json", (1, 1))
    assert catalogue.remembered(tmp_path / "grey") is None
    assert catalogue.used("0" * 64) is None
    catalogue.remember(tmp_path / "gone", "1" * 64)
    assert catalogue.used("1" * 64) is None


@pytest.mark.parametrize("damage", ["config", "header", "short", "no weights", "no branch"])
def test_damaged_ones_are_listed_with_what_is_known(hub: Path, damage: str) -> None:
    folder = hub / "models--some--colour/snapshots/old"
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    if damage == "config":
        (folder / "unet/config.json").write_text("[1")
    elif damage == "header":
        weights.write_bytes(weights.read_bytes().replace(b'"shape"', b'"shabe"'))
    elif damage == "short":
        weights.write_bytes(b"\xff" * 20)
    elif damage == "no weights":
        weights.unlink()
    else:
        (hub / "models--some--colour/refs/main").unlink()
    found = [e for e in here() if e.where == "hub"]
    if damage == "config":
        assert found == []
    else:
        assert (found[0].parameters is None) == (damage != "no branch")


def test_shards_are_counted(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(FIXTURES / "models/grey", tmp_path / "grey")
    whole = tmp_path / "grey/unet/diffusion_pytorch_model.safetensors"
    state, n = load_file(whole), folders.parameters(tmp_path / "grey")
    names = sorted(state)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file(
            {k: state[k] for k in part}, whole.with_name(f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors")
        )
    whole.unlink()
    assert folders.parameters(tmp_path / "grey") == n == sum(w.numel() for w in state.values())


def test_the_list(hub: Path, invoke: Invoke) -> None:
    done = invoke("models", "list", env={"HF_HUB_CACHE": str(hub)}).ok()
    header, *rows = done.out.splitlines()
    assert header.split() == ["model", "size", "channels", "parameters", "licence", "digest", "where"]
    assert [row.split()[0] for row in rows] == [*bundled(), "some/colour"]
    models = json.loads(invoke("models", "list", "--json", env={"HF_HUB_CACHE": str(hub)}).ok().out)["models"]
    assert [m["name"] for m in models] == [*bundled(), "some/colour"]
    assert models[-1]["folder"] == str(hub / "models--some--colour/snapshots/old")
    assert models[-1]["image_size"] == [8, 8]


def test_using_a_downloaded_model_lets_the_list_know_its_digest(hub: Path, invoke: Invoke) -> None:
    folder = hub / "models--some--colour/snapshots/old"
    env = {"HF_HUB_CACHE": str(hub), "DDIMCTL_ENGINE": "torch"}
    invoke("sample", "-n", 1, "--steps", 2, "-m", folder, env=env).ok()
    (found,) = (m for m in json.loads(invoke("models", "list", "--json", env=env).out)["models"] if m["where"] == "hub")
    assert found["digest"] == load(str(folder), "cpu").digest
