"""The latent file: x_T with everything that decoding it needs.

Two containers with the same content, chosen by suffix: ``.pt`` (torch's zip, loadable with ``weights_only=True``) and
``.safetensors``; and for other programs x_T alone, ``.npy``, which `bare` reads. The two are written without torch,
which takes longer to import than encoding an image does. The content is a format name and version, the float32 tensor
x_T (N, C, H, W), where its path was kept the corrections, a provenance as one JSON text, and a SHA-256 over all of
these, since neither container notices a flipped byte itself.

A file may come from anybody. Nothing in it is run, nothing is allocated that it does not hold, and what it says about
itself is checked field by field, so that a command may rely on it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from ddimctl.provenance import EACH, check_corrections, check_provenance, is_unicode
from ddimctl.recipe import Recipe
from ddimctl.version import __version__

FORMAT = "ddimctl-latent"
VERSION = 1
KEPT = 2  # the version of files with corrections, which those that know only 1 would not see
SUFFIXES = (".pt", ".safetensors")
BARE = ".npy"  # x_T alone, for other programs
WRITTEN = (*SUFFIXES, BARE)
MAX_BYTES = 1 << 32  # a latent file larger than this is refused


@dataclass(frozen=True, repr=False)
class Latent:
    """x_T, float32 (N, C, H, W), and its provenance: what made it, from what, and how to decode it.

    x_T is a tensor, or a numpy array where torch is not needed; so are the corrections of a path that was kept, float32 or
    float16 (N, K + 1, C, H, W): see `keeping`.
    """

    xT: Array
    provenance: dict[str, Any] = field(default_factory=dict)
    corrections: Array | None = None

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


def digest(xT: Any, provenance: str, corrections: Any = None) -> str:
    """SHA-256 of format, shapes, values and provenance."""
    tensors = _tensors(xT, corrections)
    h = _hash({name: (x.dtype.str, x.shape) for name, x in tensors.items()})
    for x in tensors.values():
        h.update(values(x))
    h.update(provenance.encode())
    return h.hexdigest()


def _tensors(xT: Any, corrections: Any) -> dict[str, np.ndarray]:
    """What a file holds, as arrays in this order."""
    out = {"xT": array(xT)}
    if corrections is not None:
        out["corrections"] = array(corrections, "<f2" if "float16" in str(corrections.dtype) else "<f4")
    return out


def _hash(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> hashlib._Hash:
    first = f"{FORMAT} {VERSION} {shapes['xT'][1]} "
    return hashlib.sha256((first + "".join(f"{k} {shapes[k]} " for k in shapes if k != "xT")).encode())


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
            **({"schedule": model.about.schedule} if model.about.schedule is not None else {}),
            **({"guess": True} if model.about.guess else {}),
            "digest": recipe.model,
            "class": recipe.condition.class_label,
        },
        **recipe.record(),
        "evaluations": solution.evaluations,
        "residuals": solution.residuals,
        "unconverged": solution.unconverged,
        **({} if solution.returned is None else {"returned": solution.returned}),
        "lossless": None if solution.checks is None else [c.record() for c in solution.checks],
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
    tensors = _tensors(latent.xT, latent.corrections)
    xT, corrections = tensors["xT"], tensors.get("corrections")
    text = _text(latent.provenance, len(xT))
    try:
        check_corrections(latent.provenance, xT, corrections)
    except ValueError as e:
        raise FileError(f"the latent was not written: {e}") from e
    text["sha256"] = digest(xT, text["provenance"], corrections)
    if not np.isfinite(xT).all():
        raise FileError("the latent holds NaN or infinity and was not written")
    if corrections is not None and not np.isfinite(corrections).all():
        hint = "keep them as float32" if corrections.dtype.itemsize == 2 else "encode with less --guidance"
        raise FileError("the path's corrections are too large for their precision: nothing was written", hint=hint)
    if suffix.lower() == BARE:
        return to_npy(xT)
    if suffix.lower() == ".safetensors":
        head = safetensors_header(text, {name: (x.dtype.str, x.shape) for name, x in tensors.items()})
        return head + b"".join(values(x) for x in tensors.values())
    return to_zip(text, tensors)


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
        latents = [load(p, tensors=False) for p in parts]
        kept = [x.corrections for x in latents if x.corrections is not None]
        whole: Any = np.concatenate([x.xT for x in latents])
        provenance = _joined([x.provenance for x in latents])
        save(path, Latent(whole, provenance, np.concatenate(kept) if kept else None))
        return
    provenances, n = [], 0
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part in parts:
        latent = load(part, tensors=False)
        provenances.append(latent.provenance)
        n += len(latent.xT)
        found = _tensors(latent.xT, latent.corrections)
        shapes = {name: (x.dtype.str, (n, *x.shape[1:])) for name, x in found.items()}
    text = _text(_joined(provenances), n)
    with atomic_file(path) as f:
        f.write(safetensors_header({**text, "sha256": "0" * 64}, shapes))
        h = _hash(shapes)
        for name in shapes:
            for part in parts:
                latent = load(part, tensors=False)
                part_values = values(_tensors(latent.xT, latent.corrections)[name])
                h.update(part_values)
                f.write(part_values)
        h.update(text["provenance"].encode())
        f.seek(0)
        f.write(safetensors_header({**text, "sha256": h.hexdigest()}, shapes))


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
        text = held = read_zip(data, name)
    else:
        text, held = read_safetensors(data, name)
    xT, corrections = held.get("xT"), None
    if text.get("format") != FORMAT:
        raise NotOurs(f"{name} is not a ddimctl latent", hint=BARE_HINT)
    if text.get("version") not in (str(VERSION), str(KEPT)):
        raise FileError(f"{name} has format version {text.get('version')!r}; this ddimctl knows {VERSION} and {KEPT}")
    about = text.get("provenance")
    if not isinstance(xT, np.ndarray) or xT.dtype != np.float32 or xT.ndim != 4 or not isinstance(about, str):
        raise FileError(f"{name} is damaged: its tensor is not float32 (N, C, H, W)", hint=NO_HINT)
    if not xT.size:
        raise FileError(f"{name} is damaged: its tensor has the shape {tuple(xT.shape)}", hint=NO_HINT)
    xT = np.array(xT, np.float32, order="C")  # its own memory, and this machine's order of bytes
    if text["version"] == str(KEPT):
        corrections = held.get("corrections")
        if not isinstance(corrections, np.ndarray) or corrections.dtype not in (np.float32, np.float16):
            raise FileError(f"{name} is damaged: the corrections of its path are missing", hint=NO_HINT)
        corrections = np.array(corrections, corrections.dtype.newbyteorder("="), order="C")
    if not is_unicode(about) or digest(xT, about, corrections) != text.get("sha256"):
        raise FileError(f"{name} is damaged: its checksum does not match", hint=NO_HINT)
    if not np.isfinite(xT).all() or not (corrections is None or np.isfinite(corrections).all()):
        raise FileError(f"{name} holds NaN or infinity", hint=NO_HINT)
    try:
        record = json.loads(about, parse_constant=_no_constant)
        check_provenance(record, len(xT))
        check_corrections(record, xT, corrections)
    except (ValueError, RecursionError) as e:
        raise FileError(f"{name} makes no sense: {e}", hint=NO_HINT) from e
    if tensors:
        import torch

        kept = None if corrections is None else torch.from_numpy(corrections)
        return Latent(torch.from_numpy(xT), record, kept)
    return Latent(xT, record, corrections)


def _text(about: dict[str, Any], n: int) -> dict[str, str]:
    """What stands beside the tensor, still without the checksum."""
    try:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
        check_provenance(json.loads(text), n)
    except ValueError as e:
        raise FileError(f"the latent was not written: {e}") from e
    version = VERSION if about.get("keep_path") is None else KEPT
    return {"format": FORMAT, "version": str(version), "provenance": text}


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
