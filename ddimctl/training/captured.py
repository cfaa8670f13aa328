"""Forward and backward pass as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3  # passes before the capture, in which libraries choose their kernels and take their memory


class Captured:
    """The loss of a module and the gradients of its parameters, which every call writes anew into the same memory.

    Inputs have the shapes of the first. The gradients must stay where they are: `zero_grad(set_to_none=False)`.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]):
        torch.backends.cudnn.benchmark = True  # the shapes are always the same
        seed = torch.initial_seed()
        self.inputs = [x.clone() for x in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                module(*self.inputs).backward()
                module.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss: Tensor = module(*self.inputs)
            self.loss.backward()
        torch.manual_seed(seed)  # what was drawn so far, such as for dropout, is drawn again by the first replay

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for ours, given in zip(self.inputs, inputs, strict=True):
            ours.copy_(given)
        self.graph.replay()
        return self.loss.detach()
