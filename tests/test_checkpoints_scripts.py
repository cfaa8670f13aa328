"""Every preset and layout of docs/checkpoints.md, on networks of the shapes that the scripts make from their own defaults.

The shapes are full size (on torch's meta device, where they cost nothing); their numbers of parameters are the published
ones. What such a network computes is compared with the layout's own equations, in miniature and with the same structure.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from rounding import NETWORK, apart

from ddimctl.checkpoints import Checkpoint, Said, configs, ddim, formats, openai
from ddimctl.errors import DDIMError, FileError
from ddimctl.families import load
from ddimctl.unet import UNet2DModel, UNetConfig

# OpenAI's scripts: create_model's defaults and its channel multipliers by image size, and the READMEs' flags of each file.
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
DEFAULTS: dict[str, Any] = {
    "num_channels": 128, "num_res_blocks": 2, "attention_resolutions": (16, 8), "learn_sigma": False, "class_cond": False,
    "use_scale_shift_norm": True, "resblock_updown": False,
}  # fmt: skip
SMALL = {"num_res_blocks": 3, "learn_sigma": True}
LSUN = {"image_size": 256, "attention_resolutions": (16,), "use_scale_shift_norm": False, "learn_sigma": True}
ADM = {"attention_resolutions": (32, 16, 8), "learn_sigma": True, "num_channels": 256, "resblock_updown": True}
# Flags, and millions of parameters: guided-diffusion's as in its paper's tables, the others' by the file's name.
PUBLISHED: dict[str, tuple[dict[str, Any], float]] = {
    "cifar10_uncond_50M_500K": ({"image_size": 32, **SMALL}, 50),
    "cifar10_uncond_vlb_50M_500K": ({"image_size": 32, **SMALL}, 50),
    "imagenet64_uncond_100M_1500K": ({"image_size": 64, **SMALL}, 121),
    "imagenet64_uncond_vlb_100M_1500K": ({"image_size": 64, **SMALL}, 121),
    "imagenet64_cond_270M_250K": ({"image_size": 64, **SMALL, "num_channels": 192, "class_cond": True}, 270),
    "lsun_uncond_100M_1200K_bs128": (LSUN, 114),
    "lsun_uncond_100M_2400K_bs64": (LSUN, 114),
    "64x64_diffusion": ({"image_size": 64, **ADM, "num_channels": 192, "num_res_blocks": 3, "class_cond": True}, 296),
    "128x128_diffusion": ({"image_size": 128, **ADM, "class_cond": True}, 422),
    "256x256_diffusion": ({"image_size": 256, **ADM, "class_cond": True}, 554),
    "256x256_diffusion_uncond": ({"image_size": 256, **ADM}, 553),
    "512x512_diffusion": ({"image_size": 512, **ADM, "class_cond": True}, 559),
    "lsun_bedroom": ({"image_size": 256, **ADM}, 552),
    "lsun_cat": ({"image_size": 256, **ADM}, 552),
    "lsun_horse": ({"image_size": 256, **ADM}, 552),
    "lsun_horse_nodropout": ({"image_size": 256, **ADM}, 552),
}


def make(flags: dict[str, Any], shapes_alone: bool = True) -> layouts.State:
    """What the scripts' create_model makes of such flags."""
    f = {**DEFAULTS, **flags}
    multipliers = MULTIPLIERS[f["image_size"]]
    return layouts.openai_state(
        channels=[int(m * f["num_channels"]) for m in multipliers],
        layers=f["num_res_blocks"],
        attention=[i for i in range(len(multipliers)) if f["image_size"] >> i in f["attention_resolutions"]],
        updown=f["resblock_updown"],
        scale_shift=f["use_scale_shift_norm"],
        learn_sigma=f["learn_sigma"],
        classes=1000 if f["class_cond"] else 0,
        model_channels=f["num_channels"],
        shapes_alone=shapes_alone,
    )


