"""Training steps as CUDA graphs, beside the same steps operation by operation."""

from __future__ import annotations

import torch
from rounding import apart
from torch import Tensor

from ddimctl.training.captured import Captured
from ddimctl.training.loop import Objective, Task


def drawn(task: Task, seed: int) -> tuple[Tensor, ...]:
    """What a step of four images sees."""
    g = torch.Generator().manual_seed(seed)
    return task.seen(torch.arange(4) + seed, task.draw(4, g))


def furthest(task: Task) -> float:
    """How far losses and gradients of two replays are from those that are computed at once, relatively."""
    objective = Objective(task)
    task.network.train()
    captured = Captured(objective, drawn(task, 0))
    distances = []
    for seed in (1, 2):
        seen = drawn(task, seed)
        loss = captured(seen).clone()
        gradients = {k: p.grad.clone() for k, p in task.network.named_parameters() if p.grad is not None}
        expected = objective(*seen)
        found = torch.autograd.grad(expected, [dict(task.network.named_parameters())[k] for k in gradients])
        distances += [apart(loss, expected)]
        whole = torch.cat([g.flatten() for g in found])
        distances += [apart(torch.cat([g.flatten() for g in gradients.values()]), whole)]
    return max(distances)
