"""Engines: the ways to evaluate the network. `eps` asks one, and knows nothing of how it answers.

An engine takes a model and gives a function (x_t, labels) → prediction: x_t is (B, C, H, W) float64, labels B numbers or
one for all, and the result an array of the same kind as x_t. All engines compute the same in float32, up to rounding;
``bf16`` multiplies with 8-bit mantissas. Engines of other libraries load them when they are made.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl import cache
from ddimctl.errors import UsageError, choose
from ddimctl.implicit import Array, per_image

if TYPE_CHECKING:
    from ddimctl.model import Model

Run = Callable[[Array, Sequence[float]], Array]

PRECISIONS = ("float32", "bf16")
# Converting a network for OpenVINO takes about as long as computing this much without it would take longer.
PAYS = 1e12  # floating-point operations
# A compiled OpenVINO network has one batch size. Whatever the batch, parts of these sizes make it up, so nothing is ever
# compiled for a last batch that is smaller; an image costs about the same from four on.
PARTS = (16, 4, 1)
ROOM = 2 << 30  # bytes for what is between the layers, with torch
LARGE = 50_000_000  # parameters: larger networks go image by image, and so are held once


def torch_eager(model: Model) -> Run:
    """PyTorch, operation by operation; on every device."""
    return _with_torch(model, model.network)


def torch_compile(model: Model) -> Run:
    """PyTorch's compiler: half a minute or more at the first evaluation of a process, and a C++ compiler, are its price."""
    import shutil

    import torch

    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "cl"))):
        raise UsageError("the engine compile needs a C++ compiler", hint="install g++, or use --engine torch")
    compiled: Any = torch.compile(model.network)

    def network(x: Any, labels: Any, classes: Any) -> Any:
        labels = labels.expand(len(x)).contiguous()  # one shape of labels, so one graph for both uses
        if len(x) > 1:  # a batch of one is a graph of its own in any case
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(labels, 0)
        return compiled(x, labels, classes)

    return _with_torch(model, network, torch.no_grad)  # the compiler does not know inference tensors' versions


