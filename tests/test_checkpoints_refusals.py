"""Files and folders that are not checkpoints we read: each is named for what it is, and none of them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny_model
from PIL import Image
from safetensors.torch import save_file

from ddimctl.checkpoints import folders, formats, identify, weights
from ddimctl.errors import FileError


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, kind)
    return buffer.getvalue()


def torch_bytes(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def state(*names: str) -> dict[str, torch.Tensor]:
    return {n: torch.zeros(2, 2) for n in names}


class Evil:
    """Would make a file if it were unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


EDM = pickle.dumps({"ema": "import io\nfrom torch_utils.persistence import persistent_class"}, protocol=4)
SD = state("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight")
FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.pt", b"", "is empty"),
    "zeros": ("a.pt", bytes(5000), "nothing but zeros"),
    "git-lfs": (
        "a.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a git-lfs pointer",
    ),
    "html": ("a.pt", b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "a web page"),
    "html in capitals": ("a.ckpt", b"<HTML><HEAD>", "a web page"),
    "png": ("a.pt", image("PNG"), "a PNG image"),
    "jpeg": ("a.pth", image("JPEG"), "a JPEG image"),
    "gif": ("a.pt", image("GIF"), "a GIF image"),
    "webp": ("a.pt", image("WEBP"), "a WebP image"),
    "bmp": ("a.pt", image("BMP"), "a BMP image"),
    "tiff": ("a.pt", image("TIFF"), "a TIFF image"),
    "json": ("a.pt", b'{"a": 1}', "a JSON file"),
    "hdf5": ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "keras": ("a.h5", b"whatever", "a Keras file"),
    "flax": ("flax_model.msgpack", b"\x81\xa6params", "a Flax checkpoint"),
    "onnx": ("model.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
    "gguf": ("a.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
    "numpy": ("a.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
    "gzip": ("a.pt.gz", b"\x1f\x8b\x08" + bytes(20), "a gzip archive"),
    "tar": ("a.pt", b"x".ljust(257, b"\0") + b"ustar\x0000", "a tar archive"),
    "text": ("a.pt", b"hello, this is not a checkpoint", "is not a checkpoint"),
    "noise": ("a.pt", b"\x13\x37" * 500, "is not a checkpoint"),
    "EDM": ("edm-cifar10-32x32-uncond-vp.pkl", EDM, "an NVlabs"),
    "payload": ("a.pt", pickle.dumps(Evil("pwned")), r"needs code to load \((posix|nt)\.mkdir"),
    "payload in torch's zip": ("a.pt", torch_bytes({"a": Evil("pwned")}), r"needs code to load \((posix|nt)\.mkdir"),
    "payload in torch's old form": (
        "a.pt",
        torch_bytes({"a": Evil("pwned")}, _use_new_zipfile_serialization=False),
        r"needs code to load \((posix|nt)\.mkdir",
    ),
    "a whole module": ("a.pt", torch_bytes(torch.nn.Linear(1, 1)), "needs code to load|unknown kind|Linear"),
    "Stable Diffusion": ("v1-5.ckpt", torch_bytes({"state_dict": SD, "global_step": 1}), "a Stable Diffusion"),
    "Stable Diffusion, bare": ("sd.pt", torch_bytes(SD), "a Stable Diffusion"),
    "text-conditional": (
        "a.pt",
        torch_bytes(state("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")),
        "a text-conditional",
    ),
    "autoencoder": (
        "vae.pt",
        torch_bytes(state("encoder.down.0.block.0.conv1.weight", "quant_conv.weight")),
        "an autoencoder",
    ),
    "lucidrains": (
        "model-10.pt",
        torch_bytes(
            {
                "step": 1,
                "model": state("betas", "model.init_conv.weight", "model.time_mlp.1.weight"),
                "opt": {},
                "ema": state("initted", "ema_model.model.init_conv.weight"),
            }
        ),
        "lucidrains",
    ),
    "LoRA": ("a.pt", torch_bytes(state("unet.up.lora_A.weight", "unet.lora_down.weight")), "a LoRA"),
    "diffusers without config": (
        "a.bin",
        torch_bytes(state("down_blocks.0.resnets.0.conv1.weight")),
        "a part of a diffusers U-Net's weights",
    ),
    "classifier": (
        "64x64_classifier.pt",
        torch_bytes(state("input_blocks.0.0.weight", "out.2.weight")),
        "a classifier",
    ),
    "our training checkpoint": (
        "checkpoint.pt",
        torch_bytes({"settings": {}, "network": state("a"), "average": state("b"), "optimizer": {}}),
        "a training checkpoint of ddimctl's",
    ),
    "optimiser": ("opt.pt", torch_bytes({"state": {}, "param_groups": []}), "the state of an optimiser"),
    "Lightning": ("a.ckpt", torch_bytes({"pytorch-lightning_version": "2.0", "epoch": 1}), "Lightning"),
    "one tensor": ("a.pt", torch_bytes(torch.zeros(3)), "without named weights"),
    "unknown layout": ("a.pt", torch_bytes(state("alpha.weight", "beta.weight")), "unknown layout .* alpha.weight"),
    "a zip of something": ("a.zip", b"", "a zip archive, but not one that torch wrote"),
    "npz": ("a.npz", b"", "a NumPy archive"),
    "TorchScript": ("a.pt", b"", "a TorchScript program"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, data, said = FILES[kind]
    path = tmp_path / name
    path.write_bytes(data)
    if kind in ("a zip of something", "npz", "TorchScript"):
        inside = {
            "a zip of something": {"notes.txt": b"x"},
            "npz": {"arr_0.npy": b"\x93NUMPY"},
            "TorchScript": {"m/code/__torch__.py": b"x", "m/constants.pkl": b"x", "m/data.pkl": b"x"},
        }[kind]
        with zipfile.ZipFile(path, "w") as z:
            for member, content in inside.items():
                z.writestr(member, content)
    with pytest.raises(FileError, match=said) as e:
        formats.read(path)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert e.value.hint
    assert not (tmp_path / "pwned").exists()


def test_the_payload_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(FILES["payload"][1])
    assert (tmp_path / "pwned").is_dir()


def test_weights_only_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file, torch.load is called once at most, and never without weights_only."""
    calls: list[dict[str, Any]] = []
    load = torch.load

    def spy(*args: Any, **how: Any) -> Any:
        calls.append(how)
        return load(*args, **how)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", spy)
    for name, data, _ in FILES.values():
        (tmp_path / name).write_bytes(data)
        calls.clear()
        with pytest.raises(FileError):
            formats.read(tmp_path / name)
        assert len(calls) <= 1
        assert all(c["weights_only"] is True for c in calls)


def test_zip_bombs_are_bounded_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\x80\x02}q\0.")
        z.writestr("archive/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(FileError, match=r"a compressed archive \(50,000,006 bytes unpacked\)"):
        formats.read(path)


def test_overlapping_members_are_a_bomb_too(tmp_path: Path) -> None:
    """Two stored members that share the same bytes unpack to more than the file holds."""
    path = tmp_path / "overlap.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", b"\x80\x02}q\0.")
        z.writestr("archive/data/0", bytes(10_000))
        for i in range(5):
            again = zipfile.ZipInfo(f"archive/data/{i + 1}")
            again.file_size = again.compress_size = 10_000
            again.header_offset = z.infolist()[1].header_offset
            again.CRC = z.infolist()[1].CRC
            z.filelist.append(again)
    with pytest.raises(FileError, match="compressed archive"):
        formats.read(path)


def test_a_huge_table_of_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "MAX_PICKLE", 1000)
    path = tmp_path / "a.pt"
    torch.save({f"name{i}": torch.zeros(1) for i in range(100)}, path)
    with pytest.raises(FileError, match="table of contents of"):
        formats.read(path)


def test_a_tensor_that_claims_to_be_large(tmp_path: Path) -> None:
    """Stride 0 makes one number look like 4 TB; converting it would allocate them."""
    path = tmp_path / "a.pt"
    big = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"temb.dense.0.weight": big, "conv_in.weight": torch.zeros(1)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(FileError, match="claims 1,000,000,000,000 numbers but holds fewer"):
        formats.read(path)


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), 3, "text"],
    ids=["sparse", "meta", "int", "str"],
)
def test_odd_tensors(odd: Any, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"temb\.dense\.1\.weight is not a plain tensor"):
        weights.state({"temb.dense.0.weight": torch.zeros(2), "temb.dense.1.weight": odd}, "x")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "old pt"])
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_truncated_files(kind: str, cut: float, tmp_path: Path) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    content = {f"layer{i}.weight": torch.randn(20, 20) for i in range(10)}
    if kind == "safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(FileError, match=r"truncated|corrupt|not a checkpoint"):
        formats.read(path)


def test_corrupt_safetensors_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FileError, match="truncated or corrupt"):
        formats.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path(os.devnull)):
        with pytest.raises(FileError, match="a pipe or a device"):
            formats.read(path)
    folder = write_tiny_model(tmp_path / "m")
    os.mkfifo(folder / "README.md")
    assert folders.licence(folder) is None
    os.mkfifo(tmp_path / "c.json")
    with pytest.raises(FileError, match="a pipe or a device"):
        formats.read_config(str(tmp_path / "c.json"))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    checkpoint = formats.read(folder)
    save_file(
        {k: w.to(torch.int32) for k, w in checkpoint.weights.items()},
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(FileError, match="the weights are int32"):
        formats.read(folder)


def folder_with(path: Path, **files: Any) -> Path:
    for name, content in files.items():
        target = path / name.replace("__", "/").replace("_DOT_", ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


UNET = ["diffusers", "UNet2DModel"]
SCHEDULER = ["diffusers", "DDPMScheduler"]
FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"sub__x": ""}, "not a model folder"),
    "only weights": ({"model_DOT_ckpt": "x"}, "not a model folder: it has no configuration"),
    "configuration without weights": (
        {"unet__config_DOT_json": {}, "scheduler__scheduler_config_DOT_json": {}},
        "a configuration but no weights",
    ),
    "flat, without weights": ({"config_DOT_json": {}}, "a configuration but no weights"),
    "Flax": ({"config_DOT_json": {}, "diffusion_flax_model_DOT_msgpack": ""}, "a Flax checkpoint but no weights"),
    "FlashPack": ({"config_DOT_json": {}, "scheduler_config_DOT_json": {}, "model_DOT_flashpack": ""}, "a FlashPack"),
    "Flax only": ({"diffusion_flax_model_DOT_msgpack": ""}, "holds a Flax checkpoint"),
    "ONNX": ({"model_DOT_onnx": ""}, "holds an ONNX model"),
    "Stable Diffusion": (
        {
            "model_index_DOT_json": {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": ["transformers", "CLIPTextModel"],
            },
            "unet__config_DOT_json": {"_class_name": "UNet2DConditionModel"},
        },
        "a StableDiffusionPipeline: it has a vae",
    ),
    "latent, unconditional": (
        {
            "model_index_DOT_json": {"_class_name": "LDMPipeline", "unet": UNET, "vqvae": ["diffusers", "VQModel"]},
            "unet__config_DOT_json": {},
        },
        "a LDMPipeline: it has a vqvae",
    ),
    "transformer": (
        {"model_index_DOT_json": {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}},
        "a DiTPipeline: it has a transformer",
    ),
    "no U-Net": ({"model_index_DOT_json": {"_class_name": "AudioPipeline"}}, "AudioPipeline without a U-Net"),
    "conditional U-Net": (
        {"config_DOT_json": {"_class_name": "UNet2DConditionModel"}},
        "holds a UNet2DConditionModel: a text-conditional network",
    ),
    "1-D U-Net": ({"config_DOT_json": {"_class_name": "UNet1DModel"}}, "UNet1DModel: a network that ddimctl does not"),
    "code in the pipeline": (
        {
            "model_index_DOT_json": {
                "_class_name": "DDPMPipeline",
                "unet": ["my_unet", "MyUNet"],
                "scheduler": SCHEDULER,
            },
            "unet__config_DOT_json": {},
        },
        "needs code of its own",
    ),
    "code in the network": ({"config_DOT_json": {"auto_map": {"AutoModel": "x.Y"}}}, "needs code of its own"),
    "transformers": (
        {"config_DOT_json": {"model_type": "bert", "architectures": ["BertModel"]}},
        "a transformers model",
    ),
    "configuration is no JSON": ({"config_DOT_json": "{"}, "cannot read"),
    "configuration is a list": ({"config_DOT_json": "[]"}, "not a JSON object"),
    "configuration is a pointer": (
        {"config_DOT_json": "version https://git-lfs.github.com/spec/v1\n"},
        "a git-lfs pointer",
    ),
    "configuration is huge": ({"config_DOT_json": '{"a": "' + "x" * 1_100_000 + '"}'}, "more than 1,000,000 bytes"),
    "configuration is deep": ({"config_DOT_json": "[" * 100_000}, "cannot read"),
    "weights are a pointer": (
        {
            "config_DOT_json": {},
            "diffusion_pytorch_model_DOT_safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        },
        "a git-lfs pointer",
    ),
    "weights of something else": (
        {"config_DOT_json": {}, "diffusion_pytorch_model_DOT_safetensors": "<html>"},
        "a web page",
    ),
    "variance exploding": (
        {"config_DOT_json": {}, "scheduler_config_DOT_json": {"_class_name": "ScoreSdeVeScheduler"}},
        "the scheduler is a ScoreSdeVeScheduler",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind: str, tmp_path: Path) -> None:
    files, said = FOLDERS[kind]
    with pytest.raises(FileError, match=said) as e:
        formats.read(folder_with(tmp_path / "m", **files))
    assert "\n" not in str(e.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is empty"):
        formats.read(tmp_path)


def test_safety_checkers_that_are_absent_do_not_matter(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    index = {"_class_name": "DDPMPipeline", "unet": UNET, "scheduler": SCHEDULER, "vae": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    formats.read(folder)


def test_pickled_names_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        names = identify.pickled_names(pickle.dumps([OrderedDict(a=1), Evil("pwned")], protocol))
        assert any(n.endswith(".mkdir") for n in names), protocol
    assert identify.pickled_names(b"\x80\x02garbage") == []
    assert not (tmp_path / "pwned").exists()
