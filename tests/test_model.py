"""`Model`: the scaling and labels of `eps`, what `load` accepts, the digest, and the memory that loading takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import isolated, write_tiny_model
from rounding import NETWORK, apart
from torch import Tensor

from ddimctl import model as model_module
from ddimctl.checkpoints import Checkpoint, diffusers, formats
from ddimctl.errors import FileError, UsageError
from ddimctl.model import Model, check_class, from_checkpoint, load, memory, read, torch_device
from ddimctl.schedule import Schedule
from ddimctl.unet import UNetConfig


class Recorder(torch.nn.Module):
    """Stands in for a network: remembers what it was asked, answers with `reply` or its input."""

    def __init__(self, config: UNetConfig, reply: Tensor | None = None):
        super().__init__()
        self.config, self.reply = config, reply
        self.conv_in = torch.nn.Conv2d(config.in_channels, 1, 1)
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        self.asked.append((x, label, classes))
        return x if self.reply is None else self.reply


def recorder(reply: Tensor | None = None, **fields: Any) -> tuple[Model, Recorder]:
    config = UNetConfig.from_dict({"sample_size": 4, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4})
    network = Recorder(config, reply)
    return Model(network, Schedule.linear(), **fields), network  # type: ignore[arg-type]


def test_scaling_and_labels() -> None:
    """x_t = x̄/√(σ²+1), and paper time t is label t − 1."""
    model, network = recorder()
    xbar = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for t in (1, 2, 500, 1000):
        sigma = model.schedule.sigma(t)
        out = model.eps(xbar, sigma)
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
        model.eps(xbar, sigma)
        assert network.asked[-1][1].tolist() == [0.0]
    for sigma in (0.0, 1e-3):  # and every prediction stays finite there
        for prediction in ("epsilon", "v_prediction", "sample"):
            model.prediction = prediction
            assert model.eps(xbar, sigma).isfinite().all()


def test_a_level_for_each_image() -> None:
    model, network = recorder()
    xbar = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    levels = [model.schedule.sigma(t) for t in (1, 10, 900)]
    together = model.eps(xbar, levels)
    assert network.asked[-1][1].tolist() == [0, 9, 899]
    for i, sigma in enumerate(levels):
        torch.testing.assert_close(together[i : i + 1], model.eps(xbar[i : i + 1], sigma))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_give_back_the_noise(prediction: str) -> None:
    """A network that answers with the true ε, v = √α ε − √(1−α) x_0, or x_0: the result is ε."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=g) for _ in range(2))
    model, network = recorder(prediction=prediction)
    for t in (20, 500):
        alpha = model.schedule.alpha[t]
        a, b = math.sqrt(alpha), math.sqrt(1 - alpha)
        truth = {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0}
        network.reply = truth[prediction]
        xbar = x0 + model.schedule.sigma(t) * eps
        torch.testing.assert_close(model.eps(xbar, model.schedule.sigma(t)), eps, rtol=1e-9, atol=1e-9)


def test_scaled_labels_and_classes() -> None:
    model, network = recorder(label_scale=0.25, class_label=7)
    model.eps(torch.zeros(2, 1, 4, 4, dtype=torch.float64), model.schedule.sigma(401))
    _, label, classes = network.asked[-1]
    assert label.tolist() == [100.0]
    assert classes is not None
    assert classes.tolist() == [7]


def test_learned_variances_are_dropped() -> None:
    reply = torch.randn(2, 2, 4, 4)
    model, _ = recorder(reply)
    out = model.eps(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 1.0)
    assert torch.equal(out, reply[:, :1].double())


def test_load_by_folder_file_and_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path / "models" / "tiny")
    monkeypatch.setattr(model_module, "bundled_folder", lambda: tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "tiny", seed=1)  # a bundled name comes before a folder of the same name
    by_name, by_path = load("tiny", "cpu"), load(str(folder), "cpu")
    assert by_name.digest == by_path.digest != load("./tiny", "cpu").digest
    assert (by_name.name, by_name.folder) == ("tiny", folder)
    assert (by_name.shape, by_name.size, by_name.channels) == ((1, 16, 16), (16, 16), 1)
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


def test_a_folder_takes_no_other_configuration(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    (tmp_path / "c.json").write_text('{"image_size": 32}')
    with pytest.raises(FileError, match="has a configuration of its own"):
        read(str(folder), str(tmp_path / "c.json"))


def test_no_image_size(tmp_path: Path) -> None:
    model = load(str(write_tiny_model(tmp_path / "m", sample_size=None)), "cpu")
    with pytest.raises(FileError, match="does not say its image size"):
        _ = model.size


def test_classes(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "m", num_class_embeds=3))
    xbar = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    results = [load(folder, "cpu", class_label=c).eps(xbar, 1.0) for c in range(3)]
    assert not torch.equal(results[0], results[1])
    with pytest.raises(UsageError, match="is class-conditional") as e:
        load(folder, "cpu")
    assert "0 to 2" in e.value.hint
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"has no class {wrong}"):
            load(folder, "cpu", class_label=wrong)
    with pytest.raises(UsageError, match="has no classes"):
        check_class(UNetConfig(), "x", 0)


def test_the_digest_names_the_network(tmp_path: Path) -> None:
    """Equal for the same network however it is spelled; another for any other weight, field or prediction."""
    checkpoint = formats.read(write_tiny_model(tmp_path / "m"))

    def digest(c: Checkpoint) -> str:
        return from_checkpoint(c, "x", "cpu").digest

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
    monkeypatch.setattr(model_module, "COPY_BELOW", 0)
    mapped = load(str(folder), "cpu")
    assert mapped.digest == copied.digest
    xbar = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    assert apart(mapped.eps(xbar, 3.0), copied.eps(xbar, 3.0)) < NETWORK


def test_devices() -> None:
    assert torch_device("cpu").type == "cpu"
    assert torch_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("nonsense", "cuda:99", "meta:x"):
        with pytest.raises(UsageError, match="is not available here"):
            torch_device(name)


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
from ddimctl import ddim, model
def peak():  # not getrusage's ru_maxrss, which a new process inherits from the one that started it
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
torch.set_num_threads(1)
before = peak()
m = model.load(sys.argv[1], "cpu")
loaded = peak()
path = (m.schedule.sigma(1), m.schedule.sigma(m.schedule.T))
ddim.encode(m, torch.zeros(1, *m.shape), path, "ddim")
print(json.dumps({"before": before, "loaded": loaded, "encoded": peak(), "estimate": model.memory(m.config)}))
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
