"""Unconditional latent diffusion: DDPM's U-Net in the space of an autoencoder, one of a distribution or a quantising one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ddimctl.checkpoints import Said, diffusers, pipelines
from ddimctl.errors import FileError
from ddimctl.families import autoencoders, pixel
from ddimctl.model import About, Model

PIPELINE = "LDMPipeline"


def recognises(path: Path) -> bool:
    """Whether a folder's index says so."""
    return pipelines.is_pipeline(path, PIPELINE)


def load(path: Path, about: About, said: Said, *, device: str) -> Model:
    """The model in a folder. Raises as `stable_diffusion.load`."""
    pipelines.refuse_config(path, said.config)
    index = pipelines.check_index(path, PIPELINE)
    autoencoders.check_extra(about.name)
    vae = autoencoders.load(path / "vqvae", device, str(index["vqvae"][1]))
    network = pixel.from_checkpoint(diffusers.read(path / "unet", said, part=True), about, device=device)
    channels, height, width = network.state_shape
    if channels != vae.channels:
        raise FileError(f"{path}: the network takes {channels} channels, the autoencoder gives {vae.channels}")
    told = f"images by an autoencoder, {vae.factor} pixels a side to one"
    about = replace(network.about, family="latent-diffusion", notes=(*network.about.notes, told))
    size = height * vae.factor, width * vae.factor
    return replace(network, about=about, autoencoder=vae, image_shape=(vae.image_channels, *size))
