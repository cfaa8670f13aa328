"""Stable Diffusion and what else is laid out like it: a U-Net that hears a text encoder, in an autoencoder's space.

The networks are diffusers' and transformers' own classes, made by name of those listed here: no code that a folder brings
is ever run. Their weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl import engines
from ddimctl.arrays import Array
from ddimctl.checkpoints import identify, parts
from ddimctl.checkpoints.diffusers import read_json, read_scheduler
from ddimctl.checkpoints.folders import STEM
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.model import About, Condition, Model
from ddimctl.network import Embedded, Facts, Module

PIPELINE = "StableDiffusionPipeline"
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
PROMPTS = 64  # embeddings that are kept


class Hearing(nn.Module):
    """The U-Net as engines call it: module(x_t, labels, text)."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, labels: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.unet(x, labels, text.to(x.dtype).expand(len(x), -1, -1)).sample
        return out


@dataclass(frozen=True)
class Latents:
    """An ``AutoencoderKL`` in float32: z = (mean − shift) · scale, the posterior's mean and never a sample."""

    network: Any
    device: str

    @cached_property
    def digest(self) -> str:
        c = self.network.config
        return digest((c.scaling_factor, c.shift_factor), self.network.state_dict())

    def encode(self, images: Array) -> Array:
        with torch.inference_mode():
            mean = self.network.encode(self._here(images)).latent_dist.mean
        return _like((mean - self._shift) * self.network.config.scaling_factor, images)

    def decode(self, z: Array) -> Array:
        with torch.inference_mode():
            images = self.network.decode(self._here(z) / self.network.config.scaling_factor + self._shift).sample
        return _like(images, z)

    @property
    def _shift(self) -> float:
        return self.network.config.shift_factor or 0.0

    def _here(self, x: Array) -> Tensor:
        return torch.as_tensor(x).to(self.device, torch.float32)


def recognises(path: Path) -> bool:
    """Whether `path` is a folder of this family."""
    index = path / "model_index.json"
    return index.is_file() and read_json(index).get("_class_name") == PIPELINE


def load(folder: Path, about: About, *, device: str = "cpu") -> Model:
    """Raises `FileError` on what is not all there or not of these classes, `DDIMError` without diffusers."""
    try:
        import diffusers
        import transformers
    except ImportError as e:
        raise DDIMError(f"{about.name} needs {e.name}", hint="pip install 'ddimctl[diffusers]'") from e
    check(folder)
    unet = made(diffusers.UNet2DConditionModel, folder / "unet", "UNet2DConditionModel").to(device)
    vae = made(diffusers.AutoencoderKL, folder / "vae", "AutoencoderKL").to(device)
    text = made(transformers.CLIPTextModel, folder / "text_encoder", "CLIPTextModel", stem="model").to(device)
    tokenizer = read_tokenizer(transformers.CLIPTokenizer, folder / "tokenizer")
    schedule, prediction = read_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"))
    size, channels = unet.config.sample_size, unet.config.in_channels
    height, width = (size, size) if isinstance(size, int) else size
    if channels != vae.config.latent_channels or unet.config.out_channels != channels:
        raise FileError(f"the network of {about.name} does not see what its autoencoder makes", identify.NOT_HERE)
    larger = 2 ** (len(vae.config.block_out_channels) - 1)
    unet.to(memory_format=torch.channels_last)

    def facts() -> Facts:
        words = sorted(tokenizer.get_vocab().items())
        weights = {**unet.state_dict(), **{f"text.{k}": w for k, w in text.state_dict().items()}}
        return Facts(
            digest((essence(unet.config), words, prediction), weights), sum(map(torch.numel, weights.values())), 0
        )

    module = Module((channels, height, width), device, lambda: Hearing(unet), facts)
    notes = (
        *about.notes,
        f"predicts {prediction}; {schedule.T} noise levels; hears {text.config.max_position_embeddings} tokens",
    )
    return Model(
        engines.make(module),
        schedule,
        image_shape=(vae.config.in_channels, height * larger, width * larger),
        about=replace(about, family="stable-diffusion", notes=notes),
        prediction=prediction,
        embed=embedder(text, tokenizer, about.name),
        autoencoder=Latents(vae, device),
    )


def check(folder: Path) -> None:
    """Raises `FileError` unless every part is of the class that we make."""
    index = read_json(folder / "model_index.json")
    for part, wanted in CLASSES.items():
        if index.get(part) != list(wanted):
            raise FileError(f"{folder} has a {part} that is {index.get(part)}, not {wanted[1]}", identify.NOT_HERE)


def made(kind: Any, folder: Path, name: str, *, stem: str = STEM) -> Any:
    """The network in `folder`. Raises `FileError` where weights and configuration do not fit."""
    config, weights = parts.read_part(folder, name, stem=stem)
    try:
        network = kind(kind.config_class.from_dict(config)) if stem == "model" else kind.from_config(config)
        wanted = network.state_dict()
        given = {k: w for k, w in weights.items() if not k.endswith("position_ids")}  # older transformers wrote those
        if wanted.keys() - given.keys():
            given = {k.removeprefix("text_model."): w for k, w in given.items()}
        network.load_state_dict(given)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, ZeroDivisionError) as e:
        raise FileError(f"the weights in {folder} do not fit its configuration: {str(e).splitlines()[0]}") from e
    return network.float().eval().requires_grad_(False)


def read_tokenizer(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # tokenizers has no better word for what it cannot read
        raise FileError(f"{folder} is not a tokenizer: {str(e).splitlines()[0]}") from e


def embedder(text: Any, tokenizer: Any, name: str) -> Callable[[Condition], Embedded]:
    """What a condition becomes: the last hidden states of its prompt, the empty one where it has none."""
    length = text.config.max_position_embeddings

    @lru_cache(PROMPTS)
    def hidden(prompt: str) -> Tensor:
        ids = tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.inference_mode():
            out: Tensor = text(ids.to(text.device)).last_hidden_state
        return out

    def embed(condition: Condition) -> Embedded:
        if condition.class_label is not None:
            raise UsageError(f"the model {name} has no classes", hint="leave --class away, and give a --prompt")
        return {"text": hidden(condition.prompt or "")}

    return embed


def essence(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What of a configuration decides the output: no names of files, versions or flags of training."""
    return sorted((k, repr(v)) for k, v in config.items() if not k.startswith("_"))


def digest(about: object, weights: Mapping[str, Tensor]) -> str:
    h = hashlib.sha256(repr(about).encode())
    for name, w in sorted(weights.items()):
        h.update(f"{name} {tuple(w.shape)}".encode())
        h.update(w.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


def _like(x: Tensor, other: Array) -> Array:
    """`x` in float64, as an array of the library that `other` is of."""
    return x.to(other.device, torch.float64) if isinstance(other, Tensor) else x.double().cpu().numpy()
