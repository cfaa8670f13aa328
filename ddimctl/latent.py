"""The latent file: x_T with everything that decoding it needs.

Two containers with the same content, chosen by suffix: ``.pt`` (torch's zip, loadable with ``weights_only=True``) and
``.safetensors``; and for other programs x_T alone, ``.npy``, which `bare` reads. The two are written without torch,
which takes longer to import than encoding an image does. The content is a format name and version, the float32 tensor
x_T (N, C, H, W), a provenance as one JSON text, and a SHA-256 over all of these, since neither container notices a
flipped byte itself.

A file may come from anybody. Nothing in it is run, nothing is allocated that it does not hold, and what it says about
itself is checked field by field, so that a command may rely on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ddimctl import shown
from ddimctl.arrays import Array
from ddimctl.containers import (
    BARE_HINT,
    NO_HINT,
    NotOurs,
    array,
    check_head,
    read_safetensors,
    read_zip,
    safetensors_header,
    to_npy,
    to_zip,
    values,
)  # fmt: skip
from ddimctl.dither import Dither
from ddimctl.dither import read as read_dithers
from ddimctl.errors import FileError, UsageError
from ddimctl.files import atomic_file, read_bytes, refuse_special, write_bytes
from ddimctl.model import Model
from ddimctl.ode import Solution
from ddimctl.recipe import Recipe
from ddimctl.version import __version__

FORMAT = "ddimctl-latent"
VERSION = 1
SUFFIXES = (".pt", ".safetensors")
BARE = ".npy"  # x_T alone, for other programs
WRITTEN = (*SUFFIXES, BARE)
MAX_BYTES = 1 << 32  # a latent file larger than this is refused


@dataclass(frozen=True, repr=False)
class Latent:
    """x_T, float32 (N, C, H, W), and its provenance: what made it, from what, and how to decode it.

    x_T is a tensor, or a numpy array where torch is not needed.
    """

    xT: Array
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        about = self.provenance
        if not about:
            return f"Latent({shown.shape(self.xT)})"
        way = f"{about['solver']}, {about['spacing']}, {about['steps']} steps"
        return f"Latent({shown.shape(self.xT)} of {about['model']['name']!r}, {way})"

    def _repr_html_(self) -> str:
        """With the first latents, as far as noise reaches."""
        return shown.as_html(repr(self), shown.latents_as_images(self.xT))

    @property
    def path(self) -> list[float]:
        """The rising noise levels that it was encoded along."""
        return [float(s) for s in self.provenance["path"]]

    @property
    def recipe(self) -> Recipe:
        """How it was made."""
        return Recipe.read(self.provenance)

    @property
    def sources(self) -> set[str]:
        """SHA-256 of the files that it was encoded from, as far as it says."""
        return {image["sha256"] for image in self.images if isinstance(image.get("sha256"), str)}

    @property
    def dithers(self) -> list[Dither | None]:
        """The noise that was added to each image before; none of all is the empty list."""
        return read_dithers(self.provenance.get("dither") or [])

    @property
    def images(self) -> list[dict[str, Any]]:
        """One record for each of the N images: name, size, digest, preprocessing."""
        records: list[dict[str, Any]] = self.provenance.get("images", [])
        return records


def digest(xT: Any, provenance: str) -> str:
    """SHA-256 of format, shape, values and provenance."""
    h = _hash(tuple(xT.shape))
    h.update(values(xT))
    h.update(provenance.encode())
    return h.hexdigest()


def _hash(shape: tuple[int, ...]) -> hashlib._Hash:
    return hashlib.sha256(f"{FORMAT} {VERSION} {shape} ".encode())


def check_suffix(path: Path) -> None:
    """Raises `UsageError` unless `path` names one of the two containers, or x_T alone."""
    if path.suffix.lower() not in WRITTEN:
        raise UsageError(f"{path} is no name for a latent", hint=f"use a suffix of {' '.join(WRITTEN)}")


def provenance(model: Model, recipe: Recipe, solution: Solution, *, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a latent file says about itself, besides x_T: enough to decode it, and to make it again.

    `records` holds one of `images.reading.read` for each image.
    """
    about: dict[str, Any] = {
        "ddimctl": __version__,
        "model": {
            "name": model.name,
            "reference": model.about.reference,
            "config": model.about.config,
            "digest": recipe.model,
            "class": recipe.condition.class_label,
        },
        **recipe.record(),
        "evaluations": solution.evaluations,
        "residuals": solution.residuals,
        "unconverged": solution.unconverged,
        **({} if solution.returned is None else {"returned": solution.returned}),
        "lossless": None if solution.checks is None else [asdict(c) for c in solution.checks],
        "images": records,
        "device": model.network.module.kind,
        "engine": model.network.engine,
    }
    if solution.dithers is not None:
        about["dither"] = [None if d is None else asdict(d) for d in solution.dithers]
    return about


