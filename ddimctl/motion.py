"""Where the frames of an interpolation stand: at even times, or at even distances of what is seen; and in which order.

What a model makes of latents at even angles does not move evenly: it rests near one picture and jumps to the next. `even`
finds the places from which neighbouring frames are equally far apart, as a root mean square over the pixels or by any
other distance. It knows nothing of models: a function that makes frames of places is all that it asks.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ddimctl.errors import UsageError

Place = tuple[int, float]  # leg and weight: on leg i, `weight` of the way from latent i to the next
Frames = Callable[[Sequence[Place]], Sequence[Any]]  # what is seen at places
Distance = Callable[[Any, Any], float]

FINEST = 2.0**-18  # part of a leg that is not divided further: where frames still differ, the model jumps
BUDGET = 4  # frames that are looked at to find where to stand, for each frame of the film, beside those
EVEN = 1.02  # the largest distance over the mean that counts as even
ROUNDS = 5


def weights(frames: int, ease: bool = False, end: bool = True) -> list[float]:
    """`frames` values rising from 0 to 1 (short of 1 without `end`); with `ease`, slow at both ends (smoothstep)."""
    n = frames - 1 if end else frames
    linear = [i / n for i in range(frames)] if n else [0.0]
    return [w * w * (3 - 2 * w) for w in linear] if ease else linear


def places(counts: Sequence[int], *, loop: bool = False, ease: bool = False) -> list[Place]:
    """So many frames on each leg, its start among them and its end not; without `loop` the last leg's end comes at last."""
    out = [(leg, w) for leg, n in enumerate(counts) for w in weights(n, ease, end=False)]
    return out if loop else [*out, (len(counts) - 1, 1.0)]


