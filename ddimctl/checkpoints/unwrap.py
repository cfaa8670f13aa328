"""Finds the networks in whatever was saved: nested mappings and lists, and the names that wrappers put before each other.

``{"epoch": 3, "state_dict": {"net.module._orig_mod.conv_in.weight": …}}`` holds one network. A format is known by the
names of a few tensors, its marks: where they all stand behind the same prefix, what stands behind it is the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddimctl.checkpoints import weights
from ddimctl.errors import FileError

DEPTH = 8  # of mappings in mappings
MOST = 100_000  # entries that are looked at
# What wrappers of torch's put into names, anywhere: DistributedDataParallel, compile, FSDP, checkpointing, Fabric.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGE = re.compile(r"(?<![a-z])(ema|avg|swa|averag|shadow|polyak)|(model|net)ema", re.IGNORECASE)
# What else lies in a file with a network that is not one of pixels, or not of images alone.
FOREIGN = ("first_stage_model.", "cond_stage_model.", "conditioner.embedders.", "transformer_blocks.")


@dataclass(frozen=True)
class Found:
    """A network in a file: where it was, whether that is called an average, its format, and its tensors."""

    path: tuple[str, ...]  # keys of mappings, indices of lists, the prefix of the names
    form: str
    state: dict[str, Tensor]
    beside: tuple[str, ...]  # names of tensors that are not the network's

    @property
    def where(self) -> str:
        return ".".join(p for p in self.path if p) or "the top"

    @property
    def averaged(self) -> bool:
        return any(AVERAGE.search(p) for p in self.path)


def network(content: Any, marks: Mapping[str, Sequence[str]], name: object) -> tuple[Found, list[str]] | None:
    """The network in a loaded file, and what to say of the choice; None if there is none of these formats.

    The averaged weights are taken where there are both. Raises `FileError` if it holds several and does not tell which is
    meant, or if a tensor is not what it seems.
    """
    found = _distinct([f for path, part in _mappings(content) for f in _networks(path, part, marks, name=name)])
    if not found:
        return None
    averaged = [f for f in found if f.averaged]
    notes: list[str] = []
    if len(found) == 1 or len(averaged) == 1:
        one = (averaged or found)[0]
        if one.averaged:
            notes.append("the averaged weights (EMA) were taken")
        elif isinstance(content, list | tuple):
            notes.append("there are no averaged weights (EMA); the last ones were taken")
    elif isinstance(content, list | tuple) and all(len(f.path) == 2 for f in found):
        one = found[-1]  # ermongroup/ddim's list [network, optimiser, epoch, step, average]
        notes.append("the averaged weights (EMA) were taken")
    else:
        raise FileError(
            f"{name} holds {len(found)} networks: {', '.join(f.where for f in found)}",
            hint="save the state dict of the one that you mean in a file of its own",
        )
    if one.where != "the top":
        notes.append(f"the network is {one.where} in the file")
    if one.beside:
        shown = ", ".join(one.beside[:3]) + (" …" if len(one.beside) > 3 else "")
        notes.append(f"{len(one.beside)} tensors beside the network were left out: {shown}")
    return one, notes


def _mappings(content: Any, path: tuple[str, ...] = (), budget: list[int] | None = None) -> Iterator[Any]:
    """(path, mapping) of every mapping in a nest that has tensors."""
    budget = [MOST] if budget is None else budget
    if isinstance(content, Mapping):
        items = [(str(k), v) for k, v in content.items()]
    elif isinstance(content, list | tuple):
        items = [(str(i), v) for i, v in enumerate(content)]
    else:
        return
    budget[0] -= len(items)
    if len(path) > DEPTH or budget[0] < 0:
        return
    if isinstance(content, Mapping) and any(isinstance(v, Tensor) for _, v in items):
        yield path, {k: v for k, v in items if isinstance(k, str)}
    for key, value in items:
        if not isinstance(value, Tensor):
            yield from _mappings(value, (*path, key), budget)


def _networks(
    path: tuple[str, ...], part: Mapping[str, Any], marks: Mapping[str, Sequence[str]], *, name: object
) -> Iterator[Found]:
    """The networks among the tensors of one mapping; none in that of a latent or text-conditional model."""
    if any(f in key for key in part for f in FOREIGN):
        return
    bare = {".".join(p for p in key.split(".") if p not in WRAPPERS): key for key in part}
    for form, (first, *others) in marks.items():
        prefixes = [k.removesuffix(first) for k in bare if k == first or k.endswith("." + first)]
        for prefix in prefixes:
            if not all(prefix + other in bare for other in others):
                continue
            mine = {k: original for k, original in bare.items() if k.startswith(prefix)}
            # A name without a dot is no layer's: counters and tables of wrappers.
            loose = {k for k in mine if "." not in k.removeprefix(prefix) and k.removeprefix(prefix) != "logvar"}
            beside = (*(k for k in bare if k not in mine), *loose)
            doubled = [k for k in part if bare[_bare(k)] != k and _bare(k) in mine]
            if doubled:
                raise FileError(f"{name} has {_bare(doubled[0])} twice, with and without a wrapper's name")
            state = {k.removeprefix(prefix): part[original] for k, original in mine.items() if k not in loose}
            yield Found((*path, prefix.rstrip(".")), form, weights.state(state, str(name)), beside)


def _bare(key: str) -> str:
    return ".".join(p for p in key.split(".") if p not in WRAPPERS)


def _distinct(found: list[Found]) -> list[Found]:
    """Without those that are another's very tensors, saved under two names."""
    result: list[Found] = []
    for f in found:
        if not any(_same(f, other) for other in result):
            result.append(f)
    return result


def _same(a: Found, b: Found) -> bool:
    return a.state.keys() == b.state.keys() and all(
        v.data_ptr() == b.state[k].data_ptr() and v.shape == b.state[k].shape for k, v in a.state.items()
    )
