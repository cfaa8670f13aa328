"""OpenVINO as an engine (extra ``openvino``), on CPUs. What it makes of a network is cached, by weights and shape."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddimctl import cache
from ddimctl.arrays import Array, as_kind, rows, to_numpy
from ddimctl.engines.processors import threads
from ddimctl.errors import UsageError
from ddimctl.network import Call, Embedded, Module

# A compiled OpenVINO network has one batch size. Whatever the batch, parts of these sizes make it up, so nothing is ever
# compiled for a last batch that is smaller; an image costs about the same from four on.
PARTS = (16, 4, 1)
LARGE = 50_000_000  # parameters: larger networks go image by image, and so are held once, compiled in each process
ALIGNED = 64  # bytes: where weights may begin


def openvino(module: Module, precision: str) -> Call:
    """Raises `UsageError` on other devices, or without the extra."""
    if module.kind != "cpu":
        raise UsageError(f"the engine openvino runs on CPUs, not on {module.kind}", hint="add --device cpu")
    core = _core(import_openvino())
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads(),
        "ENABLE_CPU_PINNING": False,  # two processes would share one processor, whatever others are free
    }
    machine = core.get_property("CPU", "FULL_DEVICE_NAME")
    large = module.facts.parameters >= LARGE
    parts = (1,) if large else PARTS
    requests: dict[Any, Any] = {}
    held: list[memoryview] = []  # the graph, whose weights a network compiled from it may go on to use

    def request(shape: tuple[int, ...], further: dict[str, np.ndarray]) -> Any:
        """The network compiled for x of that shape, and room for its input and output."""
        if shape not in requests:

            def compiled() -> Any:
                if not held:
                    held.append(cache.mapped(graph_name(module), lambda file: _convert(module, further, file)))
                graph = _read(core, held[0])
                graph.reshape(dict(enumerate([list(shape), [shape[0]], *(list(v.shape) for v in further.values())])))
                return core.compile_model(graph, "CPU", settings)

            with _no_limit_of_instructions():
                if large:
                    requests[shape] = compiled().create_infer_request()
                    return requests[shape]
                # The number of threads is a part of what is exported.
                key = cache.name(graph_name(module), shape, sorted(settings.items()), machine)
                blob = cache.fetch(key, lambda: bytes(compiled().export_model().getvalue()))
                held.clear()
                requests[shape] = core.import_model(io.BytesIO(blob), "CPU", settings).create_infer_request()
        return requests[shape]

    def call(x: Array, labels: Sequence[float], embedded: Embedded) -> Array:
        x32, label = to_numpy(x).astype(np.float32), np.asarray(labels, np.float32)
        label = np.broadcast_to(label, (len(x32),))
        further = {k: to_numpy(rows(v, len(x32))) for k, v in embedded.items()}
        outs, start = [], 0
        for size in parts:
            for _ in range((len(x32) - start) // size):
                part = slice(start, start + size)
                heard = {k: np.ascontiguousarray(v[part]) for k, v in further.items()}
                asked = request((size, *x32.shape[1:]), heard)
                asked.infer([x32[part], label[part], *heard.values()], share_inputs=True)
                outs.append(np.array(asked.get_output_tensor(0).data))
                start += size
        return as_kind(np.concatenate(outs) if outs else np.zeros_like(x32), x)

    return call


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


def graph_name(module: Module) -> str:
    """The cache's name for the network as OpenVINO reads it."""
    return cache.name("openvino graph", 4, version("openvino"), module.facts.digest, module.state_shape)


def _convert(module: Module, further: dict[str, np.ndarray], file: BinaryIO) -> None:
    """Writes the network as OpenVINO's own format, in one piece: the length of its XML, that, and the weights.

    What the network hears is an input, so one conversion serves every prompt. Raises `UsageError` where OpenVINO cannot.
    """
    import torch

    ov: Any = importlib.import_module("openvino")
    decoder: Any = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    names = list(further)

    class Positional(torch.nn.Module):
        """What the condition adds is a part of the input, and learned variances are none of the output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = module.torch

        def forward(self, x: Any, label: Any, *embedded: Any) -> Any:
            out = self.network(x, label, **dict(zip(names, embedded, strict=True)))
            return out[:, : module.gives or module.state_shape[0]]

    # Two images with a label each: one would be traced as the special case that it is. (`openvino.convert_model` does
    # this too, but traces thrice to compare, and reports itself to its makers.)
    x, label = torch.zeros(2, *module.state_shape), torch.tensor([0.0, 1.0])
    example = (x, label, *(torch.from_numpy(np.repeat(v[:1], 2, 0)) for v in further.values()))
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of branches, which all take the general way
            traced = decoder.TorchScriptPythonDecoder(
                Positional().eval(), example_input=example, trace_kwargs={"check_trace": False}
            )
        frontend = ov.frontend.FrontEndManager().load_by_framework("pytorch")
        graph = frontend.convert(frontend.load(traced))
    except Exception as e:  # whatever its operations provoke
        reason = " ".join(str(e).split())[:160] or type(e).__name__
        raise UsageError(f"OpenVINO cannot convert this network: {reason}", hint="choose --engine torch") from e
    with tempfile.TemporaryDirectory(dir=Path(file.name).parent) as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.save_model(graph, str(xml), compress_to_fp16=False)
        text = xml.read_bytes()
        text += b" " * (-(cache.CHECKSUM + 8 + len(text)) % ALIGNED)
        file.write(len(text).to_bytes(8, "little") + text)
        with weights.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 22)


def _read(core: Any, data: memoryview) -> Any:
    """The graph in what `_convert` wrote, its weights where they lie."""
    ov: Any = importlib.import_module("openvino")
    length = int.from_bytes(data[:8], "little")
    weights = np.frombuffer(data, np.uint8, offset=8 + length)
    return core.read_model(bytes(data[8 : 8 + length]).decode(), ov.Tensor(weights, shared_memory=True))
