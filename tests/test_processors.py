"""Threads: what containers allow, what others leave, and whether they starve."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import isolated

from ddimctl.cli.console import Console
from ddimctl.engines import processors
from ddimctl.engines.processors import Times


def group(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("_", ".", 1)).write_text(text)


def test_the_smallest_quota_of_all_groups_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    assert processors.quota(tmp_path, own) == math.inf
    group(tmp_path / "outer/inner", cpu_max="max 100000\n")
    assert processors.quota(tmp_path, own) == math.inf
    group(tmp_path / "outer", cpu_max="250000 100000\n")
    assert processors.quota(tmp_path, own) == 2.5
    group(tmp_path / "outer/inner", cpu_max="50000 100000\n")
    assert processors.quota(tmp_path, own) == 0.5
    group(tmp_path / "other", cpu_max="10000 100000\n")  # is none of ours
    assert processors.quota(tmp_path, own) == 0.5


def test_the_quota_of_version_one(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/box\n")
    folder = tmp_path / "cpu,cpuacct/box"
    group(folder, cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert processors.quota(tmp_path, own) == math.inf
    group(folder, cpu_cfs_quota_us="300000\n")
    assert processors.quota(tmp_path, own) == 3


@pytest.mark.parametrize(
    ("at_most", "there", "running", "threads"),
    [(8, 8, 0, 8), (8, 8, 3, 5), (2, 64, 30, 2), (2, 2, 12, 1), (1, 8, 0, 1), (4, 4, 3.5, 1)],
)
def test_no_more_threads_than_processors_are_free(at_most: int, there: int, running: float, threads: int) -> None:
    assert processors.advised(at_most, there, running) == threads


def test_what_runs_is_asked_of_the_moment(tmp_path: Path) -> None:
    file = tmp_path / "loadavg"
    file.write_text("0.00 9.00 9.00 5/300 1234\n")
    assert processors.busy(file) == 4
    file.write_text("nothing")
    assert processors.busy(file) == 0
    assert processors.busy(tmp_path / "none") == 0


def test_what_the_user_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(processors, "busy", lambda: 1000.0)
    assert processors.threads() == processors.free_threads() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert processors.threads() == processors.allowed()
    assert processors.free_threads() == 1


def test_torch_gets_fewer_threads_where_others_compute(tmp_path: Path) -> None:
    """In a process of its own, whose threads are its own."""
    code = """
import torch
from ddimctl.engines import processors
torch.set_num_threads(3)
processors.busy = lambda: 1e6
assert processors.limit_torch() == torch.get_num_threads() == processors.in_use() == 1
processors.busy = lambda: 0.0
assert processors.limit_torch() == 1  # never more than it has
"""
    env = isolated(tmp_path)
    del env["OMP_NUM_THREADS"]
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_times_are_of_all_threads(tmp_path: Path) -> None:
    for i, text in enumerate(("1000000000 500000000 3\n", "2000000000 1500000000 9\n", "nonsense")):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "schedstat").write_text(text)
    found = processors.times(tmp_path)
    assert (found.ran, found.queued) == (3.0, 2.0)
    assert found.starving == pytest.approx(0.4)
    assert processors.times(tmp_path / "none").starving == 0
    assert found.since(found) == Times(0, 0, 0)


@pytest.mark.parametrize(
    ("spent", "threads", "told"),
    [
        (Times(10, 8, 12), 4, True),
        (Times(10, 8, 12), 1, False),  # one thread waits for nobody
        (Times(1, 0.8, 1.2), 4, False),  # too short to tell
        (Times(10, 35, 5), 4, False),  # well fed
    ],
)
def test_who_starves_is_told_the_cure(
    spent: Times, threads: int, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter((Times(0, 0, 0), spent))
    monkeypatch.setattr(processors, "times", lambda: next(seen))
    monkeypatch.setattr(processors, "in_use", lambda: threads)
    with Console().bar(1, "encoding") as bar:
        list(bar([0]))
    assert ("OMP_NUM_THREADS=1" in capsys.readouterr().err) == told
