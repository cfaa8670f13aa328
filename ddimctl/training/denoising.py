"""The objective of diffusion models: the network sees x_t = √α_t x_0 + √(1−α_t) ε and predicts ε (eq. 5, L with γ_t).

γ_t = 1 is the paper's. A `balance` B above 0 weighs by γ_t ∝ 1 + min(σ_t², B), of mean 1: at the noisy end the network
decides what the picture is to be, and an error of ε there is one of x_0 that is σ times as large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddimctl import seeds
from ddimctl.schedule import Schedule

N_VALIDATION = 1024

Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t, labels) → ε


def normal(shape: Sequence[int], g: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers from `g`; of a GPU its own, seeded by `g`, since it would wait for the processor's."""
    if device.type != "cuda":
        return torch.randn(*shape, generator=g)
    seed = int(torch.randint(0, 2**62, (), generator=g))
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)


class Denoising:
    """The loss of a network that predicts ε, on one device."""

    def __init__(self, schedule: Schedule, device: torch.device, *, bf16: bool, balance: float = 0.0):
        self.schedule, self.device, self.bf16 = schedule, device, bf16
        self.alpha = torch.tensor(schedule.alpha[1:], device=device)  # by label, so from paper time 1
        weight = 1 + (1 / self.alpha - 1).clamp(max=balance)
        self.weight = (weight / weight.mean()).float()

    def draw(self, shape: Sequence[int], n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Labels and noise for n states of that shape, both from `g`."""
        label = torch.randint(0, self.schedule.T, (n,), generator=g)
        return label, normal((n, *shape), g, self.device)

    def errors(self, predict: Predict, x0: Tensor, label: Tensor, *, eps: Tensor) -> Tensor:
        """γ_t |ε − ε_θ|² for each image, a mean over its dimensions."""
        alpha = self.alpha[label].view(-1, 1, 1, 1)
        xt = (alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps).to(memory_format=torch.channels_last)
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        # At these short sequences plain attention's backward pass takes a seventh of the fused one's time on a CPU.
        plain = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()
        with cast, plain:
            out = predict(xt, label)
        return self.weight[label] * (out.float() - eps).square().mean((1, 2, 3))

    def validate(self, predict: Callable[[Tensor], Predict], held_out: Tensor) -> float:
        """The mean over many noise levels, the same each time. `predict` makes a network of the rows it is to see."""
        n = N_VALIDATION  # of few images each is seen at several noise levels
        rows = torch.arange(n) % len(held_out)
        eps = seeds.noise(held_out.shape[1:], n, seed=1)
        label = (torch.arange(n) * 7919 % n) * self.schedule.T // n  # spread, and not in step with the images
        total = 0.0
        for some, t, noise in zip(rows.split(64), label.split(64), eps.split(64), strict=True):
            x0 = held_out[some].to(self.device)
            total += self.errors(predict(some), x0, t.to(self.device), eps=noise.to(self.device)).sum().item()
        return total / n
