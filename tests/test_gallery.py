"""docs/gallery.md is what its script says, and every picture in it was made here."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

ROOT = Path(__file__).parent.parent
pyte = pytest.importorskip("pyte")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import film  # noqa: E402
import gallery  # noqa: E402
from film import CELL, COLUMNS, MARGIN, ROWS  # noqa: E402

Invoke = Callable[..., Result]


@pytest.mark.parametrize("shown", gallery.FILMS, ids=lambda f: f.file)
def test_every_film_is_there_and_small(shown: Any, invoke: Invoke) -> None:
    path = ROOT / "docs" / shown.file
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.size == (COLUMNS * CELL[0] + 2 * MARGIN, ROWS * CELL[1] + 2 * MARGIN)
        times = []
        for i in range(picture.n_frames):
            picture.seek(i)
            times.append(picture.info["duration"])
        assert 20 < len(times) < 300
        assert all(20 <= t <= 4100 for t in times)
        assert picture.info["loop"] == 0
    for command in shown.commands:
        program, name, *words = shlex.split(command)
        assert program == "ddimctl"
        help_text = invoke(name, "--help").ok().out
        assert all(w in help_text for w in words if w.startswith("--"))
    for _, there in shown.files:
        assert (ROOT / "models" / there).is_file()


def screen(written: bytes) -> Any:
    found = pyte.Screen(COLUMNS, ROWS)
    pyte.ByteStream(found).feed(written)
    return found


def test_a_terminal_is_drawn_as_it_shows() -> None:
    """Half blocks pixel for pixel, in 24-bit colour; letters in their place; the cursor behind them."""
    picture = film.Drawing()(screen("\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m M".encode()))
    (wide, high), m = CELL, MARGIN
    assert picture.getpixel((m + 3, m + 3)) == (255, 0, 0)
    assert picture.getpixel((m + 3, m + high - 2)) == (0, 0, 255)
    letter = np.asarray(picture)[m : m + high, m + 2 * wide : m + 3 * wide]
    paper = np.asarray(picture)[0, 0]
    assert (letter != paper).any(axis=2).sum() > 20
    assert (np.asarray(picture)[m + high :] == paper).all()
    assert picture.getpixel((m + 3 * wide + 4, m + high // 2)) == (200, 204, 212)


def test_frames_of_a_film(tmp_path: Path) -> None:
    """What looks the same is one frame, and every frame stays as long as it did."""
    events = [(0.5, b"a"), (0.05, b"b"), (0.05, b"c"), (1.0, b""), (1.0, b"d")]
    shown = list(film.frames(iter(events)))
    assert [round(s, 3) for _, s in shown] == [0.5, 0.1, 1.0, 1.0, film.END]
    film.save(tmp_path / "f.gif", shown)
    with Image.open(tmp_path / "f.gif") as picture:
        times = []
        for i in range(picture.n_frames):
            picture.seek(i)
            times.append(picture.info["duration"])
    assert times == [500, 100, 2000, 4000]


@pytest.mark.slow
def test_a_command_runs_in_a_terminal(tmp_path: Path) -> None:
    written = b"".join(data for _, data in film.run("ddimctl models list", tmp_path))
    assert "fashion-mnist" in "\n".join(screen(written).display)
    with pytest.raises(subprocess.CalledProcessError):
        list(film.run("ddimctl info nothing.pt", tmp_path))


def test_the_page_is_the_scripts() -> None:
    assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == gallery.page()


@pytest.mark.parametrize("shown", gallery.SHOWN, ids=lambda s: s.file)
def test_every_picture_is_there_and_its_command_is_one(shown: gallery.Shown, invoke: Invoke) -> None:
    with Image.open(ROOT / "docs" / shown.file) as picture:
        assert picture.info["ddimctl"] if not shown.is_of_page and "info" not in shown.command else picture.width > 500
        assert max(picture.size) <= 1500
    program, command, *words = shlex.split(shown.command)
    assert program == "ddimctl"
    assert (gallery.REPORT if shown.is_of_page else f"docs/{shown.file}") in words
    help_text = invoke(command, "--help").ok().out
    assert all(w in help_text for w in words if w.startswith("--"))
