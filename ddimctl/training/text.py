"""A network that listens to captions, with the text encoder that is trained with it, in Stable Diffusion's layout.

The networks are diffusers' ``UNet2DConditionModel`` and transformers' ``CLIPTextModel``. The text is heard twice: pooled
and added to the time embedding, and word by word in the attention at the lowest resolution, whose keys and values are
those of the image and of the words. Without text that is the U-Net of `pixel`, weight for weight: a trained one of pixels
can be the `start`. A part of the captions is dropped, so that guidance has something to lead away from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl import cache
from ddimctl.checkpoints.parts import config_of, write_index, write_json, write_part
from ddimctl.errors import UsageError
from ddimctl.files import sha256
from ddimctl.images import mapped
from ddimctl.images.labels import Labels
from ddimctl.schedule import Schedule
from ddimctl.solvers import ab2
from ddimctl.training import autoencoder, tokens
from ddimctl.training.data import Data, Images
from ddimctl.training.denoising import N_VALIDATION, Denoising, Predict
from ddimctl.training.settings import TextSettings
from ddimctl.version import __version__

GUIDANCE, SAMPLE_STEPS = 3.0, 20  # of the sheets


class Captioned(nn.Module):
    """ε of (x_t, label, tokens): both networks as one, so that they share an optimiser and an average."""

    def __init__(self, unet: nn.Module, text: Any):
        super().__init__()
        self.unet, self.text = unet, text
        n = text.config.max_position_embeddings
        # The mask that the text encoder would make from numbers of the processor's, which no CUDA graph may hold.
        before = torch.full((1, 1, n, n), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("before", before, persistent=False)

    def forward(self, xt: Tensor, label: Tensor, ids: Tensor) -> Tensor:
        heard = self.text(ids, attention_mask=self.before).last_hidden_state
        out: Tensor = self.unet(xt, label, heard).sample
        return out


class Text:
    """A `Task`: ε of noisy latents under their captions."""

    def __init__(self, settings: TextSettings, data: Data, device: torch.device, *, vae: Any):
        """`vae` is an ``AutoencoderKL``, which is not trained. The latents of all images are held as the images are."""
        if len(data.captions) != len(data.images) or len(data.held_out_captions) != len(data.held_out):
            raise UsageError("every image needs a caption", hint="in metadata.jsonl, or NAME.txt beside NAME.png")
        self.settings, self.data, self.device, self.vae = settings, data, device, vae.to(device)
        self.schedule = Schedule.linear()
        self.denoising = Denoising(self.schedule, device, bf16=settings.bf16, balance=settings.balance)
        self.vocabulary = tokens.learn(data.captions)
        self.ids = self._ids(data.captions)
        self.held_out_ids = self._ids(data.held_out_captions)
        self.null = self._ids([""])[0]
        self.latents = self._latents(data.images)
        self.held_out_latents = autoencoder.encode(vae, data.held_out[:N_VALIDATION])
        torch.manual_seed(settings.seed)
        self.network = Captioned(unet(settings), text_encoder(settings, self.vocabulary)).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def space(self) -> str:
        weights = {k: sha256(w.cpu().contiguous().numpy().data) for k, w in self.vae.state_dict().items()}
        return sha256(json.dumps([weights, self.vae.config.scaling_factor, self.vae.config.shift_factor]).encode())

    def draw(self, n: int, g: torch.Generator) -> tuple[Tensor, ...]:
        dropped = torch.rand(n, generator=g) < self.settings.drop
        return (dropped, *self.denoising.draw(self.latents.shape[1:], n, g))

    def seen(self, rows: Tensor, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dropped, label, eps = (d.to(self.device) for d in drawn)
        ids = torch.where(dropped.view(-1, 1), self.null, self.ids[rows])
        return self.latents[rows].to(self.device), ids, label, eps

    def loss(self, *seen: Tensor) -> Tensor:
        z, ids, label, eps = seen
        return self.denoising.errors(self._predict(self.network, ids), z, label, eps=eps).mean()

    def validate(self, network: nn.Module) -> float:
        return self.denoising.validate(
            lambda rows: self._predict(network, self.held_out_ids[rows]), self.held_out_latents
        )

    def samples(self, network: nn.Module, n: int) -> Tensor:
        """n images of the first held-out captions, four of each."""
        return self.pictures(network, [c for c in self._shown(n) for _ in range(4)][:n])

    def words(self, n: int) -> tuple[int, Labels]:
        made = f"held-out captions, guidance {GUIDANCE:g}, {SAMPLE_STEPS} steps of ab2"
        return 4, Labels(left=self._shown(n), caption=made)

    def _shown(self, n: int) -> list[str]:
        return list(dict.fromkeys(self.data.held_out_captions))[: max(n // 4, 1)]

    def pictures(self, network: nn.Module, captions: Sequence[str], guidance: float = GUIDANCE) -> Tensor:
        """An image of each caption."""
        x = autoencoder.noise(self.vae, self.settings.size, len(captions)).to(self.device)
        given, null = self._ids(captions), self.null.expand(len(captions), -1)
        with_text, without = self._predict(network, given), self._predict(network, null)

        def eps(xbar: Tensor, sigma: float | Sequence[float]) -> Tensor:
            assert isinstance(sigma, float)
            xt = (xbar / math.sqrt(1 + sigma**2)).float().to(memory_format=torch.channels_last)
            label = torch.full((len(xt),), self.schedule.label(sigma), device=self.device)
            away = without(xt, label).double()
            return away + guidance * (with_text(xt, label).double() - away)

        path = self.schedule.path(SAMPLE_STEPS)[::-1]
        xbar = x.double() * math.sqrt(1 + path[0] ** 2)
        *_, xbar = ab2(eps, xbar, path)
        return autoencoder.decode(self.vae, (xbar / math.sqrt(1 + path[-1] ** 2)).float().cpu())

    @torch.no_grad()
    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Begins with the U-Net of a model of pixels; the text has no say yet. Raises `UsageError` if it is another."""
        unet: nn.Module = self.network.unet
        ours = unet.state_dict()
        wrong = [k for k, w in weights.items() if k not in ours or ours[k].shape != w.shape]
        if wrong:
            raise UsageError(
                f"the network to start from has another shape: {wrong[0]}",
                hint="--channels, --layers, --groups, --head-dim and --attention must be its own",
            )
        unet.load_state_dict({**ours, **weights})
        for name, p in unet.named_parameters():
            if name == "add_embedding.norm2.weight":
                p.fill_(0.02)
            elif "add_v_proj" in name:
                p.zero_()

    def write(self, folder: Path, network: Any) -> None:
        """A Stable Diffusion pipeline in half precision."""
        text = network.text.config
        write_part(folder / "unet", config_of(network.unet), network.unet.state_dict(), half=True)
        write_part(folder / "vae", config_of(self.vae), self.vae.state_dict(), half=True)
        write_part(folder / "text_encoder", {**text.to_dict(), "architectures": ["CLIPTextModel"], "dtype": "float32"},
                   network.text.state_dict(), name="model.safetensors", half=True)  # fmt: skip
        tokens.write(folder / "tokenizer", self.vocabulary, length(self.settings))
        write_json(
            folder / "scheduler" / "scheduler_config.json",
            {
                "_class_name": "DDIMScheduler", "num_train_timesteps": self.schedule.T, "beta_schedule": "linear",
                "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon", "clip_sample": False,
                "steps_offset": 1, "timestep_spacing": "trailing", "set_alpha_to_one": True,
            },
        )  # fmt: skip
        parts: dict[str, tuple[str | None, str | None]] = {
            "unet": ("diffusers", "UNet2DConditionModel"),
            "vae": ("diffusers", "AutoencoderKL"),
            "text_encoder": ("transformers", "CLIPTextModel"),
            "tokenizer": ("transformers", "CLIPTokenizer"),
            "scheduler": ("diffusers", "DDIMScheduler"),
        }
        none = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), (None, None))
        write_index(folder, "StableDiffusionPipeline", {**parts, **none}, requires_safety_checker=False)

    def _latents(self, images: Images) -> Tensor:
        """Of all images: in memory, or mapped from a file in the cache folder, as `memory` of the data says."""
        if math.isinf(self.data.memory):
            return autoencoder.encode(self.vae, images)
        key = cache.name("latents", __version__, self.data.digest, self.space)
        if (whole := mapped.load(key)) is not None:
            return whole[0]
        each = (z.cpu().numpy() for part in autoencoder.encoded(self.vae, images) for z in part)
        return mapped.collect(each, key, memory=self.data.memory, about=dict)

    def _predict(self, network: nn.Module, ids: Tensor) -> Predict:
        def predict(xt: Tensor, label: Tensor) -> Tensor:
            out: Tensor = network(xt, label, ids)
            return out

        return predict

    def _ids(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor(tokens.encode(self.vocabulary, captions, length(self.settings)), device=self.device)


def length(s: TextSettings) -> int:
    """Of a caption in tokens, with those that begin and end it."""
    return s.words + 2


def unet(s: TextSettings) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor

    n = len(s.block_channels)
    kind: Any = UNet2DConditionModel
    network = kind(
        sample_size=s.state_size[0] if s.state_size[0] == s.state_size[1] else s.state_size,
        in_channels=s.latent_channels,
        out_channels=s.latent_channels,
        block_out_channels=s.block_channels,
        layers_per_block=s.layers,
        down_block_types=("DownBlock2D",) * (n - 1) + ("SimpleCrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
        cross_attention_dim=s.text_width,
        attention_head_dim=s.head_dim,
        norm_num_groups=s.groups,
        dropout=s.dropout,
        addition_embed_type="text",
        addition_embed_type_num_heads=s.text_width // 16,
    )
    # diffusers' plain attention, for the same reason as in `denoising`.
    network.set_attn_processor(
        {k: AttnProcessor() if k.startswith("up") else AttnAddedKVProcessor() for k in network.attn_processors}
    )
    return network


def text_encoder(s: TextSettings, vocabulary: tokens.Vocabulary) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    begin, end = len(vocabulary.entries) - 2, len(vocabulary.entries) - 1
    config: Any = CLIPTextConfig
    return CLIPTextModel(
        config(
            vocab_size=len(vocabulary.entries),
            hidden_size=s.text_width,
            intermediate_size=2 * s.text_width,
            num_hidden_layers=s.text_layers,
            num_attention_heads=s.text_width // 32,
            max_position_embeddings=length(s),
            projection_dim=s.text_width,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
            attn_implementation="eager",
        )
    )
