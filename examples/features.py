"""Trains the classifier whose features `ddimctl evaluate` compares images by: features.safetensors of a model folder.

    python examples/features.py train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
        t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz -o features.safetensors

Six passes over Fashion-MNIST take a few minutes on one core. What is written: the weights, the mean and covariance of
the features over all training images, the accuracy on the test images, and how far *real* images are apart: the distance
of the training set's halves, and of the first n test images to the training set. No sampler can be expected to do better.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ddimctl import features, frechet
from ddimctl.archives.binaries import read_idx
from ddimctl.images.levels import signed

WIDTHS = (32, 64, 128, 64)  # 64 features: 2,000 images are 30 times as many, enough for a covariance
BATCH = 128


def read_labels(path: Path) -> Tensor:
    """An IDX file of labels, perhaps gzipped: int64 (N,)."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    magic, n = struct.unpack(">ii", data[:8])
    assert magic == 0x801, f"{path} is not an IDX file of labels"
    assert n == len(data) - 8, f"{path} does not hold the {n} labels that it announces"
    return torch.tensor(list(data[8:]))


def train(x: Tensor, y: Tensor, epochs: int, lr: float) -> features.Classifier:
    """Adam with a one-cycle learning rate, cross-entropy; images are mirrored at random."""
    network = features.Classifier(x.shape[1], WIDTHS, int(y.max()) + 1).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01)
    steps = epochs * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(x)).split(BATCH):
            batch = unit(x[chosen])
            mirrored = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(mirrored.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"pass {epoch + 1} of {epochs}: loss {total / len(x):.4f}", flush=True)
    return network.eval()


def unit(pixels: Tensor) -> Tensor:
    """uint8 → float32 in [−1, 1]."""
    return signed(pixels.float())


@torch.inference_mode()
def accuracy(network: features.Classifier, x: Tensor, y: Tensor) -> float:
    parts = zip(x.split(features.BATCH), y.split(features.BATCH), strict=True)
    return sum(int((network(unit(a)).argmax(1) == b).sum()) for a, b in parts) / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        parser.add_argument(name, type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-name", default="Fashion-MNIST")
    parser.add_argument("--license", default="MIT")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x, test = (torch.from_numpy(read_idx(p))[:, None] for p in (args.train_images, args.test_images))
    y, test_y = read_labels(args.train_labels), read_labels(args.test_labels)
    network = train(x, y, args.epochs, args.lr)
    reached = accuracy(network, test, test_y)
    network.to(memory_format=torch.contiguous_format)
    print(f"accuracy on the {len(test):,} test images: {reached:.4f}")

    extractor = features.Extractor("classifier", WIDTHS[-1], lambda p: network.features(unit(p)), {})
    statistics = {n: frechet.statistics(extractor.parts(test[:n])) for n in (500, 1000, 2000, 5000, 10_000)}
    reference = frechet.statistics(extractor.parts(x))
    halves = frechet.distance(*(frechet.statistics(extractor.parts(x[i::2])) for i in (0, 1)))
    about = {
        "architecture": "3 x 3 convolutions with batch norm and ReLU, max-pooling between, mean over space",
        "channels": x.shape[1],
        "size": list(x.shape[2:]),
        "widths": WIDTHS,
        "classes": int(y.max()) + 1,
        "data": args.data_name,
        "license": args.license,
        "training": f"{args.epochs} passes over {len(x):,} images, seed {args.seed}",
        "test_accuracy": reached,
        "floor": {
            "halves": halves,  # of the training set, against each other
            "test": {str(n): frechet.distance(s, reference) for n, s in statistics.items()},
        },
    }
    print(f"halves of the training set: {halves:.4f}; test images against it: {about['floor']['test']}")
    features.save_classifier(args.output, network, reference, about=about)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
