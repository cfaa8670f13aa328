"""A network of pixels that is asked for nothing: diffusers' ``UNet2DModel``, ours in its layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ddimctl import ode, seeds
from ddimctl.checkpoints import Checkpoint, diffusers
from ddimctl.families.pixel import from_checkpoint
from ddimctl.images.labels import Labels
from ddimctl.model import About
from ddimctl.schedule import Schedule
from ddimctl.training.data import Data, signed
from ddimctl.training.denoising import N_VALIDATION, Denoising
from ddimctl.training.settings import PixelSettings
from ddimctl.unet import UNet2DModel, UNetConfig


class Pixel:
    """A `Task`: ε of noisy images."""

    space = ""

    def __init__(self, settings: PixelSettings, data: Data, device: torch.device):
        self.settings, self.data, self.device = settings, data, device
        self.schedule = Schedule.linear()
        self.denoising = Denoising(self.schedule, device, bf16=settings.bf16, balance=settings.balance)
        torch.manual_seed(settings.seed)
        self.network = UNet2DModel(unet(settings)).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, ...]:
        mirrored = torch.rand(n, generator=g) < 0.5 if self.settings.flip else torch.zeros(n, dtype=torch.bool)
        return (mirrored, *self.denoising.draw((self.settings.channels, *self.settings.size), n, g))

    def seen(self, rows: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mirrored, label, eps = (d.to(self.device) for d in drawn)
        x0 = signed(self.data.images[rows].to(self.device))
        if self.settings.flip:
            x0 = torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)
        return x0, label, eps

    def loss(self, x0: Tensor, label: Tensor, eps: Tensor) -> Tensor:
        return self.denoising.errors(self.network, x0, label, eps=eps).mean()

    def validate(self, network: nn.Module) -> float:
        return self.denoising.validate(lambda rows: network, signed(self.data.held_out[:N_VALIDATION]))

    def checkpoint(self, network: nn.Module) -> Checkpoint:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
        return Checkpoint(self.network.config, weights, self.schedule)

    def samples(self, network: nn.Module, n: int) -> Tensor:
        model = from_checkpoint(self.checkpoint(network), About("training"), device=str(self.device))
        x: Tensor = ode.decode(model, seeds.noise(model.state_shape, n, seed=0)).x
        return x

    def words(self, n: int) -> tuple[int, Labels]:
        return 8, Labels(caption=f"from noise, {ode.DEFAULT_WAY.steps} steps of {ode.DEFAULT_WAY.solver}")

    def write(self, folder: Path, network: nn.Module) -> None:
        diffusers.write(folder, self.checkpoint(network))


def unet(s: PixelSettings) -> UNetConfig:
    """The network's fields, in diffusers' words."""
    kinds = ["Attn" if i in s.attention else "" for i in range(len(s.block_channels))]
    return UNetConfig.from_dict(
        {
            "sample_size": s.size[0] if s.size[0] == s.size[1] else s.size,
            "in_channels": s.channels,
            "out_channels": s.channels,
            "block_out_channels": s.block_channels,
            "layers_per_block": s.layers,
            "down_block_types": tuple(f"{k}DownBlock2D" for k in kinds),
            "up_block_types": tuple(f"{k}UpBlock2D" for k in kinds[::-1]),
            "norm_num_groups": s.groups,
            "attention_head_dim": s.head_dim,
            "dropout": s.dropout,
        }
    )
