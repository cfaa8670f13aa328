"""Engines on diffusers' networks: all compute what eager float32 does; one conversion serves every prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from pipelines import folder_of
from rounding import NETWORK, apart
from torch.utils.flop_counter import FlopCounterMode

from ddimctl import cache, engines, latent
from ddimctl.engines import openvino, pytorch
from ddimctl.errors import UsageError
from ddimctl.families import assembly, halves, load, resized
from ddimctl.images import writing
from ddimctl.model import NOTHING, Condition, Model

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
FAMILIES = ["sd", "xl", "vq", "sd3", "flux"]
GUIDED = Condition(None, "a red dog", "ugly and dark", 3.0)
HALF = 0.2  # seen: 5e-2, of these untrained networks


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(str(folder_of(request.param, tmp_path_factory)), "cpu")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("sd", tmp_path_factory)


@pytest.fixture
def sd(folder: Path) -> Model:
    return load(str(folder), "cpu")


def use(model: Model, engine: str, precision: str = "float32") -> Model:
    return model.with_network(engines.make(model.network.module, engine, precision))


def asked(model: Model) -> list[Condition]:
    """What is compared: guidance and another prompt, where there are prompts."""
    return [GUIDED, Condition(prompt="the blue sky")] if model.network.module.mixed else [NOTHING]


def answers(model: Model, device: str = "cpu") -> list[torch.Tensor]:
    """ε of three at one level for all and at one for each."""
    x = torch.randn(3, *model.state_shape, generator=torch.Generator().manual_seed(1)).double().to(device)
    levels: list[Any] = [1.0, [0.1, 1.0, 9.0]]
    return [model.eps(c)(x, s).cpu() for c in asked(model) for s in levels]


@needs_openvino
def test_openvino_is_eager_and_converts_once(model: Model) -> None:
    expected, quick = answers(model), use(model, "openvino")
    for got, true in zip(answers(quick), expected, strict=True):
        assert apart(got, true) < NETWORK
    entries = len(list(cache.folder().iterdir()))
    quick.eps(replace(asked(model)[0], prompt="a circle") if model.network.module.mixed else NOTHING)(
        torch.zeros(3, *model.state_shape, dtype=torch.float64), 0.5
    )
    assert len(list(cache.folder().iterdir())) == entries <= 1 + len(openvino.PARTS)


def images_of(model: Model, n: int = 2) -> torch.Tensor:
    return torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(3)).double() * 2 - 1


@needs_openvino
@pytest.mark.parametrize("size", [1000, openvino.LARGE])
def test_autoencoders_by_openvino_are_those_of_torch(model: Model, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same cache, converted once, image by image; by tiles, and for other sizes, torch is left to it."""
    monkeypatch.setattr(openvino, "LARGE", size)
    plain: Any = model.autoencoder
    images = images_of(model)
    z = plain.encode(images)
    quick: Any = halves.evaluated(model, "openvino")
    assert (quick.engine, quick.digest, plain.engine) == ("openvino", plain.digest, None)
    with monkeypatch.context() as patch:  # torch is not asked
        patch.setattr(plain.vae, "encode", None)
        patch.setattr(plain.vae, "decode", None)
        with pytest.raises(TypeError):
            plain.encode(images)
    assert apart(quick.encode(images), z) < NETWORK
    assert apart(quick.decode(z), plain.decode(z)) < NETWORK
    assert apart(quick.decode(z.numpy()), plain.decode(z)) < NETWORK
    known = {p.name for p in cache.folder().iterdir()}
    assert {openvino.graph_name(m) for m in halves.halves(plain, model.size)} <= known
    again: Any = halves.evaluated(model, "openvino", known=True)
    assert again.engine == "openvino"
    with monkeypatch.context() as patch:
        patch.setattr(plain.vae, "encode", None)
        patch.setattr(plain.vae, "decode", None)
        assert apart(again.encode(images), z) < NETWORK
        assert apart(again.decode(z), quick.decode(z)) == 0
    assert {p.name for p in cache.folder().iterdir()} == known
    wide = torch.cat([z, z], 3)
    assert apart(quick.decode(wide), plain.decode(wide)) == 0
    if hasattr(plain.vae, "use_tiling"):
        assert apart(quick.tiled(16).decode(wide), plain.tiled(16).decode(wide)) == 0
        assert quick.tiled(16).tiled(None).engine == "openvino"


@needs_openvino
def test_large_networks_are_compiled_from_their_graph_alone(sd: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "LARGE", 1000)
    for got, true in zip(answers(use(sd, "openvino")), answers(sd), strict=True):
        assert apart(got, true) < NETWORK
    assert [p.name for p in cache.folder().iterdir()] == [openvino.graph_name(sd.network.module)]


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_bf16_changes_little(model: Model, engine: str) -> None:
    """A processor without its arithmetic may compute in float32."""
    rough = use(model, engine, "bf16")
    assert rough.network.dtype == "bfloat16"
    for got, true in zip(answers(rough), answers(model), strict=True):
        assert apart(got, true) < HALF


