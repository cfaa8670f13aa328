"""Engines: all of them compute what eager float32 does, the cache survives damage, and `auto` picks what pays."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import isolated, write_tiny_model
from rounding import NETWORK, apart
from torch.utils.flop_counter import FlopCounterMode

from ddimctl import cache, engines, latent, lossless, ode
from ddimctl.engines import ENGINES, openvino, processors, pytorch
from ddimctl.engines.openvino import PARTS
from ddimctl.errors import DDIMError, UsageError
from ddimctl.families import load, pixel
from ddimctl.files import bundled_folder
from ddimctl.images import datasets, levels, reading
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Way
from ddimctl.unet import UNet2DModel

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EVERY = [
    pytest.param("compile", marks=pytest.mark.slow)
    if name == "compile"
    else pytest.param(name, marks=needs_openvino)
    if name == "openvino"
    else name
    for name in ENGINES
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def model(model_folder: Path) -> Model:
    return load(str(model_folder), "cpu")


def entries() -> list[Path]:
    return sorted(cache.folder().iterdir()) if cache.folder().exists() else []


def use(model: Model, engine: str, precision: str = "float32") -> Model:
    return model.with_network(engines.make(model.network.module, engine, precision))


def truth(model: Model, x: torch.Tensor, levels: Any, condition: Condition = NOTHING) -> torch.Tensor:
    """ε by the network in float64. Untrained networks magnify rounding: eager float32 is off by up to 3e-5 itself."""
    double = copy.deepcopy(model.network.module.torch).double()
    module = replace(model.network.module, load=lambda: double, dtype="float64")
    return model.with_network(engines.make(module)).eps(condition)(x, levels)


@pytest.mark.parametrize("engine", EVERY)
def test_the_same_as_eager(engine: str, model_folder: Path) -> None:
    """For every batch size, with one level for all and one for each."""
    model = load(str(model_folder) if engine == "compile" else "fashion-mnist", "cpu")  # the compiler takes minutes
    x = torch.randn(PARTS[0] + 7, *model.state_shape, dtype=torch.float64)
    levels = [0.02 * 1.3**i for i in range(len(x))]
    sizes = (1, 2, 5, len(x)) if engine != "compile" else (2, len(x))
    eager = [(model.eps()(x[:n], 1.0), model.eps()(x[:n], levels[:n])) for n in sizes]
    model = use(model, engine)
    for n, (one, each) in zip(sizes, eager, strict=True):
        got = model.eps()(x[:n], 1.0)
        assert (got.dtype, got.shape) == (torch.float64, x[:n].shape)
        assert apart(got, one) < NETWORK
        assert apart(model.eps()(x[:n], levels[:n]), each) < NETWORK


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    "fields",
    [
        {"out_channels": 2},  # learned variances
        {"num_class_embeds": 3},
        {"resnet_time_scale_shift": "scale_shift", "downsample_padding": 0, "act_fn": "gelu"},
        {"sample_size": [16, 24], "in_channels": 3, "out_channels": 3},
    ],
)
def test_openvino_converts_every_kind_of_network(fields: dict[str, Any], tmp_path: Path) -> None:
    model = load(str(write_tiny_model(tmp_path / "m", held_out=0, **fields)), "cpu")
    condition = Condition(2 if "num" in str(fields) else None)
    x = torch.randn(3, *model.state_shape, dtype=torch.float64)
    levels = [0.1, 1.0, 50.0]
    assert apart(use(model, "openvino").eps(condition)(x, levels), truth(model, x, levels, condition)) < NETWORK


@pytest.mark.slow
@pytest.mark.parametrize("engine", EVERY)
def test_the_class_is_an_argument_and_not_a_part_of_the_network(engine: str, tmp_path: Path) -> None:
    """One network answers for every class, one after the other."""
    model = load(str(write_tiny_model(tmp_path / "m", held_out=0, num_class_embeds=3)), "cpu")
    quick = use(model, engine)
    x = torch.randn(3, *model.state_shape, dtype=torch.float64)
    answers = [quick.eps(Condition(k))(x, 1.0) for k in (0, 1, 2, 0)]
    assert torch.equal(answers[0], answers[3])
    for k in range(3):
        assert apart(answers[k], truth(model, x, 1.0, Condition(k))) < NETWORK
        assert apart(answers[k], answers[(k + 1) % 3]) > 10 * NETWORK
    if engine == "openvino":
        assert len(entries()) == 2  # the graph, and it compiled for one image: three are three times one


@pytest.mark.slow
@needs_openvino
def test_openvino_takes_numpy_arrays(model: Model) -> None:
    x = torch.randn(3, *model.state_shape, dtype=torch.float64)
    model = use(model, "openvino")
    assert isinstance(model.eps()(x.numpy(), 1.0), np.ndarray)
    np.testing.assert_array_equal(model.eps()(x.numpy(), 1.0), model.eps()(x, 1.0).numpy())


@pytest.mark.slow
@needs_openvino
def test_batches_of_any_size_compile_nothing_new(model: Model) -> None:
    """Solvers shrink a batch as images converge, and the last batch is smaller: the parts are always the same."""
    model = use(model, "openvino")
    for n in (21, 20, 5, 1):
        model.eps()(torch.zeros(n, *model.state_shape, dtype=torch.float64), 1.0)
    before = entries()
    assert len(before) == 1 + len(PARTS)  # the graph, and one compiled network for each size
    for n in range(1, 40, 3):
        model.eps()(torch.zeros(n, *model.state_shape, dtype=torch.float64), 1.0)
    assert entries() == before
    assert model.eps()(torch.zeros(0, *model.state_shape, dtype=torch.float64), 1.0).shape == (0, *model.state_shape)


@pytest.mark.slow
@needs_openvino
def test_a_warm_cache_converts_nothing(model: Model, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, *model.state_shape, dtype=torch.float64)
    cold = use(model, "openvino").eps()(x, 1.0)
    monkeypatch.setattr(openvino, "_convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(use(load(str(model_folder), "cpu"), "openvino").eps()(x, 1.0), cold)
    # A batch of another size is compiled from the same graph.
    use(load(str(model_folder), "cpu"), "openvino").eps()(torch.randn(4, *model.state_shape, dtype=torch.float64), 1.0)


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_entries_are_made_again(damage: str, model: Model) -> None:
    x = torch.randn(1, *model.state_shape, dtype=torch.float64)
    cold = use(model, "openvino").eps()(x, 1.0)
    whole = {p: p.read_bytes() for p in entries()}
    for path, data in whole.items():
        broken = {"flip": data[:200] + bytes([data[200] ^ 1]) + data[201:], "cut": data[:-5], "empty": b""}
        path.write_bytes(broken[damage])
    assert torch.equal(use(model, "openvino").eps()(x, 1.0), cold)
    assert entries() == sorted(whole)
    assert all(cache.load(p.name) is not None for p in whole)


@pytest.mark.slow
@needs_openvino
def test_works_where_nothing_can_be_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    x = torch.randn(1, *model.state_shape, dtype=torch.float64)
    eager = model.eps()(x, 1.0)
    assert apart(use(model, "openvino").eps()(x, 1.0), eager) < NETWORK


@pytest.mark.slow
@needs_openvino
def test_another_network_has_another_entry(model: Model, tmp_path: Path) -> None:
    x = torch.randn(1, *model.state_shape, dtype=torch.float64)
    other = load(str(write_tiny_model(tmp_path / "other", seed=1)), "cpu")
    eager = other.eps()(x, 1.0)
    use(model, "openvino").eps()(x, 1.0)
    assert apart(use(other, "openvino").eps()(x, 1.0), eager) < NETWORK


def test_the_cache_forgets_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 3000)
    names = [cache.name("entry", i) for i in range(4)]
    for name in names:
        cache.fetch(name, lambda: bytes(1000))
        if cache.has(names[0]):
            cache.load(names[0])  # used all the time
    assert cache.has(names[3])
    assert sum(map(cache.has, names)) == 2
    assert cache.fetch(names[3], lambda: b"") == bytes(1000)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_bf16_changes_little(engine: str, model_folder: Path) -> None:
    """8 bits of mantissa: a few thousandths of ε, which is seen in x_T but not much in a round trip."""
    model = load("fashion-mnist", "cpu")
    x = torch.randn(4, *model.state_shape, dtype=torch.float64)
    eager = model.eps()(x, 1.0)
    rough, fine = use(model, engine, "bf16"), use(model, engine)
    # A processor without bf16 arithmetic may compute in float32.
    assert apart(rough.eps()(x, 1.0), eager) < 0.1
    assert rough.network.dtype == "bfloat16"
    assert fine.network.dtype == "float32"
    assert apart(fine.eps()(x, 1.0), eager) < NETWORK


def test_large_batches_go_in_parts_that_fit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, *model.state_shape, dtype=torch.float64)
    levels = [0.1 * (i + 1) for i in range(7)]
    whole = model.eps()(x, 1.0), model.eps()(x, levels)
    assert model.network.module.activations == model.network.module.torch.config.activation_floats() > 0
    monkeypatch.setattr(pytorch, "ROOM", 12 * model.network.module.activations)
    assert pytorch.most_at_once(model.network.module) == 3
    seen = []
    model.network.module.torch.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model = use(model, "torch")
    assert apart(model.eps()(x, 1.0), whole[0]) < NETWORK
    assert apart(model.eps()(x, levels), whole[1]) < NETWORK
    assert seen == [3, 3, 1] * 2


@pytest.mark.slow
@needs_openvino
def test_lossless_whichever_engine_decodes() -> None:
    model = load("fashion-mnist", "cpu")
    assert model.about.folder is not None
    x0 = levels.signed(datasets.load_dataset(model.about.folder / "held-out", model.channels, model.size)[:2].float())
    solution = lossless.encode(use(model, "openvino"), x0, Way("exact"))
    back = ode.decode(use(model, "torch"), solution.x.float(), Way("ddim", "log")).x
    np.testing.assert_array_equal(levels.to_pixels(back), levels.to_pixels(x0))


@pytest.mark.slow
def test_auto_picks_what_pays(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else there(name))
    assert engines.pick(model.network.module, 1e9)[0] == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", there)
    assert engines.pick(replace(model.network.module, device="cuda:0"), 1e9) == ("torch", "on cuda")
    if there("openvino") is None:
        return
    assert engines.pick(model.network.module, 1)[0] == "torch"
    assert engines.pick(model.network.module, engines.PAYS / model.network.module.facts.flops + 1)[0] == "openvino"
    use(model, "openvino").eps()(torch.zeros(1, *model.state_shape, dtype=torch.float64), 1.0)
    assert engines.pick(model.network.module, 1) == ("openvino", "converted before")


def test_a_missing_extra_is_one_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the extra 'openvino'") as e:
        use(model, "openvino")
    assert e.value.hint == "install it with: pip install 'ddimctl[openvino]'"


@needs_openvino
def test_an_openvino_that_cannot_be_loaded_is_one_line_and_auto_does_without(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libopenvino.so: cannot open shared object file\nand more")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UsageError, match=r"cannot be loaded: libopenvino.so: .* file$"):
        use(model, "openvino")
    engine, why = engines.pick(model.network.module, 1e12)
    assert engine == "torch"
    assert "cannot be loaded" in why


@pytest.mark.slow
@needs_openvino
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals as on Unix")
def test_a_signal_is_handled_after_an_engine_went_in_another_thread(model_folder: Path, tmp_path: Path) -> None:
    code = f"""