def _with_torch(model: Model, network: Callable[..., Any], without_gradients: Any = None) -> Run:
    import torch

    weight = model.network.conv_in.weight
    classes = None if model.class_label is None else torch.tensor([model.class_label], device=weight.device)
    bf16 = model.precision == "bf16"
    most = most_at_once(model)

    def run(x: Array, labels: Sequence[float]) -> Array:
        with (
            (without_gradients or torch.inference_mode)(),
            torch.autocast(weight.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext(),
        ):
            net_in = x.to(weight.device, weight.dtype, memory_format=torch.channels_last)
            label = torch.tensor(labels, device=weight.device)
            if len(x) <= most:
                out = network(net_in, label, classes)
            else:
                each = label.expand(len(x)) if len(label) == 1 else label
                parts = zip(net_in.split(most), each.split(most), strict=True)
                out = torch.cat([network(a, b[:1] if len(label) == 1 else b, classes) for a, b in parts])
        return out.to(x.device, x.dtype)

    return run


def most_at_once(model: Model) -> int:
    """Images that torch is given at once, however large the batch. Not this machine's choice: results would differ."""
    if model.config.image_size is None:
        return 64
    return max(1, ROOM // (4 * model.config.activation_floats()))


def openvino(model: Model) -> Run:
    """OpenVINO (extra ``openvino``), on CPUs. What it makes of the network is cached, by weights and shape."""
    if model.device.type != "cpu":
        raise UsageError(f"the engine openvino runs on CPUs, not on {model.device.type}", hint="add --device cpu")
    import numpy as np

    core = _core(import_openvino())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if model.precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads(),
    }
    machine = core.get_property("CPU", "FULL_DEVICE_NAME")
    parts = PARTS if model.parameters < LARGE else (1,)
    requests: dict[tuple[int, ...], Any] = {}

    def request(shape: tuple[int, ...]) -> Any:
        """The network compiled for x of that shape, and room for its input and output."""
        if shape not in requests:

            def compiled() -> bytes:
                graph = _read(core, cache.fetch(graph_name(model, shape[1:]), lambda: _convert(model, shape[1:])))
                graph.reshape({0: list(shape), 1: [shape[0]]})
                return bytes(core.compile_model(graph, "CPU", settings).export_model().getvalue())

            # The number of threads is a part of what is exported.
            key = cache.name(graph_name(model, shape[1:]), shape, sorted(settings.items()), machine)
            with _no_limit_of_instructions():
                blob = cache.fetch(key, compiled)
                requests[shape] = core.import_model(io.BytesIO(blob), "CPU", settings).create_infer_request()
        return requests[shape]

    def run(x: Array, labels: Sequence[float]) -> Array:
        x32, label = np.asarray(x, np.float32), np.asarray(labels, np.float32)
        label = np.broadcast_to(label, (len(x32),))
        outs, start = [], 0
        for size in parts:
            for _ in range((len(x32) - start) // size):
                rows = slice(start, start + size)
                request((size, *x32.shape[1:])).infer([x32[rows], label[rows]], share_inputs=True)
                outs.append(np.array(requests[(size, *x32.shape[1:])].get_output_tensor(0).data))
                start += size
        out = np.concatenate(outs) if outs else np.zeros_like(x32)
        return x.new_tensor(out) if hasattr(x, "new_tensor") else out.astype(x.dtype)

    return run


def import_openvino() -> Any:
    """OpenVINO's module. Raises `UsageError` if it is not installed, or cannot be loaded."""
    if importlib.util.find_spec("openvino") is None:
        raise UsageError(
            "the engine openvino needs the extra 'openvino'", hint="install it with: pip install 'ddimctl[openvino]'"
        )
    try:
        return importlib.import_module("openvino")
    except Exception as e:  # a broken installation fails in ways of its own
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise UsageError(f"the engine openvino cannot be loaded: {reason}", hint="--engine torch needs nothing") from e


@functools.cache
def _core(ov: Any) -> Any:
    """The process's one core, never freed. OpenVINO's CPU plugin gives the thread that makes it a stack for its signal
    handlers; freed in another thread, the memory goes and the stack stays, and the next Ctrl-C is a segmentation fault."""
    return ov.Core()


@contextlib.contextmanager
def _no_limit_of_instructions() -> Iterator[None]:
    """OpenVINO reads oneDNN's limit when it makes its first network. It crashes where that is below what the processor
    has, for its own kernels know no limit; torch, which heeds it, finds it there again."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    limits = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(limits)


def threads() -> int:
    """The threads that an engine may use: ``OMP_NUM_THREADS``, which torch heeds too, or the processors there are."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def graph_name(model: Model, shape: tuple[int, ...]) -> str:
    """The cache's name for the network as OpenVINO reads it, for images of (C, H, W)."""
    return cache.name("openvino graph", 1, version("openvino"), model.digest, model.class_label, shape)


def _convert(model: Model, shape: tuple[int, ...]) -> bytes:
    """The network as OpenVINO's own format, in one piece: the length of its XML, that, and the weights."""
    import torch

    ov: Any = importlib.import_module("openvino")
    decoder: Any = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    network = model.network

    class Unconditional(torch.nn.Module):
        """The class is a part of the graph, and learned variances are not."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any, label: Any) -> Any:
            classes = None if model.class_label is None else torch.tensor([model.class_label])
            return self.network(x, label, classes)[:, : model.channels]

    # Two images with a label each: one would be traced as the special case that it is. (`openvino.convert_model` does
    # this too, but traces thrice to compare, and reports itself to its makers.)
    example = (torch.zeros(2, *shape), torch.tensor([0.0, 1.0]))
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of branches, which all take the general way
        traced = decoder.TorchScriptPythonDecoder(
            Unconditional().eval(), example_input=example, trace_kwargs={"check_trace": False}
        )
    frontend = ov.frontend.FrontEndManager().load_by_framework("pytorch")
    graph = frontend.convert(frontend.load(traced))
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.save_model(graph, str(xml), compress_to_fp16=False)
        text = xml.read_bytes()
        return len(text).to_bytes(8, "little") + text + weights.read_bytes()


def _read(core: Any, data: bytes) -> Any:
    """The graph in what `_convert` made."""
    import numpy as np

    ov: Any = importlib.import_module("openvino")
    length = int.from_bytes(data[:8], "little")
    weights = np.frombuffer(data, np.uint8, offset=8 + length).copy()
    return core.read_model(data[8 : 8 + length].decode(), ov.Tensor(weights))


def eps(model: Model, xbar: Array, sigma: float | Sequence[float]) -> Array:
    """ε by whatever `model` predicts: see `Model.eps`.

    The only place that knows the scaling x̄ → x_t, the translation σ → label, what the network predicts, and learned
    variances.
    """
    levels = [sigma] if isinstance(sigma, float | int) else list(sigma)
    x = xbar * per_image([1.0 / math.sqrt(1.0 + s * s) for s in levels], xbar)
    # A network with twice the channels has learned variances too; DDIM has no use for them.
    out = model.run(x, [model.schedule.label(s) * model.label_scale for s in levels])[:, : model.channels]
    if model.prediction == "epsilon":
        return out
    # Below the first trained level the network is asked at that level; so is the algebra around it.
    alpha = [1.0 / (1.0 + max(s, model.schedule.sigma(1)) ** 2) for s in levels]
    root = per_image([math.sqrt(a) for a in alpha], xbar)
    rest = per_image([math.sqrt(1 - a) for a in alpha], xbar)
    if model.prediction == "v_prediction":  # v = √α ε − √(1−α) x_0
        return root * out + rest * x
    return (x - root * out) / rest  # the network predicts x_0


ENGINES: dict[str, Callable[[Model], Run]] = {"torch": torch_eager, "compile": torch_compile, "openvino": openvino}


def check(engine: str, precision: str) -> None:
    """Raises `UsageError` unless there are such an engine (or "auto") and precision."""
    choose({**dict.fromkeys(("auto", *ENGINES))}, engine, "engine")
    choose(dict.fromkeys(PRECISIONS), precision, "precision")


def pick(model: Model, evaluations: float) -> tuple[str, str]:
    """(engine, why) for so many evaluations of single images: OpenVINO where it is there and pays, else torch."""
    if model.device.type != "cpu":
        return "torch", f"on {model.device.type}"
    if importlib.util.find_spec("openvino") is None:
        return "torch", "the extra 'openvino' would be faster on a CPU"
    if cache.has(graph_name(model, model.shape)):
        why = "converted before"
    else:
        work = evaluations * model.flops
        if work < PAYS:
            return "torch", f"{work:.1e} operations do not pay for a conversion"
        why = f"{work:.1e} operations pay for a conversion"
    try:
        import_openvino()
    except UsageError as e:
        return "torch", str(e)
    return "openvino", why
