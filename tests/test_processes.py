"""Training in several processes: the weights are those of one, whoever is stopped all stop, and one alone speaks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HANGS, isolated
from test_archives import png, write_tar
from test_train import OPTIONS, pixels, write_idx
from test_train_text import autoencoder_task, text_task

from ddimctl.errors import DDIMError, UsageError
from ddimctl.training import processes
from ddimctl.training.data import Data
from ddimctl.training.loop import Trainer
from ddimctl.training.pixel import Pixel
from ddimctl.training.processes import Group
from ddimctl.training.settings import PixelSettings

SAME = 1e-6  # relative, in float32, of all weights after 50 steps
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--local-addr", "127.0.0.1"]


def pixel_task(**changes: Any) -> Pixel:
    tiny = {"channels": 1, "size": (8, 8), "block_channels": (8, 16), "attention": (1,), "head_dim": 8, "warmup": 2}
    s = PixelSettings(**{**tiny, "bf16": False, "batch": 8, "steps": 50, "flip": True, **changes})
    return Pixel(s, Data(pixels(20), pixels(4, seed=1)), torch.device("cpu"))


TASKS: dict[str, Any] = {
    "pixel": pixel_task,
    "autoencoder": lambda **c: autoencoder_task(**{"batch": 8, "steps": 50, "groups": 4, "hue": True, **c}),
    "text": lambda **c: text_task(**{"batch": 8, "steps": 50, **c}),
}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**trainer.task.network.state_dict(), **trainer.average.state_dict()}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The relative difference of all weights together, but for the biases of keys.

    The softmax does not see those: their gradients are rounding and nothing else, which Adam takes for a direction.
    """
    assert a.keys() == b.keys()
    a = {k: w for k, w in a.items() if not re.search(r"(to_k|k_proj)\.bias$", k)}
    square = sum(float((a[k].double() - b[k].double()).square().sum()) for k in a)
    return float((square / sum(float(w.double().square().sum()) for w in a.values())) ** 0.5)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "training" / "checkpoint.pt", weights_only=True)
    return {f"{part}.{k}": w for part in ("network", "average") for k, w in state[part].items()}


@pytest.fixture(scope="module")
def straight() -> dict[str, dict[str, torch.Tensor]]:
    """What one process makes that sees each batch as one."""
    made = {}
    for name, task in TASKS.items():
        trainer = Trainer(task(), Path("nowhere"))
        assert len(list(trainer.train())) == 50
        made[name] = weights(trainer)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_makes_the_same_steps(name: str, parts: int, straight: Any, tmp_path: Path) -> None:
    trainer = Trainer(TASKS[name](), tmp_path, accumulate=parts)
    assert len(list(trainer.train())) == 50
    assert apart(straight[name], weights(trainer)) < 10 * SAME  # more sums, more rounding


def test_parts_of_a_batch_cover_it_once() -> None:
    for size, parts in ((1, 1), (1, 4), (2, 1), (2, 2), (4, 3)):
        rows = [list(range(24))[p] for rank in range(size) for p in Group(rank, size).share(24, parts)]
        assert [i for part in rows for i in part] == list(range(24))
        assert len(rows) == size * parts


def test_dropout_is_not_the_same_in_every_part(tmp_path: Path) -> None:
    """Nor are two processes' masks the same: each part has a seed of its own."""
    task = pixel_task(dropout=0.5, flip=False)
    trainer = Trainer(task, tmp_path, accumulate=8)
    seen: list[int] = []
    original = task.loss

    def loss(*given: torch.Tensor) -> torch.Tensor:
        seen.append(torch.initial_seed())
        return original(*given)

    trainer._objective.loss = loss  # type: ignore[assignment]
    next(trainer.train())
    assert len(set(seen)) == 8


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', which is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', which is no number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 of 2"),
    ],
)
def test_an_environment_without_sense_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=re.escape(message)):
        processes.asked()


def test_one_process_is_alone_whatever_else_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.asked() == processes.ALONE
    for rank in ("of a book", "7"):
        monkeypatch.setenv("RANK", rank)
        assert processes.asked() == processes.ALONE
    monkeypatch.setenv("WORLD_SIZE", "9")
    assert processes.asked() == Group(7, 9, 7, 9)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert processes.asked() == Group(7, 9, 1, 3)


