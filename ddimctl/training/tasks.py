"""The task of a run's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddimctl import families
from ddimctl.checkpoints import formats
from ddimctl.errors import DDIMError
from ddimctl.training.autoencoder import Autoencoder, load, of_pixels
from ddimctl.training.data import Data
from ddimctl.training.loop import Task
from ddimctl.training.pixel import Pixel
from ddimctl.training.settings import AutoencoderSettings, PixelSettings, Settings, TextSettings
from ddimctl.training.text import Text


def make(settings: Settings, data: Data, device: torch.device, *, latent: str = "", start: str = "") -> Task:
    """`latent` is the folder of an autoencoder, `start` a model of pixels to begin with: both for captions only.

    Raises `DDIMError` where diffusers or transformers are missing.
    """
    if isinstance(settings, PixelSettings):
        return Pixel(settings, data, device)
    try:
        if isinstance(settings, AutoencoderSettings):
            return Autoencoder(settings, data, device)
        assert isinstance(settings, TextSettings)
        vae = load(Path(latent)) if latent else of_pixels(settings.channels)
        task = Text(in_space_of(vae, settings), data, device, vae=vae)
    except ImportError as e:
        raise DDIMError(f"this needs {e.name}", hint="pip install 'ddimctl[diffusers]'") from e
    if start:
        found = families.find(start)
        task.start(formats.read(found.path, found.said).weights)
    return task


def in_space_of(vae: Any, settings: TextSettings) -> TextSettings:
    """The settings with what the autoencoder decides."""
    down = 2 ** (len(vae.config.block_out_channels) - 1)
    return replace(settings, latent_channels=vae.config.latent_channels, down=down)
