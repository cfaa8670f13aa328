"""The checks of ``make reliability`` with small counts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def load() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "reliability.py"
    spec = importlib.util.spec_from_file_location("reliability", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reliability"] = module
    spec.loader.exec_module(module)
    return module


reliability = load()
pytestmark = [
    pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the killed processes are forks"),
    pytest.mark.slow,
]
KINDS = (".pt", ".safetensors", ".png", ".gif", "manifest", "packed")
CHECKS: dict[str, Callable[[Path], object]] = {
    **{f"kill {k}": lambda w, k=k: reliability.kill_while_writing(k, 5, 1, w) for k in KINDS},
    "resume": lambda w: reliability.kill_and_resume(2, 60, 1, w),
    "disk": lambda w: reliability.disk_full(1, w),
    "images": lambda w: reliability.mutated_images(400, 1, w),
    "models": lambda w: reliability.mutated_models(150, 1, w),
    "hostile": lambda w: reliability.hostile(1, w),
    "writers": lambda w: reliability.eight_writers(3, 1, w),
    "soak": lambda w: reliability.soak(1000, 1, w),
    "streams": lambda w: reliability.streams(1, w),
    **{f"ray {k}": lambda w, k=k: reliability.losing(k, 1, 1, w) for k in reliability.LOSSES},
}


@pytest.mark.parametrize("name", CHECKS)
def test_reliability(name: str, tmp_path: Path) -> None:
    if name.startswith("ray "):
        pytest.importorskip("ray")
    result = CHECKS[name](tmp_path)
    assert isinstance(result, reliability.Result)
    assert result.cases > 0
    assert not result.failures
