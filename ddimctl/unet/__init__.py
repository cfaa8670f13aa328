"""The one network: the unconditional U-Net of DDPM, with the names and fields of diffusers' ``UNet2DModel``.

Down: each block runs some residual blocks (each perhaps followed by self-attention), remembers every result, and halves
the resolution. Up: the same in reverse, each residual block seeing the remembered result of its resolution. The noise
level enters as a sinusoidal embedding of the network's label, added in every residual block.

Parameter names, configuration fields and their *defaults* are diffusers', so that ``UNet2DModel`` weights load as they
are; what is not implemented is refused by name. ``tests/test_unet.py`` compares every field with diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddimctl.unet.config import UNetConfig

if TYPE_CHECKING:
    from ddimctl.unet.network import UNet2DModel

__all__ = ["UNet2DModel", "UNetConfig"]


def __getattr__(name: str) -> Any:
    """The network, which needs torch, when it is asked for."""
    if name != "UNet2DModel":
        raise AttributeError(name)
    from ddimctl.unet.network import UNet2DModel

    return UNet2DModel
