"""Checkpoints as they are found: among a training run's files, in wrappers, under other names, of sizes that fit or do not.

The oracle is diffusers, whose networks wrote the weights and whose schedulers and DDIM the levels.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers import UNet2DModel as TheirUNet
from diffusers.training_utils import EMAModel
from rounding import NETWORK, apart
from safetensors.torch import save_file
from test_checkpoints_diffusers import check, network, save

from ddimctl import ode
from ddimctl.checkpoints import diffusers, folders, formats, identify, scheduler, unwrap
from ddimctl.errors import FileError, UsageError
from ddimctl.families import load
from ddimctl.model import Model
from ddimctl.recipe import Way
from ddimctl.schedule import Schedule

Invoke = Callable[..., Result]
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}


def same(model: Model, other: Model) -> bool:
    return (model.digest, model.schedule.digest, model.prediction) == (
        other.digest,
        other.schedule.digest,
        other.prediction,
    )


def bare(folder: Path, net: TheirUNet) -> Path:
    """The network's configuration alone, flat."""
    folder.mkdir(parents=True)
    net.save_config(folder)
    return folder


# Sizes


@pytest.mark.parametrize("size", [28, 100, 30, (24, 28), (4, 8)])
def test_sizes_that_cannot_be_halved_are_refused_at_loading(size: Any, tmp_path: Path, invoke: Invoke) -> None:
    blocks = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4}
    folder = save(tmp_path / "m", network(sample_size=size, block_out_channels=(8, 8, 8, 8), **blocks))
    shown = " × ".join(map(str, size if isinstance(size, tuple) else (size, size)))
    for command in (("sample", "-o", "x.png"), ("models", "show"), ("reconstruct", folder / "a.png"), ("bench",)):
        words = (*command, folder) if command[0] == "models" else (*command, "-m", folder)
        done = invoke(*words)
        assert f"images of {shown} pixels, which it cannot halve 3 times" in done.failed(3)
        assert "multiples of 8" in done.err


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_odd_at_the_lowest_resolution_is_fine(kind: str, tmp_path: Path) -> None:
    net = network(sample_size=12, block_out_channels=(8, 8, 16), downsample_type=kind, upsample_type=kind,
                  down_block_types=("AttnDownBlock2D",) * 3, up_block_types=("AttnUpBlock2D",) * 3)  # fmt: skip
    model = load(str(save(tmp_path / "m", net)), "cpu")
    x = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = net(x, 499).sample
    sigma = model.schedule.sigma(500)
    assert apart(model.eps()(x.double() * math.sqrt(1 + sigma**2), sigma), theirs) < NETWORK


# Schedulers


