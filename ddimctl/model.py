"""A model: a network, its schedule, and the one function that solvers see, ε(x̄, σ).

`Model.eps` is what solvers are given; it never clips. The network itself is asked by an engine, see `engines`. `load` is
the one loader that every command shares.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ddimctl import engines, files
from ddimctl.checkpoints import Checkpoint, diffusers, formats, hub
from ddimctl.errors import DDIMError, FileError, UsageError, choose
from ddimctl.files import bundled_folder
from ddimctl.implicit import Array
from ddimctl.schedule import Schedule
from ddimctl.unet import Attention, UNet2DModel, UNetConfig

PREDICTIONS = diffusers.PREDICTIONS
DEFAULT_MODEL = "fashion-mnist"
# Weights above this many bytes stay mapped from their file: channels-last copies of them save no measurable time.
COPY_BELOW = 200_000_000


@dataclass
class Model:
    """A network with its schedule, ready to evaluate; see `load`.

    `notes` says what was chosen while loading, `guesses` what was assumed because the checkpoint does not say.
    """

    network: UNet2DModel
    schedule: Schedule
    prediction: str = "epsilon"
    name: str = "unnamed"
    folder: Path | None = None  # where it was loaded from; None for a single file
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    class_label: int | None = None  # what a class-conditional network is asked for
    label_scale: float = 1.0  # the network was trained on labels times this
    engine: str = "torch"  # what evaluates it, and in which precision: see `use`
    precision: str = "float32"
    notes: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()

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

    def use(self, engine: str, precision: str = "float32") -> Model:
        """Itself, from now on evaluated by the engine of that name. Raises `UsageError` where that is not possible."""
        choose(engines.ENGINES, engine, "engine")
        engines.check(engine, precision)
        self.engine, self.precision = engine, precision
        self.__dict__.pop("run", None)
        _ = self.run
        return self

    @cached_property
    def run(self) -> engines.Run:
        """The engine: (x_t, labels) → what the network predicts."""
        return engines.ENGINES[self.engine](self)

    @property
    def dtype(self) -> str:
        """What the network computes in, as a latent's provenance says it."""
        return "bfloat16" if self.precision == "bf16" else str(self.network.conv_in.weight.dtype).removeprefix("torch.")

    def eps(self, xbar: Array, sigma: float | Sequence[float]) -> Array:
        """The noise prediction ε_θ(x̄/√(σ²+1), label(σ)), eq. 14.

        `xbar` is (B, C, H, W) float64 and `sigma` one level, or one for each image; the result is float64 like `xbar`.
        """
        return engines.eps(self, xbar, sigma)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the network computes: the same whatever format it came from, another for any other weight."""
        return digest(self.config, self.network.state_dict(), self.prediction, self.label_scale)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one evaluation for one image, see `flops`. Raises as `size` does."""
        _ = self.size
        return flops(self.config)


def flops(config: UNetConfig) -> int:
    """Operations (a multiplication and an addition are two) of one evaluation for one image: an estimate.

    Counted are convolutions, linear layers and attention, as is usual. Raises `ValueError` if the size is open.
    """
    if config.image_size is None:
        raise ValueError("the configuration leaves the image size open")

    def cost(part: torch.nn.Module | None, area: int) -> int:
        total = 0
        for name, m in part.named_modules() if part is not None else ():
            if isinstance(m, Attention):  # q·k, and the sum over v
                total += 4 * area**2 * m.to_q.out_features
            elif isinstance(m, torch.nn.Conv2d | torch.nn.Linear):
                total += 2 * m.weight.numel() * (1 if "time_emb" in name else area)
        return total

    with torch.device("meta"):
        network = UNet2DModel(config)
    levels = len(config.block_out_channels)
    areas = [math.prod(config.image_size) >> 2 * i for i in range(levels)]
    total = cost(network.time_embedding, 1) + cost(network.mid_block, areas[-1])
    total += cost(network.conv_in, areas[0]) + cost(network.conv_out, areas[0])
    for i, (down, up) in enumerate(zip(network.down_blocks, reversed(network.up_blocks), strict=True)):
        for block, sampled in ((down, areas[min(i + 1, levels - 1)]), (up, areas[max(i - 1, 0)])):
            for name, part in block.named_children():
                total += cost(part, sampled if "samplers" in name else areas[i])
    return total


