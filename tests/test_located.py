"""A latent's model is found wherever it is now: by its digest, then where it was; and what was tried is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, write_tiny_model

from ddimctl import catalogue, latent

Invoke = Callable[..., Result]


@pytest.fixture
def encoded(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """work/a.pt, made with -m ../models/x in work/, where one is now."""
    model = write_tiny_model(tmp_path / "models/x")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    shutil.copy(model / "held-out/000.png", "a.png")
    invoke("encode", "a.png", "-m", "../models/x", "--steps", 2).ok()
    return tmp_path


def forget(home: Path) -> None:
    shutil.rmtree(home.with_name(f"{home.name}-cache"))


def test_in_another_folder_it_is_the_one_that_was_used(
    encoded: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (encoded / "else/where").mkdir(parents=True)
    monkeypatch.chdir(encoded / "else/where")
    shutil.copy(encoded / "work/a.pt", "a.pt")
    invoke("decode", "a.pt").ok()
    invoke("interpolate", "a.pt", "a.pt", "--frames", 2).ok()

    # One that has changed meanwhile is another, whatever its path.
    shutil.rmtree(encoded / "models/x")
    write_tiny_model(encoded / "models/x", seed=1)
    assert "which is not here" in invoke("decode", "a.pt", "-o", "b.png").failed(2)


def test_without_a_memory_it_is_beside_the_latent_where_it_was(
    encoded: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(encoded)
    monkeypatch.chdir(encoded)
    invoke("decode", "work/a.pt").ok()


def test_it_is_found_in_the_folders_of_ddimctl_models(
    encoded: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (encoded / "shelf").mkdir()
    shutil.move(encoded / "models/x", encoded / "shelf/renamed")
    write_tiny_model(encoded / "shelf/other", seed=5)
    (encoded / "shelf/rubbish").mkdir()
    forget(encoded)
    done = invoke("decode", "a.pt")
    assert done.failed(2) == "a.pt was encoded with the model '../models/x', which is not here"
    for place in ("bundled", "used before", "hub", "DDIMCTL_MODELS, which is not set", "../models/x"):
        assert place in done.err
    shelf = {"DDIMCTL_MODELS": f"{encoded / 'nothing'}:{encoded / 'shelf'}"}
    done = invoke("decode", "a.pt", "-v", env=shelf).ok()
    assert "the model ../models/x is " in done.err
    assert "shelf/renamed" in done.err
    invoke("decode", "a.pt", "-o", "again.png").ok()  # it is remembered from then on
    assert "which is not here" not in invoke("decode", "a.pt", "-o", "c.png", env={"DDIMCTL_MODELS": ""}).err


def test_a_bundled_model_is_found_by_its_digest_whatever_it_was_called(
    encoded: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = latent.load(encoded / "work/a.pt").provenance["model"]["digest"]
    shutil.move(encoded / "models", encoded / "installed")
    forget(encoded)
    monkeypatch.setattr(catalogue, "bundled_folder", lambda: encoded / "installed")
    monkeypatch.setattr("ddimctl.families.bundled_folder", lambda: encoded / "installed")
    monkeypatch.setitem(catalogue.DIGESTS, "x", found)
    invoke("decode", "a.pt").ok()
