"""The script that says where the time of one image goes: what it counts, what it tells."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ddimctl import load


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the script sets for itself
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import latency as module

    return module


def test_the_multiplications_are_the_networks(latency: ModuleType, model_folder: Path) -> None:
    """Together as many operations as the model says, but for attention's own, an eighth of this small one's."""
    model = load(str(model_folder), "cpu")
    for batch in (1, 3):
        sizes = latency.products(model, batch)
        counted = sum(2 * m * k * n * times for (m, k, n), times in sizes.items())
        assert 0.88 < counted / (batch * model.network.module.flops) < 1


def test_the_page_tells_shares_that_are_the_whole(latency: ModuleType) -> None:
    parts = {("torch", 5): [0.1, 0.5, 0.1, 0.2, 0.05, 0.05]}
    lines = {what: {1: 2.0, 4: 1.0} for what in
             ("torch", "its multiplications", "as one large multiplication", "its weights read once")}  # fmt: skip
    lines["its multiplications"] = {1: 0.5, 4: 0.5}
    said = latency.page(parts, lines, parameters=2_700_000)
    assert "| torch | 5 | 1.00 s | 10.0 % | 50.0 % | 10.0 % | 20.0 % | 5.0 % | 5.0 % |" in said
    assert "torch's is 4.00 times its multiplications" in said
    chart = latency.of_a_process({**parts, ("torch", 9): [0.1, 0.5, 0.1, 0.4, 0.1, 0.05]}, "torch")
    assert [s.points[0][1] for s in chart.series] == pytest.approx([0.6, 0.7, 0.9, 0.95])


@pytest.mark.slow
def test_an_encode_is_watched_from_within(latency: ModuleType, tmp_path: Path) -> None:
    import os

    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(latency.ROOT)}
    few, more = (latency.encoded("torch", s, env, tmp_path) for s in (2, 12))
    assert len(few) == len(latency.PARTS)
    assert all(part >= -0.02 for part in (*few, *more))
    network = latency.PARTS.index("network")
    assert more[network] > 2 * few[network]
