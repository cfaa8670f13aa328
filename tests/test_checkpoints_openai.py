"""OpenAI's layout, against the network that their repositories define (`layouts.openai_forward`) and against diffusers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from diffusers import UNet2DModel as TheirUNet
from rounding import NETWORK, apart
from torch import Tensor

from ddimctl import ode
from ddimctl.checkpoints import Said, betas, diffusers, formats, openai
from ddimctl.errors import FileError, UsageError
from ddimctl.families import load
from ddimctl.families.pixel import from_checkpoint
from ddimctl.model import NOTHING, About, Condition, Model
from ddimctl.recipe import Way

CONFIG = {"image_size": 16, "num_heads": 4}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"updown": True}, {}),
    ({"updown": True, "attention": (0, 1)}, {}),
    ({"updown": True, "attention": ()}, {}),
    ({"scale_shift": False}, {}),
    ({"learn_sigma": True}, {"learn_sigma": True}),
    ({"classes": 3}, {"class_cond": True}),
    ({"layers": 2, "channels": (32, 32, 64), "attention": (1, 2)}, {"num_res_blocks": 2}),
    ({}, {"use_new_attention_order": True}),
    ({}, {"num_head_channels": 32}),
    ({"attention": (0, 1)}, {"num_head_channels": 16, "use_new_attention_order": True}),
    ({"attention": (0, 1)}, {"num_heads": 2}),  # heads of 16 and of 32 channels
    ({}, {"num_heads": 1}),
    ({}, {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}),
    ({}, {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": False}),
]
IDS = [str({**a, **b} or "plain") for a, b in CASES]


def read(tmp_path: Path, state: layouts.State, config: dict[str, Any]) -> Model:
    """The model, through a file as OpenAI's scripts save it."""
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "flags.json").write_text(json.dumps({**CONFIG, **config}))
    return load(str(tmp_path / "model.pt"), "cpu", config=str(tmp_path / "flags.json"))


def oracle(state: layouts.State, config: dict[str, Any], x: Tensor, t: int) -> Tensor:
    """What their code would predict at paper time t, so their label t − 1."""
    flags = {**CONFIG, **config}
    T = flags.get("diffusion_steps", 1000)
    label = (t - 1) * (1000 / T if flags.get("rescale_timesteps") else 1.0)
    classes = torch.tensor([1] * len(x)) if "label_emb.weight" in state else None
    return layouts.openai_forward(
        state,
        x,
        torch.full((len(x),), label),
        flags["num_heads"],
        flags.get("num_head_channels", -1),
        flags.get("use_new_attention_order", False),
        classes,
    )[:, :3]


@pytest.mark.parametrize(("make", "config"), CASES, ids=IDS)
def test_eps_equals_their_network(make: dict[str, Any], config: dict[str, Any], tmp_path: Path) -> None:
    state = layouts.openai_state(**make)
    model = read(tmp_path, state, config)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for t in (1, 400, model.schedule.T):
        sigma = model.schedule.sigma(t)
        theirs = oracle(state, config, x, t)
        condition = NOTHING if model.about.classes is None else Condition(1)
        ours = model.eps(condition)(x.double() * math.sqrt(1 + sigma**2), sigma)
        assert apart(ours, theirs) < NETWORK


@pytest.mark.parametrize(("make", "config"), CASES, ids=IDS)
def test_converted_it_is_the_same_network(make: dict[str, Any], config: dict[str, Any], tmp_path: Path) -> None:
    """Through our own layout: the same digest, schedule and labels; and diffusers computes the same from it."""
    state = layouts.openai_state(**make)
    model = read(tmp_path, state, config)
    checkpoint = formats.read(tmp_path / "model.pt", Said({**CONFIG, **config}))
    diffusers.write(tmp_path / "converted", checkpoint)
    again = from_checkpoint(diffusers.read(tmp_path / "converted"), About("again"))
    assert again.digest == model.digest
    assert again.schedule.digest == model.schedule.digest
    assert (again.prediction, again.label_scale) == (model.prediction, model.label_scale)
    ours_alone = model.label_scale != 1 or isinstance(checkpoint.config.attention_head_dim, tuple)
    assert (tmp_path / "converted" / "model_index.json").is_file() == (not ours_alone)
    if isinstance(model.network.module.torch.config.attention_head_dim, tuple):
        return  # beyond diffusers
    theirs = TheirUNet.from_pretrained(tmp_path / "converted" / "unet").eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    label = 250
    classes = torch.tensor([1, 1]) if "label_emb.weight" in state else None
    with torch.inference_mode():
        a = theirs(x, label, classes).sample[:, :3]
    b = oracle(state, {**config, "rescale_timesteps": False}, x, label + 1)
    assert apart(a, b) < NETWORK


