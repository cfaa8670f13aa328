"""Every metric against an oracle written differently, and what all metrics have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ddimctl.errors import UsageError
from ddimctl.images import levels
from ddimctl.metrics import METRICS

IDENTITY = {"mse": 0.0, "mse_8bit": 0.0, "psnr": float("inf"), "ssim": 1.0, "max_abs": 0.0, "wrong_pixels": 0.0}


def pair(
    b: int = 3, c: int = 3, h: int = 17, w: int = 23, noise: float = 0.1, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    # Smooth-ish images, so that SSIM has structure to see; not clipped, so some values lie outside [−1, 1].
    a = torch.nn.functional.avg_pool2d(torch.randn(b, c, h + 4, w + 4, generator=g, dtype=torch.float64), 5, 1) * 2
    return a, a + noise * torch.randn(a.shape, generator=g, dtype=torch.float64)


def unit(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis((x.numpy() + 1) / 2, 0, -1)  # (C, H, W) → (H, W, C) in [0, 1]


def test_mse_is_the_papers() -> None:
    a, b = torch.full((2, 1, 4, 5), -1.0), torch.full((2, 1, 4, 5), -1.0)
    b[1] = 1.0  # black against white
    assert METRICS["mse"](a, b).tolist() == [0.0, 1.0]
    a, b = pair()
    expected = [np.mean((unit(x) - unit(y)) ** 2) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(METRICS["mse"](a, b).numpy(), expected, rtol=1e-13)


def test_8bit_metrics_see_what_would_be_saved() -> None:
    a, b = pair(noise=0.01)
    p, q = (levels.to_pixels(x).astype(float) for x in (a, b))
    np.testing.assert_allclose(METRICS["mse_8bit"](a, b).numpy(), ((p - q) ** 2).mean((1, 2, 3)) / 255**2, rtol=1e-13)
    np.testing.assert_array_equal(METRICS["wrong_pixels"](a, b).numpy(), (p != q).sum((1, 2, 3)))


def test_rounding_is_that_of_saved_images() -> None:
    """At every boundary between two levels, on both sides of it, and beyond the range."""
    values = torch.cat([torch.arange(-3, 259) + d for d in (0.0, 0.499999, 0.5, 0.500001)]).double()
    a = (values / 127.5 - 1).view(1, 1, 1, -1)
    saved = levels.to_tensor(levels.to_pixels(a)).double()
    assert METRICS["wrong_pixels"](a, saved).item() == 0
    assert METRICS["mse_8bit"](a, saved).item() == 0


def test_max_abs_counts_levels() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[1, 2, 3, 1] = -2 / 255  # one level down
    np.testing.assert_allclose(METRICS["max_abs"](a, b).numpy(), [0, 1], rtol=1e-6)


def test_psnr_against_scikit_image() -> None:
    a, b = pair()
    expected = [peak_signal_noise_ratio(unit(x), unit(y), data_range=1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(METRICS["psnr"](a, b).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23), (3, 11, 11), (1, 11, 40)])
def test_ssim_against_scikit_image(shape: tuple[int, int, int], noise: float) -> None:
    a, b = pair(2, *shape, noise=noise)
    expected = [
        structural_similarity(
            unit(x),
            unit(y),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(METRICS["ssim"](a, b).numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(10, 28), (28, 10)])
def test_ssim_refuses_images_smaller_than_its_window(shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"at least 11 × 11 pixels, not {shape[0]} × {shape[1]}"):
        METRICS["ssim"](torch.zeros(1, 1, *shape), torch.zeros(1, 1, *shape))


@pytest.mark.parametrize("name", METRICS)
@given(seed=st.integers(0, 2**31), noise=st.sampled_from([1e-4, 0.01, 0.3, 2.0]), channels=st.sampled_from([1, 3]))
def test_what_all_metrics_have_in_common(name: str, seed: int, noise: float, channels: int) -> None:
    metric = METRICS[name]
    a, b = pair(3, channels, 12, 13, noise, seed)
    value = metric(a, b)
    assert value.shape == (3,)
    assert value.dtype == torch.float64
    assert metric(a.float(), b.float()).dtype == torch.float64
    torch.testing.assert_close(metric(b, a), value, rtol=1e-12, atol=0)  # symmetric
    torch.testing.assert_close(metric(a, a), torch.full((3,), IDENTITY[name]).double(), rtol=1e-12, atol=0)
    alone = torch.cat([metric(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(alone, value, rtol=1e-12, atol=0)  # an image's value does not depend on its batch


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse(name: str) -> None:
    values = torch.stack([METRICS[name](*pair(noise=noise)) for noise in (0.001, 0.01, 0.1)])
    difference = values.diff(dim=0) * (-1 if name in ("psnr", "ssim") else 1)
    assert (difference > 0).all(), values


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("a", "b"), [((1, 1, 12, 12), (2, 1, 12, 12)), ((1, 1, 12, 12), (1, 3, 12, 12)), ((12, 12), (12, 12))]
)
def test_shapes_that_do_not_fit_are_refused(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="B, C, H, W"):
        METRICS[name](torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("name", METRICS)
def test_not_a_number_is_never_called_perfect(name: str) -> None:
    a = torch.zeros(1, 1, 12, 12)
    b = a.clone()
    b[0, 0, 0, 0] = float("nan")
    assert METRICS[name](a, b).item() != IDENTITY[name]
