"""The Fréchet distance against closed forms, scipy's matrix root, and itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ddimctl.frechet import Statistics, distance, statistics


def random_cov(rng: np.random.Generator, d: int, rank: int | None = None) -> np.ndarray:
    a = rng.standard_normal((d, d if rank is None else rank))
    return a @ a.T


def gaussian(mean: object, cov: object) -> Statistics:
    return Statistics(np.asarray(mean, np.float64), np.asarray(cov, np.float64), 100)


def test_one_dimension() -> None:
    """(μ − μ')² + (σ − σ')²."""
    assert distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])) == pytest.approx(9 + 1, rel=1e-14)


def test_diagonal() -> None:
    rng = np.random.default_rng(0)
    s, t, mu, nu = rng.uniform(0.1, 3, (4, 50))
    expected = float(np.sum((mu - nu) ** 2) + np.sum((s - t) ** 2))
    assert distance(gaussian(mu, np.diag(s**2)), gaussian(nu, np.diag(t**2))) == pytest.approx(expected, rel=1e-12)


def test_commuting_covariances_in_another_basis() -> None:
    """Σ = QΛQᵀ and Σ' = QΛ'Qᵀ: as diagonal ones."""
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    s, t = rng.uniform(0, 3, (2, 20))
    a, b = gaussian(np.zeros(20), q * s**2 @ q.T), gaussian(np.ones(20), q * t**2 @ q.T)
    assert distance(a, b) == pytest.approx(20 + float(np.sum((s - t) ** 2)), rel=1e-12)


def test_two_by_two_that_do_not_commute() -> None:
    """tr (ΣΣ')^½ of 2 × 2 matrices is √(tr ΣΣ' + 2 √(det ΣΣ'))."""
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
    cross = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    expected = float(np.trace(a + b)) - 2 * cross
    assert distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-12)


def test_agrees_with_scipys_root_of_the_product() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(2)
    a, b = random_cov(rng, 30), random_cov(rng, 30)
    mu, nu = rng.standard_normal((2, 30))
    expected = np.sum((mu - nu) ** 2) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert distance(gaussian(mu, a), gaussian(nu, b)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("rank", [None, 3, 1])
def test_equal_sets_are_at_zero_even_with_a_singular_covariance(rank: int | None) -> None:
    rng = np.random.default_rng(3)
    a = gaussian(rng.standard_normal(40), random_cov(rng, 40, rank))
    assert 0 <= distance(a, a) < 1e-12 * float(np.trace(a.cov)) * 40


def test_symmetric_and_not_negative() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        a, b = (gaussian(rng.standard_normal(8), random_cov(rng, 8, int(rng.integers(1, 9)))) for _ in range(2))
        assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)
        assert distance(a, b) >= 0


def test_disjoint_singular_covariances() -> None:
    """Nothing in common: tr Σ + tr Σ'."""
    assert distance(gaussian([0, 0], [[4, 0], [0, 0]]), gaussian([0, 0], [[0, 0], [0, 9]])) == pytest.approx(13)


@pytest.mark.parametrize("cut", [[1], [7, 30], [50, 51, 99]])
def test_statistics_are_numpys_however_the_parts_are_cut(cut: list[int]) -> None:
    """Also far from zero, where a sum of squares alone would lose every digit."""
    x = np.random.default_rng(5).standard_normal((100, 6)) * [1, 2, 3, 0.1, 0, 1] + 1e6
    found = statistics(np.split(x, cut))
    assert found.n == 100
    assert np.allclose(found.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(found.cov, np.cov(x.T), atol=1e-7)
    assert (found.cov == found.cov.T).all()


def test_float32_features_are_summed_in_float64() -> None:
    x = (np.random.default_rng(6).standard_normal((5000, 4)) + 100).astype(np.float32)
    found = statistics(np.array_split(x, 20))
    assert np.allclose(found.cov, np.cov(x.astype(np.float64).T), rtol=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: statistics([np.zeros((1, 3))]),
        lambda: statistics([]),
        lambda: distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2))),
    ],
)
def test_what_has_no_answer(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"two feature vectors|cannot be compared"):
        wrong()
