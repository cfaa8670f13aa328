"""Tolerances where two computations differ by rounding alone: relative to the magnitude, and ten times the worst seen.

`margins.py` measures the worst, under other instruction sets and numbers of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Two ways through the same float32 network, with untrained weights: they magnify rounding more than trained ones.
NETWORK = 5e-5


def apart(a: Any, b: Any) -> float:
    """The largest difference of two arrays or tensors of one shape, relative to the largest number of `b`."""
    a, b = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, dtype=np.float64) for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / np.abs(b).max())
