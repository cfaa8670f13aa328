"""Tiny pipelines with random weights, written by diffusers and transformers themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddimctl.families.autoencoders import quiet
from ddimctl.training import tokens

WORDS = ["a red square on white", "a small grey dog under the blue sky", "nothing but a circle, ugly and dark"]
LENGTH = 12
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def seeded(write: Callable[..., Path]) -> Callable[..., Path]:
    """Always the same weights, whatever ran before."""

    def run(*args: Any, **more: Any) -> Path:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(0)
            return write(*args, **more)

    return run


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    tokens.write(folder, tokens.learn(WORDS), LENGTH)
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def clip(words: Any, width: int = 16, projection: int = 0) -> Any:
    """CLIP's text encoder, with a projection if that has a width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    end = words.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, eos_token_id=end, bos_token_id=end - 1, projection_dim=projection or 512,
    )  # fmt: skip
    made: Any = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    if projection:
        made.text_projection.weight.data.normal_()
    return made


def kl(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **{
            "in_channels": 3, "out_channels": 3, "latent_channels": channels, "block_out_channels": (8, 8),
            "norm_num_groups": 4, "sample_size": 16, "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2, "scaling_factor": 1.7, **more,
        }
    )  # fmt: skip


def unet(width: int, **more: Any) -> Any:
    """One that listens: random weights hardly do. A stranger field would be a hard one to come back through."""
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4, norm_num_groups=4, **more,
    )  # fmt: skip
    for name, w in made.named_parameters():
        if "attn2" in name and name.endswith("weight"):
            w.data *= 3
    made.conv_out.weight.data *= 0.2
    return made


@seeded
def write_stable_diffusion(folder: Path, prediction: str = "epsilon", **scheduler: Any) -> Path:
    """Images of 16 × 16, states of 4 × 8 × 8; SD 1.5's schedule unless `scheduler` says otherwise."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    words = tokenizer(folder / "tokenizer")
    steps = PNDMScheduler(
        **{
            **SD_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
            "prediction_type": prediction, **scheduler,
        }
    )  # fmt: skip
    StableDiffusionPipeline(
        text_encoder=clip(words), unet=unet(16), vae=kl(), tokenizer=words, scheduler=steps, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@seeded
def write_sdxl(folder: Path, **more: Any) -> Path:
    """Two text encoders, 16 and 24 wide."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    words = tokenizer(folder / "tokenizer")
    network = unet(
        40, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 20
    )
    network.add_embedding.linear_1.weight.data *= 3
    StableDiffusionXLPipeline(
        vae=kl(), text_encoder=clip(words), text_encoder_2=clip(words, 24, 20), tokenizer=words, tokenizer_2=words,
        unet=network, scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"), **more,
    ).save_pretrained(folder)  # fmt: skip
    return folder
