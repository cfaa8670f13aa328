"""How good a model with text is: its autoencoder, whether it hears its captions, and samples to look at.

    python benchmarks/text_model.py MODEL -o FOLDER

On the held-out images of the model's folder (NNN.png with NNN.txt) it measures

- the autoencoder alone: PSNR of each image, 8-bit levels as they are saved;
- retrieval: whose caption fits an image, by the model's own likelihood. Of `--captions` captions, its own among them, each
  is scored by the error of ε under it, at a few noise levels and with the same noise for each (a diffusion classifier,
  Li et al. 2023); reported is how often its own is first, or among the first five. Captions are those of the held-out
  images, none twice;
- samples: `--each` of `--prompts` held-out captions at guidance 3, as a labelled sheet.

FOLDER gets text-model.json and samples.png. Two cores need some minutes; `--images` and `--levels` make it less.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from guidance import held_out
from torch import Tensor

import ddimctl
from ddimctl.files import make_folder, write_bytes
from ddimctl.images import labels, levels, sheets, writing
from ddimctl.model import Condition, Model
from ddimctl.recipe import Way
from ddimctl.seeds import noise

GAP = 2
BATCH = 64
SEEN = 128  # pixels a side that images are enlarged to


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int = 64  # held-out ones
    captions: int = 50  # that each image is asked about
    levels: int = 6  # of noise
    noises: int = 1  # at each
    prompts: int = 16
    each: int = 4  # samples of a prompt
    steps: int = 20
    guidance: float = 3.0


def images_of(model: Model, files: Sequence[Path]) -> Tensor:
    return torch.cat([torch.as_tensor(ddimctl.open(str(f), model)) for f in files]).double()


def psnr_of_autoencoder(model: Model, x: Tensor) -> list[float]:
    """Of each image that goes into the latent space and back, both at 8 bits."""
    out = []
    for part in x.split(BATCH):
        back = torch.as_tensor(model.autoencoder.decode(torch.as_tensor(model.autoencoder.encode(part)).double()))
        a, b = (levels.to_pixels(y).astype(float) for y in (part, back))
        mse = np.square((a - b) / 255).mean((1, 2, 3))
        out += [10 * math.log10(1 / max(e, 1e-12)) for e in mse]
    return out


def noise_levels(model: Model, n: int) -> list[float]:
    """n noise levels, evenly in log σ from 0.3 to 10, or as far as the schedule goes: where captions decide."""
    ends = [math.log(s) for s in (0.3, min(10.0, model.schedule.sigma(model.schedule.T) / 2))]
    return [math.exp(ends[0] + (ends[1] - ends[0]) * (i + 0.5) / n) for i in range(n)]


def errors(model: Model, z: Tensor, prompts: Sequence[str], *, at: Sequence[float], noises: int) -> Tensor:
    """The mean squared error of ε (images, prompts): each image with the same noise under every prompt, at every level.

    Levels count alike: each one's errors are divided by their mean over the prompts.
    """
    total = torch.zeros(len(z), len(prompts), dtype=torch.float64)
    for k, sigma in enumerate(at):
        found = torch.zeros_like(total)
        for j in range(noises):
            n = noise(z.shape[1:], len(z), seed=1000 * k + j).double()
            for column, prompt in enumerate(prompts):
                eps = model.eps(Condition(prompt=prompt))
                for rows in torch.arange(len(z)).split(BATCH):
                    e = torch.as_tensor(eps(z[rows] + sigma * n[rows], sigma))
                    found[rows, column] += (e - n[rows]).square().flatten(1).mean(1)
        total += found / found.mean(1, keepdim=True)
    return total / len(at)


def ranks(scores: Tensor, own: Sequence[int], among: int) -> list[int]:
    """The place of each image's own caption among so many, 0 the best: it, and others drawn for each image alike."""
    out = []
    for i, mine in enumerate(own):
        others = np.random.default_rng(i).permutation([c for c in range(scores.shape[1]) if c != mine])[: among - 1]
        out.append(int((scores[i, others] < scores[i, mine]).sum()))
    return out


def sheet(model: Model, prompts: Sequence[str], size: Size) -> np.ndarray:
    """The samples, a row for each prompt, with the prompts beside them."""
    xT = noise(model.state_shape, size.each * len(prompts), seed=0)
    way, rows = Way(steps=size.steps), []
    for i, prompt in enumerate(prompts):
        some = xT[i * size.each : (i + 1) * size.each]
        x = ddimctl.ode.decode(model, some, way, Condition(prompt=prompt, guidance=size.guidance)).x
        rows.append(levels.to_pixels(torch.as_tensor(x)))
    pixels = sheets.enlarge(np.concatenate(rows), sheets.factor_to_see(model.size, SEEN))
    half = -(-len(prompts) // 2)  # two columns of prompts
    blocks = [pixels[: half * size.each], pixels[half * size.each :]]
    made = []
    for block, words in zip(blocks, (prompts[:half], prompts[half:]), strict=True):
        if not len(block):
            continue
        drawn = sheets.sheet(block, size.each, GAP)
        made.append(labels.around(drawn, pixels.shape[1:3], GAP, labels=labels.Labels(left=list(words))))
    height = max(m.shape[0] for m in made)
    return np.concatenate(
        [np.pad(m, ((0, height - m.shape[0]), (0, 0), (0, 0)), constant_values=255) for m in made], axis=1
    )


def measure(model: Model, size: Size) -> dict[str, Any]:
    """The figures, without the samples."""
    pairs = held_out(model, size.images)
    x = images_of(model, [f for f, _ in pairs])
    psnr = psnr_of_autoencoder(model, x)
    prompts = list(dict.fromkeys(text for _, text in pairs))
    among = min(size.captions, len(prompts))
    at = noise_levels(model, size.levels)
    z = torch.cat([torch.as_tensor(model.autoencoder.encode(p)) for p in x.split(BATCH)]).double()
    own = [prompts.index(text) for _, text in pairs]
    placed = ranks(errors(model, z, prompts, at=at, noises=size.noises), own, among)
    return {
        "model": model.name,
        "digest": model.digest,
        "images": len(pairs),
        "autoencoder_psnr": {"mean": sum(psnr) / len(psnr), "median": median(psnr), "worst": min(psnr)},
        "retrieval": {
            "captions": among,
            "levels": at,
            "noises": size.noises,
            "first": sum(p == 0 for p in placed) / len(placed),
            "first_five": sum(p < 5 for p in placed) / len(placed),
            "by_chance": {"first": 1 / among, "first_five": min(5 / among, 1.0)},
            "places": {f.stem: p + 1 for (f, _), p in zip(pairs, placed, strict=True)},
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model")
    asked.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    for name, default in vars(Size()).items():
        asked.add_argument(f"--{name}", type=type(default), default=default)
    args = asked.parse_args(arguments)
    size = Size(**{name: getattr(args, name) for name in vars(Size())})
    model = ddimctl.load(args.model)
    make_folder(args.output)
    found = measure(model, size)
    prompts = list(dict.fromkeys(text for _, text in held_out(model, 1 << 20)))
    chosen = [prompts[i * len(prompts) // size.prompts] for i in range(min(size.prompts, len(prompts)))]
    found["samples"] = {"prompts": chosen, "each": size.each, "guidance": size.guidance, "steps": size.steps}
    writing.save_image(args.output / "samples.png", sheet(model, chosen, size))
    text = json.dumps(found, indent=1, ensure_ascii=False)
    write_bytes(args.output / "text-model.json", (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    main()