def counts(frames: int, legs: int, *, loop: bool = False, shares: Sequence[float] = ()) -> list[int]:
    """How many of `frames` belong to each leg, as `places` takes it: evenly, or by `shares`, one at least.

    Raises `UsageError` if the frames are too few to meet every latent.
    """
    least = legs if loop else legs + 1
    if frames < least:
        raise UsageError(f"{frames} frames cannot show {least} latents", hint=f"--frames {least} or more")
    moving = frames if loop else frames - 1
    if not shares:
        bounds = [i * moving // legs for i in range(legs + 1)]
        return [b - a for a, b in pairwise(bounds)]
    total = sum(shares)
    wanted = [moving * s / total if total > 0 else moving / legs for s in shares]
    out = [max(1, int(w)) for w in wanted]
    while (short := moving - sum(out)) != 0:  # whoever lacks most gets one more; whoever has most to spare gives one
        one = 1 if short > 0 else -1
        able = [i for i in range(legs) if out[i] + one >= 1]
        out[max(able, key=lambda i: one * (wanted[i] - out[i]))] += one
    return out


def even(
    frames_at: Frames,
    frames: int,
    legs: int,
    *,
    loop: bool = False,
    shares: Sequence[float] = (),
    distance: Distance | None = None,
) -> list[Place]:
    """Places of `frames` frames that are equally far apart, the latents themselves among them.

    Each leg gets frames by its length, unless `shares` says otherwise; within a leg all distances are the same, as nearly
    as `BUDGET` allows. Raises `UsageError` as `counts`.
    """
    apart = distance or rms
    counts(frames, legs, loop=loop)
    seen: dict[Place, Any] = {}

    def look(wanted: Sequence[Place]) -> None:
        new = [p for p in dict.fromkeys(wanted) if p not in seen]
        if new:
            seen.update(zip(new, frames_at(new), strict=True))

    ends = [(leg, w) for leg in range(legs) for w in (0.0, 1.0)]
    look([*places(counts(frames, legs, loop=loop), loop=loop), *ends])
    known = [sorted(w for leg_, w in seen if leg_ == leg) for leg in range(legs)]

    def gaps(leg: int, ws: Sequence[float]) -> list[float]:
        return [apart(seen[leg, a], seen[leg, b]) for a, b in pairwise(ws)]

    left = BUDGET * frames
    while left > 0:  # what is far apart is looked at more closely
        found = [gaps(leg, known[leg]) for leg in range(legs)]
        fine = sum(map(sum, found)) / (2 * frames)
        halves = [
            (gap, (leg, (a + b) / 2))
            for leg in range(legs)
            for gap, (a, b) in zip(found[leg], pairwise(known[leg]), strict=True)
            if gap > fine and b - a > FINEST
        ]
        halves = sorted(halves, reverse=True)[: min(left, frames)]
        if not halves:
            break
        look([p for _, p in halves])
        for _, (leg, w) in halves:
            insort(known[leg], w)
        left -= len(halves)

    lengths = [sum(gaps(leg, known[leg])) for leg in range(legs)]
    mine = counts(frames, legs, loop=loop, shares=shares or lengths)
    chosen = [_divide(known[leg], gaps(leg, known[leg]), mine[leg]) for leg in range(legs)]
    best = chosen
    for _ in range(ROUNDS):
        look([(leg, w) for leg in range(legs) for w in chosen[leg]])
        known = [sorted({*known[leg], *chosen[leg]}) for leg in range(legs)]
        best = [
            min((old, new), key=lambda ws: _worst(gaps(leg, ws)))
            for leg, (old, new) in enumerate(zip(best, chosen, strict=True))
        ]
        if all(_worst(gaps(leg, best[leg])) <= EVEN for leg in range(legs)):
            break
        chosen = [
            _straighten(known[leg], gaps(leg, known[leg]), chosen[leg], chords=gaps(leg, chosen[leg]))
            for leg in range(legs)
        ]
    out = [(leg, w) for leg in range(legs) for w in best[leg][:-1]]
    return out if loop else [*out, (legs - 1, 1.0)]


def rms(a: Any, b: Any) -> float:
    """The root mean square of the difference of two arrays, divided by 2: of images in [−1, 1], on a scale from 0 to 1."""
    return float((((a - b) / 2) ** 2).mean() ** 0.5)


def order(frames: int, stops: Sequence[int], *, pingpong: bool = False, hold: int = 0) -> list[int]:
    """Which frame is shown when: each of `stops` for `hold` frames more, and with `pingpong`, back to the start again."""
    out = [i for i in range(frames) for _ in range(1 + (hold if i in stops else 0))]
    if not pingpong:
        return out
    back = [i for i in reversed(out) if 0 < i < frames - 1]
    return out + back


def _divide(ws: Sequence[float], gaps: Sequence[float], n: int) -> list[float]:
    """n + 1 values from ws[0] to ws[-1] that divide the length of the polygon, whose sides are `gaps`, evenly."""
    at = list(accumulate(gaps, initial=0.0))
    if at[-1] <= 0:
        return [ws[0] + (ws[-1] - ws[0]) * i / n for i in range(n + 1)]
    out, side = [ws[0]], 0
    for i in range(1, n):
        wanted = at[-1] * i / n
        while at[side + 1] < wanted:
            side += 1
        out.append(ws[side] + (ws[side + 1] - ws[side]) * (wanted - at[side]) / (at[side + 1] - at[side]))
    return [*out, ws[-1]]


def _straighten(
    ws: Sequence[float], gaps: Sequence[float], chosen: Sequence[float], *, chords: Sequence[float]
) -> list[float]:
    """A new choice, after `chosen` turned out `chords` apart: a bend is shorter across than along it."""
    at = list(accumulate(gaps, initial=0.0))

    def along(w: float) -> float:
        side = max(i for i in range(len(ws) - 1) if ws[i] <= w) if w > ws[0] else 0
        return at[side] + (at[side + 1] - at[side]) * (w - ws[side]) / (ws[side + 1] - ws[side])

    points = sorted({*ws, *chosen})
    lengths = [along(w) for w in points]
    arcs = [along(b) - along(a) for a, b in pairwise(chosen)]
    scaled, part = [], 0
    for (a, _), (p, q) in zip(pairwise(points), pairwise(lengths), strict=True):
        while chosen[part + 1] <= a:
            part += 1
        scaled.append((q - p) * (chords[part] / arcs[part] if arcs[part] > 0 else 1.0))
    return _divide(points, scaled, len(chosen) - 1)


def _worst(gaps: Sequence[float]) -> float:
    """The largest distance over the mean; 1 where all are the same."""
    mean = sum(gaps) / len(gaps)
    return max(gaps) / mean if mean > 0 else 1.0
