"""The Fréchet distance between two sets of feature vectors, each taken as a Gaussian (Heusel et al. 2017, eq. 6).

With the features of Inception it is called FID, the measure of the paper's section 5.1. Float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """What the distance needs of a set: the mean (d,) and the covariance (d, d) of its n feature vectors."""

    mean: np.ndarray
    cov: np.ndarray
    n: int


class Sums:
    """Mean and covariance (divided by n − 1) of feature vectors that come in parts (n_i, d).

    Sums are about the first part's mean, so that nothing cancels.
    """

    def __init__(self) -> None:
        self.n, self.shift, self.first, self.second = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))

    def add(self, part: np.ndarray) -> None:
        x = np.asarray(part, np.float64)
        if not len(x):
            return
        if not self.n:
            d = x.shape[1]
            self.shift, self.first, self.second = x.mean(0), np.zeros(d), np.zeros((d, d))
        x = x - self.shift
        self.n, self.first, self.second = self.n + len(x), self.first + x.sum(0), self.second + x.T @ x

    def statistics(self) -> Statistics:
        """Raises `ValueError` for fewer than two vectors."""
        n = self.n
        if n < 2:
            raise ValueError("a covariance needs at least two feature vectors")
        return Statistics(
            self.shift + self.first / n, (self.second - np.outer(self.first, self.first) / n) / (n - 1), n
        )


def statistics(parts: Iterable[np.ndarray]) -> Statistics:
    """Those of feature vectors that come in parts (n_i, d). Raises `ValueError` for fewer than two vectors."""
    sums = Sums()
    for part in parts:
        sums.add(part)
    return sums.statistics()


def distance(a: Statistics, b: Statistics) -> float:
    """‖μ−μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½). Raises `ValueError` if the dimensions differ.

    The eigenvalues of (ΣΣ')^½ are the singular values of Σ^½ Σ'^½: both roots are symmetric, and no root is taken of a
    product, so a singular covariance costs no digits.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and of {b.mean.size} dimensions cannot be compared")
    means = float(np.sum((a.mean - b.mean) ** 2))
    cross = float(np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False).sum())
    return max(0.0, means + float(np.trace(a.cov) + np.trace(b.cov)) - 2 * cross)


def _root(cov: np.ndarray) -> np.ndarray:
    """Σ^½ of a symmetric positive semidefinite matrix; what rounding made negative counts as zero."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
