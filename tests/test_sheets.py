"""Contact sheets: where each image stands, and differences that are amplified as far as they can be seen whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddimctl.images import levels, sheets


@given(st.floats(1e-12, 2.0))
def test_the_gain_fills_the_range_and_is_stated_exactly(worst: float) -> None:
    gain = sheets.filling(worst)
    assert 0.99 < gain * worst < 1 + 2e-9
    assert float(sheets.stated(gain).replace(",", "")) == gain
    assert float(f"{gain:.2e}") == gain


@pytest.mark.parametrize(
    ("worst", "said"),
    [
        (1.0, "1"),
        (0.5, "2"),
        (0.3, "3.33"),
        (2.0, "0.5"),
        (1 / 127.5, "127"),
        (1e-5, "100,000"),
        (0.0, "1"),
        (9e9, "1.11e-10"),
    ],
)
def test_gains_in_words(worst: float, said: str) -> None:
    assert sheets.stated(sheets.filling(worst)) == said


def test_a_comparison_shows_original_reconstruction_and_difference() -> None:
    x0 = torch.tensor([[-0.5, 0.0], [0.25, 0.5]], dtype=torch.float64).view(2, 1, 1, 2)
    near, far = x0.clone(), x0.clone()
    near[0, 0, 0, 1] += 1 / 3
    far[1, 0, 0, 0] -= 0.001
    pixels, gains = sheets.comparison(x0, [near, far, x0])
    assert gains == pytest.approx([3.0, 999, 1], rel=2e-3)
    shown = pixels.reshape(2, 7, 1, 2)
    for column, images in ((0, x0), (1, near), (3, far), (5, x0)):
        np.testing.assert_array_equal(shown[:, column, 0], levels.to_pixels(images)[:, 0, :, 0])
    assert shown[0, 2, 0].tolist() == [128, 255]
    assert shown[1, 4, 0].tolist() == [0, 128]
    assert (shown[:, 6] == 128).all()


def test_each_image_stands_in_its_place() -> None:
    pixels = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    whole = sheets.sheet(pixels, 3, gap=1)[..., 0]
    assert whole.tolist() == [[1, 255, 2, 255, 3], [255] * 5, [4, 255, 5, 255, 255]]
    assert sheets.sheet_size(5, (1, 1), 3, gap=1) == whole.shape
    assert sheets.enlarge(pixels, 2).shape == (5, 2, 2, 1)