def run(out: Path, net: TheirUNet) -> Path:
    """A training run as diffusers' script leaves it: its scheduler at the root, a checkpoint without one."""
    save(out, net, scheduler=DDPMScheduler(**COSINE))
    checkpoint = out / "checkpoint-500"
    net.save_pretrained(checkpoint / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({}, checkpoint / name)
    EMAModel(net.parameters(), model_cls=TheirUNet, model_config=net.config).save_pretrained(checkpoint / "unet_ema")
    return checkpoint


def test_a_checkpoint_of_a_run_has_the_runs_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = run(tmp_path / "out", network())
    whole = load(str(tmp_path / "out"), "cpu")
    for place in ("", "unet", "unet_ema", "unet/diffusion_pytorch_model.safetensors"):
        model = load(str(checkpoint / place), "cpu")
        assert same(model, whole), place
        assert f"{tmp_path / 'out/scheduler/scheduler_config.json'}" in model.about.guesses[0], place
    monkeypatch.chdir(checkpoint)  # and by relative names, where the run is above the working folder
    assert same(load(".", "cpu"), whole)
    monkeypatch.chdir(checkpoint / "unet")
    assert same(load(".", "cpu"), whole)
    (tmp_path / "out/checkpoints").mkdir()
    moved = checkpoint.rename(tmp_path / "out/checkpoints/checkpoint-500")
    assert same(load(str(moved), "cpu"), whole)


def test_nothing_is_guessed_of_a_part(tmp_path: Path, invoke: Invoke) -> None:
    """Neither of a pipeline nor of a run: refused, and each way to say it is heeded."""
    net = network()
    checkpoint = run(tmp_path / "out", net)
    theirs = tmp_path / "out/scheduler/scheduler_config.json"
    moved = shutil.move(theirs, tmp_path / "levels.json")
    for place in ("", "unet", "unet_ema", "unet/diffusion_pytorch_model.safetensors"):
        with pytest.raises(FileError, match=r"scheduler_config\.json.*schedule and prediction"):
            load(str(checkpoint / place), "cpu")
    said = load(str(checkpoint), "cpu", schedule=moved)
    assert said.prediction == "sample"
    assert same(said, load(str(checkpoint), "cpu", schedule="squaredcos_cap_v2,sample"))
    assert same(said, load(str(checkpoint), "cpu", schedule="cosine,x0"))
    with pytest.raises(FileError, match="nobody says its prediction"):
        load(str(checkpoint), "cpu", schedule="cosine")
    with pytest.raises(FileError, match="nobody says its schedule"):
        load(str(checkpoint), "cpu", schedule="v_prediction")
    guessed = load(str(checkpoint), "cpu", guess=True)
    assert (guessed.prediction, guessed.schedule) == ("epsilon", Schedule.linear())
    assert "DDPM's linear β and ε" in guessed.about.guesses[0]
    assert "nobody says" in invoke("info", checkpoint).failed(3)
    shown = json.loads(invoke("info", checkpoint, "--guess", "--json").ok().out)
    assert shown["schedule"]["digest"] == guessed.schedule.digest
    (tmp_path / "all.json").write_text(json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}))
    assert load(str(checkpoint), "cpu", schedule=str(tmp_path / "all.json")).prediction == "v_prediction"
    bare_network = bare(tmp_path / "alone", net)  # never a part of anything: guessed aloud, as it always was
    torch.save(net.state_dict(), bare_network / "net.pt")
    assert "taken to be" in load(str(bare_network), "cpu").about.guesses[0]


def test_what_is_said_goes_before_what_lies_there(tmp_path: Path) -> None:
    """Word by word: the rest of the scheduler stays. Another schedule takes the place of a list of β."""
    folder = str(save(tmp_path / "m", network(), scheduler=DDPMScheduler(num_train_timesteps=500, beta_end=0.01)))
    model = load(folder, "cpu", schedule="v_prediction")
    assert (model.prediction, model.schedule) == ("v_prediction", Schedule.linear(500, 1e-4, 0.01))
    assert model.about.guesses == ()
    assert load(folder, "cpu", schedule="num_train_timesteps=50").schedule == Schedule.linear(50, 1e-4, 0.01)
    listed = str(save(tmp_path / "l", network(), scheduler=DDPMScheduler(trained_betas=[0.1, 0.2, 0.3])))
    assert load(listed, "cpu").schedule.T == 3
    assert load(listed, "cpu", schedule="linear,num_train_timesteps=1000").schedule == Schedule.linear()
    with pytest.raises(UsageError, match="unknown schedule or prediction 'quartic'"):
        load(folder, "cpu", schedule="quartic")
    with pytest.raises(FileError, match="has no scheduler_config"):
        load(folder, "cpu", schedule=str(bare(tmp_path / "x/y/z", network())))
    other = save(tmp_path / "other", network(), scheduler=DDPMScheduler(**COSINE))
    for place in (other, other / "unet", other / "scheduler", other / "scheduler/scheduler_config.json"):
        assert load(folder, "cpu", schedule=str(place)).prediction == "sample"


def test_latents_remember_what_was_said(tmp_path: Path, invoke: Invoke) -> None:
    folder = save(tmp_path / "m", network())
    (folder / "scheduler/scheduler_config.json").unlink()
    invoke(
        "sample", "-n", 1, "-m", folder, "--schedule", "cosine,v", "-o", "a.png", "--save-noise", "x.pt", "--steps", 3
    ).ok()
    invoke("decode", "x.pt", "-o", "b.png").ok()
    assert (tmp_path / "a.png").read_bytes()[:8] == (tmp_path / "b.png").read_bytes()[:8]
    said = invoke("decode", "x.pt", "-o", "c.png", "--schedule", "linear,v").failed(3)
    assert "encoded with" in said or "another" in said


