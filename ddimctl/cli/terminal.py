"""Pictures in the terminal: as half blocks in 24-bit colour, which every terminal has, one for two pixels.

With textual-image (extra ``show``), which asks the terminal what it can, as real pixels: by Kitty's protocol or Sixel.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


def is_there() -> bool:
    """Whether stdout is a terminal, where pictures can be shown."""
    return sys.stdout.isatty()


def show(small: np.ndarray, whole: Callable[[], np.ndarray]) -> None:
    """Prints a picture, uint8 (H, W, C): `whole` as pixels, or `small` where half a block stands for a pixel."""
    from ddimctl.images.writing import as_image

    drawn = by_protocol()
    if drawn is None:
        columns = shutil.get_terminal_size().columns
        picture = as_image(small).convert("RGB")
        if picture.width > columns:
            picture.thumbnail((columns, 1 << 30))
        print(half_blocks(picture))
        return
    from rich.console import Console

    Console(file=sys.stdout, force_terminal=True).print(drawn(as_image(whole())))


def by_protocol() -> Any:
    """What draws an image as pixels, of Rich's kind; None where the extra is missing, or the terminal shows none."""
    if importlib.util.find_spec("textual_image") is None or os.get_terminal_size(sys.stdout.fileno()).columns == 0:
        return None
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)  # what it assumes, it says aloud
    from textual_image import renderable

    real = (renderable.SixelImage, renderable.TGPImage)
    return renderable.Image if renderable.Image in real else None


def half_blocks(picture: Any) -> str:
    """An RGB image of Pillow's as lines of text: each upper pixel in the ink's colour, each lower one in the paper's."""
    pixel, lines = picture.load(), []
    for y in range(0, picture.height, 2):
        line = ""
        for x in range(picture.width):
            lower = "48;2;{};{};{}".format(*pixel[x, y + 1]) if y + 1 < picture.height else "49"
            line += "\x1b[38;2;{};{};{};{}m▀".format(*pixel[x, y], lower)
        lines.append(f"{line}\x1b[0m")
    return "\n".join(lines)
