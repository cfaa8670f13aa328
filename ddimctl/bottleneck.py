"""Features of a model's own: what the middle of its network makes of an image, the mean over space.

Every model has them without a download, and for images of any kind; they see what the model sees, so numbers of two models
are never compared. They are taken while ε is evaluated at a tenth of the time, σ(T/10), with noise of that level added (see
`dither`), where what 8 bits round away is far below the noise. (Networks for denoising are good at telling images apart
there: Baranchuk et al. 2022, Xiang et al. 2023.)

`write` keeps the statistics of the images that a model was trained on beside it, so that `ddimctl evaluate` knows them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl import engines, features, frechet
from ddimctl.dither import added, dithers_of
from ddimctl.errors import UsageError
from ddimctl.features import Extractor, Pixels
from ddimctl.images.levels import signed
from ddimctl.model import NOTHING, Condition, Model

NAME = "bottleneck"
PART = 10  # of the time: at σ(T / PART)


def extractor(model: Model, condition: Condition = NOTHING) -> Extractor:
    """The features of `model`, of which a condition is part. Raises `UsageError` where its network has no middle."""
    module = model.network.module.torch
    middle = getattr(module, "mid_block", None)
    if middle is None:
        raise UsageError(f"the network of {model.name} has no middle", hint="name other --features")
    plain = model.with_network(engines.make(model.network.module, "torch", "float32"))
    eps, sigma = plain.eps(condition), model.schedule.sigma(max(1, model.schedule.T // PART))

    def call(pixels: Tensor) -> Tensor:
        images = signed(pixels.double())
        state = model.autoencoder.encode(images).double().to(model.network.module.state_device)
        seen: list[Tensor] = []
        hook = middle.register_forward_hook(lambda _module, _args, out: seen.append(out))
        try:
            eps(state + added(dithers_of(images, 0, (sigma,)), state), sigma)
        finally:
            hook.remove()
        if len(seen) > 1:  # the network took some by themselves, in an order of its own: see `UNet2DModel.forward`
            return torch.cat([call(half) for half in pixels.split(-(-len(pixels) // 2))])
        return seen[0].float().mean((-2, -1))

    with torch.inference_mode():
        dimension = call(torch.zeros(1, *model.image_shape, dtype=torch.uint8)).shape[1]
    asked = str(condition).replace(", blend=()", "")  # as files that were written before there were blends have it
    made_by = f"{NAME} {model.digest} {model.autoencoder.digest} {sigma.hex()} {asked}"
    about = {"model": model.name, "level": sigma, "digest": hashlib.sha256(made_by.encode()).hexdigest()}
    return Extractor(NAME, dimension, call, about)


def write(path: Path, model: Model, images: Pixels, *, held_out: Pixels, about: Mapping[str, Any]) -> Extractor:
    """Writes what `read` takes: the statistics of uint8 images (N, C, H, W) that the model was trained on, and how far real
    images are from them. `about` says more of them. Raises `UsageError` where they are too few."""
    own = extractor(model)
    if len(images) < 4:
        raise UsageError(f"{len(images)} images are too few for statistics of their features")
    whole, even, odd = frechet.Sums(), frechet.Sums(), frechet.Sums()
    for part in own.parts(images):
        even.add(part[whole.n % 2 :: 2])
        odd.add(part[(whole.n + 1) % 2 :: 2])
        whole.add(part)
    reference, halves = whole.statistics(), frechet.distance(even.statistics(), odd.statistics())
    floor: dict[str, Any] = {"halves": halves, "test": {}}
    if len(held_out) > 1:
        floor["test"][str(len(held_out))] = frechet.distance(frechet.statistics(own.parts(held_out)), reference)
    said = {**about, "kind": NAME, "floor": floor, "features": own.about["digest"]}
    features.save_statistics(path, reference, said)
    return replace(own, reference=reference, about={**own.about, "floor": floor})


def read(path: Path, own: Extractor) -> Extractor | None:
    """`own` with the reference in a file that `write` wrote; None where it is of another model's features.

    Raises `FileError` where the file is damaged.
    """
    about, reference = features.load_statistics(path)
    if about["features"] != own.about["digest"] or len(reference.mean) != own.dimension:
        return None
    more = {k: v for k, v in about.items() if k not in ("kind", "features")}
    return replace(own, reference=reference, about={**more, **own.about})
