"""Plots: every word can be read, in light and dark; the formats; and the charts that commands draw."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddimctl.charts import Axis, Chart
from ddimctl.report import runs

pytest.importorskip("matplotlib")
from matplotlib.text import Text

from ddimctl import plots

TABLE_2 = {
    "ddim, linear": [(20, 4.4e-2), (40, 9.6e-3), (100, 1.8e-3), (200, 4.7e-4)],
    "ddim, quadratic": [(20, 5.3e-2), (40, 1.4e-2), (100, 1.9e-3), (200, 6.4e-4)],
    "ab2, karras": [(20, 1.1e-3), (40, 1.4e-4), (100, 1.7e-6), (200, 5.1e-8)],
    "ab2mix, arsinh": [(20, 1.6e-3), (40, 6.2e-5), (100, 1e-5), (200, 6.4e-6)],
    "ddim, karras": [(40, 1.1e-2)],
    "heun, karras": [(40, 2.9e-3)],
    "exact, karras": [(96, 1.5e-9), (164, 2e-9)],
    "exact, log": [(90, 1.4e-9), (154, 2.2e-9)],
}
ROWS = {
    "η = 0": [(10, 2.29), (20, 1.2), (50, 0.763)],
    "η = 0.2": [(10, 2.49), (20, 1.35), (50, 0.77)],
    "η = 0.5": [(10, 2.7), (20, 1.37), (50, 0.6)],
    "η = 1": [(10, 4.04), (20, 1.87), (50, 0.92)],
    "σ̂": [(10, 34.5), (20, 16.3), (50, 5.9)],
}
TIMED = {"torch": ([(5, 1.17), (10, 2.35), (20, 4.62), (40, 9.35)], 0.0, 0.2334),
         "openvino": ([(5, 1.24), (10, 2.04), (20, 4.04), (40, 8.45)], -0.02, 0.2088)}  # fmt: skip
PAPER = runs.paper_distances(list(ROWS))
assert PAPER is not None
DRAWN: dict[str, list[Chart]] = {
    "error": [runs.error_against_evaluations(TABLE_2)],
    "one error": [runs.error_against_evaluations({"ab2, karras": [(20, 1e-3)]})],
    "no error": [runs.error_against_evaluations({"exact, karras": [(20, 0.0)]})],
    "quality": [runs.distance_against_steps(ROWS, 0.07, "classifier"), PAPER,
                runs.seconds_against_steps({10: 0.015, 20: 0.0297, 50: 0.0787})],
    "speed": [runs.rates_against_batches({"torch": [(1, 123), (4, 224), (16, 273), (64, 269)],
                                          "openvino": [(1, 150), (4, 237), (16, 279), (64, 277)]}),
              runs.times_against_steps(TIMED, 64)],
    "one batch": [runs.rates_against_batches({"torch": [(1, 123)]}),
                  runs.times_against_steps({"torch": ([(5, 1.0)], 0.0, 0.2)}, 1)],
    "many steps": [runs.distance_against_steps({"η = 0": [(s, 10 / s) for s in (1, 2, 3, 4, 5, 8, 10, 12, 16, 20, 1000)]},
                                               None, "bottleneck")],
}  # fmt: skip


def words(axes: Any) -> list[Any]:
    numbers = [t for axis in (axes.xaxis, axes.yaxis) for t in axis.get_ticklabels()]
    return [t for t in (*numbers, *axes.texts, axes._left_title, axes.xaxis.label) if t.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_no_word_is_cut_or_on_another(name: str) -> None:
    found = plots.figure(DRAWN[name], "fashion-mnist, AMD EPYC, 2 processors", dark=False)
    found.canvas.draw()
    shown = [*(t for axes in found.axes for t in words(axes)), found._suptitle]
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in shown]  # an annotation's own has its line, too
    width, height = found.bbox.size
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text  # noqa: PT018
    for (text, box), (other, under) in combinations(boxes, 2):
        assert not box.padded(-1).overlaps(under.padded(-1)), (text, other)


@pytest.mark.parametrize("name", DRAWN)
def test_every_line_is_named_and_every_axis_has_numbers(name: str) -> None:
    found = plots.figure(DRAWN[name], "title", dark=True)
    for axes, chart in zip(found.axes, DRAWN[name], strict=True):
        texts = [t.get_text() for t in words(axes)]
        assert [s.label for s in chart.series if s.label and s.label not in texts] == []
        assert {chart.title, chart.x.label, chart.y.label} <= set(texts)
        assert len(axes.get_yticks()) >= 2
        assert len(axes.get_xticks()) >= 1
        assert axes.get_legend() is None


def test_numbers_without_room_are_left_out() -> None:
    axis = Axis("S", 1, 1000, log=True, ticks=(1, 2, 3, 1000))
    assert plots._numbered(axis, 200)[1] == ["1", "2", "3", "1000"]
    assert plots._numbered(axis, 12)[1] == ["1", "1000"]


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_formats(tmp_path: Path, suffix: str, dark: bool) -> None:
    path = tmp_path / f"p{suffix}"
    plots.draw(path, DRAWN["one error"], title="title", dark=dark)
    assert {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in path.read_bytes()[:100]
    if suffix == ".png":
        with Image.open(path) as picture:
            assert picture.convert("RGB").getpixel((1, 1)) == ((18,) * 3 if dark else (255,) * 3)
