"""`Model`: the scaling and labels of `eps`, what `load` accepts, the digest, and the memory that loading takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import isolated, write_tiny_model
from rounding import NETWORK, apart
from torch import Tensor

from ddimctl import catalogue, engines, families
from ddimctl.checkpoints import Checkpoint, diffusers, formats
from ddimctl.engines import pytorch
from ddimctl.errors import FileError, UsageError
from ddimctl.families import load, pixel
from ddimctl.families.classes import embedder
from ddimctl.families.pixel import from_checkpoint
from ddimctl.model import About, Condition, Model
from ddimctl.network import Facts, Module
from ddimctl.predictions import PREDICTIONS
from ddimctl.schedule import Schedule
from ddimctl.unet import UNetConfig
from ddimctl.unet.shapes import memory


class Recorder(torch.nn.Module):
    """Stands in for a network: remembers what it was asked, answers with `reply` or its input."""

    def __init__(self, reply: Tensor | None = None):
        super().__init__()
        self.reply = reply
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, label: Tensor, class_label: Tensor | None = None) -> Tensor:
        self.asked.append((x, label, class_label))
        return x if self.reply is None else self.reply


def recorder(reply: Tensor | None = None, dtype: str = "float32", **fields: Any) -> tuple[Model, Recorder]:
    network = Recorder(reply)
    module = Module((1, 4, 4), "cpu", lambda: network, lambda: Facts("digest", 0, 0), dtype=dtype)
    return Model(engines.make(module), Schedule.linear(), image_shape=(1, 4, 4), **fields), network


def test_scaling_and_labels() -> None:
    """x_t = x̄/√(σ²+1), and paper time t is label t − 1."""
    model, network = recorder()
    xbar = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for t in (1, 2, 500, 1000):
        sigma = model.schedule.sigma(t)
        out = model.eps()(xbar, sigma)
        x, label, classes = network.asked[-1]
        torch.testing.assert_close(x.double(), xbar / math.sqrt(1 + sigma**2), rtol=1e-6, atol=1e-7)
        assert label.tolist() == [t - 1]
        assert classes is None
        assert out.dtype == torch.float64
        assert x.dtype == torch.float32


def test_levels_below_the_first_are_asked_at_the_first_label() -> None:
    model, network = recorder()
    xbar = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    for sigma in (0.0, model.schedule.sigma(1) / 2):
        model.eps()(xbar, sigma)
        assert network.asked[-1][1].tolist() == [0.0]
    for sigma in (0.0, 1e-3):  # and every prediction stays finite there
        for prediction in PREDICTIONS:
            assert replace(model, prediction=prediction).eps()(xbar, sigma).isfinite().all()


def test_a_level_for_each_image() -> None:
    model, network = recorder()
    xbar = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    levels = [model.schedule.sigma(t) for t in (1, 10, 900)]
    together = model.eps()(xbar, levels)
    assert network.asked[-1][1].tolist() == [0, 9, 899]
    for i, sigma in enumerate(levels):
        torch.testing.assert_close(together[i : i + 1], model.eps()(xbar[i : i + 1], sigma))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_give_back_the_noise(prediction: str) -> None:
    """A network that answers with the true ε, v = √α ε − √(1−α) x_0, or x_0: the result is ε."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=g) for _ in range(2))
    model, network = recorder(prediction=prediction, dtype="float64")
    for t in (20, 500):
        alpha = model.schedule.alpha[t]
        a, b = math.sqrt(alpha), math.sqrt(1 - alpha)
        truth = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}
        network.reply = truth[prediction]
        xbar = x0 + model.schedule.sigma(t) * eps
        torch.testing.assert_close(model.eps()(xbar, model.schedule.sigma(t)), eps, rtol=1e-9, atol=1e-9)


def test_scaled_labels_and_classes() -> None:
    model, network = recorder(label_scale=0.25, embed=embedder("x", 10))
    model.eps(Condition(7))(torch.zeros(2, 1, 4, 4, dtype=torch.float64), model.schedule.sigma(401))
    _, label, classes = network.asked[-1]
    assert label.tolist() == [100.0]
    assert classes is not None
    assert classes.tolist() == [7]


def test_learned_variances_are_dropped() -> None:
    reply = torch.randn(2, 2, 4, 4)
    model, _ = recorder(reply)
    out = model.eps()(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 1.0)
    assert torch.equal(out, reply[:, :1].double())


