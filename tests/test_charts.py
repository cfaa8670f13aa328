"""Charts: where values stand, that nothing runs into anything, and what a latent's show of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl import charts, health
from ddimctl.charts import Axis, Chart, Series
from ddimctl.images import drawing, labels, portrait
from ddimctl.report import latents
from ddimctl.seeds import noise_array

Invoke = Callable[..., Result]
FIXTURES = Path(__file__).parent / "fixtures" / "latents"


def width(text: str) -> float:
    return labels.measure(labels.font_of(charts.LETTER), text)[0]


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (Axis("", 0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Axis("", -4.1, 4.1), [-4, -2, 0, 2, 4]),
        (Axis("", 0, 7.3e-3), [0, 0.002, 0.004, 0.006]),
        (Axis("", 1e-8, 1e-1, log=True), [1e-8, 1e-6, 1e-4, 1e-2]),
        (Axis("", 1e-3, 1, log=True), [1e-3, 1e-2, 1e-1, 1]),
        (Axis("", 0.4, 3, log=True), [0.5, 1, 2]),
        (Axis("", 5, 200, log=True, ticks=(10, 20, 50, 1000)), [10, 20, 50]),
    ],
)
def test_numbers_at_an_axis_are_round(axis: Axis, said: list[float]) -> None:
    assert charts.ticks(axis) == pytest.approx(said)


@given(st.floats(1e-9, 1e9), st.floats(1e-6, 1e6), st.booleans())
def test_every_axis_has_some_numbers(low: float, extent: float, log: bool) -> None:
    axis = Axis("", low, low * (1 + extent) if log else low + extent * low, log=log)
    found = charts.ticks(axis)
    assert 2 <= len(found) <= 12
    assert all(-1e-6 <= axis.place(v) <= 1 + 1e-6 for v in found)


@given(st.lists(st.floats(0, 100), max_size=8), st.floats(1, 20))
def test_labels_stay_apart_and_in_order(wanted: list[float], least: float) -> None:
    places = charts.apart(wanted, least, 0, high=100)
    ordered = sorted(places)
    assert all(b - a >= least - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert all(places[i] <= places[j] for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j])
    if least * (len(wanted) - 1) <= 100:
        assert all(p <= 100 + 1e-9 for p in places)
        assert all(p >= -1e-9 for p in places)
    far = sorted(wanted)
    if all(b - a >= least for a, b in zip(far, far[1:], strict=False)):
        assert places == wanted


def example(names: tuple[str, ...] = ("ab2, karras", "ddim, linear", "heun, log")) -> Chart:
    series = [Series([(10, 1e-2 / (i + 1)), (100, 1e-6 * (i + 1))], name, i, "dotted") for i, name in enumerate(names)]
    return Chart("Error", Axis("evaluations", 8, 120, log=True), Axis("mse", 1e-7, 1e-1, log=True), series)


def test_values_stand_where_they_belong() -> None:
    found = charts.marks(example(), 400, 240, measure=width)
    lines = [m for m in found if m.kind == "line" and isinstance(m.colour, int)]
    axis = next(m for m in found if m.kind == "line" and m.colour == "muted" and m.points[0][1] == m.points[1][1])
    (left, bottom), (right, _) = axis.points
    (x0, y0), (x1, y1) = lines[0].points
    share = math.log(10 / 8) / math.log(120 / 8)
    assert (x0 - left) / (right - left) == pytest.approx(share)
    assert (x1 - x0) / (right - left) == pytest.approx(math.log(10) / math.log(15))
    assert (bottom - y1) / (bottom - y0) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "chart", [example(), *latents.charts(noise_array((3, 16, 16), 1, seed=0)[0])], ids=lambda c: c.title
)
def test_no_word_is_cut_or_on_another(chart: Chart) -> None:
    boxes = []
    for m in charts.marks(chart, 330, 216, measure=width):
        if m.kind != "text":
            continue
        (x, y), w, h = m.points[0], width(m.text), charts.LETTER
        left = x - {"l": 0, "m": w / 2, "r": w}[m.anchor[0]]
        top = y - {"a": 0, "m": h / 2, "d": h}[m.anchor[1]]
        boxes.append((left, top, left + w, top + h, m.text))
    assert all(a >= -1 and b >= 0 and c <= 331 and d <= 217 for a, b, c, d, _ in boxes), boxes
    for i, p in enumerate(boxes):
        for q in boxes[i + 1 :]:
            apart = p[2] <= q[0] or q[2] <= p[0] or p[3] <= q[1] or q[3] <= p[1]
            assert apart, (p, q)


@pytest.mark.parametrize("paper", [labels.LIGHT, labels.DARK], ids=["light", "dark"])
def test_every_colour_can_be_read(paper: labels.Paper) -> None:
    """WCAG's contrast of text: at least 4.5."""

    def luminance(rgb: tuple[int, int, int]) -> float:
        parts = [c / 255 for c in rgb]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    ground = luminance((paper.paper,) * 3)
    for name in ("ink", "muted", charts.MUTED, *range(6)):
        light, dark = sorted((luminance(drawing.colour(name, paper)), ground), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_dashes_are_pieces_of_the_line() -> None:
    pieces = drawing.dashes([(0, 0), (10, 0), (10, 10)], 6, 4)
    assert pieces == [[(0, 0), (6, 0)], [(10, 0), (10, 6)]]


# A latent's


def test_a_spectrum_of_white_noise_is_flat() -> None:
    frequencies, power = health.spectrum(noise_array((3, 24, 32), 200, seed=1).astype("float64"))
    assert frequencies.tolist() == pytest.approx([k / 24 for k in range(1, 13)])
    assert power.shape == (200, 12)
    np.testing.assert_allclose(power.mean(0), 1, atol=0.05)  # 200 draws of rings of at least 20 values: 0.02
    low, high = health.spectrum_of_noise((3, 24, 32))
    inside = ((power >= low) & (power <= high)).mean()
    assert 0.95 < inside < 0.995


def test_a_wave_is_in_its_ring_alone() -> None:
    y = np.arange(16)
    wave = np.sqrt(2) * np.cos(2 * np.pi * 3 * y / 16)[:, None] * np.ones(16)
    _, power = health.spectrum(wave[None, None])
    assert power[0, 2] > 1
    np.testing.assert_allclose(np.delete(power[0], 2), 0, atol=1e-20)


def test_the_histogram_is_a_density() -> None:
    bars = latents.histogram(np.array([[[-9.0, 0.0], [0.0, 9.0]]])).series[0].points
    step = bars[1][0] - bars[0][0]
    assert sum(d for _, d in bars) * step == pytest.approx(1)
    assert (bars[0][1] * step, bars[20][1] * step, bars[-1][1] * step) == pytest.approx((0.25, 0.5, 0.25))


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 28, 28), (3, 8, 12), (4, 64, 64), (5, 40, 300)])
def test_any_latent_has_a_portrait(shape: tuple[int, ...]) -> None:
    xT = noise_array(shape, 1, seed=0)
    drawn = list(latents.portraits(xT, ["a name"], health.examine(xT)))
    for paper in (labels.LIGHT, labels.DARK):
        pixels = portrait.draw(drawn, paper)
        edges = [pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -1:]]
        assert all((edge == paper.paper).all() for edge in edges)
    tiles = portrait.mosaic(drawn[0].channels)
    assert max(tiles.shape[:2]) <= portrait.SIDE


def test_equal_values_have_a_portrait_too() -> None:
    xT = np.zeros((1, 1, 8, 8), np.float32)
    assert portrait.draw(list(latents.portraits(xT, ["grey"], health.examine(xT)))).ndim == 3


@pytest.mark.parametrize("options", [(), ("--dark",)], ids=str)
def test_info_draws_it(invoke: Invoke, tmp_path: Path, options: tuple[str, ...]) -> None:
    done = invoke("info", FIXTURES / "several.safetensors", "-o", "x.png", *options).ok()
    assert "x.png: x_T, black at -3 and white at 3" in done.err
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == ((18,) * 3 if options else (255,) * 3)
        assert picture.height > 600
