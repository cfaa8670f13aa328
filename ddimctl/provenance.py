"""What a latent file says about itself, checked field by field: a file may come from anybody."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ddimctl.keeping import PRECISIONS
from ddimctl.multistep import MIXING
from ddimctl.tuned import MOST

MOST_SHARES = 64  # prompts in a blend


def check_provenance(record: Any, n: int) -> None:
    """Raises `ValueError` unless `record` is a whole provenance of `n` images."""
    if not isinstance(record, dict):
        raise ValueError("its provenance is not an object")  # noqa: TRY004
    for name, is_right in FIELDS.items():
        if name not in record:
            raise ValueError(f"its provenance has no {name}")
        if not is_right(record[name]):
            raise ValueError(f"its provenance has a wrong {name}")
    for name, is_right in LATER.items():
        if name in record and not is_right(record[name]):
            raise ValueError(f"its provenance has a wrong {name}")
    if record["steps"] != len(record["path"]) - 1:
        raise ValueError("its provenance has another number of steps than levels")
    if (mix := record.get("mix")) and len(mix) != MIXING.get(record["solver"], 0) * record["steps"]:
        raise ValueError("its provenance has another number of steps than parts to mix")
    for name in EACH:
        if record.get(name) is not None and len(record[name]) != n:
            raise ValueError(f"its provenance has {name} for {len(record[name])} images, not {n}")


def check_corrections(record: Mapping[str, Any], xT: np.ndarray, corrections: np.ndarray | None) -> None:
    """Raises `ValueError` unless the corrections are those that a provenance tells of."""
    kept = record.get("keep_path")
    if kept is None or corrections is None:
        if kept is not None or corrections is not None:
            raise ValueError("its provenance and the corrections of its path do not belong together")
        return
    wanted = (len(xT), kept["steps"] + 1, *xT.shape[1:])
    if corrections.shape != wanted or corrections.dtype.name != kept["precision"] or kept["steps"] > record["steps"]:
        raise ValueError(f"its corrections are {corrections.dtype.name} {corrections.shape}, not {wanted}")


def _is_name(value: Any) -> bool:
    """A text that may be shown: not long, no control characters."""
    return isinstance(value, str) and len(value) < 4096 and value.isprintable()


def _is_text(value: Any) -> bool:
    """A prompt: it may have several lines."""
    return isinstance(value, str) and len(value) < 1 << 16 and is_unicode(value)


def is_unicode(text: str) -> bool:
    """Half a surrogate pair, which a pickle can hold, is no text that could be hashed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    """A finite float, or an integer that can become one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and all(map(check, values))


def _is_dither(value: Any) -> bool:
    whole = isinstance(value, dict) and value.keys() == {"seed", "draw", "sigma"}
    return value is None or (
        whole
        and _is_count(value["seed"])
        and _is_count(value["draw"])
        and _is_number(value["sigma"])
        and value["sigma"] > 0
    )


def _is_made(value: Any) -> bool:
    """What `arithmetic` says of where a latent is from: an operation, and its parents."""
    return isinstance(value, dict) and _is_name(value.get("operation")) and _all(_is_parent)(value.get("parents"))


def _is_parent(value: Any) -> bool:
    said = isinstance(value, dict) and _is_name(value.get("name")) and _is_name(value.get("sha256"))
    return said and _is_number(value.get("weight"))


def _is_blend(value: Any) -> bool:
    return _all(_is_share)(value) and 1 < len(value) <= MOST_SHARES


def _is_share(value: Any) -> bool:
    whole = isinstance(value, dict) and value.keys() == {"prompt", "weight"}
    return whole and (value["prompt"] is None or _is_text(value["prompt"])) and _is_number(value["weight"])


def _is_path(value: Any) -> bool:
    return _all(_is_number)(value) and len(value) > 1 and value[0] >= 0 and all(s < t for s, t in pairwise(value))


FIELDS: dict[str, Callable[[Any], bool]] = {  # of a provenance, and what each must be
    "ddimctl": _is_name,
    "model": lambda v: (
        isinstance(v, dict)
        and all(_is_name(v.get(k)) for k in ("name", "reference", "digest"))
        and all(v.get(k) is None or _is_name(v[k]) for k in ("config", "schedule"))
        and isinstance(v.get("guess", False), bool)
        and (v.get("class") is None or _is_count(v["class"]))
    ),
    "schedule": _is_name,
    "solver": _is_name,
    "decoder": _is_name,
    "spacing": _is_name,
    "steps": _is_count,
    "path": _is_path,
    "tolerance": lambda v: v is None or _is_number(v),
    "evaluations": _all(_is_count),
    "residuals": lambda v: v is None or _all(_is_number)(v),
    "unconverged": _all(_is_count),
    "lossless": lambda v: v is None or _all(lambda c: isinstance(c, dict))(v),
    "images": _all(lambda v: isinstance(v, dict) and isinstance(v.get("name"), str)),
    "dtype": _is_name,
    "device": _is_name,
}

LATER: dict[str, Callable[[Any], bool]] = {  # fields that not every file has
    "engine": _is_name,
    "keep_path": lambda v: (
        isinstance(v, dict)
        and v.keys() == {"precision", "steps"}
        and v["precision"] in PRECISIONS
        and _is_count(v["steps"])
        and v["steps"] > 0
    ),
    "returned": _all(_is_number),  # how far off each state was that x_T was decoded to, relative
    "autoencoder": _is_name,
    "tile": lambda v: _is_count(v) and 0 < v < 1 << 20,
    "dither": _all(_is_dither),
    "made": _is_made,
    "mix": lambda v: _all(_is_number)(v) and all(abs(part) <= MOST for part in v),
    "to_level": lambda v: _is_number(v) and v > 0,
    "condition": lambda v: (
        isinstance(v, dict)
        and {"prompt", "negative", "guidance"} <= v.keys() <= {"prompt", "negative", "guidance", "distilled", "blend"}
        and all(v[k] is None or _is_text(v[k]) for k in ("prompt", "negative"))
        and _is_number(v["guidance"])
        and (v.get("distilled") is None or _is_number(v["distilled"]))
        and ("blend" not in v or (v["prompt"] is None and _is_blend(v["blend"])))
    ),
}
EACH = (
    "images",
    "evaluations",
    "residuals",
    "lossless",
    "returned",
    "dither",
)  # hold one entry for each image, where they hold any
