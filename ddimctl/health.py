"""Is a latent like noise? Figures of x_T, each beside what draws of N(0, I) of the same shape give.

The ODE maps the data's distribution to N(0, I) only as a whole and only approximately; a single latent that is far from
typical noise interpolates and edits badly. Spatial correlation is the usual sign: flat areas of an image leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddimctl.arrays import Array, to_numpy
from ddimctl.seeds import noise_array

PATCH = 4
LOW_VARIANCE = 0.4
DRAWS = 500
AT_ONCE = 1 << 22  # values, to bound memory


def mean(xT: Array) -> Array:
    return _flat(xT).mean(1)


def std(xT: Array) -> Array:
    return _flat(xT).std(1, ddof=1)


def norm(xT: Array) -> Array:
    """‖x_T‖/√d."""
    return np.sqrt(np.square(_flat(xT)).mean(1))


def kurtosis(xT: Array) -> Array:
    """E[z⁴] of the standardised values: 3 for a Gaussian."""
    z = _flat(xT)
    z = (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)
    return (z**4).mean(1)


def autocorrelation(xT: Array, lag: int) -> Array:
    """The correlation of values `lag` apart, rows and columns averaged."""
    z = xT - xT.mean((1, 2, 3), keepdims=True)
    pairs = ((z[..., :-lag], z[..., lag:]), (z[..., :-lag, :], z[..., lag:, :]))
    return sum(_flat(p * q).mean(1) for p, q in pairs) / (2 * np.square(_flat(z)).mean(1))


def low_variance(xT: Array) -> Array:
    """The share of 4 × 4 patches whose variance is below 0.4."""
    n, channels, height, width = xT.shape
    rows, columns = height // PATCH, width // PATCH
    whole = xT[..., : rows * PATCH, : columns * PATCH].reshape(n, channels, rows, PATCH, columns, PATCH)
    return _flat(whole.var((3, 5), ddof=1) < LOW_VARIANCE).mean(1)


def spectrum(xT: Array) -> tuple[Array, Array]:
    """(frequencies (K,) in cycles a pixel, power (N, K)) of x_T (N, C, H, W): of white noise of variance 1, 1 everywhere.

    Power is averaged over channels and over the ring of all directions, as wide as the shorter side can tell apart.
    """
    height, width = xT.shape[-2:]
    power = (np.abs(np.fft.fft2(xT)) ** 2).mean(1) / (height * width)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    ring = np.rint(radius * min(height, width)).astype(int)
    rings = range(1, min(height, width) // 2 + 1)
    means = np.stack([power[:, ring == k].mean(1) for k in rings], axis=1)
    return np.array(rings) / min(height, width), means


def spectrum_of_noise(shape: Sequence[int]) -> tuple[Array, Array]:
    """The range of `spectrum` that holds 98 % of noise of that shape (C, H, W), at each frequency."""
    n = max(1, min(DRAWS, AT_ONCE // math.prod(shape)))
    power = spectrum(noise_array(shape, n, seed=0).astype("float64"))[1]
    low, high = np.quantile(power, [0.01, 0.99], axis=0)
    return low, high


def _flat(xT: Array) -> Array:
    return xT.reshape(len(xT), -1)


FIGURES: dict[str, Callable[[Array], Array]] = {
    "mean": mean,
    "std": std,
    "norm/√d": norm,
    "kurtosis": kurtosis,
    "autocorrelation, lag 1": lambda xT: autocorrelation(xT, 1),
    "autocorrelation, lag 2": lambda xT: autocorrelation(xT, 2),
    "low-variance patches": low_variance,
}


def too_weak(xT: Array) -> list[bool]:
    """Which latents have a norm below that of 99 % of noise: ‖x_T‖² is χ² of d degrees, in Wilson and Hilferty's cube."""
    latents = to_numpy(xT).astype("float64")
    d = latents[0].size
    low = (1 - 2 / (9 * d) - 2.3263 * math.sqrt(2 / (9 * d))) ** 1.5
    return [value < low for value in norm(latents).tolist()]


@dataclass(frozen=True)
class Figure:
    """One figure of one latent, and what noise gives: its mean, and the range that holds 98 % of draws."""

    name: str
    value: float
    expected: float
    low: float
    high: float

    @property
    def typical(self) -> bool:
        return self.low <= self.value <= self.high


def examine(xT: Array) -> list[list[Figure]]:
    """Every figure of each latent of x_T (N, C, H, W), against `DRAWS` draws of noise of its shape.

    Images of fewer than 4 pixels a side have no patches and hardly a neighbour; those figures are left out. A latent of
    equal values has no kurtosis and no correlation: they are NaN.
    """
    latents = to_numpy(xT)
    shape = latents.shape[1:]
    small = min(shape[-2:]) < PATCH
    known = {k: f for k, f in FIGURES.items() if not (small and ("lag" in k or "patches" in k))}
    at_once = max(1, min(DRAWS, AT_ONCE // latents[0].size))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in known}
    for i, start in enumerate(range(0, DRAWS, at_once)):
        reference = noise_array(shape, min(at_once, DRAWS - start), seed=i).astype("float64")
        for name, f in known.items():
            drawn[name].append(f(reference))
    parts = [latents[i : i + at_once].astype("float64") for i in range(0, len(latents), at_once)]
    columns = []
    for name, f in known.items():
        draws = np.concatenate(drawn[name])
        with np.errstate(invalid="ignore", divide="ignore"):  # of equal values
            values = np.concatenate([f(x) for x in parts])
        low, high = np.quantile(draws, [0.01, 0.99]).tolist()
        columns.append([Figure(name, v, float(draws.mean()), low, high) for v in values.tolist()])
    return [list(row) for row in zip(*columns, strict=True)]


def verdict(figures: list[Figure]) -> str:
    """One sentence on a latent's figures."""
    odd = {f.name: f for f in figures if not f.typical}
    if not odd:
        return "like noise: every figure is where 98 % of noise has it"
    said = []
    # The norm is the standard deviation and the mean in one.
    scale = odd.get("std") or (odd.get("norm/√d") if "mean" not in odd else None)
    if scale:
        said.append("too strong" if scale.value > scale.high else "too weak")
    related = [f for n, f in odd.items() if n.startswith("autocorrelation")]
    if related:  # the shortest lag tells
        differ = related[0].value < related[0].low
        structure = "spatially correlated, so the image's structure shows through"
        said.append("neighbours differ more than by chance" if differ else structure)
    if patches := odd.get("low-variance patches"):
        said.append("flat in places" if patches.value > patches.high else "nowhere flat")
    if "mean" in odd:
        said.append("off centre")
    tails = odd.get("kurtosis")
    if tails and not math.isnan(tails.value):
        said.append("heavy-tailed" if tails.value > tails.high else "light-tailed")
    return f"unlike noise in {len(odd)} of {len(figures)} figures: " + ", ".join(said)
