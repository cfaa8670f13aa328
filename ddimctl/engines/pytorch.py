"""PyTorch as an engine: operation by operation, or through its compiler; and its devices."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ddimctl.arrays import Array, rows
from ddimctl.errors import UsageError
from ddimctl.network import DTYPES, Call, Embedded, Module

if TYPE_CHECKING:
    import torch

ROOM = 2 << 30  # bytes for what is between the layers


def eager(module: Module, precision: str) -> Call:
    """PyTorch, operation by operation; on every device."""
    import torch

    return _call(module, precision, _held(module, precision), without_gradients=torch.inference_mode)


def can_compile(kind: str) -> bool:
    """Whether PyTorch's compiler finds what it needs for that kind of device."""
    import shutil

    return kind != "cpu" or any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "cl")))


def compiled(module: Module, precision: str) -> Call:
    """PyTorch's compiler: half a minute or more at the first evaluation of a process, and a C++ compiler, are its price."""
    import torch

    if not can_compile(module.kind):
        raise UsageError("the engine compile needs a C++ compiler", hint="install g++, or use --engine torch")
    made: Any = torch.compile(_held(module, precision))

    def network(x: Any, labels: Any, **embedded: Any) -> Any:
        # One shape of labels, and of what is heard, so one graph for all uses.
        labels = labels.expand(len(x)).contiguous()
        embedded = {k: rows(v, len(x)).contiguous() for k, v in embedded.items()}
        if len(x) > 1:  # a batch of one is a graph of its own in any case
            for tensor in (x, labels, *embedded.values()):
                torch._dynamo.mark_dynamic(tensor, 0)
        return made(x, labels, **embedded)

    return _call(
        module, precision, network, without_gradients=torch.no_grad
    )  # the compiler does not know inference tensors' versions


def _call(module: Module, precision: str, network: Callable[..., Any], *, without_gradients: Any) -> Call:
    import torch

    device, dtype = torch.device(module.device), getattr(torch, module.dtype)
    half = getattr(torch, DTYPES[precision]) if precision in DTYPES else None
    most = most_at_once(module)

    def part(heard: Any, begin: int) -> Any:
        return heard if len(heard) == 1 else heard[begin : begin + most]

    def call(x: Array, labels: Sequence[float], embedded: Embedded) -> Array:
        with without_gradients(), _casting(device.type, half):
            net_in = x.to(device, dtype, memory_format=torch.channels_last)
            label = torch.tensor(labels, device=device)
            further = {k: torch.as_tensor(v, device=device) for k, v in embedded.items()}
            parts = [
                network(net_in[i : i + most], part(label, i), **{k: part(v, i) for k, v in further.items()})
                for i in range(0, max(len(x), 1), most)
            ]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.to(x.device, x.dtype)

    return call


@contextlib.contextmanager
def _casting(kind: str, half: Any) -> Iterator[None]:
    """Multiplications in a half precision, if one is named; without torch's words about which of its ways that takes."""
    import torch

    if half is None:
        yield
        return
    with warnings.catch_warnings(action="ignore"), torch.autocast(kind, half):
        yield


def _held(module: Module, precision: str) -> Any:
    """The module, on its device. In a half precision what multiplies is cast once, in a copy that shares all the rest:
    autocast would do it at each evaluation, of weights that take twice the room."""
    if precision not in DTYPES and module.prepare is None:
        return module.torch
    held = sharing(module.load(), "cpu" if module.waits else module.device, DTYPES.get(precision))
    return held if module.prepare is None else module.prepare(held)


def sharing(network: Any, device: str, half: str | None = None) -> Any:
    """A copy of a module that shares its weights, but for those that are to be elsewhere, or in a half precision."""
    import torch

    kind = None if half is None else getattr(torch, half)
    shared: dict[int, Any] = {}
    for p in network.parameters():
        w = p.detach().to(device, kind if p.ndim > 1 else None)
        shared[id(p)] = torch.nn.Parameter(w, requires_grad=False)
    shared |= {id(b): b.to(device) for b in network.buffers()}
    return copy.deepcopy(network, shared)


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


def hurry(module: Module) -> None:
    """The fastest convolutions on CUDA, for shapes that come again and again; which ones, differs from run to run."""
    if module.kind == "cuda":
        import torch

        torch.backends.cudnn.benchmark = True
