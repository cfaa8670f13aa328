"""PyTorch as an engine: operation by operation, or through its compiler; and its devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ddimctl.arrays import Array
from ddimctl.errors import UsageError
from ddimctl.network import Call, Embedded, Module

if TYPE_CHECKING:
    import torch

ROOM = 2 << 30  # bytes for what is between the layers


def eager(module: Module, precision: str) -> Call:
    """PyTorch, operation by operation; on every device."""
    import torch

    return _call(module, precision, module.torch, without_gradients=torch.inference_mode)


def compiled(module: Module, precision: str) -> Call:
    """PyTorch's compiler: half a minute or more at the first evaluation of a process, and a C++ compiler, are its price."""
    import shutil

    import torch

    if module.kind == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "cl"))):
        raise UsageError("the engine compile needs a C++ compiler", hint="install g++, or use --engine torch")
    made: Any = torch.compile(module.torch)

    def network(x: Any, labels: Any, **embedded: Any) -> Any:
        labels = labels.expand(len(x)).contiguous()  # one shape of labels, so one graph for both uses
        if len(x) > 1:  # a batch of one is a graph of its own in any case
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(labels, 0)
        return made(x, labels, **embedded)

    return _call(
        module, precision, network, without_gradients=torch.no_grad
    )  # the compiler does not know inference tensors' versions


def _call(module: Module, precision: str, network: Callable[..., Any], *, without_gradients: Any) -> Call:
    import torch

    device, dtype = torch.device(module.device), getattr(torch, module.dtype)
    most = most_at_once(module)

    def call(x: Array, labels: Sequence[float], embedded: Embedded) -> Array:
        with (
            without_gradients(),
            torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext(),
        ):
            net_in = x.to(device, dtype, memory_format=torch.channels_last)
            label = torch.tensor(labels, device=device)
            further = {k: torch.as_tensor(v, device=device) for k, v in embedded.items()}
            if len(x) <= most:
                out = network(net_in, label, **further)
            else:
                each = label.expand(len(x)) if len(label) == 1 else label
                parts = zip(net_in.split(most), each.split(most), strict=True)
                out = torch.cat([network(a, b[:1] if len(label) == 1 else b, **further) for a, b in parts])
        return out.to(x.device, x.dtype)

    return call


def most_at_once(module: Module) -> int:
    """Images that torch is given at once, however large the batch. Not this machine's choice: results would differ."""
    return max(1, ROOM // (4 * module.activations)) if module.activations else 64


def device(name: str) -> str:
    """The device of that name, "auto" being the best there is. Raises `UsageError` if it does not exist here."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found: torch.device = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise UsageError(f"the device {name!r} is not available here", hint="use auto, cpu, cuda or mps") from e
    if found.type == "cuda":  # inversion needs the digits that TF32 drops
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return str(found)
