"""Engines: the ways to evaluate a network. Each takes a `Module` and a precision and makes a `Network` of them.

All compute the same in float32, up to rounding; ``bf16`` multiplies with 8-bit mantissas, ``fp16`` with 11. Engines of
other libraries load them when they are made. No engine knows models, schedules or noise levels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from ddimctl import cache
from ddimctl.engines import openvino, pytorch
from ddimctl.errors import UsageError, choose
from ddimctl.network import Call, Module, Network

PRECISIONS = ("float32", "bf16", "fp16")
# Converting a network for OpenVINO takes about as long as computing this much without it would take longer.
PAYS = 1e12  # floating-point operations
HEAVY = (
    400_000_000  # parameters: converting larger networks takes minutes and gigabytes, and is left to who asks for it
)

Engine = Callable[[Module, str], Call]


def make(module: Module, engine: str = "torch", precision: str = "float32") -> Network:
    """The network of that module, evaluated by the engine of that name. Raises `UsageError` where that is not possible."""
    check(engine, precision)
    if precision == "fp16" and module.kind == "cpu":
        raise UsageError("fp16 is for GPUs: CPUs hardly have it", hint="choose --precision bf16")
    if module.prepare is not None and engine != "torch":
        raise UsageError(f"the engine {engine} does not save memory so", hint="--low-memory goes with --engine torch")
    return Network(module, engine, precision, choose(ENGINES, engine, "engine")(module, precision))


def check(engine: str, precision: str) -> None:
    """Raises `UsageError` unless there are such an engine (or "auto") and precision."""
    choose({**dict.fromkeys(("auto", *ENGINES))}, engine, "engine")
    choose(dict.fromkeys(PRECISIONS), precision, "precision")


def pick(module: Module, evaluations: float) -> tuple[str, str]:
    """(engine, why) for so many evaluations of single images: OpenVINO where it is there and pays, else torch."""
    if module.kind != "cpu":
        return "torch", f"on {module.kind}"
    if module.prepare is not None:
        return "torch", "the one that saves memory"
    if importlib.util.find_spec("openvino") is None:
        return "torch", "the extra 'openvino' would be faster on a CPU"
    if cache.has(openvino.graph_name(module)):
        why = "converted before"
    elif module.facts.parameters >= HEAVY:
        return "torch", "a network this large is converted where --engine openvino asks for it"
    else:
        work = evaluations * module.flops
        if work < PAYS:
            return "torch", f"{work:.1e} operations do not pay for a conversion"
        why = f"{work:.1e} operations pay for a conversion"
    try:
        openvino.import_openvino()
    except UsageError as e:
        return "torch", str(e)
    return "openvino", why


ENGINES: dict[str, Engine] = {"torch": pytorch.eager, "compile": pytorch.compiled, "openvino": openvino.openvino}
