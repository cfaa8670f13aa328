"""docs/scale.md: what of its lines can run here is run, the others are taken by the command line, its sums are right."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster as clusters
import pytest
import typer.main
from cluster import outputs
from conftest import Result, isolated
from test_ray import photos

DOC = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
Invoke = Callable[..., Result]
HOW = ["-m", "tiny", "--engine", "torch", "--batch-size", "3"]


def lines() -> list[str]:
    """What is to be typed: the blocks of code, a continued line as one."""
    blocks = [line.removeprefix("    ") for line in DOC.splitlines() if line.startswith("    ")]
    blocks += re.findall(r"entrypoint: (.*)", DOC)
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def ours(line: str) -> list[str] | None:
    """The command of ours in a line, without what starts it."""
    words = shlex.split(line.replace('\\"', "")) if line.count('"') % 2 == 0 else []
    if "ddimctl" not in words:
        return None
    return words[words.index("ddimctl") + 1 :]


COMMANDS = [words for line in lines() if (words := ours(line)) and words[0] != "install"]


def test_every_way_is_there() -> None:
    text = "\n".join(lines())
    for said in ("--shard $SLURM", "--on ray ", "symmetric-run", "ray job submit", "entrypoint", "torchrun"):
        assert said in text or said in DOC
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_command_line_takes_it(words: list[str]) -> None:
    group: Any = typer.main.get_command(__import__("ddimctl.cli.app", fromlist=["app"]).app)
    command = group.commands[words[0]]
    command.make_context(words[0], [w.replace("$SLURM_ARRAY_TASK_ID", "7") for w in words[1:]])


def test_the_ray_job_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    job = yaml.safe_load(block)
    assert job["kind"] == "RayJob"
    groups = job["spec"]["rayClusterSpec"]
    assert {"headGroupSpec", "workerGroupSpecs"} == groups.keys()


@pytest.mark.slow
def test_what_can_run_here(invoke: Invoke, tame_folder: Path, tmp_path: Path) -> None:
    """The lines of a laptop, all parts of an array one after the other, and those of Ray, which starts one."""
    pytest.importorskip("ray")
    photos(tmp_path, 7)
    (tmp_path / "tiny").symlink_to(tame_folder)
    made: dict[str, dict[str, bytes]] = {}
    for words in COMMANDS:
        if any("://" in w or w in ("ray=auto",) or w == "train" for w in words) or words[-2:] == ["--worker-cpus", "4"]:
            continue
        how = HOW + ([] if words[0] == "decode" else ["--steps", "2"] if "--steps" not in words else [])
        if "--on" in words:
            where = words[words.index("-o") + 1] if "-o" in words else ""
            words = [w.replace("latents/", "rayed/") if w == where else w for w in words]
            command = [*clusters.lone(), sys.executable, "-m", "ddimctl", *words, *how]
            done = subprocess.run(
                command, cwd=tmp_path, env=isolated(tmp_path, clusters.PATIENT), capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        elif "--shard" in words:
            for i in range(1, 65):
                part = [w.replace("$SLURM_ARRAY_TASK_ID", str(i)).replace("latents/", "parts/") for w in words]
                result = invoke(*part, *how)
                assert result.code == 0 or "nothing to work on" in result.err, result.err
        else:
            invoke(*words, *how).ok()
        made[" ".join(words)] = {}
    assert len(made) >= 6
    plain, rayed, parts = (
        {n: b for n, b in outputs(tmp_path / name).items() if n.endswith(".pt")}
        for name in ("latents", "rayed", "parts")
    )
    assert len(plain) == 7
    assert rayed == plain
    assert parts.keys() == plain.keys()


def test_the_sums_are_right() -> None:
    """Every figure of the table of sizes follows from those that were measured."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOC.splitlines()
        if re.match(r"\| `", line) and line.count("|") >= 8
    ]
    assert rows
    for _, rate, size, hours, price, million, days, large, billion in rows:
        r, b = number(rate), number(size)
        assert number(hours) == pytest.approx(1e6 / r / 3600, rel=0.01)
        assert number(price) == pytest.approx(0.05 * 1e6 / r / 3600, rel=0.01)
        assert number(million) == pytest.approx(1e6 * b / 1e9, rel=0.01)
        assert number(days) == pytest.approx(1e9 / r / 86400, rel=0.01)
        assert number(large) == pytest.approx(0.05 * 1e9 / r / 3600, rel=0.01)
        assert number(billion) == pytest.approx(1e9 * b / 1e12, rel=0.01)


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))
