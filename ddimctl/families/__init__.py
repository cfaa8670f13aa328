"""Model families: one module each, all giving a `Model`. `load` is the one loader that every command shares."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ddimctl import files, tuned
from ddimctl.catalogue import bundled as bundled
from ddimctl.checkpoints import Said
from ddimctl.errors import UsageError
from ddimctl.files import bundled_folder
from ddimctl.model import About, Model

DEFAULT_MODEL = "fashion-mnist"


class Family(Protocol):
    """What a family's module offers."""

    def recognises(self, path: Path) -> bool:
        """Whether this is one of its models, by a look at few bytes."""

    def load(self, path: Path, about: About, said: Said, *, device: str) -> Model:
        """The model there. Raises `FileError` if it cannot be used."""


@dataclass(frozen=True)
class Found:
    """Where a model lies, and what it is called."""

    path: Path
    about: About
    said: Said  # beside the reference


def load(
    reference: str = DEFAULT_MODEL,
    device: str = "auto",
    *,
    config: str | None = None,
    schedule: str | None = None,
    guess: bool = False,
) -> Model:
    """Loads a model: a bundled name, a folder in diffusers' layout, a checkpoint file, or a hub id.

    `device` is "auto" (CUDA, then MPS, then CPU) or a torch device; the rest as in `find`. Raises `UsageError` if there
    is no such model or device, `FileError` if it cannot be used, `DDIMError` if it cannot be downloaded.
    """
    from ddimctl.engines import pytorch

    found = find(reference, config=config, schedule=schedule, guess=guess)
    where = pytorch.device(device)
    model = family_of(found.path).load(found.path, found.about, found.said, device=where)
    paths = tuned.load(found.about.folder, schedule=model.schedule.digest)
    return replace(model, schedule=replace(model.schedule, paths=paths)) if paths else model


def family_of(path: Path) -> Family:
    """The first that recognises what lies there; pixel, the last, takes whatever is left, or says what it is."""
    for name in FAMILIES.values():
        family: Family = importlib.import_module(name)
        if family.recognises(path):
            break
    return family


def resized(model: Model, size: tuple[int, int]) -> Model:
    """The model for images of another (height, width). Raises `UsageError` where there is none."""
    from ddimctl import engines

    if size == model.size:
        return model
    shown = " × ".join(map(str, size))
    if model.multiple is None:
        own = " × ".join(map(str, model.size))
        raise UsageError(f"the model {model.name} makes images of {own}, not {shown}", hint="leave --size away")
    if any(side % model.multiple for side in size):
        near = "x".join(str(max(1, round(side / model.multiple)) * model.multiple) for side in size)
        raise UsageError(f"the sides of {shown} are no multiples of {model.multiple}", hint=f"such as --size {near}")
    if model.largest is not None and max(size) > model.largest:
        raise UsageError(f"the model {model.name} makes no images of {shown}", hint=f"sides of {model.largest} at most")
    old, network = model.network.module, model.network
    state = (model.state_shape[0], size[0] // model.factor, size[1] // model.factor)
    more = math.prod(state) / math.prod(model.state_shape)
    module = replace(
        old, state_shape=state, load=old.load, describe=lambda: replace(old.facts, flops=0),
        activations=math.ceil(old.activations * more),
    )  # fmt: skip
    made = engines.make(module, network.engine, network.precision)
    return replace(model, network=made, image_shape=(model.channels, *size), schedule=model.schedule.at(*state[1:]))


def find(reference: str, *, config: str | None = None, schedule: str | None = None, guess: bool = False) -> Found:
    """A bundled name, a folder, a checkpoint file or a hub id, tried in this order.

    `config`, a preset's name or a JSON or YAML file, says what a checkpoint does not, `schedule` its noise levels, as
    `formats.read_schedule` takes them; with `guess` what nobody says is guessed. Raises `UsageError` if there is
    nothing of that name, `DDIMError` if it cannot be downloaded.
    """
    said = Said(guess=guess)
    if config is not None or schedule is not None:
        from ddimctl.checkpoints import formats

        said = Said(
            formats.read_config(config) if config is not None else None,
            formats.read_schedule(schedule) if schedule is not None else None,
            guess,
        )
    path = bundled_folder() / reference if reference in bundled() else Path(reference)
    here = files.exists(path)
    name, folder = path.resolve().name if here and path.is_dir() else path.stem, path
    if not here:
        from ddimctl.checkpoints import hub

        if not hub.is_id(reference):
            raise UsageError(
                f"no model {reference!r}: not a bundled one, no folder or file here, and no hub id (OWNER/NAME)",
                hint=f"bundled: {', '.join(bundled()) or 'none'}",
            )
        path = folder = hub.fetch(reference)
        name = reference
    about = About(name, reference, config, folder if folder.is_dir() else None, schedule=schedule, guess=guess)
    return Found(path, about, said)


# Name → module, imported when a model is loaded; the first that recognises it loads it.
FAMILIES = {
    "stable_diffusion": "ddimctl.families.stable_diffusion",
    "sdxl": "ddimctl.families.sdxl",
    "latent_diffusion": "ddimctl.families.latent_diffusion",
    "stable_diffusion_3": "ddimctl.families.stable_diffusion_3",
    "flux": "ddimctl.families.flux",
    "pixel": "ddimctl.families.pixel",
}
