"""Stable Diffusion 1.x and 2.x from a folder in diffusers' layout: U-Net, autoencoder, text encoder, tokenizer, schedule.

Network, autoencoder and text encoder are diffusers' and transformers' classes with the folder's weights; the equation is
ours. The libraries are imported when such a folder is loaded, and nothing in it decides what code runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl import engines
from ddimctl.checkpoints import diffusers, identify, pipelines
from ddimctl.errors import FileError, UsageError
from ddimctl.families import autoencoders
from ddimctl.families.autoencoders import KL, quiet
from ddimctl.files import refuse_special
from ddimctl.model import About, Condition, Model
from ddimctl.network import Embedded, Facts, Module

# What of a text encoder's configuration decides what it computes. Others might name code, such as an attention's.
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
HELD = 40  # maps of the finest resolution that may be held at once: it bounds the batch, no more


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, pipelines.STABLE_DIFFUSION)


def load(path: Path, about: About, settings: Mapping[str, Any] | None, *, device: str) -> Model:
    """The model in a folder. Raises `FileError` if it is incomplete, hostile or not of this kind, `UsageError` without
    the extra."""
    if settings:
        raise FileError(f"{path} has a configuration of its own", hint="leave --config away")
    pipelines.check_index(path)
    config = _unet_config(path / "unet")
    schedule, prediction = diffusers.read_scheduler(diffusers.read_json(path / "scheduler" / "scheduler_config.json"))
    autoencoders.check_extra(about.name)
    vae = autoencoders.load_kl(path / "vae", device)
    text = _load_text(path, device)
    with quiet():
        from diffusers import UNet2DConditionModel
    unet = autoencoders.make(UNet2DConditionModel, config, path / "unet")
    _check_fit(unet.config, vae, text, path)
    pipelines.fill(unet, pipelines.read_weights(path / "unet"), path / "unet")
    network = Listening(unet).to(device)
    size = _latent_size(unet.config.sample_size, path)

    def facts() -> Facts:
        said = {k: v for k, v in unet.config.items() if not k.startswith("_") and k != "sample_size"}
        essence = [sorted(said.items()), prediction, text.essence]
        digest = autoencoders.hash_of(repr(essence).encode(), [unet, text.encoder])
        return Facts(digest, sum(p.numel() for p in network.parameters()), flops=0)

    module = Module(
        (unet.config.in_channels, *size), device, lambda: network, facts,
        engines=("torch", "compile"), activations=HELD * unet.config.block_out_channels[0] * size[0] * size[1],
    )  # fmt: skip
    told = (
        f"predicts {prediction}; {schedule.T} noise levels; images by an autoencoder, {vae.factor} pixels a side to one"
    )
    return Model(
        engines.make(module),
        schedule,
        image_shape=(vae.vae.config.in_channels, size[0] * vae.factor, size[1] * vae.factor),
        about=replace(about, family="stable-diffusion", notes=(told,)),
        prediction=prediction,
        embed=embedder(about.name, text),
        autoencoder=vae,
        multiple=vae.factor,
        unread=text.unread,
    )


class Listening(nn.Module):
    """The U-Net as engines call it: (x_t, labels, encoder_hidden_states), the latter with one row or one an image."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, labels: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        rows = encoder_hidden_states.expand(len(x), -1, -1)
        out: Tensor = self.unet(x, labels.expand(len(x)), rows, return_dict=False)[0]
        return out


@dataclass(frozen=True)
class Text:
    """A tokenizer with its encoder."""

    tokenizer: Any
    encoder: Any
    length: int  # tokens that are read, beginning and end among them
    masked: bool  # whether what fills up the length is hidden from the encoder

    @property
    def essence(self) -> str:
        """What beside the weights decides the embedding of a prompt."""
        c, t = self.encoder.config, self.tokenizer
        fields = {k: getattr(c, k) for k in TEXT_FIELDS}
        rules = json.loads(t.backend_tokenizer.to_str())
        return json.dumps([fields, self.length, self.masked, t.pad_token_id, rules["model"]], sort_keys=True)

    @torch.no_grad()
    def states(self, prompt: str) -> Tensor:
        """(1, length, width), in float32."""
        with quiet():
            found = self.tokenizer(
                prompt, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            )
        mask = found.attention_mask.to(self.encoder.device) if self.masked else None
        out: Tensor = self.encoder(found.input_ids.to(self.encoder.device), attention_mask=mask)[0]
        return out

    def unread(self, prompt: str) -> str:
        """What of the prompt is beyond the length."""
        with quiet():
            ids = self.tokenizer(prompt, padding=False, truncation=False).input_ids
        rest: str = self.tokenizer.decode(ids[self.length - 1 : -1]) if len(ids) > self.length else ""
        return rest.strip()


