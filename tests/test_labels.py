"""Words around sheets: nothing is cut, nothing covers anything, and the pictures stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.images import labels, sheets

Invoke = Callable[..., Result]
texts = st.lists(st.text("abc σ×é漢\n…", max_size=30), max_size=6)


def sheet_of(n: int, tile: tuple[int, int], columns: int, gap: int, channels: int = 1) -> np.ndarray:
    return sheets.sheet(np.full((n, *tile, channels), 128, np.uint8), columns, gap)


def position(whole: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """Where `part` stands in `whole`, exactly; fails if it does not."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    found = np.argwhere((windows[..., ::7, ::7] == part[::7, ::7]).all((-1, -2)))
    exact = [tuple(p) for p in found if (windows[tuple(p)] == part).all()]
    assert len(exact) == 1
    return exact[0]


@given(texts, texts, texts, st.text("abc ", max_size=200), st.sampled_from([(16, 16), (40, 56), (112, 112)]))
def test_nothing_is_cut_and_the_pictures_stay(
    above: list[str], left: list[str], below: list[str], caption: str, tile: tuple[int, int]
) -> None:
    bare = sheet_of(10, tile, 4, 3)
    whole = labels.around(bare, tile, 3, labels=labels.Labels(above, left[:3], below, caption))
    most = labels.room(tile)
    assert all(a - b <= m for a, b, m in zip(whole.shape[:2], bare.shape[:2], most, strict=True))
    edges = [whole[:2], whole[-2:], whole[:, :2], whole[:, -2:]]
    assert all((edge == 255).all() for edge in edges)
    y, x = position(np.where(whole[..., 0] == 128, 128, 255)[:, :], np.where(bare[..., 0] == 128, 128, 255))
    np.testing.assert_array_equal(whole[y : y + bare.shape[0], x : x + bare.shape[1]], bare)


@given(texts, st.integers(1, 6), st.sampled_from([16, 40, 112]))
def test_no_label_reaches_into_another(above: list[str], columns: int, width: int) -> None:
    font = labels.font_for((width, width))
    placed = labels.placed(above, columns, width, gap=2, font=font)
    assert len(placed) == sum(bool(t) for t in above[:columns])
    spans = sorted(
        (x - w, x) if side == "r" else (x, x + w) for t, x, side in placed for w in [labels.measure(font, t)[0]]
    )
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(a >= 0 and b <= columns * (width + 2) - 2 for a, b in spans)


@given(st.text("abcdefghij ×", max_size=80), st.integers(20, 300))
def test_lines_fit(text: str, width: int) -> None:
    font = labels.font_of(12)
    lines = labels.wrapped(text, font, width).split("\n")
    assert all(font.getlength(line) <= width for line in lines)
    assert len(lines) <= labels.LINES
    if "…" not in "".join(lines) and len(lines) < labels.LINES:
        assert " ".join(lines).split() == labels.written(text).split()


def test_every_letter_is_written_in_what_the_font_has() -> None:
    assert labels.written("σ̂ σ η × 1,230 − é漢\x1b…\n") == "sigma^ sigma eta x 1,230 - e??…\n"
    font = labels.font_of(16)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(chr(c))) != missing for c in (*range(33, 127), ord("…")))


def test_the_corners_of_a_grid_share_the_room() -> None:
    font = labels.font_of(12)
    (a, x, _), (b, end, side) = labels.placed(["a" * 50, "", "", "b" * 50], 4, 40, gap=2, font=font)
    assert (x, end, side) == (0, 4 * 42 - 2, "r")
    assert labels.measure(font, a)[0] > 60 < labels.measure(font, b)[0]


# The commands' sheets


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path, tmp_path: Path) -> Invoke:
    """The command line with the tiny model; in a folder with two latents and an image."""
    for name, source in (("a", "000"), ("b", "001")):
        (tmp_path / f"{name}.png").write_bytes((model_folder / "held-out" / f"{source}.png").read_bytes())
        invoke("encode", f"{name}.png", "-o", f"{name}.pt", "-m", model_folder, "--steps", 2).ok()
    return invoke


@pytest.mark.parametrize(
    "command",
    [
        ("reconstruct", "a.png", "b.png", "--steps", "2,3", "-m", "MODEL"),
        ("sample", "-n", 5, "--steps", 2, "-m", "MODEL"),
        ("sample", "-n", 3, "--steps", "2,3", "--eta", 0.5, "-m", "MODEL"),
        ("interpolate", "a.pt", "b.pt", "--frames", 4),
        ("interpolate", "a.pt", "b.pt", "a.pt", "b.pt", "--grid", "--size", "3x4"),
    ],
    ids=lambda c: " ".join(map(str, c[:3])),
)
def test_the_labelled_sheet_is_the_bare_one_with_words(
    tiny: Invoke, model_folder: Path, tmp_path: Path, command: tuple[object, ...]
) -> None:
    words = [str(model_folder) if w == "MODEL" else w for w in command]
    tiny(*words, "-o", "bare.png", "--no-labels").ok()
    tiny(*words, "-o", "whole.png").ok()
    bare, whole = (np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("bare", "whole"))
    assert all(a < b for a, b in zip(bare.shape, whole.shape, strict=True))
    y, x = position(whole, bare)
    outside = whole.copy()
    outside[y : y + bare.shape[0], x : x + bare.shape[1]] = 255
    assert (outside < 100).any()


def test_what_a_format_cannot_hold_is_told_before_with_the_words_counted(tiny: Invoke, model_folder: Path) -> None:
    words = ("sample", "-n", 141, "--steps", "1,2", "-m", model_folder, "-o", "x.webp")  # 141 · 116 − 4 = 16,352
    assert "WEBP holds at most 16383 a side" in tiny(*words).failed(2)
    assert "WEBP" in tiny(*words[:2], 142, *words[3:], "--no-labels").failed(2)
