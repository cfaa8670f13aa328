"""How a picture was made, as it is said in the picture: the model, the way, and what it was made of.

Names of files are said without their folders, which are nobody else's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from ddimctl.errors import DDIMError
from ddimctl.files import read_bytes, sha256
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.recipe import Way
from ddimctl.version import __version__

MAX_PARENTS = 32  # that are said; of more, their number
MAX_NAME = 100  # characters
MAX_BYTES = 1 << 32  # of a parent that is read to know its digest


def of(
    command: str,
    model: Model,
    way: Way,
    condition: Condition = NOTHING,
    *,
    parents: Sequence[Mapping[str, Any]] = (),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `images.metadata` puts into a picture. `parents` are of `parent`; `more` is the command's own, such as a seed."""
    made: dict[str, Any] = {
        "ddimctl": __version__,
        "command": command,
        "model": named(model),
        "solver": way.solver,
        "spacing": way.spacing,
        "steps": way.steps,
    }
    if way.tolerance is not None:
        made["tolerance"] = way.tolerance
    asked = {"class": condition.class_label, "prompt": condition.prompt, "negative": condition.negative}
    made |= {k: v for k, v in asked.items() if v is not None}
    if condition.guidance != NOTHING.guidance:
        made["guidance"] = condition.guidance
    if model.autoencoder.tile is not None:
        made["tile"] = model.autoencoder.tile
    made |= led(model)
    if condition.blend:
        made["blend"] = [[s.prompt, s.weight] for s in condition.blend]
    made |= more or {}
    if parents:
        made["parents"] = [dict(p) for p in parents[:MAX_PARENTS]]
        if len(parents) > MAX_PARENTS:
            made["parents_in_all"] = len(parents)
    return made


def named(model: Model) -> dict[str, Any]:
    """A model, for a record."""
    return {"name": model.name[:MAX_NAME], "digest": model.digest}


def led(model: Model) -> dict[str, Any]:
    """What a model is led away from, and how far, if it is."""
    return {} if model.worse is None else {"worse": named(model.worse.model), "weight": model.worse.weight}


def under(conditions: Sequence[Condition]) -> tuple[Condition, dict[str, Any]]:
    """What `of` is given for pictures between latents that have a condition each: what is common to all, and the rest."""
    asked = list(dict.fromkeys(conditions))
    if len(asked) == 1:
        return asked[0], {}
    common = replace(asked[0], prompt=None, blend=(), guidance=NOTHING.guidance)
    return common, {"prompts": [c.prompt for c in asked], "guidances": [c.guidance for c in asked]}


def parent(name: str, digest: str | None = None) -> dict[str, Any]:
    """A file that something was made of; its SHA-256 is found, unless it is known already or cannot be."""
    out = {"name": PurePath(name).name[:MAX_NAME]}
    if digest is None and name != "-":
        try:
            digest = sha256(read_bytes(Path(name), MAX_BYTES))
        except DDIMError:
            digest = None
    return out if digest is None else {**out, "sha256": digest}


def image(record: Mapping[str, Any]) -> dict[str, Any]:
    """The image of a latent file's record, as a parent."""
    name, digest = PurePath(str(record.get("name", ""))).name[:MAX_NAME], record.get("sha256")
    return {"name": name, "sha256": digest} if isinstance(digest, str) else {"name": name}


def lines(made: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(what, its value) for people; the values are a stranger's, and are to be made harmless before they are shown."""
    for key, value in made.items():
        if key == "parents" and isinstance(value, list):
            for p in value:
                yield "made of", _pair(p)
        else:
            yield ("made by" if key == "ddimctl" else str(key)), _pair(value)


def _pair(value: Any) -> str:
    """A name with its digest's first digits, or whatever else it is."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        digest = value.get("digest") or value.get("sha256")
        return f"{value['name']} ({digest[:16]}…)" if isinstance(digest, str) else value["name"]
    return str(value)
