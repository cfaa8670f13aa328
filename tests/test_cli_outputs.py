"""What commands write: refused before any work where it cannot be, told of where it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

Invoke = Callable[..., Result]


@pytest.fixture
def image(model_folder: Path, tmp_path: Path) -> Path:
    """a.png, which the tiny model may take."""
    return Path(shutil.copy(model_folder / "held-out" / "000.png", tmp_path / "a.png"))


# Folders that are not there


@pytest.mark.parametrize(
    "words",
    [
        ("reconstruct", "a.png", "--plot", "no/p.png"),
        ("reconstruct", "a.png", "-o", "no/s.png"),
        ("bench", "--plot", "no/p.png"),
        ("evaluate", "--plot", "no/p.png"),
        ("sample", "-o", "no/x.png"),
        ("sample", "--save-noise", "no/n.pt"),
        ("interpolate", "a.png", "a.png", "-o", "no/i.gif"),
        ("encode", "--lossless", "a.png", "-o", "no/l.pt"),
    ],
    ids=" ".join,
)
def test_a_missing_folder_is_told_of_first(image: Path, invoke: Invoke, tmp_path: Path, words: tuple[str, ...]) -> None:
    """The model is not there either: nothing was done before."""
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    done = invoke(*words, "-m", "nothing")
    assert done.failed(2) == "there is no folder no"
    assert "hint: make it first: mkdir -p no" in done.err
    (tmp_path / "no").write_text("no folder")
    done = invoke(*words, "-m", "nothing")
    assert done.failed(2) == "there is no folder no"
    assert "hint: a file is called that" in done.err


def test_a_missing_folder_of_a_decoded_image(image: Path, invoke: Invoke, model_folder: Path) -> None:
    invoke("encode", image, "-m", model_folder, "--steps", 2).ok()
    assert invoke("decode", "a.pt", "-o", "no/x.png").failed(2) == "there is no folder no"
    assert invoke("info", "a.pt", "-o", "no/x.png").failed(2) == "there is no folder no"


def test_folders_of_results_are_made(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    invoke("encode", image, "-o", "new/latents", "-m", model_folder, "--steps", 2).ok()
    invoke("decode", "new/latents/a.pt", "-o", "new/images").ok()
    words = ("sample", "-n", 2, "--steps", 2, "-m", model_folder, "-o", "new/samples")
    invoke(*words, "--save-noise", "new/samples/n.pt").ok()
    assert {p.name for p in (tmp_path / "new" / "samples").iterdir()} == {"000.png", "001.png", "n.pt"}


def test_the_table_comes_before_the_plot(
    image: Path, invoke: Invoke, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not lost with a plot that cannot be drawn."""
    pytest.importorskip("matplotlib")
    from ddimctl import plots
    from ddimctl.errors import DDIMError

    def fail(*_: object) -> None:
        raise DDIMError("no ink")

    monkeypatch.setattr(plots, "error_against_evaluations", fail)
    done = invoke("reconstruct", image, "-m", model_folder, "--steps", 2, "--plot", "p.png")
    assert done.failed(1) == "no ink"
    assert done.out.startswith("solver  spacing")