# Weights: names, shards, wrappers


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "unet.pt", "last.ckpt", "ema_0.9999.pth"])
def test_the_only_weights_beside_a_configuration(name: str, tmp_path: Path) -> None:
    net = network()
    folder = bare(tmp_path / "m", net)
    (save_file if name.endswith("safetensors") else torch.save)(net.state_dict(), folder / name)
    check(load(str(folder), "cpu"), net)
    for other in ("optimizer.bin", "scheduler.pt", "random_states_0.pkl", "training_args.bin", "scaler.pt"):
        torch.save({"state": {}, "param_groups": []}, folder / other)
    for place in (folder, folder / name):
        check(load(str(place), "cpu", guess=True), net)
    torch.save(net.state_dict(), folder / "second.pt")
    with pytest.raises(FileError, match="several files with weights") as e:
        load(str(folder), "cpu", guess=True)
    assert {name, "second.pt"} <= set(re.findall(r"[\w.]+", str(e.value)))
    check(load(str(folder / name), "cpu", guess=True), net)


def spell(folder: Path, spelling: tuple[str, str], state: dict[str, Any], *, index: bool) -> None:
    """Two shards under such names, with an index or without."""
    shard, listing = spelling
    names, table = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = shard.format(i + 1)
        write: Callable[..., None] = save_file if file.endswith("safetensors") else torch.save
        write({k: state[k] for k in part}, folder / file)
        table |= dict.fromkeys(part, file)
    if index:
        (folder / listing).write_text(json.dumps({"metadata": {}, "weight_map": table}))


SHARDS = [
    ("diffusion_pytorch_model-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    ("diffusion_pytorch_model-0000{}-of-00002.bin", "diffusion_pytorch_model.bin.index.json"),
    ("diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"),
    ("diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors.index.json"),
    ("diffusion_pytorch_model.fp16-0000{}-of-00002.bin", "diffusion_pytorch_model.bin.fp16.index.json"),
    ("model-0000{}-of-00002.safetensors", "model.safetensors.index.json"),
    ("pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json"),
]


@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize("spelling", SHARDS, ids=[s[1] for s in SHARDS])
def test_every_spelling_of_shards(spelling: tuple[str, str], index: bool, tmp_path: Path) -> None:
    net = network()
    folder = bare(tmp_path / "m", net)
    spell(folder, spelling, net.state_dict(), index=index)
    check(load(str(folder), "cpu"), net)
    (folder / spelling[0].format(2)).unlink()
    with pytest.raises(FileError, match="lacks a part of its weights"):
        load(str(folder), "cpu")


def test_fields_of_the_average_in_a_configuration(tmp_path: Path) -> None:
    """As diffusers writes them when a network from unet_ema/ is saved again."""
    net = network()
    average = EMAModel(net.parameters(), decay=0.99, use_ema_warmup=True, model_cls=TheirUNet, model_config=net.config)
    average.save_pretrained(tmp_path / "unet_ema")
    again = TheirUNet.from_pretrained(tmp_path / "unet_ema")
    folder = save(tmp_path / "m", again)
    assert "power" in json.loads((folder / "unet/config.json").read_text())
    check(load(str(folder), "cpu"), again)


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [("some_new_switch", None, True), ("some_new_switch", "linear", False), ("some_new_switch", False, False)],
)
def test_fields_of_a_newer_diffusers(field: str, value: object, fits: bool, tmp_path: Path) -> None:
    """What is null says nothing; anything else may change the network, and is refused by name."""
    folder = save(tmp_path / "m", network())
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    if fits:
        check(load(str(folder), "cpu"), network())
    else:
        with pytest.raises(FileError, match=field):
            load(str(folder), "cpu")


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "net.", "model.net._orig_mod.module.",
            "_fsdp_wrapped_module.", "_forward_module.unet."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers(prefix: str, tmp_path: Path) -> None:
    net = network()
    state = {prefix + k: v for k, v in net.state_dict().items()}
    folder = save(tmp_path / "m", net)
    torch.save(state, folder / "unet/compiled.pt")
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    for place in (folder, folder / "unet/compiled.pt"):
        check(load(str(place), "cpu"), net)


