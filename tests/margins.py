"""How near every tolerance of the tests comes to its limit: `python tests/margins.py` measures it under six settings.

A test that passes here fails on another processor where its tolerance is near rounding: instruction sets and thread counts
add in another order. As a pytest plugin (`pytest -p margins`) this notes, for each comparison with a tolerance that a test
makes, the largest part of what is allowed that was seen: of `assert error < limit`, `pytest.approx`, `assert_close`,
`assert_allclose` and `np.allclose`. Alone it runs the suite so, again and again, prints the worst of each, and fails where
the suite does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTINGS = [  # each pair of two values of two variables is in one of these
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"},
    {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
]
TESTS = Path(__file__).parent
NUMBER = r"(?:tensor\()?(-?[\d.]+(?:e[-+]?\d+)?)(?:, dtype=[\w.]+)?\)?"
COMPARISON = re.compile(rf"^{NUMBER} <=? {NUMBER}(?: <=? {NUMBER})?\s*$")

worst: dict[str, tuple[float, float]] = {}  # "file:line" → the largest part of what is allowed, and what is allowed


def note(part: float, allowed: float, where: str | None = None) -> None:
    """One comparison, made in `where` or else in the innermost line of the tests that calls this."""
    frame = sys._getframe(1)
    while where is None:
        path = Path(frame.f_code.co_filename)
        if path.parent == TESTS and path.name != "margins.py":
            where = f"{path.name}:{frame.f_lineno}"
        elif frame.f_back is None:
            return
        else:
            frame = frame.f_back
    if part >= worst.get(where, (-1.0, 0.0))[0]:
        worst[where] = (float(part), float(allowed))


def pytest_assertion_pass(item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
    match = COMPARISON.match(expl.split("\n")[0])
    if match:
        *_, error, limit = (abs(float(v)) for v in match.groups() if v is not None)
        if 0 < limit < 0.1:  # above that it is no matter of rounding
            note(error / limit, limit, f"{Path(item.path).name}:{lineno}")


def compared(actual: Any, expected: Any, rtol: float, atol: float) -> None:
    a, b = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v).astype(np.float64) for v in (actual, expected))
    allowed = np.broadcast_to(atol + rtol * np.abs(b), np.broadcast_shapes(a.shape, b.shape))
    used = np.abs(a - b)
    if allowed.size and (allowed > 0).all() and np.isfinite(used).all():
        i = np.unravel_index(np.argmax(used / allowed), allowed.shape)
        note(float(used[i] / allowed[i]), float(allowed[i]))


def wrap(function: Callable[..., Any], defaults: tuple[float, float]) -> Callable[..., Any]:
    def wrapped(actual: Any, expected: Any, *args: Any, **options: Any) -> Any:
        rtol, atol = (options.get(n) for n in ("rtol", "atol"))
        if rtol is None and atol is None and hasattr(actual, "dtype") and str(actual.dtype) == "torch.float64":
            rtol, atol = 1e-7, 1e-7
        compared(actual, expected, defaults[0] if rtol is None else rtol, defaults[1] if atol is None else atol)
        return function(actual, expected, *args, **options)

    return wrapped


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.testing.assert_close = wrap(torch.testing.assert_close, (1.3e-6, 1e-5))
    np.testing.assert_allclose = wrap(np.testing.assert_allclose, (1e-7, 0.0))
    np.allclose = wrap(np.allclose, (1e-5, 1e-8))
    scalar = type(pytest.approx(1.0))
    equal = scalar.__eq__

    def approx_equal(self: Any, actual: Any) -> bool:
        if isinstance(actual, int | float | np.floating) and isinstance(self.expected, int | float):
            allowed = self.tolerance
            if 0 < allowed < float("inf"):
                note(abs(actual - self.expected) / allowed, allowed)
        return equal(self, actual)

    scalar.__eq__ = approx_equal  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    with tempfile.NamedTemporaryFile("w", dir=os.environ["MARGINS"], suffix=".json", delete=False) as file:
        json.dump(worst, file)


def measure(setting: dict[str, str], args: list[str], folder: Path) -> int:
    """Runs the suite so; pytest's exit code."""
    print(" ".join(f"{k}={v}" for k, v in setting.items()), flush=True)
    names = {k for s in SETTINGS for k in s}
    env = {k: v for k, v in os.environ.items() if k not in names} | setting
    # pytest keeps rewritten asserts beside the tests: these, which say when they pass, are kept elsewhere
    env |= {"MARGINS": str(folder), "PYTHONPYCACHEPREFIX": str(folder / "pycache"), "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "margins", "-o", "enable_assertion_pass_hook=true", *args]
    return subprocess.run(command, env=env, check=False).returncode


def main(args: list[str]) -> int:
    found: dict[str, tuple[float, float]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            failed += measure(setting, args, Path(folder)) != 0
        for file in Path(folder).glob("*.json"):
            for where, (part, allowed) in json.loads(file.read_text()).items():
                found[where] = max(found.get(where, (-1.0, 0.0)), (part, allowed))
    for where, (part, allowed) in sorted(found.items(), key=lambda kv: -kv[1][0]):
        print(f"{part:9.2g} of {allowed:8.1e}  {where}")
    print(f"green under {len(SETTINGS) - failed} of {len(SETTINGS)} settings")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