def test_load_by_folder_file_and_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path / "models" / "tiny")
    for module in (families, catalogue):
        monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "tiny", seed=1)  # a bundled name comes before a folder of the same name
    by_name, by_path = load("tiny", "cpu"), load(str(folder), "cpu")
    assert by_name.digest == by_path.digest != load("./tiny", "cpu").digest
    assert (by_name.name, by_name.about.folder) == ("tiny", folder)
    assert (by_name.image_shape, by_name.size, by_name.channels) == ((1, 16, 16), (16, 16), 1)
    assert by_name.state_shape == by_name.image_shape  # of pixels
    by_file = load(str(folder / "unet" / "diffusion_pytorch_model.safetensors"), "cpu")
    assert by_file.digest == by_name.digest


@pytest.mark.parametrize("reference", ["nothing", "no/such/folder", "model.pt", ""])
def test_an_unknown_model_says_what_was_tried(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not reference:
        with pytest.raises((FileError, UsageError)):
            load(reference, "cpu")
        return
    with pytest.raises(UsageError, match="not a bundled one, no folder or file here, and no hub id"):
        load(reference, "cpu")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "block_out_channels": [8, 32]}))
    with pytest.raises(FileError, match="do not fit its configuration"):
        load(str(folder), "cpu")
    path.write_text(json.dumps({**config, "in_channels": 3}))
    with pytest.raises(FileError, match="maps 3 channels to 1: not a denoiser"):
        load(str(folder), "cpu")


def test_a_folder_heeds_a_configuration_beside_its_own(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    (tmp_path / "c.json").write_text('{"image_size": 32}')
    assert load(str(folder), "cpu", config=str(tmp_path / "c.json")).size == (32, 32)


def test_no_image_size(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not say its image size"):
        load(str(write_tiny_model(tmp_path / "m", sample_size=None)), "cpu")


def test_classes(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "m", num_class_embeds=3))
    xbar = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    model = load(folder, "cpu")
    results = [model.eps(Condition(c))(xbar, 1.0) for c in range(3)]
    assert not torch.equal(results[0], results[1])
    with pytest.raises(UsageError, match="is class-conditional") as e:
        model.eps()
    assert "0 to 2" in e.value.hint
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"has no class {wrong}"):
            model.eps(Condition(wrong))
    for asked in (Condition(0), Condition(prompt="a dog"), Condition(guidance=2.0)):
        with pytest.raises(UsageError, match=r"has no classes|takes no text|nothing to guide"):
            embedder("x", None)(asked)


def test_guidance_goes_from_the_null_condition_past_the_other() -> None:
    """ε = ε_u + g (ε_c − ε_u), on the prediction as it comes."""
    model, _ = recorder(dtype="float64", prediction="v_prediction")

    def embed(condition: Condition) -> dict[str, Tensor]:
        return {"class_label": torch.tensor([len(condition.prompt or "")])}

    class Asked(Recorder):
        def forward(self, x: Tensor, label: Tensor, class_label: Tensor | None = None) -> Tensor:
            assert class_label is not None
            return x * 0 + class_label

    module = replace(model.network.module, load=lambda: Asked())
    model = replace(model.with_network(engines.make(module)), embed=embed)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    at = {
        g: float(model.eps(Condition(prompt="abc", negative="a", guidance=g))(x, 1.0)[0, 0, 0, 0]) for g in (1.0, 4.0)
    }
    root = math.sqrt(0.5)  # √α at σ = 1; x̄ = 0, so ε = √α v
    assert at == pytest.approx({1.0: 3 * root, 4.0: (1 + 4 * (3 - 1)) * root})


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_prediction_gives_the_noise_back(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=g) for _ in range(2))
    sigmas = [0.3, 40.0]
    s = torch.tensor(sigmas, dtype=torch.float64).view(-1, 1, 1, 1)
    a, b = 1 / (1 + s * s).sqrt(), s / (1 + s * s).sqrt()
    x = (x0 + s * eps) / (1 + s) if name == "flow" else a * x0 + b * eps
    truth = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0, "flow": eps - x0}
    torch.testing.assert_close(PREDICTIONS[name](truth[name], x, sigmas), eps, rtol=1e-9, atol=1e-9)


def test_a_model_is_a_value(model_folder: Path) -> None:
    """Another precision is another model; the first stays what it was."""
    model = load(str(model_folder), "cpu")
    other = model.with_network(engines.make(model.network.module, "torch", "bf16"))
    assert (model.network.precision, other.network.precision) == ("float32", "bf16")
    assert (model.network.dtype, other.network.dtype) == ("float32", "bfloat16")
    with pytest.raises(FrozenInstanceError):
        model.prediction = "sample"  # type: ignore[misc]


