"""The work itself, pure: pixels in, latents out, and back. No files, no names, no console: a cluster can call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ddimctl import ode
from ddimctl.arrays import concatenate, float32
from ddimctl.dither import Dither, dithers_of
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import Progress, Solution
from ddimctl.recipe import Recipe, Way

if TYPE_CHECKING:
    import numpy as np

    from ddimctl.images.preprocessing import Preprocessing
    from ddimctl.latent import Latent


@dataclass(frozen=True)
class Encoding:
    """How images become latents."""

    model: Model
    way: Way
    how: Preprocessing  # makes them fit
    condition: Condition = NOTHING
    lossless: bool = False  # checked, and tightened until every 8-bit value comes back
    dither: int | None = None  # the seed of noise that is added first

    @property
    def recipe(self) -> Recipe:
        """What a latent made so says of itself."""
        from ddimctl import lossless

        way = replace(self.way, tolerance=lossless.first_tolerance(self.way)) if self.lossless else self.way
        return Recipe.of(self.model, way, self.condition, lossless=self.lossless, dither=self.dither)

    @property
    def passes(self) -> int:
        """How many times an image goes along the levels, as far as that is known before."""
        again = self.lossless or self.way.keep is not None or ode.is_checked(self.way, self.condition)
        return 2 if again else 1

    @property
    def tensors(self) -> bool:
        """Whether the model computes on tensors; else on numpy arrays, and torch need not be there."""
        return self.lossless or self.model.network.needs_torch


@dataclass(frozen=True)
class Decoding:
    """How latents become images."""

    model: Model
    way: Way  # the one that encoded them
    condition: Condition = NOTHING


def encode(
    pixels: Sequence[np.ndarray], encoding: Encoding, *, batch_size: int | None = None, progress: Progress = iter
) -> Solution:
    """x_T of images, uint8 (H, W, C) each and made to fit; in one batch, unless another size is given."""
    import numpy as np

    from ddimctl import lossless
    from ddimctl.images import levels

    batch = np.stack(pixels)
    x0: Any = levels.to_tensor(batch) if encoding.tensors else levels.to_array(batch)
    solve = lossless.encode if encoding.lossless else ode.encode
    size = len(x0) if batch_size is None else batch_size
    model, way = encoding.model, encoding.way
    noise = [] if encoding.dither is None else dithers_of(x0, encoding.dither, way.path(model.schedule))
    return solve(model, x0, way, encoding.condition, dithers=noise, batch_size=size, progress=progress)


def latent_of(solution: Solution, encoding: Encoding, records: Sequence[dict[str, Any]]) -> Latent:
    """The latents of a solution, as a file holds them; `records` say what was done to each image."""
    from ddimctl.latent import Latent, provenance

    about = provenance(encoding.model, encoding.recipe, solution, records=list(records))
    return Latent(float32(solution.x), about, solution.corrections)


def decode(
    xT: Any,
    decoding: Decoding,
    *,
    dithers: Sequence[Dither | None] = (),
    corrections: Any = None,
    batch_size: int | None = None,
    progress: Progress = iter,
) -> Any:
    """Images (N, C, H, W) of latents, without what was added before; in one batch, unless another size is given.

    `corrections` are of a file that kept its path, and used where the way says so.
    """
    size, model = len(xT) if batch_size is None else batch_size, decoding.model
    return ode.decode(
        model, xT, decoding.way, decoding.condition, dithers=dithers,
        corrections=corrections if decoding.way.keep is not None else None, batch_size=size, progress=progress,
    ).x  # fmt: skip


def under(conditions: Sequence[Condition]) -> dict[Condition, list[int]]:
    """Which images are under which condition: one integration has one."""
    out: dict[Condition, list[int]] = {}
    for i, condition in enumerate(conditions):
        out.setdefault(condition, []).append(i)
    return out


def batches(conditions: Sequence[Condition], batch_size: int) -> int:
    """How many batches the images under these conditions make."""
    return sum(-(-len(rows) // batch_size) for rows in under(conditions).values())


def decode_under(
    xT: Any,
    conditions: Sequence[Condition],
    decoding: Decoding,
    *,
    dithers: Sequence[Dither | None] = (),
    batch_size: int,
    progress: Progress = iter,
) -> Any:
    """`decode` of latents that have a condition each, which stands instead of that of `decoding`."""
    parts, order = [], []
    for condition, rows in under(conditions).items():
        added = [dithers[i] for i in rows] if dithers else []
        asked = replace(decoding, condition=condition)
        parts.append(decode(xT[rows], asked, dithers=added, batch_size=batch_size, progress=progress))
        order += rows
    place = {row: at for at, row in enumerate(order)}
    return concatenate(parts)[[place[row] for row in range(len(order))]]