def to_bytes(latent: Latent, suffix: str) -> bytes:
    """The file's content: the same for the same latent, byte for byte.

    Raises `FileError` for NaN and infinities, and for a provenance that `load` would refuse.
    """
    xT = array(latent.xT)
    text = _text(latent.provenance, len(xT))
    text["sha256"] = digest(xT, text["provenance"])
    if not np.isfinite(xT).all():
        raise FileError("the latent holds NaN or infinity and was not written")
    if suffix.lower() == BARE:
        return to_npy(xT)
    if suffix.lower() == ".safetensors":
        return safetensors_header(text, xT.shape) + values(xT)
    return to_zip(text, xT)


def save(path: Path, latent: Latent) -> None:
    """Writes `latent` to `path`, whole or not at all; the suffix is the container."""
    check_suffix(path)
    write_bytes(path, to_bytes(latent, path.suffix))


def merge(parts: Sequence[Path], path: Path) -> None:
    """Writes one latent file of all images of `parts`, which were made in the same way.

    Into ``.safetensors`` they are copied one by one, so memory holds no more than one of them and all provenances.
    """
    check_suffix(path)
    if path.suffix.lower() != ".safetensors":
        latents = [load(p) for p in parts]
        whole: Any = np.concatenate([array(x.xT) for x in latents])
        save(path, Latent(whole, _joined([x.provenance for x in latents])))
        return
    provenances, n = [], 0
    shape: tuple[int, ...] = ()
    for part in parts:
        latent = load(part)
        provenances.append(latent.provenance)
        n, shape = n + len(latent.xT), tuple(latent.xT.shape[1:])
    text = _text(_joined(provenances), n)
    with atomic_file(path) as f:
        f.write(safetensors_header({**text, "sha256": "0" * 64}, (n, *shape)))
        h = _hash((n, *shape))
        for part in parts:
            part_values = values(load(part).xT)
            h.update(part_values)
            f.write(part_values)
        h.update(text["provenance"].encode())
        f.seek(0)
        f.write(safetensors_header({**text, "sha256": h.hexdigest()}, (n, *shape)))


def load(path: Path, *, tensors: bool = True) -> Latent:
    """Reads a latent file, with a tensor in it or a numpy array, which needs no torch. Runs no code from it.

    Raises `UsageError` if there is none, `FileError` if it is not whole.
    """
    refuse_special(path)
    try:
        with path.open("rb") as f:  # what is no latent is refused before all of it is read
            head = f.read(8)
            check_head(head, os.fstat(f.fileno()).st_size, str(path))
    except OSError:
        pass  # `read_bytes` says it better
    return from_bytes(read_bytes(path, MAX_BYTES), str(path), tensors=tensors)


