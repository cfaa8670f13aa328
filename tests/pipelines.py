"""A tiny Stable Diffusion with random weights, written by diffusers and transformers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ddimctl.families.autoencoders import quiet
from ddimctl.training import tokens

WORDS = ["a red square on white", "a small grey dog under the blue sky", "nothing but a circle, ugly and dark"]
LENGTH = 12


def write_stable_diffusion(folder: Path, prediction: str = "epsilon", **scheduler: Any) -> Path:
    """Images of 16 × 16, states of 4 × 8 × 8; SD 1.5's schedule unless `scheduler` says otherwise."""
    with quiet():
        from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    vocabulary = tokens.learn(WORDS)
    tokens.write(folder / "tokenizer", vocabulary, LENGTH)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        end = tokenizer.eos_token_id
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=end, bos_token_id=end - 1,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=1.7,
        )  # fmt: skip
        for network in (unet, text):  # random weights hardly listen to their text
            for name, w in network.named_parameters():
                if "attn2" in name and name.endswith("weight"):
                    w.data *= 3
        unet.conv_out.weight.data *= 0.2  # so strange a field would be a hard one to come back through
        steps = PNDMScheduler(
            **{
                "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True,
                "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction, **scheduler,
            }
        )  # fmt: skip
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=steps, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.save_pretrained(folder)
    return folder