def nests(state: dict[str, Any], wrong: dict[str, Any]) -> dict[str, Any]:
    """What training loops save, by the key that the network is under; `wrong` is what must not be taken."""
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}

    def named(prefix: str, what: dict[str, Any] = state) -> dict[str, Any]:
        return {prefix + k: v for k, v in what.items()}

    return {
        "model": {"model": state, "optimizer": optimiser, "epoch": 3},
        "model_state_dict": {"model_state_dict": named("module."), "optimizer_state_dict": optimiser, "loss": 0.1},
        "state_dict": {"state_dict": named("net."), "pytorch-lightning_version": "2.4.0", "epoch": 3},
        "two deep": {"state": {"nets": {"unet": named("_orig_mod.")}}, "step": torch.tensor(3)},
        "ema": {"model": wrong, "ema": state, "step": 5},
        "ema module": {"ema": {"module": named("module."), "decay": 0.99}, "model": wrong},
        "state_dict_ema": {"state_dict": named("model.", wrong), "state_dict_ema": named("model.")},
        "Lightning's callback": {"state_dict": {**named("net.", wrong), **named("net_ema.")}, "epoch": 1},
        "AveragedModel": {"model": wrong, "averaged": {"n_averaged": torch.tensor(7), **named("module.")}},
        "a list": [named("module.", wrong), optimiser, 3, 4000, state],
        "the same twice": {"model": state, "best": dict(state)},
    }


@pytest.mark.parametrize("kind", nests({}, {}))
def test_nested_state_dicts(kind: str, tmp_path: Path) -> None:
    net = network()
    state = net.state_dict()
    folder = bare(tmp_path / "m", net)
    torch.save(nests(state, {k: w + 1.0 for k, w in state.items()})[kind], folder / "last.ckpt")
    model = load(str(folder / "last.ckpt"), "cpu")
    check(model, net)
    if "wrong" in kind or kind.startswith(("ema", "state_dict_ema", "Lightning", "Averaged")):
        assert any("averaged weights" in n for n in model.about.notes)
    check(load(str(folder), "cpu"), net)


def test_two_networks_are_not_chosen_from(tmp_path: Path) -> None:
    state = network().state_dict()
    folder = bare(tmp_path / "m", network())
    torch.save({"generator": state, "teacher": {k: w + 1 for k, w in state.items()}}, folder / "both.pt")
    with pytest.raises(FileError, match="holds 2 networks: generator, teacher"):
        load(str(folder / "both.pt"), "cpu")
    with pytest.raises(FileError, match="twice, with and without"):
        unwrap.network({**state, "module.conv_in.weight": state["conv_in.weight"]}, {"x": diffusers.MARKS}, "f")


def test_refusals_are_true(tmp_path: Path) -> None:
    """Of a configuration that is there it is never said that it is missing; where it is missing, what to do."""
    net = network()
    state = net.state_dict()
    torch.save(state, tmp_path / "alone.pt")
    with pytest.raises(FileError, match=r"there is no config\.json beside it") as e:
        load(str(tmp_path / "alone.pt"), "cpu")
    assert "--config" in e.value.hint
    config = bare(tmp_path / "elsewhere", net) / "config.json"
    check(load(str(tmp_path / "alone.pt"), "cpu", config=str(config)), net)
    check(load(str(tmp_path / "alone.pt"), "cpu", config=str(config.parent)), net)
    torch.save({"shadow_params": [torch.zeros(3)], "decay": 0.9}, tmp_path / "average.pt")
    with pytest.raises(FileError, match="an average without names"):
        load(str(tmp_path / "average.pt"), "cpu")
    torch.save({"model": {k: v for k, v in state.items() if k != "conv_in.weight"}}, config.with_name("part.pt"))
    with pytest.raises(FileError) as e:
        load(str(config.with_name("part.pt")), "cpu")
    assert "configuration" not in str(e.value)
    assert identify.NOT_HERE