def test_encode_and_decode_as_well_as_in_our_layout(tmp_path: Path) -> None:
    state = {k: 0.5 * w if w.ndim > 1 else w for k, w in layouts.openai_state().items()}
    model = read(tmp_path, state, {})
    diffusers.write(tmp_path / "ours", formats.read(tmp_path / "model.pt", Said(CONFIG)))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = []
    for m in (model, load(str(tmp_path / "ours"), "cpu")):
        way = Way(steps=10)
        back = ode.decode(m, ode.encode(m, images, way).x, way).x
        errors.append((back - images).square().mean().item())
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_order_of_q_k_and_v_matters() -> None:
    """The two orders differ for more than one head, so the comparisons above can fail."""
    w = torch.arange(24.0)
    assert [p.tolist() for p in openai.split_qkv(w, 4, True)] == [list(range(i, i + 8)) for i in (0, 8, 16)]
    q, k, v = openai.split_qkv(w, 4, False)
    assert q.tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert k.tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert v.tolist() == [8, 9, 10, 11, 20, 21, 22, 23]


def test_schedules_are_openais() -> None:
    """Linear β keep their total whatever T; cosine is Nichol and Dhariwal's eq. 17."""
    read = openai.read(
        layouts.openai_state(), Said({**CONFIG, "diffusion_steps": 250, "rescale_timesteps": False}), "x"
    )
    betas = [1 - q / p for p, q in zip(read.schedule.alpha, read.schedule.alpha[1:], strict=False)]
    assert betas[0] == pytest.approx(4e-4)
    assert betas[-1] == pytest.approx(0.08)
    flags = {**CONFIG, "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
    read = openai.read(layouts.openai_state(), Said(flags), "x")
    f = [math.cos((i / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(4001)]
    assert read.schedule.T == 4000
    assert read.schedule.alpha[1234] == pytest.approx(f[1234] / f[0], rel=1e-9)
    assert read.label_scale == 0.25
    assert "labels scaled by 0.25" in " ".join(read.notes)


def test_predict_xstart_is_the_sample_prediction() -> None:
    assert openai.read(layouts.openai_state(), Said({**CONFIG, "predict_xstart": True}), "x").prediction == "sample"


@pytest.mark.parametrize("name", openai.PRESETS)
def test_presets_are_complete(name: str) -> None:
    flags, told = openai.read_flags(openai.PRESETS[name])
    assert betas.listed(flags["noise_schedule"])
    assert not [t for t in told if "change nothing" in t]
    assert formats.read_config(name) == openai.PRESETS[name]


def test_a_published_file_is_known_by_its_name_and_says_so(tmp_path: Path) -> None:
    state = layouts.openai_state(channels=(32, 64, 64), attention=(1, 2))
    torch.save(state, tmp_path / "cifar10_uncond_50M_500K.pt")
    checkpoint = formats.read(tmp_path / "cifar10_uncond_50M_500K.pt")
    assert checkpoint.config.image_size == (32, 32)
    assert checkpoint.schedule.T == 4000
    assert "by the file's name" in " ".join(checkpoint.guesses)
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(FileError, match="does not tell its heads") as e:
        formats.read(tmp_path / "mine.pt")
    assert "--config" in e.value.hint


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"learn_sigma": True}, "learn_sigma is False, not True"),
        ({"num_channels": 128}, "num_channels is 32, not 128"),
        ({"num_res_blocks": 3}, "num_res_blocks is 1, not 3"),
        ({"resblock_updown": True}, "resblock_updown is False"),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm is True"),
        ({"num_heads": 5}, "heads do not divide"),
        ({"num_heads": 0}, "num_heads = 0"),
        ({"num_heads": "4"}, "num_heads = '4'"),
        ({"num_heads_upsample": 1}, "num_heads_upsample"),
        ({"diffusion_steps": 4000}, "must say rescale_timesteps"),
        ({"noise_schedule": "sqrt"}, "the schedule 'sqrt' is not implemented"),
        ({"noise_schedule": []}, "is not implemented"),
        ({"use_new_attention_order": "yes"}, "neither true nor false"),
        ({"conv_resample": False}, "networks with conv_resample = False"),
        ({"use_spatial_transformer": True}, "use_spatial_transformer"),
        ({"model_mean_type": "previous_x"}, "predicts 'previous_x'"),
        ({"in_channels": 6}, "in_channels is 3, not 6"),
        ({"attention_resolutions": "16,4"}, "attention is at 8 of 16 pixels, not at 16,4"),
        ({"image_size": 32, "attention_resolutions": 8}, "attention is at 16 of 32 pixels"),
        ({"image_size": -1}, "sample_size = -1"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(FileError, match=said):
        openai.read(layouts.openai_state(), Said({**CONFIG, **config}), "x")


def test_incomplete_files_are_refused_by_name() -> None:
    state = layouts.openai_state()
    with pytest.raises(FileError, match="lacks image_size"):
        openai.read(state, Said({"num_heads": 4}), "x")
    with pytest.raises(FileError, match="do not fit together"):
        openai.read({k: w for k, w in state.items() if not k.startswith("output_blocks.3")}, Said(CONFIG), "x")
    with pytest.raises(FileError, match=r"lacks a tensor of OpenAI's U-Net: out\.2\.weight"):
        openai.read({k: w for k, w in state.items() if k != "out.2.weight"}, Said(CONFIG), "x")
    with pytest.raises(FileError, match=r"a tensor that OpenAI's U-Net does not: extra\.weight"):
        openai.read({**state, "extra.weight": torch.zeros(1)}, Said(CONFIG), "x")
    with pytest.raises(FileError, match="do not fit together") as e:
        openai.read({k: w for k, w in state.items() if ".op." not in k and ".conv." not in k}, Said(CONFIG), "x")
    assert "conv_resample" in e.value.hint
    with pytest.raises(UsageError, match="unknown configuration 'nonsense'"):
        formats.read_config("nonsense")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (0,), (3,)])