import gc, os, signal, threading, torch
from ddimctl import engines
from ddimctl.families import load
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
model = load({str(model_folder)!r}, "cpu")
models = [model.with_network(engines.make(model.network.module, "openvino"))]
models[0].eps()(torch.zeros(1, *models[0].state_shape).double(), 1.0)
thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], env=isolated(tmp_path), capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"alive")


@pytest.mark.slow
@needs_openvino
def test_a_limit_of_instructions_does_not_crash_openvino(invoke: Any, ddimctl: Any, model_folder: Path) -> None:
    """Cold and from the cache; as a process, for the limit is read once. It holds for torch alone."""
    image = model_folder / "held-out" / "000.png"
    command = ("encode", image, "-m", model_folder, "--steps", 2, "--engine", "openvino")
    for name in ("cold.pt", "warm.pt"):
        ddimctl(*command, "-o", name, env={"ONEDNN_MAX_CPU_ISA": "AVX2"}).ok()
    invoke(*command, "-o", "free.pt").ok()
    for name in ("cold.pt", "warm.pt"):
        assert apart(latent.load(Path(name)).xT, latent.load(Path("free.pt")).xT) < NETWORK


def test_auto_is_a_choice_and_no_engine(model: Model) -> None:
    with pytest.raises(UsageError, match="unknown engine 'auto'"):
        use(model, "auto")


