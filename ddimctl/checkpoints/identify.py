"""Names files that are not checkpoints we read, so that a refusal says what the file is and what to do about it.

`file` looks at a file's first bytes, `content` at the keys of what a file holds, `pickled_names` at the code that a
pickle asks for. Nothing is unpickled here.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddimctl.errors import FileError
from ddimctl.files import is_special

HEAD = 4096
MAX_PICKLE = 64_000_000  # bytes of a pickle, without the tensors, that are loaded
MAX_LOOK = 4_000_000  # bytes of a refused pickle that are searched for a reason

NOT_HERE = (
    "ddimctl works on DDPM networks of pixels, without or with classes, and on folders of the pipelines that"
    " docs/stable-diffusion.md names"
)
DOWNLOAD = "download it again; the server sent something else"
CODE = (
    "ddimctl never runs code from a checkpoint; save its state dict with torch.save, or export it to diffusers' layout"
)
FLAX = "export it for PyTorch: in diffusers, from_pretrained(…, from_flax=True).save_pretrained(…)"
ONNX = "use the PyTorch weights that it was exported from"

# What a file is by the bytes at an offset: (offset, bytes, what it is, advice).
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (0, b"\x89PNG", "a PNG image", "give it to encode, and a model to -m"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give it to encode, and a model to -m"),
    (0, b"GIF8", "a GIF image", "give it to encode, and a model to -m"),
    (8, b"WEBP", "a WebP image", "give it to encode, and a model to -m"),
    (0, b"BM", "a BMP image", "give it to encode, and a model to -m"),
    (0, b"II*\0", "a TIFF image", "give it to encode, and a model to -m"),
    (0, b"MM\0*", "a TIFF image", "give it to encode, and a model to -m"),
    (0, b"\x89HDF", "an HDF5 (Keras) file", "only PyTorch checkpoints are read"),
    (0, b"GGUF", "a GGUF file", "only PyTorch checkpoints are read"),
    (0, b"\x93NUMPY", "a NumPy array", "only PyTorch checkpoints are read"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first; a tar that torch before 0.4 wrote must be saved again"),
)
SUFFIXES = {
    ".msgpack": ("a Flax checkpoint", FLAX),
    ".flashpack": ("a FlashPack checkpoint", "save it again as safetensors: save_pretrained(…, use_flashpack=False)"),
    ".onnx": ("an ONNX model", ONNX),
    ".pb": ("a TensorFlow or ONNX graph", "only PyTorch checkpoints are read"),
    ".h5": ("a Keras file", "only PyTorch checkpoints are read"),
    ".index": ("part of a TensorFlow checkpoint", "only PyTorch checkpoints are read"),
}


def file(path: Path) -> None:
    """Raises `FileError` if `path` is plainly not a checkpoint. Nothing is read from pipes, which would be waited for."""
    if is_special(path):
        raise FileError(f"{path} is a pipe or a device, not a file", hint="name a file or a folder")
    try:
        with path.open("rb") as f:
            head = f.read(HEAD)
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    what, hint = _by_bytes(head) or SUFFIXES.get(path.suffix.lower()) or ("", "")
    if what:
        raise FileError(f"{path} is {what}", hint)
    if head.startswith(b"PK"):
        _zip(path)


def _by_bytes(head: bytes) -> tuple[str, str] | None:
    if not head:
        return "empty", DOWNLOAD
    for offset, magic, what, hint in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return what, hint
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page, not a checkpoint", "the download needed a login or a confirmation; fetch the file itself"
    if text.startswith(b"{"):
        return "a JSON file, not a checkpoint", "give the folder that it lies in"
    if not any(head):
        return "nothing but zeros: an unfinished download", DOWNLOAD
    return None


def _zip(path: Path) -> None:
    """Bounds a zip file before anything unpacks it, and says what it is if not a checkpoint of torch's."""
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise FileError(f"{path} is truncated or corrupt: {e}", hint="download or copy it again") from e
    # torch stores, never compresses: whatever unpacks to more than the file itself is a bomb.
    unpacked = sum(m.file_size for m in members)
    if unpacked > path.stat().st_size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise FileError(
            f"{path} is a compressed archive ({unpacked:,} bytes unpacked), which torch never writes",
            hint="if you trust it, unpack it first",
        )
    names = [m.filename for m in members]
    if any(n.endswith(".npy") for n in names):
        raise FileError(f"{path} is a NumPy archive", hint="only PyTorch checkpoints are read")
    if any("/code/" in n for n in names) and any(n.endswith("constants.pkl") for n in names):
        raise FileError(f"{path} is a TorchScript program, which is code", hint=CODE)
    pickles = [m for m in members if m.filename.endswith("/data.pkl") and m.filename.count("/") == 1]
    if len(pickles) != 1:
        raise FileError(f"{path} is a zip archive, but not one that torch wrote", hint="unpack it first")
    if pickles[0].file_size > MAX_PICKLE:
        raise FileError(f"{path} has a table of contents of {pickles[0].file_size:,} bytes, which makes no sense")


