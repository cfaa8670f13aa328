"""Model families: one module each, all giving a `Model`. `load` is the one loader that every command shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl import files
from ddimctl.catalogue import bundled as bundled
from ddimctl.errors import UsageError
from ddimctl.files import bundled_folder
from ddimctl.model import About, Model

DEFAULT_MODEL = "fashion-mnist"


@dataclass(frozen=True)
class Found:
    """Where a model lies, and what it is called."""

    path: Path
    about: About
    settings: Mapping[str, Any] | None  # what was said beside the reference


def load(reference: str = DEFAULT_MODEL, device: str = "auto", *, config: str | None = None) -> Model:
    """Loads a model: a bundled name, a folder in diffusers' layout, a checkpoint file, or a hub id.

    `device` is "auto" (CUDA, then MPS, then CPU) or a torch device; `config` as in `find`. Raises `UsageError` if there
    is no such model or device, `FileError` if it cannot be used, `DDIMError` if it cannot be downloaded.
    """
    from ddimctl.checkpoints import formats
    from ddimctl.engines import pytorch
    from ddimctl.families import pixel

    found = find(reference, config=config)
    if found.about.folder is not None and (found.path / "text_encoder").is_dir():
        from ddimctl.families import stable_diffusion

        if stable_diffusion.recognises(found.path):
            return stable_diffusion.load(found.path, found.about, device=pytorch.device(device))
    checkpoint = formats.read(found.path, found.settings)
    return pixel.from_checkpoint(checkpoint, found.about, device=pytorch.device(device))


def find(reference: str, *, config: str | None = None) -> Found:
    """A bundled name, a folder, a checkpoint file or a hub id, tried in this order.

    `config`, a preset's name or a JSON file, says what a checkpoint file does not. Raises `UsageError` if there is
    nothing of that name, `DDIMError` if it cannot be downloaded.
    """
    from ddimctl.checkpoints import formats, hub

    settings = formats.read_config(config) if config is not None else None
    path = bundled_folder() / reference if reference in bundled() else Path(reference)
    here = files.exists(path)
    name, folder = path.resolve().name if here and path.is_dir() else path.stem, path
    if not here:
        if not hub.is_id(reference):
            raise UsageError(
                f"no model {reference!r}: not a bundled one, no folder or file here, and no hub id (OWNER/NAME)",
                hint=f"bundled: {', '.join(bundled()) or 'none'}",
            )
        path = folder = hub.fetch(reference)
        name = reference
    about = About(name, reference, config, folder if folder.is_dir() else None)
    return Found(path, about, settings)