def test_everything_works_without_a_home(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DDIMError, match="no home folder"):
        cache.folder()
    assert not cache.is_there()
    assert not cache.has("x")
    assert cache.load("x") is None
    assert cache.fetch("x", lambda: b"made") == b"made"
    assert engines.pick(model.network.module, 1)[0] == "torch"


def test_the_cache_removes_what_killed_writers_left() -> None:
    cache.fetch("a" * 64, lambda: b"")
    left = cache.folder() / f".{'b' * 64}.0.tmp"
    left.write_bytes(b"half")
    cache.fetch("c" * 64, lambda: b"")
    assert not left.exists()


def test_a_missing_compiler_is_one_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        use(model, "compile")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="unknown engine 'onnx'"):
        engines.check("onnx", "float32")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        engines.check("auto", "fp8")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processors.threads() == 3
    for odd in ("", "many", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert processors.threads() >= 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sample_size": 32, "layers_per_block": 2, "block_out_channels": [8, 16, 24], "downsample_padding": 0,
         "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
         "up_block_types": ["UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"]},
    ],
)  # fmt: skip
def test_flops_against_torchs_own_count(fields: dict[str, Any], tmp_path: Path) -> None:
    module = load(str(write_tiny_model(tmp_path / "m", held_out=0, **fields)), "cpu").network.module
    config = module.torch.config
    assert config.image_size is not None
    network = UNet2DModel(config)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        network(torch.zeros(1, config.in_channels, *config.image_size), torch.zeros(1))
    assert pixel.flops(config) == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert module.facts.flops == pixel.flops(config)