def test_the_digest_names_the_network(tmp_path: Path) -> None:
    """Equal for the same network however it is spelled; another for any other weight, field or prediction."""
    checkpoint = formats.read(write_tiny_model(tmp_path / "m"))

    def digest(c: Checkpoint) -> str:
        return from_checkpoint(c, About("x")).digest

    base = digest(checkpoint)
    config = checkpoint.config
    for same in (
        replace(checkpoint, config=replace(config, dropout=0.1)),
        replace(checkpoint, config=replace(config, act_fn="swish", sample_size=32, attn_norm_num_groups=4)),
        replace(checkpoint, weights=dict(reversed(checkpoint.weights.items()))),
        replace(checkpoint, weights={k: w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w
                                     for k, w in checkpoint.weights.items()}),
    ):  # fmt: skip
        assert digest(same) == base
    flipped = {k: w.clone() for k, w in checkpoint.weights.items()}
    flipped["conv_out.bias"].view(torch.int32)[0] ^= 1
    for other in (
        replace(checkpoint, weights=flipped),
        replace(checkpoint, prediction="sample"),
        replace(checkpoint, label_scale=0.5),
        replace(checkpoint, config=replace(config, norm_eps=1e-6)),
        replace(checkpoint, config=replace(config, attention_head_dim=4)),
    ):
        assert digest(other) != base


def test_mapped_weights_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files stay mapped, small ones are copied to channels-last; results and digest agree."""
    folder = write_tiny_model(tmp_path / "m")
    copied = load(str(folder), "cpu")
    monkeypatch.setattr(pixel, "COPY_BELOW", 0)
    mapped = load(str(folder), "cpu")
    assert mapped.digest == copied.digest
    xbar = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    assert apart(mapped.eps()(xbar, 3.0), copied.eps()(xbar, 3.0)) < NETWORK


def test_devices() -> None:
    assert pytorch.device("cpu") == "cpu"
    assert pytorch.device("auto").partition(":")[0] in ("cpu", "cuda", "mps")
    for name in ("nonsense", "cuda:99", "meta:x"):
        with pytest.raises(UsageError, match="is not available here"):
            pytorch.device(name)


CELEBAHQ = {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
MEASURE = """
import json, pathlib, sys
import torch
from ddimctl import families, ode
from ddimctl.recipe import Way
from ddimctl.unet import shapes
def peak():  # not getrusage's ru_maxrss, which a new process inherits from the one that started it
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
torch.set_num_threads(1)
before = peak()
m = families.load(sys.argv[1], "cpu")
loaded = peak()
path = (m.schedule.sigma(1), m.schedule.sigma(m.schedule.T))
ode.encode(m, torch.zeros(1, *m.image_shape), Way("ddim").along(path))
estimate = shapes.memory(m.network.module.torch.config)
print(json.dumps({"before": before, "loaded": loaded, "encoded": peak(), "estimate": estimate}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "ddim"])
def test_memory_of_the_256_pixel_network(kind: str, tmp_path: Path) -> None:
    """Loading stays below 1.5 times the file, Python and torch included; encoding one image below 4 GB."""
    import layouts

    path = write_tiny_model(tmp_path / "m", held_out=0, in_channels=3, out_channels=3, layers_per_block=2,
                            norm_num_groups=32, **CELEBAHQ)  # fmt: skip
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    if kind == "ddim":
        state = layouts.to_ddim(formats.read(path).weights, 6)
        path = file = tmp_path / "model.ckpt"
        torch.save({k: w.clone() for k, w in state.items()}, path)
        del state
    size = file.stat().st_size
    assert size > 450e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True, check=True, text=True, env=isolated(tmp_path), cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    measured = json.loads(done.stdout)
    assert measured["loaded"] < 1.5 * size
    assert measured["encoded"] < 4e9
    used = measured["encoded"] - measured["before"]
    assert 0.7 * used < measured["estimate"] < 1.5 * used


def test_the_memory_estimate_grows_with_the_image() -> None:
    small, large = (memory(UNetConfig.from_dict({**CELEBAHQ, "sample_size": s})) for s in (64, 256))
    weights = 4 * 113_673_219
    assert weights < small < large
    assert (large - weights) == pytest.approx(16 * (small - weights))


def test_write_and_read_keep_what_the_format_has_no_field_for(tmp_path: Path) -> None:
    checkpoint = formats.read(write_tiny_model(tmp_path / "m"))
    odd = replace(checkpoint, label_scale=0.25, prediction="v_prediction")
    diffusers.write(tmp_path / "o", odd)
    again = formats.read(tmp_path / "o")
    assert (again.label_scale, again.prediction) == (0.25, "v_prediction")
    assert not (tmp_path / "o" / "model_index.json").exists()
