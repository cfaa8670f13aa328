"""Pictures in the terminal: half blocks whose colours are the pixels, and nothing where stdout is no terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, isolated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.cli import terminal

Invoke = Callable[..., Result]
LATENTS = Path(__file__).parent / "fixtures" / "latents"
HALF = re.compile("\x1b\\[38;2;(\\d+);(\\d+);(\\d+);(?:48;2;(\\d+);(\\d+);(\\d+)|49)m▀")


def blocks(text: str) -> np.ndarray:
    """The pixels (H, W, 3) of what half blocks show; −1 where the paper's own colour does."""
    rows: list[list[list[int]]] = []
    for line in text.splitlines():
        cells = [[int(v or -1) for v in groups] for groups in HALF.findall(line)]
        if cells:
            rows += [[c[:3] for c in cells], [c[3:] for c in cells]]
    return np.array(rows)


def in_terminal(folder: Path, *words: object, **env: str) -> str:
    """What a command writes to a terminal that says nothing of itself."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ddimctl", *map(str, words)]
    environment = isolated(folder, {"TERM": "xterm", **env})
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=folder, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert process.wait() == 0, errors
    return seen.decode()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo terminals here")
def test_half_blocks_are_the_pixels(model_folder: Path, tmp_path: Path) -> None:
    from ddimctl.images import reading, sheets

    words = ("sample", "-m", model_folder, "-n", 3, "--steps", 2, "-o")
    shown = blocks(in_terminal(tmp_path, *words, "folder", "--show", NO_COLOR="1"))
    images = [reading.read(p, 1, (16, 16))[0] for p in sorted((tmp_path / "folder").glob("*.png"))]
    want = sheets.sheet(np.stack(images), 3, gap=1)
    np.testing.assert_array_equal(shown, np.broadcast_to(want, (*want.shape[:2], 3)))
    assert "▀" in in_terminal(tmp_path, "info", LATENTS / "one.pt", "--show")
    narrow = blocks(in_terminal(tmp_path, *words, "y.png", "--show", COLUMNS="20"))
    assert narrow.shape[1] == 20
    assert "\u2580" not in in_terminal(tmp_path, *words, "x.png", "--show", "--json")


@pytest.mark.parametrize("command", [("info", LATENTS / "one.pt"), ("sample", "-n", 2, "--steps", 2)], ids=str)
def test_nothing_is_shown_without_a_terminal(invoke: Invoke, model_folder: Path, command: tuple[object, ...]) -> None:
    words = (*command, *(("-m", model_folder) if command[0] == "sample" else ()))
    plain = invoke(*words, "--force").ok()
    assert invoke(*words, "--force", "--show").ok().out == plain.out


@given(st.integers(1, 6), st.integers(1, 6))
def test_every_pixel_is_half_a_block(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shown = blocks(terminal.half_blocks(Image.fromarray(pixels)))
    np.testing.assert_array_equal(shown[:height], pixels)
    assert (shown[height:] == -1).all()