def test_checkpoints_of_other_layouts_are_unwrapped_too(tmp_path: Path) -> None:
    import layouts

    state = layouts.openai_state()
    config = tmp_path / "flags.json"
    config.write_text(json.dumps({"image_size": 16, "num_heads": 4}))
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "nested.pt")
    plain, nested = (load(str(tmp_path / name), "cpu", config=str(config)) for name in ("plain.pt", "nested.pt"))
    assert same(plain, nested)


def test_a_files_configuration_one_level_up(tmp_path: Path) -> None:
    """accelerate keeps the weights in checkpoint-500/model.safetensors; the network's configuration is the run's."""
    net = network()
    out = save(tmp_path / "out", net, scheduler=DDPMScheduler(**COSINE))
    (out / "checkpoint-500").mkdir()
    save_file(net.state_dict(), out / "checkpoint-500/model.safetensors")
    for place in ("", "model.safetensors"):
        model = load(str(out / "checkpoint-500" / place), "cpu")
        assert same(model, load(str(out), "cpu"))
        assert str(out / "unet/config.json") in " ".join(model.about.guesses)


# Zero terminal SNR


def levels(prediction: str, **fields: Any) -> DDIMScheduler:
    return DDIMScheduler(
        prediction_type=prediction,
        rescale_betas_zero_snr=True,
        clip_sample=False,
        timestep_spacing="trailing",
        **fields,
    )


@pytest.mark.parametrize(
    "fields", [{}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}], ids=str
)
def test_rescaled_levels_are_theirs(fields: dict[str, Any]) -> None:
    ours = scheduler.read(dict(levels("v_prediction", **fields).config)).schedule
    theirs = levels("v_prediction", **fields).alphas_cumprod.double()
    assert theirs[-1] < 1e-6  # they write 2^-24 where 0 would divide
    torch.testing.assert_close(torch.tensor(ours.alpha[1:-1], dtype=torch.float64), theirs[:-1], rtol=2e-3, atol=1e-6)
    assert ours.endless
    assert ours.sigma(ours.T) >= max(1e4, 3.99 * ours.sigma(ours.T - 1))
    again = scheduler.read({**scheduler.fields(ours), "num_train_timesteps": ours.T, "prediction_type": "v_prediction"})
    assert again.schedule == ours
    assert scheduler.fields(ours)["rescale_betas_zero_snr"]  # by name, as diffusers reads it


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_snr_is_decoded_as_by_diffusers(prediction: str, tmp_path: Path) -> None:
    """The paper's levels where S divides T are diffusers' trailing ones."""
    net, theirs = network(), levels(prediction)
    model = load(str(save(tmp_path / "m", net, scheduler=theirs)), "cpu")
    theirs.set_timesteps(20)
    xT = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = xT
    with torch.inference_mode():
        for t in theirs.timesteps:
            x = theirs.step(net(x.float(), t).sample.double(), t, x).prev_sample
    ours = ode.decode(model, xT, Way(steps=20, solver="ddim", spacing="linear")).x
    assert apart(ours, x) < 3e-4  # ten times 1/σ(T), which stands for 0 here


