"""diffusers' layout against diffusers: what it wrote, we read and compute alike; what we write, it reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
from diffusers import UNet2DModel as TheirUNet
from rounding import NETWORK, apart
from safetensors.torch import save_file

from ddimctl.checkpoints import Checkpoint, betas, diffusers, folders, formats, scheduler
from ddimctl.errors import FileError
from ddimctl.families import load
from ddimctl.families.pixel import from_checkpoint
from ddimctl.model import NOTHING, About, Condition, Model
from ddimctl.schedule import Schedule

TINY: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
STEM = "diffusion_pytorch_model"


def network(**changes: Any) -> TheirUNet:
    torch.manual_seed(0)
    net = TheirUNet(**{**TINY, **changes}).eval()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return net


def save(folder: Path, net: TheirUNet, flat: bool = False, scheduler: Any = None, **how: Any) -> Path:
    net.save_pretrained(folder if flat else folder / "unet", **how)
    (scheduler or DDPMScheduler()).save_pretrained(folder if flat else folder / "scheduler")
    return folder


def check(model: Model, net: TheirUNet, condition: Condition = NOTHING, *, bound: float = NETWORK) -> None:
    """ε of both on random inputs, at the first, a middle and the last level."""
    x = torch.randn(2, model.channels, 16, 16, generator=torch.Generator().manual_seed(1))
    classes = None if condition.class_label is None else torch.tensor([condition.class_label] * 2)
    for t in (1, 480, model.schedule.T):
        sigma = model.schedule.sigma(t)
        with torch.inference_mode():
            theirs = net(x, t - 1, classes).sample[:, : model.channels]
        ours = model.eps(condition)(x.double() * math.sqrt(1 + sigma**2), sigma)
        assert apart(ours, theirs) < bound, t


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "unet"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("shard", [None, "20KB"], ids=["whole", "shards"])
def test_layouts(flat: bool, safe: bool, shard: str | None, tmp_path: Path) -> None:
    net = network()
    how = {"max_shard_size": shard} if shard else {}
    folder = save(tmp_path / "m", net, flat, safe_serialization=safe, **how)
    if shard:
        assert len(list(folder.rglob(f"{STEM}-*"))) > 1
    check(load(str(folder), "cpu"), net)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_half_precision_variant(kind: str, tmp_path: Path) -> None:
    """Its weights are read as they are and computed in float32; the whole precision is preferred if both are there."""
    net = network()
    folder = save(tmp_path / "m", net)
    whole = folder / "unet" / f"{STEM}.safetensors"
    half = TheirUNet(**TINY).half()
    half.load_state_dict(net.state_dict())
    state = half.state_dict()
    target = folder / "unet" / f"{STEM}.fp16.{kind}"
    if kind == "bin":
        torch.save(state, target)
    else:
        save_file(state, target)
    both = load(str(folder), "cpu")
    check(both, net)
    whole.unlink()
    model = load(str(folder), "cpu")
    check(model, half.float())
    assert model.network.module.torch.conv_in.weight.dtype == torch.float32
    assert "float16, computed in float32" in " ".join(model.about.notes)
    assert model.digest != both.digest


def test_sharded_half_precision_variant(tmp_path: Path) -> None:
    net = network()
    save(tmp_path / "m", net, max_shard_size="20KB", variant="fp16")
    assert list((tmp_path / "m" / "unet").glob("*.index.fp16.json"))
    check(load(str(tmp_path / "m"), "cpu"), net)


def test_legacy_attention_names(tmp_path: Path) -> None:
    net = network()
    folder = save(tmp_path / "m", net)
    old = {}
    for name, w in net.state_dict().items():
        for new, legacy in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(new, legacy)
        old[name] = w
    assert any("query" in k for k in old)
    save_file(old, folder / "unet" / f"{STEM}.safetensors")
    check(load(str(folder), "cpu"), net)


def test_missing_fields_mean_diffusers_defaults(tmp_path: Path) -> None:
    """Everything left out but the sizes: their network from the same file is the oracle."""
    kept = {k: TINY[k] for k in ("sample_size", "in_channels", "out_channels", "norm_num_groups", "layers_per_block")}
    config = {**kept, "block_out_channels": [8, 8, 16, 16]}
    torch.manual_seed(0)
    net = TheirUNet(**config).eval()
    folder = save(tmp_path / "m", net)
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    check(load(str(folder), "cpu"), net)
    assert load(str(folder), "cpu").schedule == Schedule.linear()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions(prediction: str, tmp_path: Path) -> None:
    """ε from their scheduler's predicted x_0: ε = (x_t − √α x_0)/√(1−α)."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    net = network()
    model = load(str(save(tmp_path / "m", net, scheduler=scheduler)), "cpu")
    scheduler.set_timesteps(1000)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for t in (300, 500, 800):
        alpha = model.schedule.alpha[t]
        with torch.inference_mode():
            x0 = scheduler.step(net(x, t - 1).sample, t - 1, x).pred_original_sample
        theirs = (x - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
        ours = model.eps()(x.double() / math.sqrt(alpha), model.schedule.sigma(t))
        assert apart(ours, theirs) < NETWORK


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_train_timesteps": 400},
        {"beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.001 * 1.004**i for i in range(1000)]},
    ],
    ids=str,
)
def test_schedules(fields: dict[str, Any]) -> None:
    """α as DDPMScheduler has it (in float32), and exactly the same α after writing and reading."""
    theirs = DDPMScheduler(**fields)
    schedule = scheduler.read(dict(theirs.config)).schedule
    expected = theirs.alphas_cumprod.double()
    got = torch.tensor(schedule.alpha[1:], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    again = scheduler.read(scheduler.fields(schedule) | {"num_train_timesteps": schedule.T})
    assert again.schedule == schedule


def test_every_named_schedule_is_tested() -> None:
    assert set(betas.BETAS) == {"linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scheduler_defaults_are_diffusers() -> None:
    """For every scheduler we accept: what it takes when a file leaves a field out."""
    import diffusers as theirs

    for kind in scheduler.SCHEDULERS:
        if kind == "DPMSolverSDE":
            continue  # needs torchsde
        default = getattr(theirs, kind + "Scheduler")()
        read = scheduler.read({"_class_name": kind + "Scheduler"})
        assert read.prediction == getattr(default.config, "prediction_type", "epsilon"), kind
        assert read.schedule.alpha[-1] == pytest.approx(default.alphas_cumprod[-1].item(), rel=1e-3), kind


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochasticIterativeScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"trained_betas": [0.1, 1.0]}, "zero terminal SNR"),
        ({"trained_betas": [1.0, 0.1]}, "schedule makes no sense"),
        ({"timestep_type": "continuous"}, "labels are continuous"),
        ({"trained_betas": "0.1"}, "trained_betas"),
        ({"trained_betas": ["a"]}, "schedule makes no sense"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"beta_schedule": "laplace"}, "laplace"),
        ({"beta_schedule": None}, "None"),
        ({"num_train_timesteps": 10**9}, "1000000000 levels"),
        ({"num_train_timesteps": "1000"}, "'1000' levels"),
        ({"beta_end": 2}, "makes no sense"),
        ({"beta_start": "x"}, "makes no sense"),
    ],
    ids=str,
)
def test_schedulers_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(FileError, match=said):
        scheduler.read(config)


