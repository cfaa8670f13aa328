"""What noise of σ(1), added before encoding, does to interpolations: docs/latents.md.

    python benchmarks/dithering.py             # both bundled models, and puts the tables into the page
    python benchmarks/dithering.py --pairs 40  # fewer

Frames between pairs of held-out images, from latents with and without the noise, by slerp and by `renorm`:

- norm: of the latents, divided by √d; 1 for noise.
- step, largest: root mean square from a frame to the next of nine, pixels in 0 … 1: the mean, and the largest on the way.
- neighbours: the mean difference of neighbouring pixels of the middle frame, in 8-bit levels.
- distance: the Fréchet distance of the middle frames to the training images, by the features that come with the model.

Beside them stands what the model makes of noise, as many images in the same way: no middle frame need be better than that.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path
from typing import Any

import pages
import torch
from torch import Tensor

from ddimctl import bottleneck, dither, features, frechet, load, ode, seeds
from ddimctl.images import levels, reading
from ddimctl.interpolate import INTERPOLANTS
from ddimctl.model import Model
from ddimctl.motion import weights
from ddimctl.recipe import Way

PAGE = Path(__file__).resolve().parent.parent / "docs" / "latents.md"
WAY = Way(spacing="karras")
FRAMES = 9
FILMS = 12  # pairs whose nine frames are all decoded


def held_out(model: Model) -> Tensor:
    assert model.about.folder is not None
    files = sorted((model.about.folder / "held-out").glob("*.png"))
    return torch.cat([levels.to_tensor(reading.read(f, model.channels, model.size)[0][None]) for f in files])


def features_of(model: Model) -> features.Extractor:
    """What came with the model: a classifier, or statistics of its own features."""
    assert model.about.folder is not None
    file = model.about.folder / features.FILE
    if features.kind_of(file) == "classifier":
        return features.load_classifier(file)
    found = bottleneck.read(file, bottleneck.extractor(model))
    assert found is not None
    return found


def neighbours(x: Tensor) -> float:
    """The mean difference of neighbouring pixels, in levels."""
    x = levels.nearest(x.double())
    return float(torch.cat([x.diff(dim=-1).abs().flatten(), x.diff(dim=-2).abs().flatten()]).mean())


def pairs_of(n: int, wanted: int) -> list[tuple[int, int]]:
    every = list(itertools.combinations(range(n), 2))
    random.Random(0).shuffle(every)
    return every[:wanted]


def measure(model: Model, wanted: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each way to interpolate, and what is true of real images."""
    x = held_out(model)
    path = WAY.path(model.schedule)
    extractor = features_of(model)
    assert extractor.reference is not None
    reference = extractor.reference

    def distance(images: Tensor) -> float:
        pixels = torch.from_numpy(levels.to_pixels(images)).movedim(-1, 1)
        return frechet.distance(frechet.statistics(extractor.parts(pixels)), reference)

    pairs, rows = pairs_of(len(x), wanted), []
    for seed in (None, 0):
        xT = ode.encode(model, x, WAY, dithers=[] if seed is None else dither.dithers_of(x, seed, path)).x.float()
        for name in ("slerp", "renorm"):
            between = INTERPOLANTS[name]
            middle = decoded(model, torch.stack([between(xT[a], xT[b], 0.5) for a, b in pairs]))
            films = [between(xT[a], xT[b], w) for a, b in pairs[:FILMS] for w in weights(FRAMES)]
            frames = decoded(model, torch.stack(films)).unflatten(0, (-1, FRAMES))
            step = (frames.diff(dim=1) / 2).flatten(2).square().mean(2).sqrt()
            rows.append(
                {
                    "dither": seed is not None,
                    "between": name,
                    "norm": float(xT.double().flatten(1).square().mean(1).sqrt().mean()),
                    "step": float(step.mean()),
                    "largest": float(step.amax(1).mean()),
                    "neighbours": neighbours(middle),
                    "distance": distance(middle),
                }
            )
            print(model.name, rows[-1], flush=True)
    drawn = decoded(model, seeds.noise(model.state_shape, len(pairs), 0))
    samples = {"neighbours": neighbours(drawn), "distance": distance(drawn)}
    print(model.name, samples, neighbours(x), flush=True)
    return rows, {**samples, "real": neighbours(x), "images": len(x), "pairs": len(pairs)}


def decoded(model: Model, xT: Tensor) -> Tensor:
    return ode.decode(model, xT, WAY).x


def table(rows: list[dict[str, Any]], real: dict[str, float]) -> str:
    body = [
        [
            "yes" if r["dither"] else "no", f"`{r['between']}`", f"{r['norm']:.2f}", f"{r['step']:.3f}",
            f"{r['largest']:.3f}", f"{r['neighbours']:.1f}", f"{r['distance']:.3g}",
        ]
        for r in rows
    ]  # fmt: skip
    body.append(["samples of noise", "", "", "", "", f"{real['neighbours']:.1f}", f"{real['distance']:.3g}"])
    body.append(["the images", "", "", "", "", f"{real['real']:.1f}", ""])
    head = ["`--dither`", "between", "norm", "step", "largest", "neighbours", "distance"]
    return pages.table(head, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--models", default="fashion-mnist,emoji")
    parser.add_argument("--print", action="store_true", help="print the tables, and leave the page alone")
    asked = parser.parse_args()
    parts = []
    for name in asked.models.split(","):
        model = load(name, "cpu")
        rows, real = measure(model, asked.pairs)
        said = f"`{name}`, {real['pairs']} pairs of {real['images']} held-out images:"
        parts.append(f"{said}\n\n{table(rows, real)}")
    if asked.print:
        print("\n\n".join(parts))
        return
    pages.put(PAGE, __file__, "\n\n".join(parts))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
