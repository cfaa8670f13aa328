"""Less memory for more time, by diffusers' own means: attention in slices, and weights that wait in main memory.

The engine torch alone takes them. What they give is the same, up to rounding where attention is cut.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from ddimctl import engines
from ddimctl.engines import pytorch
from ddimctl.errors import UsageError, choose
from ddimctl.families.autoencoders import quiet
from ddimctl.model import Model


def frugal(model: Model, ways: Sequence[str], device: str) -> Model:
    """`model`, which was loaded on the CPU if its weights are to wait there, to be evaluated on a device in these ways.

    The text encoders stay where they are. Raises `UsageError` for an unknown way, or a network that has none such.
    """
    steps = [choose(WAYS, way, "way to save memory") for way in ways]
    if "offload" in ways and find_spec("accelerate") is None:
        raise UsageError("offload needs accelerate, which diffusers moves weights with", hint="pip install accelerate")
    old = model.network.module
    if not old.mixed:
        raise UsageError(f"the model {model.name} is small, and has no ways to save memory", hint="fewer --batch-size")
    for step, way in zip(steps, ways, strict=True):
        if step is _slice and not hasattr(_denoiser(old.load()), "set_attention_slice"):
            raise UsageError(f"the network of {model.name} has no attention in slices", hint=f"leave {way} away")

    def prepare(network: Any) -> Any:
        for step in steps:
            with quiet():
                step(_denoiser(network), device)
        return network

    waits = "offload" in ways
    module = replace(old, device=device, prepare=prepare, waits=waits)
    autoencoder: Any = model.autoencoder
    if waits:
        vae = pytorch.sharing(autoencoder.vae, "cpu")
        with quiet():
            _offload(vae, device)
        autoencoder = replace(autoencoder, vae=vae)
    made = engines.make(module, model.network.engine, model.network.precision)
    return replace(model, network=made, autoencoder=autoencoder)


def _denoiser(network: Any) -> Any:
    """diffusers' network in what engines call."""
    return next(network.children())


def _slice(denoiser: Any, device: str) -> None:
    denoiser.set_attention_slice("auto")  # half of the heads at a time


def _offload(part: Any, device: str) -> None:
    hooks: Any = importlib.import_module("diffusers.hooks")
    where = torch.device(device)
    hooks.apply_group_offloading(
        part, onload_device=where, offload_device=torch.device("cpu"), offload_type="leaf_level",
        use_stream=where.type == "cuda",
    )  # fmt: skip


WAYS = {"slice": _slice, "offload": _offload}
