"""Charts of a latent beside those of noise: how its values are distributed, and how much of each frequency it holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ddimctl import health
from ddimctl.arrays import Array, to_numpy
from ddimctl.charts import MUTED, Axis, Chart, Series, spread
from ddimctl.health import Figure
from ddimctl.images.levels import to_pixels
from ddimctl.images.portrait import Portrait

BINS = 41
FAR = 4.1  # the histogram's ends


def portraits(xT: Array, names: Sequence[str], examined: Sequence[list[Figure]]) -> Iterator[Portrait]:
    """What to draw of each latent of (N, C, H, W); the figures are of `health.examine`."""
    for latent, name, figures in zip(to_numpy(xT).astype("float64"), names, examined, strict=False):
        pixels = np.moveaxis(to_pixels(latent / 3), -1, 0)
        yield Portrait(name, pixels, charts(latent), health.verdict(figures))


def charts(latent: np.ndarray) -> list[Chart]:
    """The histogram of one latent (C, H, W), and its spectrum where it is large enough to have one."""
    found = [histogram(latent)]
    if min(latent.shape[-2:]) >= health.PATCH:
        found.append(spectrum(latent))
    return found


def histogram(latent: np.ndarray) -> Chart:
    """Its values as a density, with N(0, 1)'s; what lies farther out is counted into the last bars."""
    edges = np.linspace(-FAR, FAR, BINS + 1)
    values = np.nan_to_num(latent).clip(-FAR, FAR)
    density = np.histogram(values, edges)[0] / (latent.size * (edges[1] - edges[0]))
    middles = (edges[1:] + edges[:-1]) / 2
    normal = [(float(z), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)) for z in np.linspace(-FAR, FAR, 83)]
    bars = list(zip(middles.tolist(), density.tolist(), strict=True))
    top = 1.08 * max(*density, normal[41][1])
    return Chart(
        "Values, and N(0, 1) as a line",
        Axis("value of x_T", -FAR, FAR),
        Axis("density", 0, top),
        [Series(bars, colour=0, kind="bars"), Series(normal, colour=1)],
    )


def spectrum(latent: np.ndarray) -> Chart:
    """Its power by frequency, with the band that 98 % of noise is in."""
    frequencies, power = health.spectrum(latent[None])
    low, high = health.spectrum_of_noise(latent.shape)
    known = [p for p in (*power[0].tolist(), *low.tolist(), *high.tolist()) if p > 0]
    at = frequencies.tolist()
    band = Series(list(zip(at, low.tolist(), strict=True)), "noise", MUTED, "band", high.tolist())
    line = Series(list(zip(at, np.maximum(power[0], 1e-12).tolist(), strict=True)), "x_T", 0)
    return Chart(
        "Power by frequency, and where 98 % of noise is",
        Axis("cycles a pixel", 0, 0.5),
        Axis("power; of noise, 1", *spread(known, log=True), log=True),
        [band, line],
    )