@pytest.mark.parametrize("value", [0, -1, "a", 1e9])
def test_a_label_scale_that_makes_no_sense(value: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", network())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"label_scale": value}))
    with pytest.raises(FileError, match="label_scale"):
        load(str(folder), "cpu")


def test_learned_variances_are_left_out(tmp_path: Path) -> None:
    net = network(out_channels=2)
    scheduler = DDPMScheduler(variance_type="learned_range")
    model = load(str(save(tmp_path / "m", net, scheduler=scheduler)), "cpu")
    check(model, net)
    assert "learned variances" in " ".join(model.about.notes)


def test_class_conditional(tmp_path: Path) -> None:
    net = network(num_class_embeds=4)
    folder = str(save(tmp_path / "m", net))
    for label in (0, 3):
        check(load(folder, "cpu"), net, Condition(label))


@pytest.mark.parametrize("gone", ["scheduler", "model_index.json"])
def test_optional_parts(gone: str, tmp_path: Path) -> None:
    """A part of a pipeline whose scheduler is gone is refused, unless it may be guessed; that is said then."""
    net = network()
    folder = tmp_path / "m"
    DDIMPipeline(net, DDIMScheduler()).save_pretrained(folder)
    assert load(str(folder), "cpu").about.guesses == ()
    path = folder / gone
    if path.is_dir():
        (path / "scheduler_config.json").unlink()
    else:
        path.unlink()
    if gone == "scheduler":
        with pytest.raises(FileError, match="nobody says its schedule and prediction") as e:
            load(str(folder), "cpu")
        assert "--schedule" in e.value.hint
        assert "--guess" in e.value.hint
    model = load(str(folder), "cpu", guess=gone == "scheduler")
    check(model, net)
    assert bool(model.about.guesses) == (gone == "scheduler")


def test_parts_of_a_model_folder_are_the_model(tmp_path: Path) -> None:
    """The folder unet/ finds its scheduler; a weights file finds its configuration."""
    net = network()
    folder = save(tmp_path / "m", net, scheduler=DDPMScheduler(num_train_timesteps=500))
    for reference in (folder / "unet", folder / "unet" / f"{STEM}.safetensors"):
        model = load(str(reference), "cpu")
        assert model.schedule.T == 500
        assert model.about.guesses == ()
        check(model, net)


def test_a_weights_file_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    net = network()
    folder = save(tmp_path / "m", net)
    half = TheirUNet(**TINY).half()
    half.load_state_dict(net.state_dict())
    save_file(half.state_dict(), folder / "unet" / f"{STEM}.fp16.safetensors")
    torch.save(half.state_dict(), folder / "unet" / "other.bin")
    for name in (f"{STEM}.fp16.safetensors", "other.bin"):
        model = load(str(folder / "unet" / name), "cpu")
        assert f"weights: {name}" in model.about.notes
        check(model, half.float())
        half.half()


def test_the_average_of_a_training_script_is_taken(tmp_path: Path) -> None:
    net, average = network(), network()
    for p in average.parameters():
        p.data.mul_(0.5)
    folder = save(tmp_path / "checkpoint-500", net)
    average.save_pretrained(folder / "unet_ema")
    path = folder / "unet_ema" / "config.json"
    ema = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 500, "update_after_step": 0, "power": 0.75}
    path.write_text(json.dumps({**json.loads(path.read_text()), **ema, "use_ema_warmup": True, "inv_gamma": 1.0}))
    model = load(str(folder), "cpu")
    check(model, average)
    assert "averaged weights" in " ".join(model.about.notes)


