"""Thousands of images in tars and parquet files: memory stays, and a run that was stopped soon goes on."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is what Linux says of it")
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_memory_stays_and_a_run_goes_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    many = importlib.import_module("many")
    assert sys.modules["many"] is many
    found = many.measure(kind, 5000, tmp_path, per=1000, held=2000)
    assert found.early > 100
    assert found.growth < 0.05
    assert found.told <= found.first < 5  # seconds of the processor: the machine may be busy