def from_bytes(data: bytes, name: str, *, tensors: bool = True) -> Latent:
    """The latent in `data`; `name` is for messages. Raises `FileError` if it is not whole or not a latent."""
    check_head(data[:8], len(data), name)
    if data[:2] == b"PK":
        text = read_zip(data, name)
        xT = text.get("xT")
    else:
        text, held = read_safetensors(data, name)
        xT = held.get("xT")
    if text.get("format") != FORMAT:
        raise NotOurs(f"{name} is not a ddimctl latent", hint=BARE_HINT)
    if text.get("version") != str(VERSION):
        raise FileError(f"{name} has format version {text.get('version')!r}; this ddimctl knows {VERSION}")
    about = text.get("provenance")
    if not isinstance(xT, np.ndarray) or xT.dtype != np.float32 or xT.ndim != 4 or not isinstance(about, str):
        raise FileError(f"{name} is damaged: its tensor is not float32 (N, C, H, W)", hint=NO_HINT)
    if not xT.size:
        raise FileError(f"{name} is damaged: its tensor has the shape {tuple(xT.shape)}", hint=NO_HINT)
    xT = np.array(xT, np.float32, order="C")  # its own memory, and this machine's order of bytes
    if not _is_unicode(about) or digest(xT, about) != text.get("sha256"):
        raise FileError(f"{name} is damaged: its checksum does not match", hint=NO_HINT)
    if not np.isfinite(xT).all():
        raise FileError(f"{name} holds NaN or infinity", hint=NO_HINT)
    try:
        record = json.loads(about, parse_constant=_no_constant)
        check_provenance(record, len(xT))
    except (ValueError, RecursionError) as e:
        raise FileError(f"{name} makes no sense: {e}", hint=NO_HINT) from e
    if tensors:
        import torch

        return Latent(torch.from_numpy(xT), record)
    return Latent(xT, record)


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
    for name in EACH:
        if record.get(name) is not None and len(record[name]) != n:
            raise ValueError(f"its provenance has {name} for {len(record[name])} images, not {n}")


def _is_name(value: Any) -> bool:
    """A text that may be shown: not long, no control characters."""
    return isinstance(value, str) and len(value) < 4096 and value.isprintable()


def _is_text(value: Any) -> bool:
    """A prompt: it may have several lines."""
    return isinstance(value, str) and len(value) < 1 << 16 and _is_unicode(value)


def _is_unicode(text: str) -> bool:
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


def _is_path(value: Any) -> bool:
    return _all(_is_number)(value) and len(value) > 1 and value[0] >= 0 and all(s < t for s, t in pairwise(value))


FIELDS: dict[str, Callable[[Any], bool]] = {  # of a provenance, and what each must be
    "ddimctl": _is_name,
    "model": lambda v: (
        isinstance(v, dict)
        and all(_is_name(v.get(k)) for k in ("name", "reference", "digest"))
        and (v.get("config") is None or _is_name(v["config"]))
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
    "returned": _all(_is_number),  # how far off each state was that x_T was decoded to, relative
    "autoencoder": _is_name,
    "dither": _all(_is_dither),
    "to_level": lambda v: _is_number(v) and v > 0,
    "condition": lambda v: (
        isinstance(v, dict)
        and v.keys() == {"prompt", "negative", "guidance"}
        and all(v[k] is None or _is_text(v[k]) for k in ("prompt", "negative"))
        and _is_number(v["guidance"])
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


def _text(about: dict[str, Any], n: int) -> dict[str, str]:
    """What stands beside the tensor, still without the checksum."""
    try:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
        check_provenance(json.loads(text), n)
    except ValueError as e:
        raise FileError(f"the latent was not written: {e}") from e
    return {"format": FORMAT, "version": str(VERSION), "provenance": text}


def _joined(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of all images of several files that were made in the same way."""
    out = dict(provenances[0])
    out["unconverged"] = []
    n = 0
    for p in provenances:
        out["unconverged"] += [n + i for i in p["unconverged"]]
        n += len(p["images"])
    for name in EACH:
        if out.get(name) is not None:
            out[name] = [x for p in provenances for x in p[name]]
    return out


def _no_constant(text: str) -> float:
    raise ValueError(f"it holds {text}")
