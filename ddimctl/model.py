"""A model: a network, its schedule, and the one function that solvers see, ε(x̄, σ).

`Model.eps` is the only place that knows the scaling x̄ → x_t, the translation σ → label, what the network predicts,
learned variances, and dtypes. It never clips. `load` is the one loader that every command shares.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ddimctl import checkpoints
from ddimctl.checkpoints import diffusers
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.schedule import Schedule
from ddimctl.unet import UNet2DModel, UNetConfig

PREDICTIONS = ("epsilon", "v_prediction", "sample")
DEFAULT_MODEL = "fashion-mnist"


@dataclass
class Model:
    """A network with its schedule, ready to evaluate; see `load`."""

    network: UNet2DModel
    schedule: Schedule
    prediction: str = "epsilon"
    name: str = "unnamed"
    folder: Path | None = None  # where it was loaded from
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def config(self) -> UNetConfig:
        return self.network.config

    @property
    def channels(self) -> int:
        return self.config.in_channels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images. Raises `FileError` if the configuration does not say."""
        if self.config.image_size is None:
            raise FileError(f"the model {self.name} does not say its image size (sample_size)")
        return self.config.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images and latents."""
        return (self.channels, *self.size)

    @property
    def state_device(self) -> torch.device:
        """Where x̄ lives: with the network, except on MPS, which has no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @torch.inference_mode()
    def eps(self, xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
        """The noise prediction ε_θ(x̄/√(σ²+1), label(σ)), eq. 14.

        `xbar` is (B, C, H, W) float64 and `sigma` one level, or one for each image; the result is float64 like `xbar`.
        """
        levels = [sigma] if isinstance(sigma, float | int) else list(sigma)
        weight = self.network.conv_in.weight
        label = torch.tensor([self.schedule.label(s) for s in levels], device=weight.device)
        # Below the first trained level the network is asked at that level; so is the algebra around it.
        per_image = [(1.0 / math.sqrt(1.0 + s * s), max(s, self.schedule.sigma(1))) for s in levels]
        scale, s = (torch.tensor(v, dtype=xbar.dtype, device=xbar.device).view(-1, 1, 1, 1) for v in zip(*per_image, strict=True))
        x = xbar * scale
        net_in = x.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        out = self.network(net_in, label)[:, : self.channels].to(xbar.device, xbar.dtype)
        if self.prediction == "epsilon":
            return out
        alpha = 1.0 / (1.0 + s * s)
        if self.prediction == "v_prediction":  # v = √α ε − √(1−α) x_0
            return alpha.sqrt() * out + (1 - alpha).sqrt() * x
        return (x - alpha.sqrt() * out) / (1 - alpha).sqrt()  # the network predicts x_0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, network fields and prediction: the same network has the same digest in any format."""
        h = hashlib.sha256(repr((sorted(self.config.to_dict().items()), self.prediction)).encode())
        for name, w in sorted(self.network.state_dict().items()):
            h.update(f"{name} {tuple(w.shape)} {w.dtype}".encode())
            h.update(w.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def bundled_folder() -> Path:
    """Where the bundled models lie: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


def bundled() -> list[str]:
    """The names of the bundled models."""
    folder = bundled_folder()
    return sorted(p.name for p in folder.iterdir() if diffusers.recognises(p)) if folder.is_dir() else []


def load(reference: str = DEFAULT_MODEL, device: str = "auto") -> Model:
    """Loads a model: a bundled name or a folder in diffusers' layout.

    `device` is "auto" (CUDA, then MPS, then CPU) or a torch device. Raises `UsageError` if there is no such model,
    `FileError` if it cannot be used.
    """
    if reference in bundled():
        folder = bundled_folder() / reference
    else:
        folder = Path(reference)
        if not folder.exists():
            raise UsageError(f"no model {reference!r}", hint=f"a folder, or one of: {', '.join(bundled())}")
        if not diffusers.recognises(folder):
            raise FileError(f"{folder} is not a model folder (no unet/config.json)")
    return from_checkpoint(diffusers.read(folder), folder.resolve().name, device, folder)


def from_checkpoint(
    checkpoint: checkpoints.Checkpoint, name: str, device: str = "auto", folder: Path | None = None
) -> Model:
    """A `Model` of a checkpoint that was read. Raises `FileError` if weights and configuration do not fit."""
    with torch.device("meta"):
        network = UNet2DModel(checkpoint.config)
    wanted = {k: v.shape for k, v in network.state_dict().items()}
    given = {k: v.shape for k, v in checkpoint.weights.items()}
    if wanted != given:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        raise FileError(f"the weights of {name} do not fit its configuration ({len(odd)} tensors, {odd[0]} first)")
    network.load_state_dict(checkpoint.weights, assign=True)
    target = torch_device(device)
    network = network.to(target).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Model(network, checkpoint.schedule, checkpoint.prediction, name, folder, target)


def torch_device(name: str) -> torch.device:
    """The torch device of that name. Raises `UsageError` if it does not exist here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UsageError(f"the device {name!r} is not available here", hint="use auto, cpu, cuda or mps") from e
    if device.type == "cuda":  # inversion needs the digits that TF32 drops
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device


__all__ = ["DDIMError", "Model", "bundled", "load"]
