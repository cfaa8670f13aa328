"""Lossless encoding: x_T from which plain DDIM decodes every 8-bit value of the image again, checked by doing so.

`exact` inverts DDIM up to its tolerance. How much tolerance an image can bear is found by trying: encode, round to the
float32 that a file holds, decode, compare; the images that are not back yet go again with a tighter one. What the later
decoder computes may differ in the last float32 digits (another batch, another processor), hence a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ddimctl import ode
from ddimctl.dither import Dither
from ddimctl.errors import DDIMError, UsageError
from ddimctl.images.levels import in_levels
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.ode import DEFAULT_BATCH, Check, Progress, Solution
from ddimctl.recipe import Way

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCES = (1e-4, 3e-5, 1e-5, 2e-6)
SAID = 3  # wrong values told of, the worst first
MARGIN = 0.45  # 8-bit levels; half a level is where rounding goes the other way


def encode(
    model: Model,
    images: Tensor,
    way: Way,
    condition: Condition = NOTHING,
    *,
    dithers: Sequence[Dither | None] = (),
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = iter,
) -> Solution:
    """Images (N, C, H, W) in [−1, 1], whose values are 8-bit levels → x_T, float32, with a `Check` for each.

    The tolerance of `way`, whose solver is `exact`, is the first one tried. An image that no tolerance brings back keeps
    its best x_T, and its check says how many values are wrong and by how much. `dithers` is added before and taken away
    after: what comes back is the image without. `evaluations` are all that were spent, the checks' own decoding included.
    """
    import torch

    if model.autoencoder.digest is not None:
        raise UsageError(
            f"the model {model.name} has an autoencoder, which loses more than DDIM does", hint="leave --lossless away"
        )
    n = len(images)
    first = first_tolerance(way)
    best = torch.zeros(n, *model.state_shape, dtype=torch.float32)
    evaluations, residuals = [0] * n, [float("inf")] * n
    checks = [Check(images[0].numel(), [], float("inf"), first)] * n if n else []
    todo = list(range(n))
    for tight in tolerances(first):
        if not todo:
            break
        x0, tried = images[todo], replace(way, tolerance=tight)
        noise = [dithers[i] for i in todo] if dithers else ()
        encoded = ode.encode(
            model, x0, tried, condition, dithers=noise, batch_size=batch_size, progress=progress, check=False
        )
        xT = encoded.x.float()
        plain = replace(way, solver="ddim", tolerance=None)
        back = ode.decode(model, xT, plain, condition, dithers=noise, batch_size=batch_size, progress=progress)
        found = compare(x0, back.x.cpu(), tight)
        for j, i in enumerate(todo):
            evaluations[i] += encoded.evaluations[j] + back.evaluations[j]
            if found[j].worst < checks[i].worst:
                checks[i] = found[j]
                best[i], residuals[i] = xT[j], (encoded.residuals or residuals)[j]
        todo = [i for i in todo if checks[i].worst > MARGIN]
    return Solution(best.double(), evaluations, residuals, first, checks, dithers=list(dithers) or None)


def first_tolerance(way: Way) -> float:
    """The tolerance that `encode` tries first."""
    return TOLERANCES[0] if way.tolerance is None else way.tolerance


def tolerances(first: float) -> list[float]:
    """What is tried, one after the other."""
    return [first, *(t for t in TOLERANCES if t < first)]


def compare(images: Tensor, back: Tensor, tolerance: float) -> list[Check]:
    """The check of each image (N, C, H, W) against what was decoded."""
    import torch

    from ddimctl.metrics import max_abs, wrong_pixels

    checks = []
    for image, again in zip(images.split(1), back.split(1), strict=True):
        by = in_levels(again.double() - image.double())[0]
        n = int(wrong_pixels(image, again))
        worst = by.abs().flatten().topk(min(n, SAID)).indices
        places = zip(*(v.tolist() for v in torch.unravel_index(worst, by.shape)), strict=True)
        where = [(c, y, x, round(float(by[c, y, x]), 2)) for c, y, x in places]
        checks.append(Check(n, where, float(max_abs(image, again)), tolerance))
    return checks


def complaint(name: str, check: Check) -> DDIMError:
    """The error for an image that did not come back."""
    where = ", ".join(f"{by:+.2f} levels at row {y} column {x}" for _, y, x, by in check.where)
    return DDIMError(
        f"{name} is not lossless: {check.wrong} values differ ({where}); worst {check.worst:.2f} levels",
        hint="try more --steps, or another --spacing",
    )