def test_weights_held_in_half_are_what_autocast_makes_of_them(model: Model) -> None:
    module = model.network.module
    held, before = pytorch._held(module, "bf16"), answers(model)
    assert {p.dtype for p in held.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert {p.dtype for p in held.parameters() if p.ndim == 1} <= {torch.float32}
    assert {p.dtype for p in module.torch.parameters()} == {torch.float32}
    as_loaded = replace(module, load=lambda: module.torch)

    def cast(x: Any, labels: Any, embedded: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return engines.make(as_loaded).call(x, labels, embedded)

    plain = model.with_network(replace(model.network, call=cast))
    for a, b in zip(answers(use(model, "torch", "bf16")), answers(plain), strict=True):
        assert apart(a, b) < 1e-2  # of the same rounding, in other kernels at most
    assert all(torch.equal(a, b) for a, b in zip(answers(model), before, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's compiler writes C++ with vectors that its headers lack where there are none",
)
def test_the_compiler_is_eager(sd: Model) -> None:
    for got, true in zip(answers(use(sd, "compile")), answers(sd), strict=True):
        assert apart(got, true) < NETWORK
    compiled, images = halves.evaluated(sd, "compile"), images_of(sd)
    z = sd.autoencoder.encode(images)
    assert compiled.engine == "compile"
    assert apart(compiled.encode(images), z) < NETWORK
    assert apart(compiled.decode(z), sd.autoencoder.decode(z)) < NETWORK


@pytest.mark.parametrize("name", ["sd", "xl", "sd3", "flux"])
def test_both_halves_of_guidance_go_in_one_batch(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(str(folder_of(name, tmp_path_factory)), "cpu")
    batches: list[int] = []

    def counted(x: Any, labels: Any, embedded: Any) -> Any:
        batches.append(len(x))
        return model.network(x, labels, embedded)

    one = answers(model.with_network(replace(model.network, call=counted)))
    assert batches == [6, 6, 3, 3]
    x = torch.randn(3, *model.state_shape, generator=torch.Generator().manual_seed(1)).double()
    apiece = model.with_network(replace(model.network, module=replace(model.network.module, mixed=False)))
    assert apart(one[0], apiece.eps(GUIDED)(x, 1.0)) < NETWORK


def test_what_fits_decides_how_much_goes_at_once(sd: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = answers(sd), []
    monkeypatch.setattr(pytorch, "ROOM", 16 * sd.network.module.activations)
    sd.network.module.torch.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for got, true in zip(answers(use(sd, "torch")), whole, strict=True):
        assert apart(got, true) < NETWORK
    assert seen == [4, 2, 4, 2, 3, 3]


def test_operations_are_those_that_are_computed(model: Model) -> None:
    module = model.network.module
    counter = FlopCounterMode(display=False)
    embedded = model.embed(Condition(prompt="a") if module.mixed else NOTHING)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        module.torch(torch.zeros(1, *model.state_shape), torch.zeros(1), **embedded)
    assert module.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_another_size_is_counted_anew(sd: Model) -> None:
    wide = resized(sd, (16, 32))
    assert 1.9 * sd.network.module.flops < wide.network.module.flops < 4 * sd.network.module.flops
    assert assembly.operations(sd.network.module.torch, wide.state_shape, {"encoder_hidden_states": (1, 12, 16)}) == (
        wide.network.module.flops
    )


@needs_openvino
def test_what_openvino_cannot_convert_is_one_line(sd: Model) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, **more: Any) -> torch.Tensor:
            raise RuntimeError("no such operation\nand more")

    module = replace(sd.network.module, load=Odd)
    with pytest.raises(UsageError, match=r"^OpenVINO cannot convert this network: .*no such operation and more"):
        sd.with_network(engines.make(module, "openvino")).eps()(torch.zeros(1, *sd.state_shape).double(), 1.0)


@needs_openvino
def test_auto_converts_no_network_that_is_heavy(sd: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.pick(sd.network.module, 1e9)[0] == "openvino"
    monkeypatch.setattr(engines, "HEAVY", 1000)
    engine, why = engines.pick(sd.network.module, 1e9)
    assert engine == "torch"
    assert "--engine openvino" in why


@pytest.mark.slow
@needs_openvino
def test_files_say_what_made_them(folder: Path, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    command = ("encode", "a.png", "-m", str(folder), "--prompt", "a red dog", "--device", "cpu", "--steps", 3)
    invoke(*command, "-o", "a.pt", "--engine", "openvino").ok()
    invoke(*command, "-o", "b.pt", "--engine", "torch").ok()
    invoke(*command, "-o", "c.pt", "--engine", "openvino", "--precision", "bf16").ok()
    a, b, c = (latent.load(tmp_path / f"{name}.pt") for name in "abc")
    assert [x.provenance["engine"] for x in (a, b, c)] == ["openvino", "torch", "openvino"]
    assert [x.recipe.dtype for x in (a, b, c)] == ["float32", "float32", "bfloat16"]
    assert apart(a.xT, b.xT) < 1e-2  # by an untrained network, which magnifies rounding
    invoke("decode", "a.pt", "-o", "back.png", "--engine", "openvino", "--device", "cpu").ok()
    invoke("decode", "a.pt", "-o", "torch.png", "--engine", "torch", "--device", "cpu").ok()
    back, by_torch = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("back", "torch"))
    assert np.abs(back - by_torch).max() <= 2
    known = {p.name for p in cache.folder().iterdir()}
    model = load(str(folder), "cpu")
    assert {openvino.graph_name(m) for m in halves.halves(model.autoencoder, model.size)} <= known  # type: ignore[arg-type]


# On GPUs


def on_cuda(model: Model) -> Model:
    return load(str(model.about.folder), "cuda")


@needs_cuda
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-3), ("bf16", HALF), ("fp16", HALF)])
def test_cuda_is_eager(model: Model, precision: str, limit: float) -> None:
    for got, true in zip(answers(use(on_cuda(model), "torch", precision), "cuda"), answers(model), strict=True):
        assert apart(got, true) < limit


@needs_cuda
@pytest.mark.parametrize("name", ["sd", "xl", "sd3", "flux"])
def test_cuda_takes_both_halves_of_guidance_in_one_batch(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load(str(folder_of(name, tmp_path_factory)), "cuda")
    batches: list[int] = []
    module = model.network.module

    def counted(network: Any) -> Any:
        network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
        return network

    for precision, limit in (("float32", 1e-3), ("fp16", HALF)):
        batches.clear()
        one = model.with_network(engines.make(replace(module, prepare=counted), "torch", precision))
        two = model.with_network(engines.make(replace(module, mixed=False), "torch", precision))
        x = torch.randn(3, *model.state_shape, generator=torch.Generator().manual_seed(1)).double().to("cuda")
        assert apart(one.eps(GUIDED)(x, 1.0), two.eps(GUIDED)(x, 1.0)) < limit
        assert batches == [6]


@needs_cuda
def test_cuda_decodes_in_float32_whatever_the_network_computes_in(model: Model) -> None:
    """The autoencoder, and it alone: images to states and back are those of the CPU."""
    there = use(on_cuda(model), "torch", "fp16")
    assert {p.dtype for p in there.autoencoder.vae.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    images = torch.rand(2, *model.image_shape, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    z = model.autoencoder.encode(images)
    assert apart(there.autoencoder.encode(images.cuda()), z) < 1e-3
    assert apart(there.autoencoder.decode(z.cuda()), model.autoencoder.decode(z)) < 1e-3


@needs_cuda
@pytest.mark.slow
def test_cuda_the_compiler_is_eager(sd: Model) -> None:
    pytest.importorskip("triton")
    for got, true in zip(answers(use(on_cuda(sd), "compile"), "cuda"), answers(sd), strict=True):
        assert apart(got, true) < 1e-3


@needs_cuda
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-2), ("fp16", 0.5)])
def test_cuda_there_and_back(
    precision: str, limit: float, folder: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    """By the command line, beside the CPU in float32; an untrained network magnifies rounding."""
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    guided = ("--prompt", "a red dog", "--negative", "ugly", "--guidance", 3, "--steps", 3)
    invoke("encode", "a.png", "-m", folder, *guided, "-o", "cpu.pt", "--device", "cpu").ok()
    invoke("encode", "a.png", "-m", folder, *guided, "-o", "gpu.pt", "--device", "cuda", "--precision", precision).ok()
    here, there = (latent.load(tmp_path / f"{name}.pt") for name in ("cpu", "gpu"))
    assert there.recipe.dtype == {"float32": "float32", "fp16": "float16"}[precision]
    assert apart(there.xT, here.xT) < limit
    invoke("decode", "gpu.pt", "-o", "back.png", "--device", "cuda", "--precision", precision).ok()
    invoke("sample", "-m", folder, *guided, "-o", "s.png", "-n", 2, "--device", "cuda", "--precision", precision).ok()
    invoke("reconstruct", "a.png", "-m", folder, *guided, "-o", "r.png", "--device", "cuda").ok()