def test_what_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch, invoke: Any, tmp_path: Path) -> None:
    write_idx(tmp_path / "a.gz", pixels())
    words = ["train", tmp_path / "a.gz", "-o", tmp_path / "m", *OPTIONS, "--batch-size", "9"]
    said = invoke(*words, "--accumulate", "2").failed(2)
    assert said == "a batch of 9 is not to be divided by --accumulate 2"
    assert not (tmp_path / "m").exists()
    for parts, said in ((1, "by 2 processes"), (3, "by 2 processes and --accumulate 3")):
        with pytest.raises(UsageError, match=f"a batch of 9 is not to be divided {said}$"):
            Group(1, 2).check(9, parts)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert "cannot meet the other processes" in invoke(*words).failed(1)


def test_a_device_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Group(1, 2, 1, 2)
    assert two.device("auto") == two.device("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device cuda:1 is one device, for 2 processes"):
        two.device("cuda:1")
    taken: list[int] = []
    monkeypatch.setattr(processes.pytorch, "device", lambda name: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert two.device("cuda") == "cuda:1"
    assert taken == [1]
    with pytest.raises(UsageError, match="3 processes, and 2 GPUs on this machine"):
        Group(1, 3, 1, 3).device("cuda")


def test_only_the_loss_of_another_process_is_told_as_that() -> None:
    with pytest.raises(DDIMError, match="another process of this run has ended"), Group(0, 2).connected():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:35023")
    with pytest.raises(RuntimeError, match="out of memory"), Group(0, 2).connected():
        raise RuntimeError("CUDA out of memory")


def torchrun(
    n: int,
    *words: str,
    folder: Path,
    program: tuple[str, ...] = ("-m", "ddimctl"),
    how: Sequence[str] = ("--standalone",),
) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)
    env = isolated(folder, {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([tests, *sys.path])})
    return subprocess.Popen(
        [*TORCHRUN, *how, "--nproc-per-node", str(n), *program, *words], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=HANGS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def ours(err: str) -> list[str]:
    """What the command said, without what torchrun has to say of it."""
    return [
        line for line in err.splitlines() if re.match(r"error: |hint: |warning: |\d+ processes|stopped|dropout", line)
    ]


EVERY_TASK = """
from pathlib import Path
import torch
from test_processes import TASKS
from ddimctl.errors import UsageError
from ddimctl.training import processes
from ddimctl.training.loop import Trainer
team = processes.asked()
with team.joined():
    for name, task in TASKS.items():
        trainer = Trainer(task(), Path(name), group=team, accumulate=2)
        reports = list(trainer.train())
        assert len(reports) == 50 and (reports[-1].held_out_loss is None) == (team.rank > 0)
        if team.rank == 0:
            trainer.save()
    trainer = Trainer(TASKS["pixel"](bf16=True, dropout=0.3, steps=2), Path("half"), group=team)
    assert all(r.loss < 10 for r in trainer.train())
    for failing in (0, 1):
        try:
            with team.together():
                if team.rank == failing:
                    raise UsageError("it went wrong", hint="so do it well")
        except UsageError as e:
            assert str(e) == "it went wrong" and team.rank == failing
        except Exception as e:
            assert str(e) == f"process {failing}: it went wrong" and e.hint == "so do it well" and e.exit_code == 2
        else:
            raise AssertionError
    try:
        team.agree({"version": "1", "images": str(team.rank)})
    except UsageError as e:
        assert str(e) == "process 1 differs from process 0 in its images"
    else:
        raise AssertionError
    assert team.settle(1.0 + team.rank, 15 * team.rank) == (1.5, 15)
threads = [(p / "comm").read_text().strip() for p in Path("/proc/self/task").glob("*")]
assert not [name for name in threads if "gloo" in name], threads  # though there is a trainer yet
"""


@pytest.mark.slow
def test_two_processes_make_the_weights_of_one(straight: Any, tmp_path: Path) -> None:
    """Every kind of model; each process sees its half of a batch in two parts."""
    (tmp_path / "all.py").write_text(EVERY_TASK)
    code, out, err = finished(torchrun(2, folder=tmp_path, program=("all.py",)))
    assert code == 0, out + err
    for name in TASKS:
        state = torch.load(tmp_path / name / "training" / "checkpoint.pt", weights_only=True)
        assert apart(straight[name], {**state["network"], **state["average"]}) < SAME, name


WORDS = [
    "train",
    "a.tar",
    "-o",
    "m",
    "--memory",
    "0",
    "--held-out",
    "0.1",
    *OPTIONS,
    "--batch-size",
    "4",
    "--float32",
    "--save-every",
    "10",
]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, ddimctl: Any) -> None:
    """1, then 2, then 1, from images that are mapped: as if it had always been one. Only the first speaks."""
    write_tar(tmp_path / "a.tar", {f"{i:02}.png": png(x[0].numpy()) for i, x in enumerate(pixels())})
    one = [w if w != "m" else "s" for w in WORDS]
    ddimctl(*one, "--steps", "50").ok()
    script = "import os, signal, sys, torch; from ddimctl.cli.app import main\n" + SIGNAL_IN_STEP
    words = [*WORDS, "--steps", "50"]
    first = subprocess.run([sys.executable, "-c", script, "15", "0", *words], cwd=tmp_path, env=isolated(tmp_path),
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert first.returncode == 143, first.stderr
    (tmp_path / "run.py").write_text(script)
    code, out, err = finished(torchrun(2, "30", "1", *words, "--resume", folder=tmp_path, program=("run.py",)))
    assert code != 0
    assert out == ""
    assert ours(err)[0] == "2 processes, 2 images of each batch in each"
    assert [line for line in err.splitlines() if line.startswith("stopped")] == [
        "stopped at step 45 of 50; --resume continues"
    ]
    assert set(re.findall(r"exitcode *: (\d+)", err)) == {"143"}  # torchrun's word for how they ended
    assert not list((tmp_path / "m").rglob("*.tmp"))
    assert torch.load(tmp_path / "m" / "training" / "checkpoint.pt", weights_only=True)["step"] == 45
    last = ddimctl(*words, "--resume").ok()
    assert "continuing at step 45" in last.err
    assert apart(saved(tmp_path / "s"), saved(tmp_path / "m")) < SAME


@pytest.mark.slow
def test_two_machines_are_one_run(tmp_path: Path) -> None:
    """As docs/training.md has it, both of them here: the first of each reads, the first of all writes and speaks."""
    write_tar(tmp_path / "a.tar", {f"{i:02}.png": png(x[0].numpy()) for i, x in enumerate(pixels())})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port]
    agents = [
        torchrun(1, *WORDS, "--steps", "12", folder=tmp_path, how=[*where, "--node-rank", str(i)]) for i in range(2)
    ]
    (code, out, err), (other, silence, quiet) = map(finished, agents)
    assert (code, other) == (0, 0), err + quiet
    assert (out, silence) == ("m\n", "")
    assert ours(err) == ["2 processes, 2 images of each batch in each"]
    assert ours(quiet) == []


