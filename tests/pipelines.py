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
T5_LENGTH = 24
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
    from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

    words = tokenizer(folder / "tokenizer")
    said = {**SD_BETAS, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction, **scheduler}
    zero_snr = "rescale_betas_zero_snr" in scheduler
    steps: Any = DDIMScheduler(**said) if zero_snr else PNDMScheduler(**said, skip_prk_steps=True)
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


@seeded
def write_ldm(folder: Path, quantised: bool = True) -> Path:
    """Unconditional; 16 × 16 to 3 × 8 × 8."""
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    network.conv_out.weight.data *= 0.2
    vq = VQModel(
        block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=16, vq_embed_dim=3, latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
        scaling_factor=0.8,
    )  # fmt: skip
    vae = vq if quantised else kl(3, shift_factor=0.1)
    LDMPipeline(
        vqvae=vae, unet=network, scheduler=DDIMScheduler(**SD_BETAS, clip_sample=False, steps_offset=1)
    ).save_pretrained(folder)
    return folder


def t5(folder: Path, width: int) -> tuple[Any, Any]:
    """(tokenizer, encoder) of words and letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [f"▁{w.strip(',')}" for text in WORDS for w in text.split()] + ["▁", *"abcdefghijklmnopqrstuvwxyz,"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -1.0) for p in dict.fromkeys(pieces))]
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=T5_LENGTH).save_pretrained(folder)
    words = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return words, T5EncoderModel(config)


@seeded
def write_sd3(folder: Path, with_t5: bool = True) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    words = tokenizer(folder / "tokenizer")
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=36, out_channels=4,
        pos_embed_max_size=12, qk_norm="rms_norm",
    )  # fmt: skip
    network.proj_out.weight.data.normal_(0, 0.3)
    words3, encoder3 = t5(folder / "tokenizer_3", 48) if with_t5 else (None, None)
    StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=kl(shift_factor=0.2),
        text_encoder=clip(words, 16, 16), tokenizer=words, text_encoder_2=clip(words, 24, 20), tokenizer_2=words,
        text_encoder_3=encoder3, tokenizer_3=words3,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@seeded
def write_flux(folder: Path, distilled: bool = True) -> Path:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    words = tokenizer(folder / "tokenizer")
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=distilled, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    network.proj_out.weight.data.normal_(0, 0.3)
    words2, encoder2 = t5(folder / "tokenizer_2", 24)
    FluxPipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=kl(shift_factor=0.2), text_encoder=clip(words), tokenizer=words, text_encoder_2=encoder2, tokenizer_2=words2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd": write_stable_diffusion,
    "zero snr": lambda f: write_stable_diffusion(f, "v_prediction", rescale_betas_zero_snr=True),
    "xl": write_sdxl,
    "xl, no zeros": lambda f: write_sdxl(f, force_zeros_for_empty_prompt=False),
    "vq": write_ldm,
    "kl": lambda f: write_ldm(f, quantised=False),
    "sd3": write_sd3,
    "sd3, no t5": lambda f: write_sd3(f, with_t5=False),
    "flux": write_flux,
    "flux, no guidance": lambda f: write_flux(f, distilled=False),
}
WRITTEN: dict[str, Path] = {}


def folder_of(name: str, factory: Any) -> Path:
    """The folder of that pipeline, written once a session. Read only: all tests share it."""
    if name not in WRITTEN:
        WRITTEN[name] = WRITERS[name](factory.mktemp("family") / "model")
    return WRITTEN[name]
