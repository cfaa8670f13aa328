"""A network as the rest of the house sees it: a function (x_t, labels, embedded) → prediction, made of a module.

A `Module` is what an engine makes a `Network` of; it is loaded when an engine first asks for it. Neither knows models,
schedules or noise levels, and neither needs torch to exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ddimctl.arrays import Array

# What a condition becomes for the network: its further arguments by name, each with one row, or one an image.
Embedded = Mapping[str, Array]
Call = Callable[[Array, Sequence[float], Embedded], Array]


@dataclass(frozen=True)
class Module:
    """A torch module in waiting, and what engines need to know of it beforehand.

    `load` gives the module where its weights lie, and is called as ``module(x_t, labels, **embedded)``; `describe` finds
    out what costs time, `count` the operations of one evaluation for one state of a shape.
    """

    state_shape: tuple[int, int, int]  # (C, H, W) of x_t
    device: str  # torch's name of where it is
    load: Callable[[], Any]
    describe: Callable[[], Facts]
    dtype: str = "float32"  # of its weights
    activations: int = 0  # numbers held at once while one image goes through, if known: see `engines.pytorch`
    count: Callable[[tuple[int, int, int]], int] | None = None  # where `facts` does not have it
    mixed: bool = False  # whether the images of a batch may hear different things, a row each
    prepare: Callable[[Any], Any] | None = None  # what the engine torch does to a copy first, to save memory
    gives: int = 0  # the channels of its output that count, if not as many as go in
    waits: bool = False  # whether its weights wait on the CPU until `prepare` has them fetched

    @cached_property
    def torch(self) -> Any:
        """The module itself, on its device, in evaluation mode."""
        return self.load().to(self.device)

    @cached_property
    def facts(self) -> Facts:
        return self.describe()

    @cached_property
    def flops(self) -> int:
        """Operations of one evaluation for one image, 0 if not known; a multiplication and an addition are two."""
        return self.facts.flops if self.count is None else self.count(self.state_shape)

    @property
    def kind(self) -> str:
        """Its device without a number: cpu, cuda, mps."""
        return self.device.partition(":")[0]

    @property
    def state_device(self) -> str:
        """Where x̄ lives: with the network, except on MPS, which has no float64."""
        return "cpu" if self.kind == "mps" else self.device


@dataclass(frozen=True)
class Facts:
    """What takes a look at the weights, or a pass through the network, to find out."""

    digest: str  # SHA-256 of what it computes: the same whatever format it came from, another for any other weight
    parameters: int
    flops: int  # see `Module.flops`


@dataclass(frozen=True)
class Network:
    """A module with an engine that evaluates it.

    Called with x_t (B, C, H, W) float64 and labels, B numbers or one for all, it gives an array of the same kind as x_t.
    """

    module: Module
    engine: str
    precision: str
    call: Call

    def __call__(self, x: Array, labels: Sequence[float], embedded: Embedded) -> Array:
        return self.call(x, labels, embedded)

    @property
    def needs_torch(self) -> bool:
        """Whether it takes tensors alone."""
        return self.engine != "openvino"

    @property
    def dtype(self) -> str:
        """What it computes in, as a latent's provenance says it."""
        return DTYPES.get(self.precision, self.module.dtype)


DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # of the precisions that are not the weights' own