@pytest.mark.slow
def test_one_that_is_gone_is_said(tmp_path: Path) -> None:
    """Killed by the system: the others end at once, and the last checkpoint stays."""
    write_tar(tmp_path / "a.tar", {f"{i:02}.png": png(x[0].numpy()) for i, x in enumerate(pixels())})
    (tmp_path / "run.py").write_text(SIGNAL_IN_STEP.replace("SIGTERM", "SIGKILL"))
    code, out, err = finished(torchrun(2, "15", "1", *WORDS, "--steps", "50", folder=tmp_path, program=("run.py",)))
    assert (code, out) == (1, "")
    assert ours(err)[1:] == [
        "error: another process of this run has ended",
        "hint: what it said stands above; --resume continues from the last checkpoint",
    ]
    assert torch.load(tmp_path / "m" / "training" / "checkpoint.pt", weights_only=True)["step"] == 10


# SIGTERM to one process, in the step of that number that it takes.
SIGNAL_IN_STEP = """
import os, signal, sys, torch
from ddimctl.cli.app import main
number, rank, *sys.argv[1:] = sys.argv[1:]
step, taken = torch.optim.AdamW.step, []
def counted(*args, **options):
    taken.append(1)
    if len(taken) == int(number) and os.environ.get("RANK", "0") == rank:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(*args, **options)
torch.optim.AdamW.step = counted
main()
"""


# A first process that is slow to say what both know, such as on a machine that has other work.
LATE = """
import time
from ddimctl.cli.app import main
from ddimctl.training.processes import Group
tell = Group.tell
def late(self, text):
    told = tell(self, text)
    time.sleep(2 * (self.rank == 0))
    return told
Group.tell = late
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["from ddimctl.cli.app import main\nmain()", LATE], ids=["at once", "late"])
def test_what_fails_is_said_once(script: str, tmp_path: Path) -> None:
    """By the first, although torchrun ends it when another is gone."""
    write_tar(tmp_path / "a.tar", {})
    (tmp_path / "run.py").write_text(script)
    words = [*WORDS, "--steps", "4", "--batch-size", "5"]
    code, out, err = finished(torchrun(2, *words, folder=tmp_path, program=("run.py",)))
    assert (code, out) == (1, "")
    assert ours(err) == ["error: a batch of 5 is not to be divided by 2 processes", "hint: see --batch-size"]
    assert "cli/train.py" not in err  # torchrun has a traceback of its own to show, and we none
    assert not (tmp_path / "m").exists()
