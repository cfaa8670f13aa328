"""Shared fixtures: a tiny model, and two ways to run the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from hypothesis import settings
from running import HANGS, THREADS, Result, isolated

from ddimctl.checkpoints import Checkpoint, diffusers
from ddimctl.images import writing
from ddimctl.schedule import Schedule
from ddimctl.unet import UNet2DModel, UNetConfig

torch.set_num_threads(int(THREADS))
os.fsync = lambda fd: None  # no test cuts the power, and waiting for the disk is most of what writing costs
settings.register_profile("ddimctl", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("ddimctl")

TINY = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def write_tiny_model(folder: Path, seed: int = 0, held_out: int = 4, **fields: object) -> Path:
    """A model folder with random weights (`TINY`, changed by `fields`) and `held_out` random images."""
    config = UNetConfig.from_dict({**TINY, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(config)
        height, width = config.image_size or (16, 16)
        pixels = torch.randint(0, 256, (held_out, height, width, config.in_channels), dtype=torch.uint8)
    diffusers.write(folder, Checkpoint(config, dict(network.state_dict()), Schedule.linear()))
    (folder / "held-out").mkdir()
    for i, image in enumerate(pixels.numpy()):
        writing.save_image(folder / "held-out" / f"{i:03}.png", image)
    return folder


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: at the end, where one process would still be at them, others would have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test's numbers depend on which tests were run before it, or on the seed of their order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random grey 16 × 16 model in diffusers' layout. Read only: all tests share it."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tame_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a hundredth of its output: random weights alone make a flow that nothing inverts."""
    out = tmp_path_factory.mktemp("tame") / "tame"
    checkpoint = diffusers.read(model_folder)
    weights = {k: 0.01 * w if k.startswith("conv_out") else w for k, w in checkpoint.weights.items()}
    diffusers.write(out, replace(checkpoint, weights=weights))
    shutil.copytree(model_folder / "held-out", out / "held-out")
    return out


@pytest.fixture
def ddimctl(tmp_path: Path) -> Callable[..., Result]:
    """Runs the command line as a process of its own, in `tmp_path`: `ddimctl("info", "a.pt", env={...}).ok()`."""

    def run(
        *args: object,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
    ) -> Result:
        command = [sys.executable, "-m", "ddimctl", *map(str, args)]
        done = subprocess.run(
            command,
            input=input,
            capture_output=True,
            cwd=cwd,
            env=isolated(tmp_path, env),
            timeout=HANGS,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@contextlib.contextmanager
def environment(home: Path, folder: Path, extra: Mapping[str, str] | None = None) -> Iterator[None]:
    """This process in `folder`, in an environment that the user's own settings do not reach."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("DDIMCTL_")]:
            patch.delenv(name)
        for name, value in isolated(home, extra).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        yield


built = functools.cache(typer.main.get_command)  # Typer makes all commands anew for each run: a third of its time


def in_process(*args: object, input: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
    """Runs the command line in this process."""
    from ddimctl.cli import app

    streams = [io.TextIOWrapper(io.BytesIO(b), encoding="utf-8") for b in (input, b"", b"")]
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        patch.setattr(typer.main, "get_command", built)
        patch.setattr(sys, "argv", ["ddimctl", *map(str, args)])
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        try:
            app.main()
        except SystemExit as e:
            code = e.code
        finally:
            for s, handler in handlers.items():
                signal.signal(s, handler)
            for stream in streams[1:]:
                with contextlib.suppress(ValueError):
                    stream.flush()
    assert isinstance(code, int), code
    return Result(code, *(s.buffer.getvalue() for s in streams[1:]))  # type: ignore[attr-defined]


@pytest.fixture
def invoke(tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """As `ddimctl`, in this process: a hundred times faster, for tests that need no process of their own."""
    with environment(tmp_path, tmp_path):
        yield in_process