def shapes(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of our network, and of the weights that it is given."""
    with torch.device("meta"):
        network = UNet2DModel(checkpoint.config)
    return ({k: v.shape for k, v in network.state_dict().items()}, {k: v.shape for k, v in checkpoint.weights.items()})


def test_every_preset_is_here() -> None:
    assert PUBLISHED.keys() == openai.PRESETS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_load_the_published_networks(name: str) -> None:
    flags, millions = PUBLISHED[name]
    state = make(flags)
    found = openai.read(state, name=name)
    ours, theirs = shapes(found)
    assert ours == theirs
    assert sum(math.prod(s) for s in theirs.values()) / 1e6 == pytest.approx(
        millions, rel=0.01 if millions > 271 else 0.06
    )
    size = flags["image_size"]
    assert found.config.image_size == (size, size)
    levels = 4000 if name.startswith(("cifar10", "imagenet64")) else 1000
    assert levels == found.schedule.T
    said = {
        **DEFAULTS,
        **flags,
        "attention_resolutions": ",".join(map(str, {**DEFAULTS, **flags}["attention_resolutions"])),
    }
    again = openai.read(
        state, Said({**openai.PRESETS[name], **said}), "renamed"
    )  # and none of its flags contradicts it
    assert again.config == found.config
    assert again.guesses == []


MINIATURES = {
    "improved": {"num_res_blocks": 1},
    "guided": {"num_res_blocks": 1, "attention_resolutions": (32, 16, 8), "resblock_updown": True, "learn_sigma": True},
}


@pytest.mark.parametrize("size", MULTIPLIERS)
@pytest.mark.parametrize("script", MINIATURES)
def test_what_the_scripts_networks_compute(script: str, size: int, tmp_path: Path) -> None:
    """At a quarter or an eighth of the size, which the network does not know: its attention is where it is."""
    if script == "improved" and size > 256:
        pytest.skip("its script knows no such size")
    flags = {"image_size": size, **MINIATURES[script], "num_channels": 64 if size == 512 else 32}
    state = {k: 0.7 * w if w.ndim > 1 else w for k, w in make(flags, shapes_alone=False).items()}
    torch.save(state, tmp_path / "x.pt")
    small = max(size // 8, 16 if size == 128 else 32 if size > 64 else 8)
    config: dict[str, Any] = {
        "image_size": max(small, 64 if size == 512 else small),
        "num_head_channels": 32,
        "num_heads": 4,
    }
    (tmp_path / "x.json").write_text(json.dumps(config))
    model = load(str(tmp_path / "x.pt"), "cpu", config=str(tmp_path / "x.json"))
    side = config["image_size"]
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    sigma = model.schedule.sigma(400)
    with torch.inference_mode():
        theirs = layouts.openai_forward(state, x, torch.tensor([399.0]), head_channels=32)[:, :3]
    assert apart(model.eps()(x.double() * math.sqrt(1 + sigma**2), sigma), theirs) < NETWORK


# The authors' repositories: the fields of configs/*.yml, and the image size that no file of weights says.
YML = """
data:
    dataset: "{name}"
    category: "x"
    image_size: {size}
    channels: 3
    logit_transform: false
    uniform_dequantization: false
    gaussian_dequantization: false
    random_flip: true
    rescaled: true
    num_workers: 4
model:
    type: "simple"
    in_channels: 3
    out_ch: 3
    ch: 128
    ch_mult: {mult}
    num_res_blocks: 2
    attn_resolutions: [16, ]
    dropout: 0.1
    var_type: fixedlarge
    ema_rate: 0.9999
    ema: True
    resamp_with_conv: True
diffusion:
    beta_schedule: linear
    beta_start: 0.0001
    beta_end: 0.02
    num_diffusion_timesteps: 1000
training:
    batch_size: 64
    n_epochs: 10000
sampling:
    batch_size: 64
    last_only: True
optim:
    weight_decay: 0.000
    eps: 0.00000001
    lr: 2e-4
"""
AUTHORS = {
    "cifar10": (32, [1, 2, 2, 2], 35.7), "celeba": (64, [1, 2, 2, 2, 4], 78.7),
    "bedroom": (256, [1, 1, 2, 2, 4, 4], 113.7), "church": (256, [1, 1, 2, 2, 4, 4], 113.7),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_networks_with_their_own_yaml(name: str, tmp_path: Path) -> None:
    size, mult, millions = AUTHORS[name]
    at = [size >> i == 16 for i in range(len(mult))]
    config = UNetConfig.from_dict({
        **ddim.FIXED, "sample_size": size, "time_embedding_dim": 512, "block_out_channels": [128 * m for m in mult],
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in at],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(at)],
    })  # fmt: skip
    with torch.device("meta"):
        state = layouts.to_ddim(UNet2DModel(config).state_dict(), len(mult))
    (tmp_path / "x.yml").write_text(YML.format(name=name.upper(), size=size, mult=mult))
    said = formats.read_config(str(tmp_path / "x.yml"))
    found = ddim.read(state, Said(said), name)
    ours, theirs = shapes(found)
    assert ours == theirs
    assert found.config == config
    assert found.guesses == []
    assert sum(math.prod(s) for s in theirs.values()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert ddim.read(state, name=name).config == config  # the guess, without the file
    for wrong in (
        {"ch": 64},
        {"ch_mult": [1, 2]},
        {"num_res_blocks": 3},
        {"attn_resolutions": [8]},
        {"resamp_with_conv": False},
    ):
        with pytest.raises(FileError, match=f"does not fit its configuration: {next(iter(wrong))}"):
            ddim.read(state, Said({**said, "model": {**said["model"], **wrong}}), name)


DIFFUSERS = {  # what diffusers' train_unconditional.py makes without a configuration, and what its pipelines' examples are
    "block_out_channels": (128, 128, 256, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}  # fmt: skip


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512])
def test_diffusers_training_script(size: int, tmp_path: Path) -> None:
    from diffusers import UNet2DModel as TheirUNet

    with torch.device("meta"):
        theirs = TheirUNet(sample_size=size, **DIFFUSERS)
    theirs.save_config(tmp_path)
    config = UNetConfig.from_dict(
        {k: v for k, v in json.loads((tmp_path / "config.json").read_text()).items() if k[0] != "_"}
    )
    with torch.device("meta"):
        ours = UNet2DModel(config)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


# Configurations of repositories that run OpenAI's and the authors' networks


REPAINT = """
attention_resolutions: 32,16,8
class_cond: false
diffusion_steps: 1000
learn_sigma: true
noise_schedule: linear
num_channels: 256
num_head_channels: 64
num_heads: 4
num_res_blocks: 2
resblock_updown: true
use_fp16: false
use_scale_shift_norm: true
classifier_scale: 4.0
lr_kernel_n_std: 2
num_samples: 100
show_progress: true
timestep_respacing: '250'
use_kl: false
predict_xstart: false
rescale_timesteps: false
rescale_learned_sigmas: false
classifier_use_fp16: false
classifier_width: 128
num_heads_upsample: -1
channel_mult: ''
dropout: 0.0
use_checkpoint: false
use_new_attention_order: false
clip_denoised: true
use_ddim: false
latex_name: RePaint
method_name: Repaint
image_size: 256
model_path: ./data/pretrained/celeba256_250000.pt
name: face_example
inpa_inj_sched_prev: true
n_jobs: 1
print_estimated_vars: true
inpa_inj_sched_prev_cumnoise: false
schedule_jump_params:
  t_T: 250
  n_sample: 1
data:
  eval:
    paper_face_mask:
      mask_loader: true
      image_size: 256
"""
DPS = """
image_size: 256
num_channels: 128
num_res_blocks: 1
channel_mult: ""
learn_sigma: True
class_cond: False
use_checkpoint: False
attention_resolutions: 16
num_heads: 4
num_head_channels: 64
num_heads_upsample: -1
use_scale_shift_norm: True
dropout: 0.0
resblock_updown: True
use_fp16: False
use_new_attention_order: False
model_path: models/ffhq_10m.pt
"""
DPS_DIFFUSION = """
sampler: 'ddpm'
steps: 1000
noise_schedule: linear
model_mean_type: epsilon
model_var_type: learned_range
dynamic_threshold: False
clip_denoised: True
rescale_timesteps: False
timestep_respacing: 100
"""
DDNM = """
data:
    dataset: "ImageNet"
    image_size: 256
    channels: 3
    out_of_dist: false
    subset_1k: true
model:
    type: "openai"
    in_channels: 3
    out_channels: 3
    num_channels: 256
    num_heads: 4
    num_res_blocks: 2
    attention_resolutions: "32,16,8"
    dropout: 0.0
    resamp_with_conv: true
    learn_sigma: true
    use_scale_shift_norm: true
    use_fp16: true
    resblock_updown: true
    num_heads_upsample: -1
    var_type: 'fixedsmall'
    num_head_channels: 64
    image_size: 256
    class_cond: false
    use_new_attention_order: false
diffusion:
    beta_schedule: "linear"
    beta_start: 0.0001
    beta_end: 0.02
    num_diffusion_timesteps: 1000
time_travel:
    T_sampling: 100
"""
REPOSITORIES = {
    "RePaint": (REPAINT, {"image_size": 256, **ADM}, []),
    "DPS": (DPS, {"image_size": 256, "num_res_blocks": 1, "attention_resolutions": (16,), "learn_sigma": True,
                  "resblock_updown": True}, ["noise_schedule and diffusion_steps"]),
    "DDNM": (DDNM, {"image_size": 256, **ADM}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", REPOSITORIES)
def test_yaml_of_repositories(name: str, tmp_path: Path) -> None:
    text, flags, guessed = REPOSITORIES[name]
    (tmp_path / "x.yml").write_text(text)
    (tmp_path / "d.yaml").write_text(DPS_DIFFUSION)
    config, schedule = formats.read_config(str(tmp_path / "x.yml")), formats.read_schedule(str(tmp_path / "d.yaml"))
    found = openai.read(make(flags), Said(config), "x")
    ours, theirs = shapes(found)
    assert ours == theirs
    assert found.config.attention_head_dim == 64
    assert (found.prediction, found.schedule.T, found.label_scale) == ("epsilon", 1000, 1.0)
    assert [g.partition(":")[0] for g in found.guesses] == guessed
    said = openai.read(make(flags), Said(config, schedule), "x")
    assert said.guesses == []
    assert said.schedule == found.schedule


def test_flags_that_change_nothing_are_told(tmp_path: Path) -> None:
    flags = {"image_size": 64, "num_heads": 4, "diffusion_steps": 1000, "noise_schedule": "linear"}
    state = make({"image_size": 64})
    told = openai.read(state, Said({**flags, "p2_gamma": 0.5, "p2_k": 1, "dropout": 0.3}), "x").guesses
    assert told == ["the configuration has fields that change nothing here: p2_gamma, p2_k"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("a: &a [1, 2]\nb: *a", "aliases"),
        ("- 1\n- 2", "not a YAML mapping"),
        ("a: [1, 2", "cannot read"),
        ("\x00", "cannot read"),
        ("", "not a YAML mapping"),
        ("a: " + "[" * 200 + "]" * 200, "cannot read"),
        ("data: {image_size: 32}\nmodel: {image_size: 64}", "two values of image_size"),
    ],
)
def test_yaml_is_data(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(FileError, match=said):
        ddim.read(layouts.to_ddim({}, 1), Said(formats.read_config("x.yml"))) if "two" not in said else configs.flat(
            formats.read_config("x.yml"), ("image_size",)
        )
    assert not (tmp_path / "ran").exists()


def test_numbers_in_yaml(tmp_path: Path) -> None:
    """1e-4 is a number to whoever writes it; YAML 1.1 wants a point."""
    (tmp_path / "x.yaml").write_text("a: 1e-4\nb: 2.5e3\nc: [1E2, x1e2]\nd: 16,8\ne: 0.1")
    assert configs.read(tmp_path / "x.yaml") == {"a": 1e-4, "b": 2.5e3, "c": [100.0, "x1e2"], "d": "16,8", "e": 0.1}


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (tmp_path / "x.yml").write_text("a: 1")
    with pytest.raises(DDIMError, match="which needs PyYAML") as e:
        formats.read_config(str(tmp_path / "x.yml"))
    assert "ddimctl[yaml]" in e.value.hint
    (tmp_path / "x.txt").write_text("a: 1")
    with pytest.raises(FileError, match="as JSON") as f:
        formats.read_config(str(tmp_path / "x.txt"))
    assert ".yml" in f.value.hint
