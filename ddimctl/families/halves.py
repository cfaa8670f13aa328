"""The two halves of an autoencoder as modules that engines evaluate, as they do networks: images → states, and back.

Always in float32, whatever the network computes in, and image by image. By tiles, and on GPUs but for the compiler, an
autoencoder stays with diffusers and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ddimctl import cache, engines
from ddimctl.engines import openvino
from ddimctl.families.autoencoders import Latents
from ddimctl.files import sha256
from ddimctl.model import Autoencoder, Model
from ddimctl.network import Facts, Module


class Up(nn.Module):
    """Images → latents; a label is what engines give, and of no use here."""

    def __init__(self, vae: Any, of: Callable[[Any], Tensor]):
        super().__init__()
        self.vae, self.of = vae, of

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.of(self.vae.encode(x))


class Down(nn.Module):
    """Latents → images."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.vae.decode(x, return_dict=False)[0]
        return out


def halves(found: Latents, size: tuple[int, int]) -> tuple[Module, Module]:
    """Both, for images of that (height, width)."""
    height, width = size
    state = (found.channels, height // found.factor, width // found.factor)
    vae, digest = found.vae, found.digest
    n = sum(p.numel() for p in vae.parameters())

    def module(kind: str, shape: tuple[int, int, int], network: nn.Module, *, gives: int) -> Module:
        facts = Facts(sha256(f"{kind} of {digest}".encode()), n, flops=0)
        return Module(shape, str(vae.device), lambda: network.eval(), lambda: facts, gives=gives)

    up = module("up", (found.image_channels, height, width), Up(vae, found.of), gives=found.channels)
    return up, module("down", state, Down(vae), gives=found.image_channels)


def evaluated(model: Model, engine: str, *, known: bool = False) -> Autoencoder:
    """The model's autoencoder as that engine evaluates it; by itself where there is none, or it goes by tiles.

    With `known` only where the engine is one that made it ready before, which the cache tells.
    """
    found = model.autoencoder
    if not isinstance(found, Latents):
        return found
    alone = found.but(by=None)
    if engine == "torch" or found.tile is not None:
        return alone
    modules = halves(found, model.size)
    if known and not (engine == "openvino" and all(cache.has(openvino.graph_name(m)) for m in modules)):
        return alone
    up, down = (engines.make(module, engine) for module in modules)
    return found.but(by=(up, down))
