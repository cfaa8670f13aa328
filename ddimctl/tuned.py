"""Paths that were tuned to a model, as its folder holds them in ``paths.json``; `tune` makes them.

Each is a list of levels and, for every step, the part that a multistep method extrapolates in √(1−α) rather than log σ; for
`ab3` also its part of the third order. A number of steps that nobody tuned lies between two that somebody did: log σ and the
parts are interpolated along the way, and between the two paths in log S. Python floats, no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddimctl.errors import FileError
from ddimctl.files import read_bytes
from ddimctl.multistep import MIXING

FILE = "paths.json"
FORMAT = "ddimctl-paths"
VERSION = 1
MAX_BYTES = 1 << 22
OWN = "tuned"  # what it is called among the spacings that it was measured beside
PLAIN = "karras"  # the spacing that it takes the place of where it wins
ENOUGH = 16  # images, to know whether it wins
MOST = 100.0  # a part of √(1−α) beyond this makes no sense


@dataclass(frozen=True)
class Tuned:
    """A tuned path: S + 1 rising levels, S parts or 2 S (see `multistep`), and what is known of it: how it was tuned, …"""

    levels: tuple[float, ...]
    mix: tuple[float, ...]
    about: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 1 or len(self.mix) not in [n * self.steps for n in MIXING.values()]:
            raise ValueError("a path has a part for each of its steps, or two")
        if not all(0 < s < t < math.inf for s, t in pairwise(self.levels)):
            raise ValueError("the levels of a path rise from above 0")
        if not all(abs(part) <= MOST for part in self.mix):
            raise ValueError(f"the parts of a path lie between −{MOST:g} and {MOST:g}")

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def solver(self) -> str:
        """The method that it was tuned with."""
        return next(name for name, n in MIXING.items() if n * self.steps == len(self.mix))

    @property
    def wins(self) -> bool:
        """Whether its mean error of the round trip is no worse than that of any spacing it was measured beside, and that of
        x_T no worse than `PLAIN`'s, on images that had no part in it. What was tuned under a condition was measured under no
        other."""
        held = self.about.get("held_out")
        if self.about.get("condition") is not None or not isinstance(held, dict):
            return False
        images = self.about.get("held_out_images")
        if not isinstance(images, int) or images < ENOUGH:
            return False
        own = held.get(OWN)
        return _no_worse(own, held.get(PLAIN), "xT_error") and all(
            _no_worse(own, other, "mse") for other in held.values()
        )

    def curves(self, n: int) -> list[tuple[float, ...]]:
        """The parts of each order for every step; those of the third are 0 where `ab2` has none."""
        mix = self.mix + (0.0,) * (n * self.steps - len(self.mix))
        return [mix[i : i + self.steps] for i in range(0, n * self.steps, self.steps)]


def _no_worse(own: Any, other: Any, what: str) -> bool:
    """Whether this figure of both is there, and the first is as good as the second."""
    try:
        return 0 <= float(own[what]) <= float(other[what])
    except (TypeError, ValueError, KeyError):
        return False


def wins(paths: Sequence[Tuned], steps: int) -> bool:
    """Whether the path of so many steps is the one to take where nobody says: it wins, or lies between two that do."""
    below = max((p for p in paths if p.steps <= steps), key=lambda p: p.steps, default=None)
    above = min((p for p in paths if p.steps >= steps), key=lambda p: p.steps, default=None)
    return below is not None and above is not None and below.wins and above.wins


def between(paths: Sequence[Tuned], steps: int) -> Tuned:
    """The path of so many steps: the tuned one, or one between its two neighbours; beyond the last, like that one."""
    below = max((p for p in paths if p.steps <= steps), key=lambda p: p.steps, default=None)
    above = min((p for p in paths if p.steps >= steps), key=lambda p: p.steps, default=None)
    a, b = below or above, above or below
    if a is None or b is None:
        raise ValueError("no path is tuned")
    if steps in (a.steps, b.steps):
        return a if a.steps == steps else b
    share = math.log(steps / a.steps) / math.log(b.steps / a.steps) if a.steps != b.steps else 0.0
    n = max(MIXING[a.solver], MIXING[b.solver])
    (log_a, mix_a), (log_b, mix_b) = _at(a, steps, n=n), _at(b, steps, n=n)
    inner = [math.exp((1 - share) * p + share * q) for p, q in zip(log_a, log_b, strict=True)][1:-1]
    mix = tuple((1 - share) * p + share * q for p, q in zip(mix_a, mix_b, strict=True))
    return Tuned((a.levels[0], *inner, a.levels[-1]), mix)


def _at(path: Tuned, steps: int, *, n: int) -> tuple[list[float], list[float]]:
    """log σ at the ends, and the n curves of parts in the middles, of so many equal steps along a path."""
    logs = [math.log(s) for s in path.levels]
    parts = [along(c, path.steps * (i + 0.5) / steps - 0.5) for c in path.curves(n) for i in range(steps)]
    return [along(logs, path.steps * i / steps) for i in range(steps + 1)], parts


def along(values: Sequence[float], x: float) -> float:
    """`values` at 0, 1, 2, …, linearly between; beyond the ends as there."""
    i = min(max(math.floor(x), 0), max(len(values) - 2, 0))
    share = min(max(x - i, 0.0), 1.0)
    return values[i] if share == 0 or len(values) == 1 else (1 - share) * values[i] + share * values[i + 1]


def load(folder: Path | None, *, schedule: str) -> tuple[Tuned, ...]:
    """The paths in a model's folder, tuned with the schedule of that digest; none where there is no such file.

    Raises `FileError` for a file that makes no sense.
    """
    file = None if folder is None else folder / FILE
    if file is None or not file.is_file():
        return ()
    try:
        found = json.loads(read_bytes(file, MAX_BYTES))
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            raise ValueError(f"its format is not {FORMAT} {VERSION}")
        if found["schedule"] != schedule:  # the model was given another
            return ()
        paths = [Tuned(tuple(map(float, p["levels"])), tuple(map(float, p["mix"])), p) for p in found["paths"]]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as e:
        raise FileError(f"{file} makes no sense: {e}", hint="remove it, or tune the model again") from e
    return tuple(sorted(paths, key=lambda p: p.steps))


def to_bytes(paths: Sequence[Tuned], *, model: str, schedule: str) -> bytes:
    """The content of the file. `model` and `schedule` are digests."""
    records = [{"steps": p.steps, "levels": list(p.levels), "mix": list(p.mix), **_rest(p)} for p in paths]
    found = {"format": FORMAT, "version": VERSION, "model": model, "schedule": schedule, "paths": records}
    return (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()


def _rest(path: Tuned) -> dict[str, Any]:
    return {k: v for k, v in path.about.items() if k not in ("steps", "levels", "mix")}
