"""Group normalisation that keeps its digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_graph() -> bool:
    """Whether a graph is being made of the network: nothing may depend on numbers then."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


class GroupNorm(nn.GroupNorm):
    """torch's, and a careful way to compute it where torch's loses digits.

    In channels-last memory torch takes E[x²] − E[x]² of plain running sums: where a group's mean is large against its
    spread, or most of its values are equal, as in a picture of one colour, no digit of the result need be right. The
    careful way takes the mean off first and sums pairwise; it agrees with float64. `UNet2DModel.forward` says when.
    """

    def forward(self, x: Tensor, careful: bool = False) -> Tensor:
        if careful:
            return self._carefully(x)
        if self.few and in_graph():
            # Compilers' kernels take the mean off themselves, but round it. Any number near it, taken off before, helps.
            middle = x[:, :, x.shape[2] // 2, x.shape[3] // 2]
            x = x - self._spread(middle.unflatten(1, (self.num_groups, -1)).mean(2, keepdim=True))
        out: Tensor = super().forward(x)
        return out

    @property
    def few(self) -> bool:
        """Whether groups have so few channels that one channel's mean is not small against its group's spread."""
        return self.num_channels // self.num_groups <= 4

    def _carefully(self, x: Tensor) -> Tensor:
        def group_mean(of: Tensor) -> Tensor:
            grouped: Tensor = of.mean((2, 3)).unflatten(1, (self.num_groups, -1))
            return grouped.mean(2, keepdim=True)  # (N, G, 1)

        d = x - self._spread(group_mean(x))
        rest = group_mean(d)  # what rounding left of the mean
        scale = self.weight.view(self.num_groups, -1) * torch.rsqrt(group_mean(d * d) - rest * rest + self.eps)
        shift = torch.addcmul(self.bias.view(self.num_groups, -1), rest, scale, value=-1)
        # In d's own memory: no gradient needs it, see `UNet2DModel._quiet`.
        return torch.addcmul(shift.flatten(1)[..., None, None], d, scale.flatten(1)[..., None, None], out=d)

    def _spread(self, of: Tensor) -> Tensor:
        """(N, G, 1) → (N, C, 1, 1)."""
        return of.expand(-1, -1, self.num_channels // self.num_groups).flatten(1)[..., None, None]
