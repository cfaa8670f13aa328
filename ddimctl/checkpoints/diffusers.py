"""diffusers' layout: a folder with the U-Net's weights and configuration, and the scheduler's configuration.

Two layouts exist: sub-folders ``unet/`` and ``scheduler/``, or everything flat at the root. A field that a file leaves
out means diffusers' default.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import FileError
from ddimctl.files import write_bytes
from ddimctl.schedule import Schedule
from ddimctl.unet import UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Old diffusers named the attention's weights so.
LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def recognises(path: Path) -> bool:
    return path.is_dir() and ((path / "unet" / "config.json").is_file() or (path / "config.json").is_file())


def read(folder: Path) -> Checkpoint:
    """Reads a folder in diffusers' layout. Raises `FileError` if it is incomplete or not what we implement."""
    unet = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        scheduler = folder / "scheduler_config.json"
    schedule, prediction = read_scheduler(read_json(scheduler))
    return Checkpoint(UNetConfig.from_dict(read_json(unet / "config.json")), read_weights(unet), schedule, prediction)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 1 MB."""
    try:
        with path.open("rb") as f:
            value = json.loads(f.read(1_000_001))
    except FileNotFoundError as e:
        raise FileError(f"{path.parent} has no {path.name}") from e
    except (OSError, ValueError, RecursionError) as e:
        raise FileError(f"cannot read {path}: {e}") from e
    if not isinstance(value, dict):
        raise FileError(f"{path} is not a JSON object")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict, with today's names."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileError(f"{folder} has a configuration but no weights ({WEIGHTS})")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise FileError(f"cannot read {path}: {e}") from e
    return {".".join(LEGACY.get(part, part) for part in name.split(".")): w for name, w in weights.items()}


def read_scheduler(config: Mapping[str, Any]) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from ``scheduler_config.json``."""
    T = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("rescale_betas_zero_snr"):
        raise FileError("the schedule has zero final SNR (rescale_betas_zero_snr): its σ(T) is infinite")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise FileError(f"the network predicts {prediction!r}, which ddimctl does not implement")
    try:
        if config.get("trained_betas") is not None:
            betas = [float(b) for b in config["trained_betas"]]
        elif not 1 <= T <= 100_000:
            raise ValueError(f"num_train_timesteps = {T}")
        elif kind == "linear":
            return Schedule.linear(T, start, end), prediction
        elif kind == "scaled_linear":
            a, b = math.sqrt(start), math.sqrt(end)
            betas = [(a + (b - a) * i / max(T - 1, 1)) ** 2 for i in range(T)]
        elif kind == "squaredcos_cap_v2":
            bar = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
            betas = [min(1 - q / p, 0.999) for p, q in zip(bar, bar[1:], strict=False)]
        else:
            raise FileError(f"the schedule {kind!r} is not implemented")
        return Schedule.from_betas(betas), prediction
    except (TypeError, ValueError) as e:
        raise FileError(f"the scheduler's configuration makes no sense: {e}") from e


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` so that diffusers' ``DDIMPipeline.from_pretrained`` and `read` load it. Each file atomic."""
    version = "0.36.0"  # the diffusers version whose layout this is
    scheduler: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": version,
        "num_train_timesteps": checkpoint.schedule.T,
        **_betas(checkpoint.schedule),
        "prediction_type": checkpoint.prediction,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": version,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    config = {**checkpoint.config.to_dict(), "_diffusers_version": version}
    weights = {name: w.contiguous() for name, w in checkpoint.weights.items()}
    write_bytes(folder / "unet" / WEIGHTS, save(weights, metadata={"format": "pt"}))
    for path, value in (
        (folder / "unet" / "config.json", config),
        (folder / "scheduler" / "scheduler_config.json", scheduler),
        (folder / "model_index.json", index),
    ):
        write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def _betas(schedule: Schedule) -> dict[str, Any]:
    """The linear schedule by its two numbers, any other by its list."""
    betas = [1 - q / p for p, q in zip(schedule.alpha, schedule.alpha[1:], strict=False)]
    ends = {"beta_start": round(betas[0], 12), "beta_end": round(betas[-1], 12)}
    if Schedule.linear(schedule.T, ends["beta_start"], ends["beta_end"]).alpha == schedule.alpha:
        return {"beta_schedule": "linear", **ends}
    return {"beta_schedule": "linear", "trained_betas": betas}