def memory(config: UNetConfig) -> int:
    """Bytes that one image needs in float32, weights included: an estimate. The image size must be known."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in UNet2DModel(config).parameters())
    return 4 * (weights + config.activation_floats())


def bundled() -> list[str]:
    """The names of the bundled models."""
    folder = bundled_folder()
    return sorted(p.name for p in folder.iterdir() if diffusers.recognises(p)) if folder.is_dir() else []


def read(reference: str, config: str | None = None) -> tuple[Checkpoint, str, Path | None]:
    """(checkpoint, name, folder) of a bundled name, a folder, a checkpoint file or a hub id, tried in this order.

    `config`, a preset's name or a JSON file, says what a checkpoint file does not. Raises `UsageError` if there is
    nothing of that name, `FileError` if it cannot be used, `DDIMError` if it cannot be downloaded.
    """
    settings = formats.read_config(config) if config is not None else None
    path = bundled_folder() / reference if reference in bundled() else Path(reference)
    here = files.exists(path)
    name, folder = path.resolve().name if here and path.is_dir() else path.stem, path
    if not here:
        if not hub.is_id(reference):
            raise UsageError(
                f"no model {reference!r}: not a bundled one, no folder or file here, and no hub id (OWNER/NAME)",
                hint=f"bundled: {', '.join(bundled()) or 'none'}",
            )
        path = folder = hub.fetch(reference)
        name = reference
    return formats.read(path, settings), name, folder if folder.is_dir() else None


def load(
    reference: str = DEFAULT_MODEL, device: str = "auto", class_label: int | None = None, config: str | None = None
) -> Model:
    """Loads a model: a bundled name, a folder in diffusers' layout, a checkpoint file, or a hub id.

    `device` is "auto" (CUDA, then MPS, then CPU) or a torch device; `class_label` what a class-conditional network is
    asked for; `config` as in `read`. Raises `UsageError` if there is no such model or class, `FileError` if it cannot
    be used.
    """
    checkpoint, name, folder = read(reference, config)
    check_class(checkpoint.config, name, class_label)
    return from_checkpoint(checkpoint, name, device, folder, class_label)


def check_class(config: UNetConfig, name: str, class_label: int | None) -> None:
    """Raises `UsageError` unless the network has that class; None is for a network without classes."""
    n = config.num_class_embeds
    if class_label is None and n is not None:
        raise UsageError(f"the model {name} is class-conditional", hint=f"add --class with a number from 0 to {n - 1}")
    if class_label is not None and n is None:
        raise UsageError(f"the model {name} has no classes", hint="leave --class away")
    if class_label is not None and n is not None and not 0 <= class_label < n:
        raise UsageError(f"the model {name} has no class {class_label}", hint=f"its classes are 0 to {n - 1}")


def from_checkpoint(
    checkpoint: Checkpoint,
    name: str,
    device: str = "auto",
    folder: Path | None = None,
    class_label: int | None = None,
) -> Model:
    """A `Model` of a checkpoint that was read. Raises `FileError` if weights and configuration do not fit."""
    config = checkpoint.config
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise FileError(
            f"{name} maps {config.in_channels} channels to {config.out_channels}: not a denoiser of images alone",
            hint="super-resolution and inpainting networks need an image beside the noise",
        )
    with torch.device("meta"):
        network = UNet2DModel(config)
    wanted = {k: v.shape for k, v in network.state_dict().items()}
    given = {k: v.shape for k, v in checkpoint.weights.items()}
    if wanted != given:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        raise FileError(f"the weights of {name} do not fit its configuration ({len(odd)} tensors, {odd[0]} first)")
    target = torch_device(device)
    network.load_state_dict(checkpoint.weights, assign=True)
    network = network.to(target).eval().requires_grad_(False)
    if target.type != "cpu" or sum(w.nbytes for w in checkpoint.weights.values()) < COPY_BELOW:
        for w in network.parameters():
            if w.ndim == 4:
                w.data = w.data.contiguous(memory_format=torch.channels_last)
    notes = [*checkpoint.notes, f"predicts {checkpoint.prediction}; {checkpoint.schedule.T} noise levels"]
    if config.out_channels != config.in_channels:
        notes.append("the learned variances are left out")
    return Model(
        network, checkpoint.schedule, checkpoint.prediction, name, folder, target, class_label,
        checkpoint.label_scale, notes=tuple(notes), guesses=tuple(checkpoint.guesses),
    )  # fmt: skip


def digest(config: UNetConfig, weights: Mapping[str, Tensor], prediction: str, label_scale: float) -> str:
    """SHA-256 of the weights and of what else decides the output: see `UNetConfig.essence`."""
    h = hashlib.sha256(repr((config.essence(), prediction, float(label_scale))).encode())
    for name, w in sorted(weights.items()):
        h.update(f"{name} {tuple(w.shape)} {w.dtype}".encode())
        h.update(w.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


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


__all__ = ["DDIMError", "Model", "bundled", "load", "read"]