@pytest.mark.parametrize("spacing", ["karras", "log"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_snr_round_trips(prediction: str, spacing: str, tmp_path: Path) -> None:
    """`exact` too, whose tolerance must not be that of the level which stands for infinity."""
    net = network()
    net.conv_out.weight.data.mul_(0.3)
    model = load(str(save(tmp_path / "m", net, scheduler=levels(prediction))), "cpu")
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    solution = ode.encode(model, x, Way(steps=10, solver="exact", spacing=spacing))
    assert solution.x.isfinite().all()
    back = ode.decode(model, solution.x, Way(steps=10, solver="ddim", spacing=spacing)).x
    assert (back - x).abs().max() < 0.5 / 127.5  # no 8-bit value is wrong
    errors = []
    for steps in (25, 50):
        xT = ode.encode(model, x, Way(steps=steps, spacing=spacing)).x
        errors.append((ode.decode(model, xT, Way(steps=steps, spacing=spacing)).x - x).square().mean().item())
    assert errors[1] < errors[0] / 3


def test_zero_snr_without_a_flag_and_with_epsilon() -> None:
    listed = [*(0.02 * i / 20 for i in range(1, 20)), 1.0]
    made = scheduler.read({"trained_betas": listed, "prediction_type": "sample"}).schedule
    assert made.endless
    again = scheduler.read({**scheduler.fields(made), "prediction_type": "sample"}).schedule
    assert again.digest == made.digest
    for fields in ({"trained_betas": listed}, {"rescale_betas_zero_snr": True}):
        with pytest.raises(FileError, match="zero terminal SNR") as e:
            scheduler.read(fields)
        assert "v or sample" in e.value.hint


def test_any_list_of_betas_comes_back_exactly() -> None:
    """Where rounding keeps β from giving α back, the α are written too."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        alpha = (1.0, *sorted(torch.rand(30, generator=g, dtype=torch.float64).tolist(), reverse=True))
        written = json.loads(json.dumps(scheduler.fields(Schedule(alpha))))
        assert scheduler.read(written).schedule.alpha == alpha
        theirs = DDIMScheduler.from_config(written).alphas_cumprod.double()
        torch.testing.assert_close(theirs, torch.tensor(alpha[1:], dtype=torch.float64), rtol=1e-4, atol=1e-6)


def test_conversion_keeps_zero_snr(tmp_path: Path, invoke: Invoke) -> None:
    folder = save(tmp_path / "m", network(), scheduler=levels("v_prediction"))
    invoke("models", "convert", folder, "-o", "made").ok()
    assert same(load("made", "cpu"), load(str(folder), "cpu"))


def test_a_flows_scheduler_is_not_ddpms() -> None:
    with pytest.raises(FileError, match="use_flow_sigmas"):
        scheduler.read({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True})


# Where things lie


def tree(root: Path, files: Iterable[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("{}")
    return root


@pytest.mark.parametrize(
    ("files", "given", "unet", "found"),
    [
        (["unet/config.json", "scheduler/scheduler_config.json"], "", "unet", "scheduler/scheduler_config.json"),
        (["config.json", "scheduler_config.json"], "", "", "scheduler_config.json"),
        (["unet/config.json", "unet_ema/config.json", "scheduler/scheduler_config.json"], "unet", "unet",
         "scheduler/scheduler_config.json"),
        (["unet/config.json", "unet_ema/config.json"], "", "unet_ema", None),
        (["a/b/unet/config.json", "scheduler/scheduler_config.json"], "a/b", "a/b/unet", "scheduler/scheduler_config.json"),
        (["a/b/c/unet/config.json", "scheduler/scheduler_config.json"], "a/b/c", "a/b/c/unet", None),
    ],
)  # fmt: skip
def test_places(files: list[str], given: str, unet: str, found: str | None, tmp_path: Path) -> None:
    root = tree(tmp_path / "m", files)
    place = folders.find(root / given)
    assert place.unet == root / unet
    assert place.scheduler == (None if found is None else root / found)


def test_every_format_takes_a_schedule(tmp_path: Path) -> None:
    import layouts

    net = network(norm_num_groups=32, block_out_channels=(32, 64), flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
                  downsample_padding=0, attention_head_dim=None)  # fmt: skip
    torch.save(layouts.to_ddim(net.state_dict(), 2), tmp_path / "ddim.ckpt")
    torch.save(layouts.openai_state(), tmp_path / "openai.pt")
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps({"image_size": 16, "num_heads": 4}))
    for name in ("ddim.ckpt", "openai.pt"):
        model = load(str(tmp_path / name), "cpu", config=str(flags), schedule="cosine,v,num_train_timesteps=100")
        assert (model.prediction, model.schedule.T) == ("v_prediction", 100), name
    assert formats.read_schedule("cosine,v")["prediction_type"] == "v"