def embedder(name: str, text: Text) -> Callable[[Condition], Embedded]:
    """What a condition becomes: the states of its prompt, or of the empty one. Each prompt is encoded once."""

    @cache
    def states(prompt: str) -> Tensor:
        return text.states(prompt)

    def embed(condition: Condition) -> Embedded:
        if condition.class_label is not None:
            raise UsageError(f"the model {name} has no classes", hint="leave --class away; it takes a --prompt")
        if not math.isfinite(condition.guidance) or abs(condition.guidance) > 1000:
            raise UsageError(f"a guidance of {condition.guidance:g} makes no sense", hint="1 is none, 7.5 is usual")
        return {"encoder_hidden_states": states(condition.prompt or "")}

    return embed


def _unet_config(folder: Path) -> dict[str, Any]:
    """The network's configuration. Raises `FileError` where it wants more than an image, a label and a text."""
    config = pipelines.read_config(folder, "UNet2DConditionModel")
    for name in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise FileError(f"{folder}: a network with {name} is not implemented", identify.NOT_HERE)
    if config.get("addition_embed_type") not in (None, "text"):
        what = config["addition_embed_type"]
        raise FileError(f"{folder}: a network that is asked for {what!r} too is not implemented", identify.NOT_HERE)
    return config


def _load_text(path: Path, device: str) -> Text:
    """Tokenizer and text encoder. Raises `FileError` where they cannot be used."""
    config = pipelines.read_config(path / "text_encoder", "CLIPTextModel")
    files = {file.name: file for file in (path / "tokenizer").iterdir()}
    for file in files.values():
        refuse_special(file)
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files.keys():  # it would be made empty
        raise FileError(f"{path} has no vocabulary: neither tokenizer.json nor vocab.json and merges.txt")
    if (path / "tokenizer" / "tokenizer_config.json").is_file():
        pipelines.read_config(path / "tokenizer", "CLIPTokenizer", "tokenizer_config.json")
    with quiet():
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    try:
        with quiet():
            tokenizer = CLIPTokenizer.from_pretrained(str(path / "tokenizer"), local_files_only=True)
            with torch.device("meta"):
                encoder: Any = CLIPTextModel(CLIPTextConfig(**{k: config[k] for k in TEXT_FIELDS if k in config}))
    except Exception as e:  # missing and broken files, and nonsense, raise anything
        reason = " ".join(str(e).split())[:120] or type(e).__name__
        raise FileError(f"{path} has a text encoder or tokenizer that cannot be read: {reason}") from e
    # Their names have begun with text_model. in some versions of transformers, and not in others.
    wanted, state = encoder.state_dict(), pipelines.read_weights(path / "text_encoder", "model")
    bare = {k.removeprefix("text_model."): w for k, w in state.items()}
    names = {k.removeprefix("text_model."): k for k in wanted}
    pipelines.fill(encoder, {names.get(k, k): w for k, w in bare.items()}, path / "text_encoder")
    for part in encoder.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:  # position_ids, which no file holds
                part.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    places = encoder.config.max_position_embeddings
    length = min(int(tokenizer.model_max_length), places)
    if len(tokenizer) > encoder.config.vocab_size or length < 2:
        raise FileError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the encoder {encoder.config.vocab_size}")
    return Text(tokenizer, encoder.to(device), length, bool(config.get("use_attention_mask")))


def _check_fit(config: Any, vae: KL, text: Text, path: Path) -> None:
    """Raises `FileError` where the parts are of different families."""
    latents, width = vae.vae.config.latent_channels, config.cross_attention_dim
    if config.in_channels != config.out_channels or vae.vae.config.in_channels != vae.vae.config.out_channels:
        raise FileError(
            f"{path} maps {config.in_channels} channels to {config.out_channels}: not a denoiser of images alone",
            hint="inpainting, depth and editing networks need an image beside the noise",
        )
    if config.in_channels != latents:
        raise FileError(f"{path}: the network takes {config.in_channels} channels, the autoencoder gives {latents}")
    widths = {width} if isinstance(width, int) else set(width)
    if widths != {text.encoder.config.hidden_size}:
        raise FileError(f"{path}: the network reads text {width} wide, it is {text.encoder.config.hidden_size} wide")


def _latent_size(size: Any, path: Path) -> tuple[int, int]:
    """(height, width) of the states, from the network's sample_size."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(n, int) and 0 < n <= 1024 for n in sides):
        raise FileError(f"{path} does not say its image size (sample_size = {size!r})")
    return sides[0], sides[1]