@needs_cuda
@pytest.mark.parametrize(("precision", "limit"), [("float32", NETWORK), ("bf16", 0.1), ("fp16", 0.1)])
def test_cuda(precision: str, limit: float, model_folder: Path) -> None:
    x = torch.randn(5, 1, 16, 16, dtype=torch.float64)
    expected = load(str(model_folder), "cpu").eps()(x, 1.0)
    got = use(load(str(model_folder), "cuda"), "torch", precision).eps()(x.cuda(), 1.0).cpu()
    assert apart(got, expected) < limit


@needs_cuda
@pytest.mark.parametrize("solver", ["ddim", "ab2", "exact"])
def test_cuda_encodes_as_cpus_do(solver: str, invoke: Any, tmp_path: Path) -> None:
    """A trained model, by the command line; what one encodes the other decodes."""
    image = min((bundled_folder() / "fashion-mnist" / "held-out").glob("*.png"))
    for device in ("cpu", "cuda"):
        said = invoke("encode", image, "-o", f"{device}.pt", "--device", device, "--solver", solver, "-v").ok().err
        assert f"on {device}" in said
    here, there = (latent.load(tmp_path / f"{device}.pt") for device in ("cpu", "cuda"))
    assert apart(there.xT, here.xT) < 1e-3
    assert there.recipe == here.recipe
    for made, by in (("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")):
        invoke("decode", f"{made}.pt", "-o", f"{made}-{by}.png", "--device", by).ok()
    pictures = [reading.read(file, 1, (28, 28))[0].astype(int) for file in sorted(tmp_path.glob("*-*.png"))]
    assert len(pictures) == 4
    assert max(abs(a - pictures[0]).max() for a in pictures) <= 2


