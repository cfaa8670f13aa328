"""A direction in the latents of `emoji`: curly hair less none, found with 17 pairs of glyphs: docs/latents.md.

    python examples/emoji.py -o emoji-glyphs
    python benchmarks/direction.py emoji-glyphs

The picture (docs/direction.png): held-out glyphs, which the model was not trained on, and 0.5, 1, 1.5 and 2 times the
direction added to their latents. The figure: root mean square (pixels in 0 … 1) between the glyph without hair and the same
person's with it, before and after the direction, found without this pair, was added; mean over the pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pages
import torch
from torch import Tensor

from ddimctl import dither, load, ode
from ddimctl.images import labels, levels, reading, sheets, writing
from ddimctl.model import Model
from ddimctl.recipe import Way

DOCS = Path(__file__).resolve().parent.parent / "docs"
WAY = Way(spacing="karras")
# The glyphs of men, women and people without hair, in all tones of skin, that were trained on; the one before is curly.
BALD = (2117, 2159, 2201, 2243, 2327, 2368, 2424, 2480, 2536, 2648, 3496, 3542, 3584, 3626, 3668, 3710)
HELD_OUT = ("000", "033", "063", "043")
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)


def read(model: Model, files: list[Path]) -> Tensor:
    return torch.cat([levels.to_tensor(reading.read(f, model.channels, model.size)[0][None]) for f in files])


def encode(model: Model, x: Tensor) -> Tensor:
    """x_T with noise of σ(1) added first."""
    return ode.encode(model, x, WAY, dithers=dither.dithers_of(x, 0, WAY.path(model.schedule))).x


def led(x: Tensor, direction: Tensor, weight: float) -> Tensor:
    """x_T with the direction added, of the norm that it had: `latent add --renorm`."""
    out = x + weight * direction
    return out * (x.flatten(1).norm(dim=1) / out.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)


def rms(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) / 2).flatten(1).square().mean(1).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glyphs", type=Path, help="the folder that examples/emoji.py makes")
    folder = parser.parse_args().glyphs
    model = load("emoji", "cpu")
    pairs = [(folder / f"glyph{n - 1:05}.png", folder / f"glyph{n:05}.png") for n in BALD]
    pairs = [pair for pair in pairs if all(f.is_file() for f in pair)]
    curly, bald = (read(model, [pair[i] for pair in pairs]) for i in (0, 1))
    apart = encode(model, curly) - encode(model, bald)
    n = len(pairs)

    without_it = (apart.sum(0) - apart) / (n - 1)  # for each pair, the direction of the others
    after = ode.decode(model, led(encode(model, bald), without_it, 1.0), WAY).x
    before_rms, after_rms = float(rms(bald, curly).mean()), float(rms(after, curly).mean())

    assert model.about.folder is not None
    x = encode(model, read(model, [model.about.folder / "held-out" / f"{name}.png" for name in HELD_OUT]))
    rows = torch.stack([led(x, apart.mean(0), w) for w in WEIGHTS], dim=1).flatten(0, 1)
    pixels = levels.to_pixels(ode.decode(model, rows, WAY).x)
    pixels = sheets.enlarge(pixels, 3)
    above = ["as it is", *(f"× {w:g}" for w in WEIGHTS[1:])]
    words = labels.Labels(
        above, [f"{name}.png" for name in HELD_OUT], caption="emoji: x_T and so many times the direction"
    )
    sheet = labels.around(sheets.sheet(pixels, len(WEIGHTS), 6), pixels.shape[1:3], 6, labels=words)
    writing.save_image(DOCS / "direction.png", sheet)
    said = f"{n} pairs: {before_rms:.3f} before, {after_rms:.3f} after."
    print(said)
    pages.put(DOCS / "latents.md", __file__, said)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