def unloadable(path: Path, error: Exception) -> FileError:
    """What to say of a file that `torch.load(weights_only=True)` refused with `error`."""
    data = pickle_bytes(path)
    names = [n for n in pickled_names(data) if not n.startswith(("torch.", "collections.", "torch._utils."))]
    if b"torch_utils.persistence" in data or b"dnnlib" in data:
        return FileError(f"{path} is an NVlabs (EDM or StyleGAN) pickle, which needs its own code to load", hint=CODE)
    if names:
        return FileError(f"{path} needs code to load ({names[0]})", hint=CODE)
    if data[:1] != b"\x80":
        return FileError(f"{path} is not a checkpoint (its first bytes are {data[:8]!r})", hint=NOT_HERE)
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return FileError(f"{path} is truncated, corrupt or of an unknown kind: {reason}", hint="download or copy it again")


def pickle_bytes(path: Path) -> bytes:
    """The beginning of the pickle in a file of torch's, or of the file."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                name = next(n for n in z.namelist() if n.endswith("/data.pkl"))
                with z.open(name) as f:
                    return f.read(MAX_LOOK)
        with path.open("rb") as f:
            return f.read(MAX_LOOK)
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError, NotImplementedError):
        return b""


def pickled_names(data: bytes) -> list[str]:
    """The functions and classes that a pickle, or several one after another, asks for. Nothing is loaded."""
    names: list[str] = []
    strings: list[str] = []
    rest = memoryview(data)
    try:
        for _ in range(16):  # torch before 1.6 wrote five pickles in a row
            end = 0
            for op, value, position in pickletools.genops(bytes(rest)):
                if op.name == "GLOBAL":
                    names.append(str(value).replace(" ", "."))
                elif op.name == "STACK_GLOBAL" and len(strings) > 1:
                    names.append(".".join(strings[-2:]))
                elif isinstance(value, str):
                    strings = [*strings[-1:], value]
                end = (position or 0) + 1
            rest = rest[end:]
            if not rest:
                break
    except Exception:  # a broken pickle raises anything; what was found until there still counts
        pass
    return list(dict.fromkeys(names))


def _in_one_file(pipeline: str) -> str:
    """How diffusers makes a folder of it, with the configuration of a folder that is here: without one it would ask the
    hub."""
    return f"make a folder of it: diffusers.{pipeline}.from_single_file(FILE, config=FOLDER).save_pretrained(OUT)"


def content(where: Path, loaded: Any) -> FileError:
    """What to say of a file that loaded but has no layout we read."""
    if not isinstance(loaded, Mapping):
        loaded = next((v for v in loaded if isinstance(v, Mapping)), {}) if isinstance(loaded, list | tuple) else {}
    top = {str(k) for k in loaded}
    inner = next((v for v in (loaded.get(k) for k in ("state_dict", "model", "ema")) if isinstance(v, Mapping)), {})
    keys = top | {str(k) for k in inner}

    def has(*parts: str) -> bool:
        return any(part in key for key in keys for part in parts)

    if has("double_blocks.0."):
        what, hint = "a Flux checkpoint in one file", _in_one_file("FluxPipeline")
    elif has("joint_blocks.0."):
        what, hint = "a Stable Diffusion 3 checkpoint in one file", _in_one_file("StableDiffusion3Pipeline")
    elif has("conditioner.embedders"):
        what, hint = "a Stable Diffusion XL checkpoint in one file", _in_one_file("StableDiffusionXLPipeline")
    elif has("first_stage_model.", "cond_stage_model.", "model.diffusion_model."):
        what = "a Stable Diffusion or other latent diffusion checkpoint in one file"
        hint = _in_one_file("StableDiffusionPipeline")
    elif has("transformer_blocks", "attn2.to_k", "encoder_hid_proj"):
        what, hint = "a text-conditional (Stable Diffusion) network", NOT_HERE
    elif has("quant_conv", "quantize.embedding", "encoder.down.", "encoder.down_blocks."):
        what, hint = "an autoencoder, not a diffusion model", NOT_HERE
    elif has("init_conv.weight", "model.init_conv", "ema_model.") and has("time_mlp", "betas", "ema_model."):
        what = "a checkpoint of lucidrains/denoising-diffusion-pytorch, whose network ddimctl does not implement"
        hint = "train with ddimctl train, or convert the weights to diffusers' UNet2DModel"
    elif has("lora_", "lora.up", "lora_down"):
        what, hint = "a LoRA, which changes another model", NOT_HERE
    elif has("down_blocks.", "mid_block.resnets"):
        what, hint = "a part of a diffusers U-Net's weights (it has no conv_in.weight)", "give the whole state dict"
    elif has("input_blocks.") and not has("output_blocks."):
        what, hint = (
            "a classifier of guided-diffusion, not a diffusion model",
            "give the file that ends in _diffusion.pt",
        )
    elif {"network", "average", "optimizer", "settings"} <= top:
        what, hint = "a training checkpoint of ddimctl's", "give the model folder two levels up"
    elif {"state", "param_groups"} <= top:
        what, hint = "the state of an optimiser", "give the file with the network's weights"
    elif "pytorch-lightning_version" in top:
        what, hint = "a PyTorch Lightning checkpoint of an unknown network", NOT_HERE
    elif has("shadow_params"):
        what, hint = "an average without names", "save the averaged network's own state dict"
    elif not keys:
        what, hint = "a torch file without named weights (perhaps a latent)", NOT_HERE
    else:
        what = f"a checkpoint of an unknown layout ({len(keys)} entries, such as {', '.join(sorted(keys)[:3])})"
        hint = NOT_HERE
    return FileError(f"{where} is {what}", hint)
