"""Broken and hostile folders of every latent family: one line, exit 3, nothing of theirs run, nobody asked."""

from __future__ import annotations

import json
import math
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines
from conftest import Result

from ddimctl.families import load

CODE = "raise SystemExit('code was run')"
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a folder, and what is said of it."""

    of: str
    change: Change
    said: str


def edit(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def gone(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def without(name: str, tensor: str) -> Change:
    def change(folder: Path) -> None:
        state = load_file(folder / name)
        del state[next(k for k in state if tensor in k)]
        save_file(state, folder / name)

    return change


def moved(name: str, to: str) -> Change:
    return lambda folder: (folder / name).rename((folder / name).with_name(to))


def sharded(part: str, file: str) -> Change:
    """Its weights in a file of torch's that an index of shards names."""

    def change(folder: Path) -> None:
        whole = folder / part / "diffusion_pytorch_model.safetensors"
        state = load_file(whole)
        torch.save(state, whole.with_name(file))
        whole.unlink()
        table = json.dumps({"weight_map": dict.fromkeys(state, file)})
        whole.with_name(f"{whole.name}.index.json").write_text(table)

    return change


INDEX = "model_index.json"
MINE = ["my_unet", "My"]
FAULTS = {
    "xl: network of its own": Fault("xl", edit(INDEX, unet=MINE), "code of its own"),
    "xl: second encoder of its own": Fault("xl", edit(INDEX, text_encoder_2=MINE), "code of its own"),
    "xl: watermark of its own": Fault("xl", edit(INDEX, watermarker=MINE), "code of its own"),
    "xl: the refiner": Fault("xl", edit(INDEX, text_encoder=[None, None]), "has no text_encoder"),
    "xl: no second tokenizer": Fault("xl", gone("tokenizer_2"), "lacks a part of its model: tokenizer_2/"),
    "xl: another second encoder": Fault("xl", edit("text_encoder_2/config.json", architectures=["T5Model"]), "T5Model"),
    "xl: without a projection": Fault("xl", without("text_encoder_2/model.safetensors", "projection"), "do not fit"),
    "xl: other widths": Fault("xl", edit("unet/config.json", cross_attention_dim=32), "reads text 32 wide"),
    "xl: other time ids": Fault("xl", edit("unet/config.json", addition_time_embed_dim=16), "different families"),
    "xl: asked for an image": Fault("xl", edit("unet/config.json", addition_embed_type="image"), "'image'"),
    "xl: statistics": Fault("xl", edit("vae/config.json", latents_mean=[0.0], latents_std=[1.0]), "latents_std"),
    "xl: zero scale": Fault("xl", edit("vae/config.json", scaling_factor=0.0), "makes no sense"),
    "sd3: transformer of its own": Fault("sd3", edit(INDEX, transformer=MINE), "code of its own"),
    "sd3: a VP scheduler": Fault("sd3", edit(INDEX, scheduler=["diffusers", "DDIMScheduler"]), "DDIMScheduler"),
    "sd3: shift": Fault("sd3", edit("scheduler/scheduler_config.json", shift="x"), "shift"),
    "sd3: inverted": Fault("sd3", edit("scheduler/scheduler_config.json", invert_sigmas=True), "does not implement"),
    "sd3: T5 without words": Fault("sd3", gone("tokenizer_3/tokenizer.json"), "no vocabulary"),
    "sd3: T5 of another width": Fault("sd3", edit("text_encoder_3/config.json", d_model=24), "do not fit"),
    "sd3: T5 of no distance": Fault(
        "sd3", edit("text_encoder_3/config.json", relative_attention_max_distance=0), "have no buckets"
    ),
    "sd3: T5's code": Fault("sd3", edit("text_encoder_3/config.json", auto_map={"A": "my_unet.My"}), "code of its own"),
    "sd3: other pooled": Fault("sd3", edit("transformer/config.json", pooled_projection_dim=8), "different families"),
    "sd3: huge": Fault("sd3", edit("transformer/config.json", num_layers=10**7), "makes no sense"),
    "sd3: patches of nothing": Fault("sd3", edit("transformer/config.json", patch_size=0), "no network"),
    "flux: another transformer": Fault("flux", edit(INDEX, transformer=["diffusers", "DiTModel"]), "DiTModel"),
    "flux: fill": Fault("flux", edit("transformer/config.json", out_channels=8), "not a denoiser of images alone"),
    "flux: no encoder": Fault("flux", gone("text_encoder_2"), "lacks a part of its model"),
    "flux: no weights": Fault("flux", gone("transformer/diffusion_pytorch_model.safetensors"), "has no weights"),
    "flux: no size": Fault("flux", edit("vae/config.json", sample_size=0), "does not say its image size"),
    "flux: scheduler is a list": Fault("flux", written("scheduler/scheduler_config.json", b"[]"), "not a JSON object"),
    "flux: index is text": Fault("flux", written("transformer/config.json", b"text"), "cannot read"),
    "vq: autoencoder of its own": Fault("vq", edit(INDEX, vqvae=MINE), "code of its own"),
    "vq: other channels": Fault("vq", edit("unet/config.json", in_channels=4, out_channels=4), "do not fit"),
    "vq: not what it says": Fault("vq", edit("vqvae/config.json", _class_name="AutoencoderKL"), "holds a AutoencoderKL"),
    "vq: a pickle": Fault("vq", written("vqvae/diffusion_pytorch_model.safetensors", b"\x80\x04."), "vqvae"),
    "vq: conditional": Fault("vq", edit(INDEX, bert=["transformers", "BertModel"]), "code of its own"),
    "vq: an empty class": Fault("vq", edit(INDEX, vqvae=[]), "has no vqvae"),
    "sd3: classes by name": Fault("sd3", edit("text_encoder/config.json", architectures={"a": 1}), "holds a {'a': 1}"),
    "sd3: odd patches": Fault("sd3", edit("transformer/config.json", sample_size=7), "no patches of 2"),
    "xl: no length": Fault("xl", edit("tokenizer/tokenizer_config.json", model_max_length="x"), "model_max_length"),
    "xl: endless length": Fault("xl", edit("tokenizer/tokenizer_config.json", model_max_length=math.inf), "makes no"),
    "xl: words elsewhere": Fault("xl", edit("tokenizer/tokenizer_config.json", vocab="/dev/zero"), "elsewhere (vocab)"),
    "xl: torch's weights": Fault("xl", moved("text_encoder/model.safetensors", "x.pt"), "has no weights"),
    "xl: torch's shards": Fault("xl", sharded("vae", "x.bin"), "has no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_refused_in_a_line(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, invoke: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fault = FAULTS[name]
    bad = tmp_path / "bad"
    shutil.copytree(pipelines.folder_of(fault.of, tmp_path_factory), bad)
    fault.change(bad)
    for place in (bad, *(p for p in bad.iterdir() if p.is_dir()), tmp_path):
        (place / "my_unet.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("somebody was asked"))
    said = invoke("sample", "-m", str(bad), "-n", "1", "--steps", "1").failed(3)
    assert fault.said in said


def test_half_precision_and_shards_of_every_part(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As variants are published: fp16, and in shards with an index."""
    whole = pipelines.folder_of("sd3", tmp_path_factory)
    half, shards = tmp_path / "half", tmp_path / "shards"
    shutil.copytree(whole, half)
    for file in half.glob("*/*.safetensors"):
        state = {k: w.half() for k, w in load_file(file).items()}
        file.unlink()
        save_file(state, file.with_suffix(".fp16.safetensors"))
    shutil.copytree(whole, shards)
    for file in shards.glob("*/*.safetensors"):
        state = load_file(file)
        file.unlink()
        names = sorted(state)
        parts = {f"{file.stem}-{i + 1:05}-of-00002.safetensors": names[i::2] for i in range(2)}
        for part, held in parts.items():
            save_file({k: state[k] for k in held}, file.parent / part)
        table = {k: part for part, held in parts.items() for k in held}
        (file.parent / f"{file.name}.index.json").write_text(json.dumps({"weight_map": table}))
    model, again = load(str(whole), "cpu"), load(str(shards), "cpu")
    assert again.digest == model.digest
    halved = load(str(half), "cpu")
    assert halved.digest != model.digest
    x = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(halved.eps()(x, 1.0), model.eps()(x, 1.0), rtol=0.05, atol=0.02)


ONE_FILE = {
    "model.diffusion_model.input_blocks.0.0.weight": "StableDiffusionPipeline",
    "conditioner.embedders.0.weight": "StableDiffusionXLPipeline",
    "model.diffusion_model.joint_blocks.0.x.weight": "StableDiffusion3Pipeline",
    "double_blocks.0.img_attn.weight": "FluxPipeline",
}


@pytest.mark.parametrize("key", ONE_FILE)
def test_single_files_are_told_how_to_become_folders(key: str, tmp_path: Path, invoke: Callable[..., Result]) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "model.safetensors")
    done = invoke("sample", "-m", str(tmp_path / "model.safetensors"))
    assert "in one file" in done.failed(3)
    assert f"{ONE_FILE[key]}.from_single_file" in done.err
