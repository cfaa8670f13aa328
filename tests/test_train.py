"""Training: it learns, it stops and continues exactly, and what it publishes is what diffusers loads."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captures import furthest
from conftest import Result, isolated
from PIL import Image
from rounding import NETWORK, apart

from ddimctl import families
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets, levels, reading
from ddimctl.training import card, denoising, pixel, tasks
from ddimctl.training.captured import Captured
from ddimctl.training.data import Data, batch, split
from ddimctl.training.log import LossLog, Report
from ddimctl.training.loop import Trainer, learning_rate_factor
from ddimctl.training.settings import PixelSettings

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU = torch.device("cpu")
TINY: dict[str, Any] = {"channels": 1, "size": (8, 8), "block_channels": (8, 16), "attention": (), "head_dim": 8}
OPTIONS = ["--size", "8", "--grey", "--channels", "8,16", "--attention", "none", "--head-dim", "8"]


def settings(**changes: Any) -> PixelSettings:
    return PixelSettings(**{**TINY, "steps": 12, "batch": 4, "warmup": 2, "bf16": False, **changes})


def start(
    s: PixelSettings,
    data: torch.Tensor,
    held_out: torch.Tensor,
    folder: Path,
    *,
    device: torch.device = CPU,
    parts: int = 1,
    compiled: bool = False,
) -> Trainer:
    return Trainer(pixel.Pixel(s, Data(data, held_out), device), folder, accumulate=parts, compiled=compiled)


def pixels(n: int = 24, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Bright squares on black, each image different."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    for i, (top, left, level) in enumerate(torch.randint(0, size // 2, (n, 3), generator=g).tolist()):
        x[i, :, top : top + 3, left : left + 3] = 200 + 10 * level + i % 10
    return x


def write_idx(path: Path, data: torch.Tensor, packed: bool = True) -> Path:
    raw = struct.pack(">iiii", 0x803, *data[:, 0].shape) + data.numpy().tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    return path


@pytest.fixture(autouse=True)
def few_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a card's table costs more than these trainings. `run` is a process of its own, and measures it."""
    monkeypatch.setattr(card, "ROUND_TRIPS", card.ROUND_TRIPS[:1])


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    return write_idx(tmp_path / "images-idx3-ubyte.gz", pixels())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "training" / "loss.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def finish(trainer: Trainer) -> list[float]:
    return [r.loss for r in trainer.train()]


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    out = {f"network.{k}": v for k, v in trainer.task.network.state_dict().items()}
    out |= {f"average.{k}": v for k, v in trainer.average.state_dict().items()}
    for i, s in enumerate(trainer.optimizer.state_dict()["state"].values()):
        out |= {f"optimizer.{i}.{k}": v for k, v in s.items()}
    return out


# The loop


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """One image, so the best ε is known in closed form: the loss falls far below 1, that of saying nothing."""
    one = pixels(1).expand(16, -1, -1, -1)
    s = settings(steps=250, batch=16, lr=1e-2, warmup=20, ema=0.95)
    trainer = start(s, one, one[:1], tmp_path)
    assert trainer.validate() > 0.7
    losses = finish(trainer)
    assert sum(losses[:5]) / 5 > 0.7
    assert sum(losses[-20:]) / 20 < 0.1
    assert trainer.validate() < 0.1  # the averaged weights learn too


@pytest.mark.slow
def test_compiled_steps_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after a few steps, by the compiler's graphs; its C++, which takes minutes, came to 1e-8 once."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    found = []
    for compiled in (False, True):
        trainer = start(settings(steps=3), pixels()[:20], pixels()[20:], tmp_path, compiled=compiled)
        torch._dynamo.utils.counters.clear()
        finish(trainer)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled  # one graph, all of it
        assert {*trainer.task.network.state_dict()} == {*pixel.UNet2DModel(pixel.unet(settings())).state_dict()}
        found.append(torch.cat([p.detach().flatten() for p in trainer.task.network.parameters()]))
    assert (found[1] - found[0]).norm() / found[0].norm() < 1e-5  # Adam steps on mere rounding, too


