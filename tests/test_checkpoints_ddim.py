"""The authors' layout, against diffusers: a known network under their names must compute the same."""

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

from ddimctl import ode
from ddimctl.checkpoints import Checkpoint, Said, ddim, diffusers, formats
from ddimctl.errors import FileError
from ddimctl.families import load
from ddimctl.families.pixel import from_checkpoint
from ddimctl.model import About
from ddimctl.recipe import Way
from ddimctl.schedule import Schedule

# What the networks of both repositories are, in diffusers' words; written here independently of the reader.
AUTHORS: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "attention_head_dim": None,
}
THREE = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
}


def known(**changes: Any) -> TheirUNet:
    torch.manual_seed(0)
    network = TheirUNet(**{**AUTHORS, **changes}).eval()
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return network


def save(path: Path, network: TheirUNet, wrapped: bool) -> Path:
    state = layouts.to_ddim(network.state_dict(), len(network.config.block_out_channels))
    torch.save(layouts.ermongroup(state) if wrapped else state, path)
    return path


@pytest.mark.parametrize("wrapped", [True, False], ids=["ermongroup", "pesser"])
@pytest.mark.parametrize("changes", [{}, THREE, {"in_channels": 1, "out_channels": 1}], ids=["two", "three", "grey"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickles"])
def test_eps_equals_the_known_network(changes: dict[str, Any], wrapped: bool, legacy: bool, tmp_path: Path) -> None:
    network = known(**changes)
    path = save(tmp_path / "ckpt.pth", network, wrapped)
    if legacy:  # as torch wrote before 1.6, when these files were made
        content = torch.load(path, weights_only=True)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    model = load(str(path), "cpu")
    assert model.size == (32, 32)
    x = torch.randn(2, network.config.in_channels, 32, 32)
    for t in (1, 377, 1000):
        sigma = model.schedule.sigma(t)
        with torch.inference_mode():
            theirs = network(x, t - 1).sample
        ours = model.eps()(x.double() * math.sqrt(1 + sigma**2), sigma)
        assert apart(ours, theirs) < NETWORK


@pytest.mark.slow
def test_the_same_network_in_three_layouts(tmp_path: Path) -> None:
    """One digest, one schedule, and one result of encode and decode."""
    network = known()
    weights = dict(network.state_dict())
    network.save_pretrained(tmp_path / "theirs")
    ours = formats.read(save(tmp_path / "ckpt.pth", network, wrapped=True))
    diffusers.write(tmp_path / "ours", Checkpoint(ours.config, weights, Schedule.linear()))
    models = [load(str(tmp_path / name), "cpu") for name in ("ckpt.pth", "theirs", "ours")]
    models.append(load(str(save(tmp_path / "pesser.ckpt", network, wrapped=False)), "cpu"))
    assert len({m.digest for m in models}) == 1
    assert len({m.schedule.digest for m in models}) == 1
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = []
    for model in models:
        way = Way(steps=10)
        xT = ode.encode(model, images, way).x
        back = ode.decode(model, xT, way).x
        errors.append((back - images).square().mean().item())
    assert errors == pytest.approx([errors[0]] * len(errors), rel=1e-3)


def test_renaming_is_the_inverse_of_theirs() -> None:
    network = known(**THREE)
    theirs = layouts.to_ddim(network.state_dict(), 3)
    back = {ddim.rename(k, 3): ddim._linear(k, w) for k, w in theirs.items()}
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[k], w) for k, w in network.state_dict().items())


def test_the_average_is_chosen_and_said(tmp_path: Path) -> None:
    network = known()
    checkpoint = formats.read(save(tmp_path / "a.pth", network, wrapped=True))
    assert "averaged weights (EMA) were taken" in " ".join(checkpoint.notes)
    state = layouts.to_ddim(network.state_dict(), 2)
    torch.save(layouts.ermongroup(state)[:1], tmp_path / "b.pth")
    without = formats.read(tmp_path / "b.pth")
    assert "no averaged weights" in " ".join(without.notes)
    assert without.weights["conv_in.weight"].abs().max() == 0  # the live network of `layouts.ermongroup`


def test_guesses_are_said_and_a_configuration_replaces_them(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt.pth", known(), wrapped=True)
    guesses = " ".join(formats.read(path).guesses)
    assert "image size 32" in guesses
    assert "linear" in guesses
    settings = {
        "image_size": 64,
        "beta_schedule": "quad",
        "beta_start": 0.001,
        "beta_end": 0.01,
        "num_diffusion_timesteps": 500,
    }
    (tmp_path / "c.json").write_text(json.dumps(settings))
    model = load(str(path), "cpu", config=str(tmp_path / "c.json"))
    assert model.about.guesses == ()
    assert model.size == (64, 64)
    assert model.schedule.T == 500
    assert model.schedule.alpha[1] == pytest.approx(0.999)
    middle = (math.sqrt(0.001) + (math.sqrt(0.01) - math.sqrt(0.001)) * 250 / 499) ** 2
    assert 1 - model.schedule.alpha[251] / model.schedule.alpha[250] == pytest.approx(middle)
    assert "change nothing here: colour" in " ".join(formats.read(path, Said({"colour": 1})).guesses)
    with pytest.raises(FileError, match="'cubic' is not implemented"):
        formats.read(path, Said({"beta_schedule": "cubic"}))


def test_the_image_size_follows_from_the_attention() -> None:
    """The published networks: CIFAR-10 (32), CelebA (64) and LSUN (256) all attend at 16 × 16."""
    for levels, attended, size in ((4, 1, 32), (5, 2, 64), (6, 4, 256)):
        kinds = ["AttnDownBlock2D" if i == attended else "DownBlock2D" for i in range(levels)]
        ups = [k.replace("Down", "Up") for k in reversed(kinds)]
        network = known(block_out_channels=(32,) * levels, down_block_types=kinds, up_block_types=ups)
        checkpoint = ddim.read(layouts.to_ddim(network.state_dict(), levels))
        assert checkpoint.config.image_size == (size, size)


def test_no_attention_leaves_the_size_open() -> None:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    state = layouts.to_ddim(known(**kinds).state_dict(), 2)
    with pytest.raises(FileError, match="image size") as e:
        ddim.read(state)
    assert "image_size" in e.value.hint
    assert ddim.read(state, Said({"image_size": 16})).config.image_size == (16, 16)


def test_what_is_not_theirs_is_refused_by_name() -> None:
    state = layouts.to_ddim(known().state_dict(), 2)
    assert "logvar" in " ".join(ddim.read({**state, "logvar": torch.zeros(1000)}).notes)
    with pytest.raises(FileError, match="without a convolution"):
        ddim.read({k: w for k, w in state.items() if "sample.conv" not in k})
    with pytest.raises(FileError, match="conv_shortcut"):
        ddim.read({**state, "down.1.block.0.conv_shortcut.weight": torch.zeros(1)})
    with pytest.raises(FileError, match="lacks a tensor"):
        ddim.read({k: w for k, w in state.items() if not k.startswith("down.0")})
    with pytest.raises(FileError, match="do not fit"):
        from_checkpoint(ddim.read({**state, "extra.weight": torch.zeros(1)}), About("x"))
