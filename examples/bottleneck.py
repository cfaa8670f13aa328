"""Writes features.safetensors of a model: what `ddimctl evaluate` compares its samples with, without a classifier.

    python examples/bottleneck.py emoji emoji-glyphs -o models/emoji/features.safetensors

The features are the model's own (`ddimctl.bottleneck`); in the file are their mean and covariance over the images that the
model was trained on, and how far real images are from them. `ddimctl train --features` writes it at the end of a training;
this is for a model that is there already. The images are split as they were for the training, by its seed and fraction.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddimctl import bottleneck, load
from ddimctl.images import datasets
from ddimctl.training.data import split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="as after -m")
    parser.add_argument("images", type=Path, help="the folder or IDX file that it was trained on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--held-out", type=float, default=0.05, help="the fraction that was held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-name", default="Noto Color Emoji")
    parser.add_argument("--license", default="OFL-1.1")
    args = parser.parse_args()
    model = load(args.model, "cpu")
    data = split(datasets.load_dataset(args.images, model.channels, model.size), args.held_out, args.seed)
    print(f"{len(data.images):,} images, SHA-256 of their pixels {data.digest}; {len(data.held_out):,} held out")
    about = {"data": args.data_name, "license": args.license}
    own = bottleneck.write(args.output, model, data.images, held_out=data.held_out, about=about)
    print(
        f"{args.output}: {own.dimension} features, {args.output.stat().st_size / 2**10:.0f} KiB, {own.about['floor']}"
    )


if __name__ == "__main__":
    main()
