"""Our U-Net against diffusers' `UNet2DModel`: the same weights, the same output, one tiny model for each field value."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel as TheirUNet
from rounding import NETWORK, apart

from ddimctl.errors import FileError
from ddimctl.unet import UNet2DModel, UNetConfig

TINY: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sample_size": (8, 16)},
    {"in_channels": 1, "out_channels": 1},
    {"out_channels": 6},
    {"center_input_sample": True},
    {"time_embedding_dim": 20},
    {"freq_shift": 1},
    {"flip_sin_to_cos": False},
    {"mid_block_type": None},
    {"mid_block_scale_factor": 1.5},
    {"downsample_padding": 0},
    {"downsample_type": "resnet"},
    {"downsample_type": None},
    {"upsample_type": "resnet"},
    {"upsample_type": None},
    RESNET,
    {**RESNET, "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
    {"down_block_types": ("UNetResDownBlock2D",) * 3, "up_block_types": ("UNetResUpBlock2D",) * 3},
    {"down_block_types": ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3},
    {"block_out_channels": (4, 12, 20)},
    {"layers_per_block": 3},
    {"dropout": 0.5},
    {"act_fn": "swish"},
    {"act_fn": "mish"},
    {"act_fn": "gelu"},
    {"act_fn": "relu"},
    {"attention_head_dim": None},
    {"attention_head_dim": 8},
    {"attention_head_dim": 16},
    {"norm_num_groups": 2},
    {"attn_norm_num_groups": 2},
    {"norm_eps": 1e-2},
    {"resnet_time_scale_shift": "scale_shift"},
    {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    {"add_attention": False},
    {"num_class_embeds": 3},
]  # fmt: skip
GOOGLE = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}
CIFAR10 = {
    **GOOGLE,
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBAHQ256 = {
    **GOOGLE,
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}


def relative_difference(config: dict[str, Any], batch: int = 2) -> float:
    """Largest difference between the two networks, relative to the largest output."""
    torch.manual_seed(0)
    theirs = TheirUNet(**config).eval()
    for p in theirs.parameters():  # so that no norm is the identity and no bias is zero
        p.data.add_(0.1 * torch.randn_like(p))
    ours = UNet2DModel(UNetConfig.from_dict(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, ours.config.in_channels, *(ours.config.image_size or (16, 16)))
    label = torch.tensor([37, 911])[:batch]
    classes = torch.tensor([2, 0])[:batch] if ours.config.num_class_embeds else None
    with torch.inference_mode():
        a, b = theirs(x, label, classes).sample, ours(x, label, classes)
    return apart(b, a)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{k}={x}" for k, x in v.items()) or "default")
def test_equals_diffusers(variant: dict[str, Any]) -> None:
    assert relative_difference({**TINY, **variant}) < NETWORK


def test_the_variants_are_different_networks() -> None:
    """Each value changes the output by much more than the bound, so the comparison can fail."""
    torch.manual_seed(0)
    x, label = torch.randn(1, 3, 16, 16), torch.tensor([400.0])
    base = UNet2DModel(UNetConfig.from_dict(TINY)).eval()
    with torch.inference_mode():
        reference = base(x, label)
        for field, value in [
            ("center_input_sample", True),
            ("freq_shift", 1),
            ("flip_sin_to_cos", False),
            ("mid_block_scale_factor", 1.5),
            ("downsample_padding", 0),
            ("act_fn", "mish"),
            ("attention_head_dim", 8),
            ("norm_num_groups", 2),
            ("attn_norm_num_groups", 2),
            ("norm_eps", 1e-2),
        ]:
            other = UNet2DModel(UNetConfig.from_dict({**TINY, field: value})).eval()
            other.load_state_dict(base.state_dict())
            assert ((other(x, label) - reference).abs().max() / reference.abs().max()).item() > 1e-4, field


def test_missing_fields_mean_diffusers_defaults() -> None:
    signature = inspect.signature(TheirUNet.__init__)  # sees through the decorator
    defaults = {k: p.default for k, p in signature.parameters.items() if p.default is not p.empty}
    assert len(defaults) > 20
    assert vars(UNetConfig()) == {**defaults, "sinusoid_channels": None}  # the last is ours


def test_google_cifar10_configuration() -> None:
    assert relative_difference(CIFAR10, batch=1) < NETWORK
    with torch.device("meta"):
        network = UNet2DModel(UNetConfig.from_dict(CIFAR10))
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


@pytest.mark.slow
def test_google_256_pixel_configuration() -> None:
    assert relative_difference(CELEBAHQ256, batch=1) < NETWORK


def test_one_label_for_a_batch_equals_one_each() -> None:
    torch.manual_seed(0)
    network = UNet2DModel(UNetConfig.from_dict(TINY)).eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        a, b = network(x, torch.tensor([12.5])), network(x, torch.full((3,), 12.5))
    assert apart(a, b) < NETWORK


def test_head_width_for_each_resolution() -> None:
    """Our extension: a tuple of equal widths is the number, and another tuple is another network."""
    torch.manual_seed(0)
    both = {"down_block_types": ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3}
    configs = [UNetConfig.from_dict({**TINY, **both, "attention_head_dim": d}) for d in (4, [4, 4, 4], [4, 8, 16])]
    networks = [UNet2DModel(c).eval() for c in configs]
    x, label = torch.randn(1, 3, 16, 16), torch.tensor([5.0])
    for n in networks[1:]:
        n.load_state_dict(networks[0].state_dict())
    with torch.inference_mode():
        a, b, c = (n(x, label) for n in networks)
    assert torch.equal(a, b)
    assert (a - c).abs().max() > 1e-4
    assert configs[0].essence() == configs[1].essence() != configs[2].essence()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D", "DownBlock2D")}, "SkipDownBlock2D"),
        ({"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}, "CrossAttnUpBlock2D"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"class_embed_type": "timestep"}, "timestep"),
        ({"resnet_time_scale_shift": "ada_group"}, "ada_group"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "UNetMidBlock2DCrossAttn"),
        ({"downsample_type": "fir"}, "fir"),
        ({"act_fn": "tanh"}, "tanh"),
        ({"cross_attention_dim": 768}, "cross_attention_dim"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(FileError, match=named):
        UNetConfig.from_dict({**TINY, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"flip_sin_to_cos": "false"},
        {"norm_eps": "1e-6"},
        {"norm_eps": float("nan")},
        {"in_channels": True},
        {"in_channels": 0},
        {"layers_per_block": 10**6},
        {"norm_num_groups": 0},
        {"norm_num_groups": None},
        {"norm_num_groups": 3},
        {"attn_norm_num_groups": 3},
        {"attention_head_dim": 0},
        {"attention_head_dim": 32},
        {"attention_head_dim": (4, 4)},
        {"block_out_channels": (8, 16)},
        {"block_out_channels": ()},
        {"block_out_channels": "8"},
        {"down_block_types": None},
        {"down_block_types": (1, 2, 3)},
        {"sample_size": 0},
        {"sample_size": (16, 16, 16)},
        {"sample_size": "16"},
        {"freq_shift": 4},
        {"mid_block_scale_factor": 0},
        {"num_class_embeds": -1},
        {"mid_block_scale_factor": 10**400},
        {"freq_shift": -(10**400)},
        {"norm_eps": 10**400},
        {"num_train_timesteps": 10**400},
    ],
)
def test_refuses_nonsense(change: dict[str, Any]) -> None:
    with pytest.raises(FileError):
        UNetConfig.from_dict({**TINY, **change})


def test_essence_is_the_same_however_it_is_spelled() -> None:
    base = UNetConfig.from_dict(TINY).essence()
    for change in (
        {"act_fn": "swish"},
        {"dropout": 0.3},
        {"sample_size": 32},
        {"time_embedding_dim": 32},
        {"downsample_type": None},
        {"attn_norm_num_groups": 4},
        {"attention_head_dim": [4, 4, 4]},
        {"norm_eps": 1e-05, "mid_block_scale_factor": 1.0, "freq_shift": 0.0},
    ):
        assert UNetConfig.from_dict({**TINY, **change}).essence() == base, change
    seen = {base}
    for variant in VARIANTS:
        essence = UNetConfig.from_dict({**TINY, **variant}).essence()
        shapes_tell = {"in_channels", "out_channels", "time_embedding_dim", "block_out_channels", "layers_per_block"}
        if not variant.keys() & (shapes_tell | {"sample_size", "dropout", "num_class_embeds"}) and variant:
            if essence == base:
                assert variant in ({"act_fn": "swish"}, {"downsample_type": None}, {"upsample_type": None})
            seen.add(essence)
    assert len(seen) > 20


def test_all_pairs_of_block_types() -> None:
    """Attention and residual resampling mix freely in one network."""
    downs = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
    ups = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
    for i, j in itertools.product(range(3), repeat=2):
        config = {**TINY, "block_out_channels": (8, 8), "down_block_types": (downs[i], downs[j])}
        assert relative_difference({**config, "up_block_types": (ups[j], ups[i])}, batch=1) < NETWORK