@needs_cuda
def test_cuda_is_lossless(invoke: Any, tmp_path: Path) -> None:
    images = sorted((bundled_folder() / "fashion-mnist" / "held-out").glob("*.png"))[:4]
    invoke("encode", *images, "-o", "latents/", "--device", "cuda", "--lossless").ok()
    invoke("decode", "latents/", "-o", "back/", "--device", "cuda").ok()
    for file in images:
        before, after = (reading.read(f, 1, (28, 28))[0] for f in (file, tmp_path / "back" / file.name))
        assert np.array_equal(before, after)


@needs_openvino
def test_openvino_runs_on_cpus(model: Model) -> None:
    with pytest.raises(UsageError, match="runs on CPUs, not on cuda"):
        engines.make(replace(model.network.module, device="cuda:0"), "openvino")


# The commands


@pytest.mark.slow
@needs_openvino
def test_encode_says_what_it_picked(invoke: Any, model_folder: Path, tmp_path: Path) -> None:
    image = model_folder / "held-out" / "000.png"

    def encode(name: str, *more: str, **env: str) -> tuple[str, latent.Latent]:
        done = invoke("encode", image, "-m", model_folder, "-o", name, "-v", *more, env=env).ok()
        return done.err, latent.load(tmp_path / name)

    said, a = encode("a.pt")
    assert "engine torch, float32 (" in said
    said, b = encode("b.pt", DDIMCTL_ENGINE="openvino")
    assert "engine openvino, float32 (asked for)" in said
    said, c = encode("c.pt", "--precision", "bf16")
    assert "from the cache, without torch; engine openvino, bf16" in said
    assert [x.provenance["engine"] for x in (a, b, c)] == ["torch", "openvino", "openvino"]
    assert [x.provenance["dtype"] for x in (a, b, c)] == ["float32", "float32", "bfloat16"]
    assert apart(b.xT, a.xT) < 1e-2  # by an untrained network, which magnifies rounding
    # What was asked for on the command line comes before the environment.
    assert "engine torch" in encode("d.pt", "--engine", "torch", DDIMCTL_ENGINE="openvino")[0]


def test_the_engine_does_not_decide_what_a_folder_is_but_the_precision_does(
    invoke: Any, model_folder: Path, tmp_path: Path
) -> None:
    command = ("encode", model_folder / "held-out", "-m", model_folder, "-o", "out", "--steps", "3")
    invoke(*command, "--engine", "torch").ok()
    if importlib.util.find_spec("openvino") is not None:
        assert "there already: 4" in invoke(*command, "--engine", "openvino").ok().err
    assert "is not what this would make" in invoke(*command, "--engine", "torch", "--precision", "bf16").err


def test_lossless_needs_float32(invoke: Any, model_folder: Path) -> None:
    image = model_folder / "held-out" / "000.png"
    said = invoke("encode", image, "-m", model_folder, "--lossless", "--precision", "bf16").failed(2)
    assert "needs --precision float32" in said


@pytest.mark.parametrize("command", ["decode", "interpolate", "reconstruct", "sample", "evaluate"])
def test_other_commands_know_engines(command: str, invoke: Any) -> None:
    text = invoke(command, "--help").ok().out
    assert "--engine" in text
    assert "--precision" in text