def test_what_we_write_diffusers_reads(tmp_path: Path) -> None:
    net = network(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6)
    checkpoint = formats.read(save(tmp_path / "theirs", net))
    diffusers.write(tmp_path / "ours", checkpoint)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "ours")
    assert pipeline.scheduler.config.clip_sample is False
    x = torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        a, b = pipeline.unet.eval()(x, 7).sample, net(x, 7).sample
    assert apart(a, b) < NETWORK
    again = formats.read(tmp_path / "ours")
    assert from_checkpoint(again, About("b")).digest == from_checkpoint(checkpoint, About("a")).digest
    assert again.schedule.digest == checkpoint.schedule.digest
    mode = (tmp_path / "ours" / "unet" / f"{STEM}.safetensors").stat().st_mode & 0o777
    assert mode & 0o044 == (tmp_path / "ours" / "model_index.json").stat().st_mode & 0o044


def test_tensors_that_share_storage_are_written(tmp_path: Path) -> None:
    net = network()
    weights = {k: w.clone() for k, w in net.state_dict().items()}
    both = torch.randn(2, 8)
    weights["conv_norm_out.weight"], weights["conv_norm_out.bias"] = both[0], both[1]
    checkpoint = formats.read(save(tmp_path / "m", net))
    diffusers.write(tmp_path / "o", Checkpoint(checkpoint.config, weights, checkpoint.schedule))
    assert torch.equal(formats.read(tmp_path / "o").weights["conv_norm_out.bias"], both[1])


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "..", "a\\..\\b", "sub/x.bin"])
def test_shards_stay_in_their_folder(file: str) -> None:
    with pytest.raises(FileError, match="outside its folder"):
        folders.shards({"weight_map": {"a": "x.bin", "b": file}}, "index")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", network(), max_shard_size="20KB")
    part = sorted((folder / "unet").glob(f"{STEM}-*"))[1]
    part.unlink()
    with pytest.raises(FileError, match=f"lacks a part of its weights: {part.name}"):
        load(str(folder), "cpu")


def test_choice_of_weights() -> None:
    order = [
        f"{STEM}.safetensors",
        f"{STEM}.safetensors.index.json",
        f"{STEM}.bin",
        f"{STEM}.bin.index.json",
        f"{STEM}.fp16.safetensors",
        f"{STEM}.safetensors.index.fp16.json",
        f"{STEM}.fp16.bin",
        f"{STEM}.bin.index.fp16.json",
        f"{STEM}.bf16.safetensors",
    ]
    for i, best in enumerate(order):
        files, index = folders.choose_weights({*order[i:], "other.txt"})
        assert [*files, index] == ([best, ""] if "index" not in best else [best])
    assert folders.choose_weights({"pytorch_lora_weights.bin"}) == ([], "")


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\ntags: []\n---\nlicense: mit", None),
        ("license: mit", None),
        ("---\nlicense:\n---", None),
        ("", None),
    ],
)
def test_licence(text: str, licence: str | None, tmp_path: Path) -> None:
    assert folders.licence(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert folders.licence(tmp_path) == licence