def test_compile_without_a_compiler_is_refused(
    idx: Path, tmp_path: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    said = invoke("train", idx, "-o", tmp_path / "m", *OPTIONS, "--compile", "--device", "cpu").failed(2)
    assert said.startswith("--compile needs a C++ compiler")


@needs_cuda
@pytest.mark.parametrize(("changes", "limit"), [({}, 1e-3), ({"bf16": True, "flip": True}, 0.1)], ids=str)
def test_cuda_captures_what_a_step_computes(changes: dict[str, Any], limit: float) -> None:
    assert furthest(pixel.Pixel(settings(**changes), Data(pixels(), pixels(4)), torch.device("cuda"))) < limit


@needs_cuda
def test_cuda_draws_in_the_first_step_what_it_draws_in_any() -> None:
    """A run that goes on captures its passes anew, and has the masks of one that did not stop."""

    class Dropped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(1.0, 4097.0, device="cuda"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.weight * x, 0.5).mean()

    x = [torch.ones((), device="cuda")]
    torch.manual_seed(5)
    captured = Captured(Dropped(), x)
    losses = [float(captured(x))]
    for seed in (5, 6):
        torch.manual_seed(seed)
        losses.append(float(captured(x)))
    assert losses[0] == losses[1] != losses[2]


@needs_cuda
def test_cuda_trains_as_cpus_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured; in two parts, which is not; and on the CPU. It is resumed, and its model runs on the CPU. All by the
    processor's random numbers, as a GPU draws others."""
    monkeypatch.setattr(denoising, "normal", lambda shape, g, device: torch.randn(*shape, generator=g).to(device))
    cuda, data, s = torch.device("cuda"), pixels(), settings()
    captured = start(s, data[:20], data[20:], tmp_path / "a", device=cuda)
    losses = [r.loss for _, r in zip(range(5), captured.train(), strict=False)]
    assert captured._captured is not None
    captured.save()
    again = start(s, data[:20], data[20:], tmp_path / "a", device=cuda)
    again.resume()
    losses += finish(again)
    halves = start(s, data[:20], data[20:], tmp_path / "b", device=cuda, parts=2)
    assert losses == pytest.approx(finish(halves), rel=1e-2)
    assert halves._captured is None
    assert losses == pytest.approx(finish(start(s, data[:20], data[20:], tmp_path / "c")), rel=1e-2)
    again.export("card")
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    here, there = (families.load(str(tmp_path / "a"), device) for device in ("cpu", "cuda"))
    assert apart(there.eps()(x.cuda(), 1.0), here.eps()(x, 1.0)) < NETWORK


def test_validation_covers_all_noise_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few images are held out."""
    trainer = start(settings(), pixels(), pixels(3), tmp_path)
    seen: list[int] = []

    def loss(network: object, x0: torch.Tensor, label: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        seen.extend(label.tolist())
        return torch.full((len(label),), float(len(set(label.tolist())) > 1))

    monkeypatch.setattr(trainer.task.denoising, "errors", loss)
    assert trainer.validate() == 1
    assert set(range(1000)) == set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"bf16": True, "flip": True, "dropout": 0.3, "batch": 7, "seed": 5}], ids=str)
@pytest.mark.parametrize("stop", [1, 5])
def test_resuming_continues_bit_for_bit(stop: int, changes: dict[str, Any], tmp_path: Path) -> None:
    """Weights, average, optimiser and every loss: 12 steps, or some of them, a new process' worth of state, the rest."""
    data, s = pixels(), settings(**changes)
    straight = start(s, data[:20], data[20:], tmp_path / "a")
    expected = finish(straight)

    first = start(s, data[:20], data[20:], tmp_path / "b")
    losses = [r.loss for _, r in zip(range(stop), first.train(), strict=False)]
    first.save()
    del first
    torch.manual_seed(123)  # the state of the global generator must not matter
    second = start(s, data[:20], data[20:], tmp_path / "b")
    second.resume()
    assert second.step == stop
    losses += finish(second)

    assert losses == expected
    left, right = state(straight), state(second)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert straight.validate() == second.validate()


def test_a_checkpoint_of_an_older_version_resumes(tmp_path: Path) -> None:
    """It did not have the images' digest and what the card says about them."""
    trainer = start(settings(), pixels(), pixels(2, seed=1), tmp_path)
    trainer.save()
    path = trainer.work / "checkpoint.pt"
    old = {k: v for k, v in torch.load(path, weights_only=True).items() if k not in ("data", "about")}
    torch.save(old, path)
    trainer.resume()
    assert trainer.about == {}


@pytest.mark.parametrize("change", ["settings", "number", "content"])
def test_another_run_is_not_resumed(change: str, tmp_path: Path) -> None:
    data = pixels()
    start(settings(), data, data[:1], tmp_path).save()
    s = settings(lr=5e-4) if change == "settings" else settings()
    other = {"settings": data, "number": data[1:], "content": data.flip(0)}[change]
    with pytest.raises(UsageError, match="--lr 0.001, not 0.0005" if change == "settings" else "another set of images"):
        start(s, other, data[:1], tmp_path).resume()


@pytest.mark.parametrize("content", [b"", b"text", b"half", b"{}"])
def test_a_damaged_checkpoint_is_one_line(content: bytes, tmp_path: Path) -> None:
    trainer = start(settings(), pixels(), pixels(1), tmp_path)
    trainer.save()
    path = trainer.work / "checkpoint.pt"
    if content == b"{}":
        torch.save({}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == b"half" else content)
    with pytest.raises(FileError, match="is damaged"):
        trainer.resume()


def test_every_image_is_seen_once_a_pass(tmp_path: Path) -> None:
    """Where the batch does not divide the number of images, too; and no two passes have the same order."""
    order = torch.cat([batch(step, 7, 24, seed=2) for step in range(24)])  # 7 passes of 24
    passes = order.view(7, 24)
    assert all(p.sort().values.tolist() == list(range(24)) for p in passes)
    assert len({tuple(p.tolist()) for p in passes}) == 7


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    trainer = start(settings(), pixels(), pixels(1), tmp_path)
    with torch.no_grad():
        trainer.task.network.conv_in.weight.fill_(math.nan)
    with pytest.raises(DDIMError, match="not a number at step 1"):
        finish(trainer)


def test_a_gradient_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    """Before what it made of the weights could be saved, though the loss of that step is one."""
    trainer = start(settings(), pixels(), pixels(1), tmp_path)
    weight, loss = trainer.task.network.conv_in.weight, trainer.task.loss
    seen: list[float] = []

    def steep(*given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = loss(*given) + (0 * weight).square().sum().sqrt()
        seen.append(float(found.detach()))
        return found

    trainer._objective.loss = steep  # type: ignore[assignment]
    with pytest.raises(DDIMError, match="not a number at step 1"):
        finish(trainer)
    assert all(math.isfinite(value) for value in seen)


def test_learning_rate() -> None:
    factors = [learning_rate_factor(i, 100, 10) for i in range(100)]
    assert factors[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert factors[10] == 1
    assert all(p > q for p, q in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (9, 8)}, "9 x 8 do not halve evenly 1 times"),
        ({"attention": (2,)}, "attention at"),
        ({"attention": (-1,)}, "attention at"),
        ({"groups": 3}, "3 groups do not divide"),
        ({"groups": 0}, "groups must be positive"),
        ({"head_dim": 64}, "heads of 64 channels do not divide"),
        ({"block_channels": ()}, "channels must be positive"),
        ({"block_channels": (0, 16)}, "channels must be positive"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**changes)


# Images


@pytest.mark.parametrize(("n", "fraction", "expected"), [(24, 0.25, 6), (24, 1e-9, 1), (3, 0.5, 2)])
def test_split_holds_out_images_that_are_not_trained_on(n: int, fraction: float, expected: int) -> None:
    data = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    parts = split(data, fraction, seed=3)
    train, held = parts.images, parts.held_out
    assert len(held) == expected
    assert sorted(train.flatten().tolist() + held.flatten().tolist()) == list(range(n))
    assert torch.equal(split(data, fraction, seed=3).held_out, held)


def test_the_training_set_never_contains_a_held_out_image(tmp_path: Path) -> None:
    """What the loop draws, over several passes, against the files that are published as held out."""
    data = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8).contiguous()
    parts = split(data, 0.2, seed=0)
    held = parts.held_out
    trainer = start(settings(), parts.images, held, tmp_path)
    drawn = {int(v) for step in range(40) for v in trainer.task.data.images[batch(step, 4, 32, seed=2)][:, 0, 0, 0]}
    trainer.export("card")
    published = {int(np.asarray(Image.open(p))[0, 0]) for p in (tmp_path / "held-out").iterdir()}
    assert published == {int(v) for v in held[:, 0, 0, 0]}
    assert len(drawn) == 32
    assert not drawn & published


@pytest.mark.slow
def test_what_an_earlier_model_left_goes_with_force_alone(idx: Path, tmp_path: Path, invoke: Any) -> None:
    """It may have held out what this run trains on, and its averaged weights or features are another model's."""
    m = tmp_path / "m"
    for name in ("held-out/001.png", "held-out/700.png", "held-out/700.txt", "held-out/mine.png", "unet_ema/config.json",
                 "README.md", "features.safetensors", "notes.txt", "training/samples-000099.png"):  # fmt: skip
        (m / name).parent.mkdir(parents=True, exist_ok=True)
        (m / name).write_text("old")
    assert "something in it" in train(invoke, idx, "--steps", "2").failed(2)
    assert sum(p.is_file() for p in m.rglob("*")) == 9
    train(invoke, idx, "--steps", "2", "--force").ok()
    assert not (m / "unet_ema").exists()
    assert not (m / "features.safetensors").exists()
    assert not list((m / "held-out").glob("700.*"))
    assert [p.name for p in (m / "training").glob("samples-*")] == ["samples-000002.png"]
    assert {(m / "notes.txt").read_text(), (m / "held-out" / "mine.png").read_text()} == {"old"}
    assert reading.read(m / "held-out" / "001.png", 1, (8, 8)) is not None
    assert "# m\n" in (m / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of the size of files")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(idx: Path, tmp_path: Path, ddimctl: Any) -> None:
    words = ["train", idx.name, "-o", "m", "--held-out", "0.2", *OPTIONS, "--batch-size", "4", "--steps", "2"]
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from ddimctl.cli.app import main;"
        f"sys.argv = ['ddimctl', *{words!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, env=isolated(tmp_path), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "m").rglob("*.safetensors"))


def test_shared_counts_equal_images() -> None:
    data = pixels(10)
    assert Data(data, data[[2, 5]]).shared == 2
    assert Data(data[:5], data[5:]).shared == 0


def test_a_folder_and_idx_files_give_the_same_images(tmp_path: Path) -> None:
    data = pixels(5)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(data[:, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i}.png")
    sources = [
        tmp_path / "folder",
        write_idx(tmp_path / "packed.gz", data),
        write_idx(tmp_path / "plain", data, packed=False),
    ]
    for size in ((8, 8), (4, 4)):  # as they are, and resampled
        loaded = [datasets.load_dataset(p, 1, size) for p in sources]
        assert all(x.dtype == torch.uint8 and torch.equal(x, loaded[0]) for x in loaded)
    assert torch.equal(datasets.load_dataset(sources[0], 1, (8, 8)), data)


# The log


def test_loss_log_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    log = LossLog(path, 0, batch=4, every=5)
    for step in range(1, 14):
        log.add(Report(step, float(step), 1.0, 0.5 if step == 10 else None))
    assert path.read_text().splitlines()[1:] == ["5,20,3.000000,1.0,", "10,40,8.000000,1.0,0.500000"]
    with path.open("a") as f:
        f.write("15,6")  # cut off by a crash
    assert LossLog(path, 12, batch=4).held_out_loss == 0.5
    assert [r.split(",")[0] for r in path.read_text().splitlines()] == ["step", "5", "10"]
    assert LossLog(path, 9, batch=4).held_out_loss is None


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of the real command, and what it printed. Read only."""
    folder = tmp_path_factory.mktemp("run")
    write_idx(folder / "squares.gz", pixels(40))
    words = [
        "train",
        "squares.gz",
        "-o",
        "squares",
        "--held-out",
        "0.2",
        *OPTIONS,
        "--steps",
        "60",
        "--batch-size",
        "4",
    ]
    words += ["--warmup", "5", "--data-name", "Squares", "--license", "MIT", "--float32", "--sample-every", "30"]
    done = subprocess.run(
        [sys.executable, "-m", "ddimctl", *words], cwd=folder, env=isolated(folder), capture_output=True, check=False
    )
    result = Result(done.returncode, done.stdout, done.stderr)
    result.ok()
    return folder / "squares", result


@pytest.mark.slow
def test_the_command_says_what_it_made(run: tuple[Path, Result]) -> None:
    folder, result = run
    assert result.out == "squares\n"
    assert "32 images to train on, 8 held out" in result.err
    assert "step 60/60  loss" in result.err
    made = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert made == {
        "README.md", "model_index.json", "samples.png", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "training/checkpoint.pt",
        "training/loss.csv", "training/samples-000030.png", "training/samples-000060.png",
        *(f"held-out/{i:03}.png" for i in range(8)),
    }  # fmt: skip


@pytest.mark.slow
def test_the_folder_loads_in_diffusers_and_gives_the_same_eps(run: tuple[Path, Result]) -> None:
    from diffusers import DDIMPipeline

    folder, _ = run
    pipeline = DDIMPipeline.from_pretrained(folder)
    ours = families.load(str(folder), "cpu")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), ours.schedule.alpha[1:], rtol=1e-4)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (1, 250, 1000):  # paper time; their timestep is t − 1
        with torch.no_grad():
            theirs = pipeline.unet(x.float(), t - 1).sample
        xbar = x / math.sqrt(ours.schedule.alpha[t])
        assert apart(ours.eps()(xbar, ours.schedule.sigma(t)), theirs) < NETWORK


@pytest.mark.slow
def test_the_published_weights_are_the_average(run: tuple[Path, Result]) -> None:
    folder, _ = run
    saved = torch.load(folder / "training" / "checkpoint.pt", weights_only=True)
    published = families.load(str(folder), "cpu").network.module.torch.state_dict()
    assert all(torch.equal(saved["average"][f"module.{k}"], v) for k, v in published.items())
    assert not all(torch.equal(saved["network"][k], v) for k, v in published.items())


@pytest.mark.slow
def test_the_card_states_everything(run: tuple[Path, Result]) -> None:
    folder, _ = run
    text = (folder / "README.md").read_text()
    parameters = families.load(str(folder), "cpu").network.module.facts.parameters
    for expected in (
        "license: mit", "# squares", "Squares", "Licence of the images: MIT", "32 images", "(`squares.gz`",
        f"{parameters:,}", "240 (60 steps of 4; 7.5 passes)", "Held-out ε-loss", "samples.png", "held-out/",
        "ddimctl train squares.gz", "ddimctl reconstruct -m squares", "| 10 |", "| 100 |", "ddim, linear", "ab2, karras",
    ):  # fmt: skip
        assert expected in text, expected
    assert "Unfinished" not in text
    assert str(folder.parent) not in text  # no paths of the machine it was made on
    loss = re.search(r"Held-out ε-loss \| ([\d.]+)", text)
    assert loss
    assert float(loss[1]) == pytest.approx(float(rows(folder)[-1]["held_out_loss"]), abs=1e-4)


def test_what_was_added_to_a_card_stays(tmp_path: Path) -> None:
    trainer = start(settings(), pixels(), pixels(2, seed=9), tmp_path)
    about = card.About("squares.gz", "0.1", "Squares", "MIT")
    first = card.write(trainer, about, None)
    mine = "## Features\n\nA classifier's.\n\n```sh\n## not a title\n## Data\n```"
    (tmp_path / "README.md").write_text(first.replace("## Use", f"{mine}\n\n## Use").replace("1 step", "another"))
    assert card.write(trainer, about, None) == first.replace("## Use", f"{mine}\n\n## Use")
    trainer.export(card.write(trainer, about, None))
    assert card.write(trainer, about, None) == (tmp_path / "README.md").read_text()  # and once only


@pytest.mark.slow
def test_the_cards_round_trips_are_true(run: tuple[Path, Result]) -> None:
    """The table's numbers, measured again from the published folder."""
    from ddimctl import ode
    from ddimctl.metrics import METRICS
    from ddimctl.recipe import Way

    folder, _ = run
    text = (folder / "README.md").read_text()
    table = dict(re.findall(r"^\| (10|20|50|100) \| (\S+) \| \S+ \|$", text, re.MULTILINE))
    ours = families.load(str(folder), "cpu")
    held = [np.asarray(Image.open(p))[..., None] for p in sorted((folder / "held-out").iterdir())]
    x0 = levels.to_tensor(np.stack(held)).double()
    for steps in (10, 50):
        way = Way("ddim", "linear", steps)
        back = ode.decode(ours, ode.encode(ours, x0, way).x, way).x
        assert float(table[str(steps)]) == pytest.approx(METRICS["mse"](x0, back).mean().item(), rel=0.05)


@pytest.mark.slow
def test_the_cards_python_runs(run: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = run
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(code[1].replace("num_inference_steps=50", "num_inference_steps=2"), names)
    assert names["image"].size == (8, 8)


def test_the_cards_command_makes_the_same_run(tmp_path: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting has a way from the command line to `Settings` and back."""
    write_idx(tmp_path / "a b.gz", pixels())
    wanted = PixelSettings(
        channels=1, size=(8, 12), block_channels=(6, 12), layers=2, attention=(0, 1), groups=3, head_dim=6, dropout=0.1,
        steps=77, batch=5, lr=3e-4, warmup=11, weight_decay=0.01, ema=0.9, clip=0.5, flip=True, bf16=False,
        seed=9, balance=20.0,
    )  # fmt: skip
    different = PixelSettings(channels=3, size=(32, 32))
    assert all(v != vars(different)[k] for k, v in vars(wanted).items()), "cover the new setting here"
    seen: list[PixelSettings] = []

    class Stop(Exception):
        pass

    def stop(s: PixelSettings, *args: object, **others: object) -> None:
        seen.append(s)
        raise Stop

    monkeypatch.setattr(tasks, "make", stop)
    about = card.About("a b.gz", "0.2", "It's squares", "CC BY 4.0")
    for s in (wanted, PixelSettings(channels=3, size=(32, 32))):
        words = shlex.split(card.command(s, about, "out"))
        assert words.pop(0) == "ddimctl"
        with pytest.raises(Stop):
            invoke(*words)
        assert seen[-1] == s


@pytest.mark.slow
def test_an_existing_model_is_kept(run: tuple[Path, Result], tmp_path: Path, invoke: Any) -> None:
    folder, _ = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    message = invoke("train", folder.parent / "squares.gz", "-o", folder, *OPTIONS).failed(2)
    assert "is a folder with something in it" in message
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def train(run_: Callable[..., Result], data: Path, *extra: str) -> Result:
    return run_("train", data.name, "-o", "m", "--held-out", "0.2", *OPTIONS, "--batch-size", "4", "--float32", *extra)


@pytest.mark.slow
def test_resuming_a_finished_run_publishes_it_again(idx: Path, tmp_path: Path, invoke: Any) -> None:
    """The licence and name that were given at first are remembered; a lost file comes back; no step is taken."""
    train(invoke, idx, "--steps", "5", "--license", "MIT", "--data-name", "Squares").ok()
    folder = tmp_path / "m"
    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in ("README.md", "samples.png", "model_index.json"):
        (folder / name).unlink()
    train(invoke, idx, "--steps", "5", "--resume").ok()
    after = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert after == before
    train(invoke, idx, "--steps", "5", "--resume", "--license", "CC0-1.0").ok()
    assert "Licence of the images: CC0-1.0" in (folder / "README.md").read_text()


def test_resume_alone_takes_the_runs_own_settings(idx: Path, tmp_path: Path, invoke: Any) -> None:
    """In another folder, too; more steps may be asked for, and what else differs is named by its option."""
    train(invoke, idx, "--steps", "4", "--license", "MIT").ok()
    folder = tmp_path / "m"
    invoke("train", "--resume", "-o", folder).ok()
    assert "continuing at step 4" in invoke("train", "--resume", "-o", folder, "--steps", "6").ok().err
    saved = torch.load(folder / "training" / "checkpoint.pt", weights_only=True)
    assert (saved["step"], saved["settings"]["steps"], saved["settings"]["batch"]) == (6, 6, 4)
    assert "Licence of the images: MIT" in (folder / "README.md").read_text()
    for words, said in (
        (["--lr", "0.1"], "started with --lr 0.001, not 0.1"),
        (["--steps", "5"], "started with --steps 6, not 5"),
        (["--flip"], "started with no --flip"),
        (["--held-out", "0.3"], "started with another set of images"),
        (["--autoencoder"], "another kind of model"),
    ):
        message = invoke("train", "--resume", "-o", folder, *words).failed(2)
        assert said in message, message
    assert saved["step"] == torch.load(folder / "training" / "checkpoint.pt", weights_only=True)["step"]
    assert "there are no images" in invoke("train", "-o", tmp_path / "n").failed(2)


def test_the_options_default_to_the_settings_defaults() -> None:
    """What the help says is what a network of pixels has; what others have of their own, they have too."""
    from ddimctl.cli import train as command
    from ddimctl.training import settings as kinds

    shown = {}
    for group in (command.Network, command.Training, command.Captioned, command.Latent):
        shown |= {f.name: f.default for f in fields(group)}
    parameter = {field: name for name, field in command.FIELDS.items()}
    known = {f.name: f.default for kind in reversed(list(kinds.KINDS.values())) for f in fields(kind) if f.metadata}
    known |= {f.name: f.default for f in fields(kinds.PixelSettings)}
    compared = {parameter.get(k, k): v for k, v in known.items() if parameter.get(k, k) in shown}
    assert len(compared) > 20
    for name, value in compared.items():
        assert shown[name] == (",".join(map(str, value)) if isinstance(value, tuple) else value), name


def test_unusable_images_are_counted_and_left_out(tmp_path: Path, invoke: Any) -> None:
    for i, image in enumerate(pixels(6)[:, 0].numpy()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    frames = [Image.fromarray(image) for image in pixels(3, seed=4)[:, 0].numpy()]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "bad.png").write_text("no image")
    done = invoke("train", tmp_path, "-o", tmp_path / "out" / "m", *OPTIONS, "--steps", "1", "--batch-size", "2").ok()
    assert "bad.png" in done.err
    assert "1 of 8 images cannot be used and are left out" in done.err
    assert "6 images to train on, 1 held out" in done.err


@pytest.mark.slow
def test_force_starts_again(idx: Path, tmp_path: Path, invoke: Any) -> None:
    train(invoke, idx, "--steps", "4").ok()
    first = (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train(invoke, idx, "--steps", "4", "--seed", "1", "--force").ok()
    assert (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != first
    assert [r["step"] for r in rows(tmp_path / "m")] == ["4"]


def test_what_was_forced_is_not_resumed(
    idx: Path, tmp_path: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ended before its first checkpoint has none: what it was to replace is gone."""

    def ends(self: Trainer, *args: object, **more: object) -> None:
        raise DDIMError("struck")

    train(invoke, idx, "--steps", "2").ok()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", ends)
        assert train(invoke, idx, "--steps", "2", "--lr", "0.1", "--force").failed(1) == "struck"
    assert "nothing to resume" in invoke("train", "--resume", "-o", "m").failed(2)


def test_a_file_of_defaults_says_what_the_command_line_does_not(idx: Path, tmp_path: Path, invoke: Any) -> None:
    """Of a new run; one that goes on has its own settings, and what is for other kinds of models is for those."""
    (tmp_path / "ddimctl.toml").write_text(
        'seed = 7\n[train]\nsteps = 3\nlr = 0.01\nhue = true\ndrop = 0.3\nchannels = "8,16"\nsize = 8\nbatch-size = 2\n'
        'grey = true\nhead-dim = 8\nattention = "none"\nlicense = "MIT"\nbf16 = false\n'
    )
    invoke("train", idx, "-o", "m", "--lr", "0.02").ok()
    path = tmp_path / "m" / "training" / "checkpoint.pt"
    wanted = settings(steps=3, lr=0.02, seed=7, batch=2, warmup=200)
    assert torch.load(path, weights_only=True)["settings"] == vars(wanted)
    assert "Licence of the images: MIT" in (tmp_path / "m" / "README.md").read_text()
    (tmp_path / "ddimctl.toml").write_text("[train]\nlr = 0.03\nsteps = 2\n")
    assert "continuing at step 3" in invoke("train", "--resume", "-o", "m").ok().err
    assert "--hue is not for this kind" in invoke("train", idx, "-o", "n", *OPTIONS, "--hue").failed(2)


def test_the_cards_command_makes_images_fit_as_the_run_did(tmp_path: Path, invoke: Any) -> None:
    (tmp_path / "in").mkdir()
    for i, image in enumerate(pixels(6)[:, 0].numpy()):
        Image.fromarray(image[:, :5]).save(tmp_path / "in" / f"{i}.png")
    how = ("--fit", "pad", "--background", "#808080", "--max-pixels", "1000")
    words = ("--steps", "1", "--batch-size", "2")
    invoke("train", "in", "-o", "m", *OPTIONS, *words, *how).ok()
    text = (tmp_path / "m" / "README.md").read_text()
    found = shlex.split(re.search(r"^ddimctl train .*", text, re.MULTILINE)[0])  # type: ignore[index]
    assert " ".join(how) in " ".join(found)
    invoke(*found[1:], "--force").ok()
    assert re.findall(r"SHA-256.*`(\w{64})`", (tmp_path / "m" / "README.md").read_text()) == re.findall(
        r"SHA-256.*`(\w{64})`", text
    )


SIGNAL_IN_STEP_60 = """
import os, sys, torch
from ddimctl.cli.app import main
number, *sys.argv[1:] = sys.argv[1:]
step, taken = torch.optim.AdamW.step, []
def counted(*args, **options):
    taken.append(1)
    if len(taken) == 60:
        os.kill(os.getpid(), int(number))
    return step(*args, **options)
torch.optim.AdamW.step = counted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_resume_completes(
    signum: signal.Signals, code: int, idx: Path, tmp_path: Path, ddimctl: Any
) -> None:
    """The interrupted and continued run publishes the very weights of one that was left alone."""
    steps = ["--steps", "150", "--save-every", "1000"]
    words = ["train", idx.name, "-o", "m", "--held-out", "0.2", *OPTIONS, "--batch-size", "4", "--float32", *steps]
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_IN_STEP_60, str(int(signum)), *words], cwd=tmp_path, env=isolated(tmp_path),
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr.decode()
    assert done.stdout == b""
    assert b"stopped at step 60 of 150; --resume continues" in done.stderr
    assert b"Traceback" not in done.stderr
    folder = tmp_path / "m"
    assert torch.load(folder / "training" / "checkpoint.pt", weights_only=True)["step"] == 60
    assert "Unfinished: step" in (folder / "README.md").read_text()
    assert not list(folder.rglob("*.tmp"))
    families.load(str(folder), "cpu")  # usable as it stands

    if signum == signal.SIGTERM:
        return  # the rest is the same
    resumed = train(ddimctl, idx, *steps, "--resume").ok()
    assert "continuing at step 60" in resumed.err
    steps_logged = [int(r["step"]) for r in rows(folder)]
    assert steps_logged == sorted(set(steps_logged))
    assert steps_logged[-1] == 150
    assert set(range(50, 151, 50)) <= set(steps_logged)

    straight = ddimctl("train", idx.name, "-o", "s", *words[4:]).ok()
    assert straight.out == "s\n"
    weights = [(tmp_path / n / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for n in ("m", "s")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["nowhere"], 2, "there is no file nowhere"),
        (["empty"], 2, "holds no images"),
        (["text.txt"], 3, "is not an IDX file"),
        (["short.gz"], 3, "short.gz"),
        (["images-idx3-ubyte.gz", "--held-out", "nowhere"], 2, "there is no file nowhere"),
        (["images-idx3-ubyte.gz", "--held-out", "1.5"], 2, "neither a path nor a fraction"),
        (["images-idx3-ubyte.gz", "--held-out", "nan"], 2, "neither a path nor a fraction"),
        (["images-idx3-ubyte.gz", "--size", "9"], 2, "9 x 9 do not halve evenly 1 times"),
        (["images-idx3-ubyte.gz", "--size", "8x8x8"], 2, "is not a size"),
        (["images-idx3-ubyte.gz", "--channels", "8;16"], 2, "--channels takes"),
        (["images-idx3-ubyte.gz", "--channels", "9,18"], 2, "4 groups do not divide"),
        (["images-idx3-ubyte.gz", "--attention", "7"], 2, "attention at"),
        (["images-idx3-ubyte.gz", "--head-dim", "64"], 2, "heads of 64"),
        (["images-idx3-ubyte.gz", "--lr", "-1"], 2, "lr must be positive"),
        (["images-idx3-ubyte.gz", "--steps", "0"], 2, "steps"),
        (["images-idx3-ubyte.gz", "--device", "abacus"], 2, "abacus"),
        (["images-idx3-ubyte.gz", "--resume"], 2, "nothing to resume"),
        (["images-idx3-ubyte.gz", "-o", "text.txt"], 2, "text.txt is a file"),
        (["images-idx3-ubyte.gz", "-o", "text.txt/m"], 1, "cannot make the folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_options_give_one_line_and_leave_nothing(
    options: list[str], code: int, message: str, idx: Path, tmp_path: Path, invoke: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a text, not images")
    write_idx(tmp_path / "short.gz", pixels(), packed=False)
    (tmp_path / "short.gz").write_bytes((tmp_path / "short.gz").read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    target = [] if "-o" in options else ["-o", "m"]
    assert message in invoke("train", *target, *OPTIONS, *options).failed(code)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_held_out_set_that_is_trained_on_is_reported(idx: Path, tmp_path: Path, invoke: Any) -> None:
    result = invoke("train", idx, "-o", "m", *OPTIONS, "--held-out", idx, "--steps", "1", "--batch-size", "2").ok()
    assert "warning: 24 of the held-out images are among those to train on" in result.err
    assert "24 of them are equal, pixel by pixel" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.slow
def test_quiet_prints_the_folder_alone(idx: Path, invoke: Any) -> None:
    result = train(invoke, idx, "--steps", "1", "-q").ok()
    assert (result.out, result.err) == ("m\n", "")


@pytest.mark.slow
def test_what_is_published_is_not_executable_or_private(run: tuple[Path, Result]) -> None:
    folder, _ = run
    assert {oct(p.stat().st_mode & 0o777) for p in folder.rglob("*") if p.is_file()} <= {"0o644", "0o664"}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
