"""The way into a latent space and back: diffusers' ``AutoencoderKL``, trained, or exact and of pixels.

What is published is centred and scaled: each channel of the latents has mean 0 over the training images, which the
outermost convolutions take care of, and their standard deviation is 1 after the configuration's ``scaling_factor``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddimctl import seeds
from ddimctl.checkpoints.parts import config_of, read_part, write_index, write_part
from ddimctl.errors import FileError
from ddimctl.images.labels import Labels
from ddimctl.training.data import Data, Images, signed
from ddimctl.training.denoising import normal
from ddimctl.training.settings import AutoencoderSettings

LARGE = 256.0  # against pixels; a power of two, so that halves hold it


class Autoencoder:
    """A `Task`: images through a narrow place, which is kept smooth by noise."""

    space = ""

    def __init__(self, settings: AutoencoderSettings, data: Data, device: torch.device):
        self.settings, self.data, self.device = settings, data, device
        torch.manual_seed(settings.seed)
        self.network: Any = make(
            settings.channels,
            settings.latent_channels,
            settings.block_channels,
            layers=settings.layers,
            groups=settings.groups,
        ).to(device)
        self.network.to(memory_format=torch.channels_last)

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, ...]:
        s = self.settings
        down = len(s.block_channels) - 1
        mirrored = torch.rand(n, generator=g) < 0.5 if s.flip else torch.zeros(n, dtype=torch.bool)
        colours = recolouring(n, g) if s.hue else torch.eye(3).expand(n, 3, 3)
        shape = (n, s.latent_channels, *(side >> down for side in s.size))
        return mirrored, colours, normal(shape, g, self.device)

    def seen(self, rows: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mirrored, colours, eps = (d.to(self.device) for d in drawn)
        x = signed(self.data.images[rows].to(self.device))
        if self.settings.flip:
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        if self.settings.hue:
            x = recoloured(x, colours)
        return x.contiguous(memory_format=torch.channels_last), eps

    def loss(self, x: Tensor, eps: Tensor) -> Tensor:
        """|x − y| + |x − y|² + half of |∇x − ∇y|, and `kl` nats for each dimension of the latents."""
        with self._cast():
            posterior = self.network.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + (0.5 * logvar).exp() * eps
            y = self.network.decode(z).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        slopes = F.l1_loss(x.diff(dim=-1), y.diff(dim=-1)) + F.l1_loss(x.diff(dim=-2), y.diff(dim=-2))
        loss: Tensor = F.l1_loss(x, y) + F.mse_loss(x, y) + 0.5 * slopes + self.settings.kl * kl
        return loss

    def validate(self, network: nn.Module) -> float:
        """The mean squared error per dimension, pixels in [0, 1], of the mean's way there and back."""
        total = 0.0
        for part in self.data.held_out.split(64):
            x = signed(part).to(self.device)
            total += ((self._reconstruct(network, x) - x) / 2).square().mean((1, 2, 3)).sum().item()
        return total / len(self.data.held_out)

    def samples(self, network: nn.Module, n: int) -> Tensor:
        """Held-out images, each beside what comes back of it."""
        x = signed(self.data.held_out[: max(n // 2, 1)]).to(self.device)
        return torch.stack([x, self._reconstruct(network, x)], 1).flatten(0, 1).cpu()

    def words(self, n: int) -> tuple[int, Labels]:
        return 8, Labels(above=("held out", "decoded") * 4, caption="each image beside what comes back of it")

    @torch.no_grad()
    def write(self, folder: Path, network: nn.Module) -> None:
        published: Any = make(**_shape(network))
        published.load_state_dict(network.state_dict())
        z = torch.cat([network.encode(signed(x).to(self.device)).latent_dist.mean.cpu()  # type: ignore[operator]
                       for x in self.data.images[:1024].split(64)])  # fmt: skip
        centre(published, z.mean((0, 2, 3)))
        scale = 1 / float((z - z.mean((0, 2, 3), keepdim=True)).std().clamp(min=1e-6))
        published.register_to_config(scaling_factor=scale, sample_size=self.settings.size[0])
        write_part(folder / "vae", config_of(published), published.state_dict())
        write_index(folder, "AutoencoderKL", {"vae": ("diffusers", "AutoencoderKL")})

    def _reconstruct(self, network: Any, x: Tensor) -> Tensor:
        with self._cast():
            y: Tensor = network.decode(network.encode(x).latent_dist.mean).sample
        return y.float().clamp(-1, 1)

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.settings.bf16 else contextlib.nullcontext()


def make(channels: int, latent: int, blocks: tuple[int, ...], *, layers: int, groups: int) -> Any:
    """diffusers' own class, without attention."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    return kind(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent,
        block_out_channels=blocks,
        layers_per_block=layers,
        norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def _shape(network: Any) -> dict[str, Any]:
    c = network.config
    return {
        "channels": c.in_channels,
        "latent": c.latent_channels,
        "blocks": tuple(c.block_out_channels),
        "layers": c.layers_per_block,
        "groups": c.norm_num_groups,
    }


@torch.no_grad()
def centre(network: Any, mean: Tensor) -> None:
    """Takes `mean` off the latents and adds it again before they are decoded: the pictures stay the same."""
    network.quant_conv.bias[: len(mean)] -= mean
    network.post_quant_conv.bias += network.post_quant_conv.weight[:, :, 0, 0] @ mean


@torch.no_grad()
def of_pixels(channels: int) -> Any:
    """An autoencoder whose latents are the pixels, to about 1e-5: for networks of pixels in a layout that asks for one.

    Its residual blocks add nothing. Around the norm and the SiLU at the end of each half every value v goes as the pair
    (v, −v), beside a large constant and its negative: so the mean of the group is 0, its variance the constant's, and
    silu(v) − silu(−v) = v.
    """
    width = 2 * channels + 2
    network = make(channels, channels, (width,), layers=1, groups=1)
    for p in network.parameters():
        p.zero_()
    for half in (network.encoder, network.decoder):
        for i in range(channels):
            half.conv_in.weight[2 * i, i, 1, 1], half.conv_in.weight[2 * i + 1, i, 1, 1] = 1, -1
            half.conv_out.weight[i, 2 * i, 1, 1], half.conv_out.weight[i, 2 * i + 1, 1, 1] = 1, -1
        half.conv_in.bias[-2:] = torch.tensor([LARGE, -LARGE])
        half.conv_norm_out.weight.fill_(LARGE * math.sqrt(2 / width))
    one = torch.eye(channels).view(channels, channels, 1, 1)
    network.quant_conv.weight[:channels, :channels] = one
    network.quant_conv.bias[channels:] = -30  # the least log variance there is: the mean is all
    network.post_quant_conv.weight.copy_(one)
    return network


def load(folder: Path) -> Any:
    """The autoencoder that a run of ours, or another's pipeline, keeps in ``vae/``. Raises `FileError`."""
    from diffusers import AutoencoderKL

    config, weights = read_part(folder / "vae", "AutoencoderKL")
    try:
        kind: Any = AutoencoderKL
        network = kind.from_config(config)
        network.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError, KeyError) as e:
        raise FileError(f"{folder / 'vae'} is not an AutoencoderKL: {str(e).splitlines()[0]}") from e
    return network.eval().requires_grad_(False)


def encode(network: Any, images: Images) -> Tensor:
    """uint8 images → the latents a diffusion model sees, where the network is: the mean, never a sample."""
    return torch.cat(list(encoded(network, images)))


def encoded(network: Any, images: Images) -> Iterator[Tensor]:
    """As `encode`, some at a time."""
    shift = network.config.shift_factor or 0.0
    for x in images.split(64):
        with torch.no_grad():
            mean = network.encode(signed(x.to(network.device))).latent_dist.mean
            yield (mean - shift) * float(network.config.scaling_factor)


def decode(network: Any, z: Tensor) -> Tensor:
    """Latents → images in about [−1, 1]."""
    shift = network.config.shift_factor or 0.0
    parts = (z.to(network.device) / network.config.scaling_factor + shift).split(64)
    return torch.cat([network.decode(part).sample for part in parts]).cpu()


def recolouring(n: int, g: torch.Generator) -> Tensor:
    """Matrices (n, 3, 3) on colours: a quarter turns hues, a quarter permutes channels; white stays white."""
    turn = torch.rand(n, generator=g) * 2 * math.pi
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) * 3**-0.5
    cos, sin = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
    matrix = torch.eye(3) * cos + sin * cross + (1 - cos) * torch.outer(axis, axis)  # Rodrigues, about grey
    order = torch.rand(n, 3, generator=g).argsort(1)
    kind = torch.rand(n, generator=g).view(-1, 1, 1)
    return torch.where(kind < 0.5, torch.eye(3), torch.where(kind < 0.75, torch.eye(3)[order], matrix))


def recoloured(x: Tensor, matrices: Tensor) -> Tensor:
    return torch.einsum("nij,njhw->nihw", matrices, x).clamp(-1, 1)


def noise(network: Any, size: tuple[int, int], n: int) -> Tensor:
    """Gaussian latents of images of `size`, the same each time."""
    down = 2 ** (len(network.config.block_out_channels) - 1)
    return seeds.noise((network.config.latent_channels, size[0] // down, size[1] // down), n, seed=0)
