"""Saving memory: attention in slices and weights that wait give the same; and the autoencoder by tiles, where asked."""

from __future__ import annotations

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

from ddimctl import engines, families, latent, ode
from ddimctl.errors import UsageError
from ddimctl.families import load
from ddimctl.families.autoencoders import quiet
from ddimctl.families.frugal import frugal
from ddimctl.files import bundled_folder
from ddimctl.images import levels, metadata, reading, writing
from ddimctl.model import Condition, Model, Pixels
from ddimctl.recipe import Recipe, Way

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GUIDED = Condition(None, "a red dog", "ugly and dark", 3.0)


def model_of(name: str, factory: pytest.TempPathFactory, device: str = "cpu") -> Model:
    return load(str(folder_of(name, factory)), device)


def eps(model: Model) -> torch.Tensor:
    x = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(1)).double()
    return model.eps(GUIDED)(x.to(model.network.module.state_device), 1.0).cpu()


@pytest.mark.parametrize(("name", "ways"), [("sd", ["slice"]), ("xl", ["slice"]), ("sd", ["slice", "offload"]),
                                            ("sd3", ["offload"]), ("flux", ["offload"])])  # fmt: skip
def test_the_same_with_less(
    name: str, ways: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "offload" in ways:
        pytest.importorskip("accelerate")
    # diffusers looks for a GPU before anything is asked of one; what moves goes from the CPU to the CPU here.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    model = model_of(name, tmp_path_factory)
    before = eps(model)
    spare = frugal(model, ways, "cpu")
    assert apart(eps(spare), before) < NETWORK
    assert apart(eps(spare.with_network(engines.make(spare.network.module, "torch", "bf16"))), before) < 0.2
    z = torch.randn(1, *model.state_shape, dtype=torch.float64)
    assert apart(spare.autoencoder.decode(z), model.autoencoder.decode(z)) < NETWORK
    images = torch.rand(1, *model.image_shape) * 2 - 1
    assert apart(spare.autoencoder.encode(images), model.autoencoder.encode(images)) < NETWORK
    assert torch.equal(eps(model), before)
    assert spare.digest == model.digest


def test_slices_are_diffusers_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It is their processors that are set, in a copy that shares the weights."""
    model = model_of("sd", tmp_path_factory)
    module = frugal(model, ["slice"], "cpu").network.module
    seen: list[Any] = []
    engines.make(replace(module, prepare=lambda n: seen.append(module.prepare(n)) or seen[0]))  # type: ignore[misc]
    kinds = {type(p).__name__ for p in seen[0].unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"}
    assert "SlicedAttnProcessor" not in {
        type(p).__name__ for p in model.network.module.torch.unet.attn_processors.values()
    }
    weights = zip(seen[0].parameters(), model.network.module.torch.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in weights)


def test_what_cannot_be_saved_is_one_line(
    invoke: Callable[..., Result], model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sd, sd3 = (str(folder_of(name, tmp_path_factory)) for name in ("sd", "sd3"))
    few = ("-n", 1, "--steps", 1, "--device", "cpu", "--low-memory")
    assert "offload is for GPUs" in invoke("sample", "-m", sd, *few, "offload").failed(2)
    assert "no attention in slices" in invoke("sample", "-m", sd3, *few, "slice").failed(2)
    assert "is small" in invoke("sample", "-m", model_folder, *few, "slice").failed(2)
    assert "unknown way to save memory" in invoke("sample", "-m", sd, *few, "magic").failed(2)
    said = invoke("sample", "-m", sd, *few, "slice", "--engine", "openvino").failed(2)
    assert "does not save memory so" in said
    invoke("sample", "-m", sd, *few, "slice", "-o", "s.png").ok()


def test_without_accelerate_nothing_is_moved(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("sd", tmp_path_factory)
    monkeypatch.setattr(families.frugal, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs accelerate"):
        frugal(model, ["offload"], "cpu")


def where_weights_are(network: Any) -> set[str]:
    return {p.device.type for p in network.parameters()}


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize(("name", "ways"), [("sd", ["offload"]), ("sd", ["slice", "offload"]), ("xl", ["offload"]),
                                            ("sd3", ["offload"]), ("flux", ["offload"])])  # fmt: skip
def test_cuda_weights_wait_in_main_memory(
    name: str,
    ways: list[str],
    precision: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are on the GPU while their layer runs, and at no other time."""
    pytest.importorskip("accelerate")
    plain = model_of(name, tmp_path_factory)
    spare = frugal(model_of(name, tmp_path_factory), ways, "cuda")
    module, seen, fetched = spare.network.module, [], []

    def prepare(network: Any) -> Any:
        seen.append(module.prepare(network))  # type: ignore[misc]
        return seen[0]

    def linear(x: torch.Tensor, weight: torch.Tensor, *rest: Any, of: Any = torch.nn.functional.linear) -> Any:
        if x.is_cuda:  # a hook of the layer would run once its weights have left again
            fetched.append(weight.device.type)
        return of(x, weight, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    spare = spare.with_network(engines.make(replace(module, prepare=prepare), "torch", precision))
    for _ in range(2):  # the second time in the order that the first has shown
        assert apart(eps(spare), eps(plain)) < (1e-3 if precision == "float32" else 0.2)
    assert set(fetched) == {"cuda"}
    assert where_weights_are(seen[0]) == {"cpu"}
    z = torch.randn(1, *spare.state_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert apart(spare.autoencoder.decode(z.cuda()), plain.autoencoder.decode(z)) < 1e-3
    images = torch.rand(1, *plain.image_shape, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    assert apart(spare.autoencoder.encode(images.cuda()), plain.autoencoder.encode(images)) < 1e-3
    assert where_weights_are(spare.autoencoder.vae) == {"cpu"}


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("name", ["sd", "xl"])
def test_cuda_attention_in_slices(name: str, precision: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    spare = frugal(model_of(name, tmp_path_factory, "cuda"), ["slice"], "cuda")
    spare = spare.with_network(engines.make(spare.network.module, "torch", precision))
    assert apart(eps(spare), eps(model_of(name, tmp_path_factory))) < (1e-3 if precision == "float32" else 0.2)


@needs_cuda
def test_cuda_offload_by_the_command_line(
    tmp_path: Path, invoke: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("accelerate")
    folder = folder_of("sd", tmp_path_factory)
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    command = ("encode", "a.png", "-m", folder, "--prompt", "a red dog", "--guidance", 3, "--steps", 3)
    invoke(*command, "-o", "cpu.pt", "--device", "cpu").ok()
    invoke(*command, "-o", "gpu.pt", "--device", "cuda", "--low-memory", "offload").ok()
    assert apart(latent.load(tmp_path / "gpu.pt").xT, latent.load(tmp_path / "cpu.pt").xT) < 1e-2
    invoke("decode", "gpu.pt", "-o", "back.png", "--device", "cuda", "--low-memory", "offload").ok()


# Tiles


@needs_cuda
def test_cuda_goes_by_tiles(tmp_path_factory: pytest.TempPathFactory) -> None:
    here, there = (model_of("sd", tmp_path_factory, device).autoencoder.tiled(16) for device in ("cpu", "cuda"))
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    z = here.encode(images)
    assert apart(there.encode(images.cuda()), z) < 1e-3
    assert apart(there.decode(z.cuda()), here.decode(z)) < 1e-3


def test_tiles_are_diffusers_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = folder_of("sd", tmp_path_factory)
    model = load(str(folder), "cpu")
    with quiet():
        from diffusers import AutoencoderKL

        vae: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, 16, 8
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        back = vae.decode(z / vae.config.scaling_factor).sample
    tiled = model.autoencoder.tiled(16)
    assert apart(tiled.encode(images), z) < NETWORK
    assert apart(tiled.decode(z.double()), back) < NETWORK
    assert apart(model.autoencoder.encode(images), z) > 1e-3  # at once is something else
    assert apart(model.autoencoder.decode(z.double()), back) > 1e-3


def test_tiles_are_recorded_and_honoured(
    tmp_path: Path, invoke: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = folder_of("sd", tmp_path_factory)
    writing.save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    command = ("encode", "a.png", "-m", str(folder), "--size", "32", "--steps", 3, "--device", "cpu")
    invoke(*command, "-o", "t.pt", "--tile", 16).ok()
    invoke(*command, "-o", "w.pt").ok()
    tiles, whole = latent.load(tmp_path / "t.pt"), latent.load(tmp_path / "w.pt")
    assert (tiles.recipe.tile, whole.recipe.tile) == (16, None)
    assert tiles.recipe != whole.recipe
    assert "tile" not in whole.provenance
    invoke("decode", "t.pt", "w.pt", "-o", "out/", "--device", "cpu").ok()
    again = invoke("decode", "t.pt", "w.pt", "-o", "out/", "--device", "cpu", "--tile", 16)
    assert (again.code, "there already: 1" in again.err) == (4, True)  # w is another picture by tiles
    invoke("decode", "t.pt", "w.pt", "-o", "other/", "--device", "cpu", "--tile", "none").ok()
    invoke("decode", "w.pt", "-o", "out/w16.png", "--device", "cpu", "--tile", 16).ok()
    invoke("interpolate", "t.pt", "t.pt", "-o", "film", "--frames", 2, "--device", "cpu").ok()
    invoke("interpolate", "t.pt", "t.pt", "-o", "whole", "--frames", 2, "--device", "cpu", "--tile", "none").ok()
    model = load(str(folder), "cpu")
    states = replace(model, autoencoder=Pixels())
    wanted = [
        (tiles, 16, "out/t"), (whole, None, "out/w"), (tiles, None, "other/t"), (whole, None, "other/w"),
        (whole, 16, "out/w16"), (tiles, 16, "film/*0"), (tiles, None, "whole/*0"),
    ]  # fmt: skip
    for found, tile, name in wanted:
        z = ode.decode(states, found.xT, found.recipe.way, found.recipe.condition).x
        expected = levels.to_pixels(model.autoencoder.tiled(tile).decode(z))[0]
        (file,) = tmp_path.glob(f"{name}.png")
        off = np.asarray(Image.open(file)).astype(int) - expected
        assert np.abs(off).max() <= 1, name  # by rounding
        assert (metadata.find(file) or {}).get("tile") == tile


def test_a_bundled_model_gives_nearly_the_same_by_tiles() -> None:
    """Inside of a tile, away from seams; there its norms see a part of the image alone, no more."""
    model = load("emoji-text", "cpu")
    pictures = sorted((bundled_folder() / "emoji-text" / "held-out").glob("*.png"))[:4]
    a, b, c, d = levels.to_tensor(np.stack([reading.read(f, 3, (64, 64))[0] for f in pictures])).double()
    images = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)[None]
    whole, tiled = model.autoencoder, model.autoencoder.tiled(96)
    z = whole.encode(images)
    back, inside = torch.as_tensor(whole.decode(z)), slice(8, 56)
    off = (torch.as_tensor(tiled.decode(z)) - back)[..., inside, inside]
    assert 0 < off.square().mean().sqrt() < 0.05 * back.std()
    off = (torch.as_tensor(tiled.encode(images)) - z)[..., 2:14, 2:14]
    assert 0 < off.square().mean().sqrt() < 0.1 * z.std()


def test_tiles_that_are_none(
    invoke: Callable[..., Result], model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sd, vq = (str(folder_of(name, tmp_path_factory)) for name in ("sd", "vq"))
    few = ("-n", 1, "--steps", 1, "--device", "cpu", "--tile")
    odd = invoke("sample", "-m", sd, *few, 21)
    assert "do not divide" in odd.failed(2)
    assert "such as --tile 24" in odd.err
    assert "does not go by tiles" in invoke("sample", "-m", vq, *few, 16).failed(2)
    invoke("sample", "-m", vq, *few[:-1], "--save-noise", "n.pt", "-o", "s.png").ok()
    invoke("decode", "n.pt", "-o", "n.png").ok()
    invoke("decode", "n.pt", "-o", "m.png", "--tile", "none").ok()
    assert "does not go by tiles" in invoke("decode", "n.pt", "-o", "no.png", "--tile", 16).failed(2)
    assert "takes pixels a side, or none" in invoke("decode", "n.pt", "-o", "no.png", "--tile", "some").failed(2)
    assert "no autoencoder" in invoke("sample", "-m", model_folder, *few, 16).failed(2)
    model = model_of("sd", tmp_path_factory)
    with pytest.raises(UsageError, match="do not divide"):
        model.autoencoder.tiled(8)
    tiled = replace(model, autoencoder=model.autoencoder.tiled(16))
    assert Recipe.of(tiled, Way()).record()["tile"] == 16