def test_tensors_of_any_shape_are_one_line(shape: tuple[int, ...]) -> None:
    """Each in turn, and all of them: refused here, or when the weights are fitted to the network."""
    state = layouts.openai_state()
    for changed in [[k] for k in state] + [list(state)]:
        odd = {k: torch.zeros(shape) if k in changed else w for k, w in state.items()}
        if not {k for k in changed if odd[k].shape != state[k].shape}:
            continue
        with pytest.raises(FileError):
            from_checkpoint(openai.read(odd, Said(CONFIG), "x"), About("x"))


def test_a_published_name_does_not_help_odd_tensors(tmp_path: Path) -> None:
    torch.save({k: torch.tensor(1.0) for k in layouts.openai_state()}, tmp_path / "lsun_cat.pt")
    with pytest.raises(FileError, match=r"does not fit OpenAI's U-Net: .* has shape \(\)"):
        formats.read(tmp_path / "lsun_cat.pt")


@pytest.mark.parametrize(
    "stem",
    ["input_blocks.999.1.qkv", "output_blocks.999.1.qkv", f"input_blocks.{'9' * 5000}.0.op"],
    ids=lambda s: s[:18],
)
def test_blocks_that_are_not_there_are_refused(stem: str) -> None:
    state = layouts.openai_state()
    gone = "input_blocks.2" if stem.startswith("input") else "output_blocks.2"
    moved = {k.replace(f"{gone}.", f"{stem.rpartition('.')[0].rpartition('.')[0]}."): w for k, w in state.items()}
    with pytest.raises(FileError):
        openai.read({**moved, f"{stem}.weight": torch.zeros(96, 32, 1)}, Said(CONFIG), "x")


def test_an_upsampler_is_not_a_denoiser(tmp_path: Path) -> None:
    state = layouts.openai_state()
    state["input_blocks.0.0.weight"] = torch.randn(32, 6, 3, 3)
    with pytest.raises(FileError, match="not a denoiser"):
        read(tmp_path, state, {})
