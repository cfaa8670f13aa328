"""Model folders in diffusers' layout, as far as one can look at them without torch: what they are, hold and say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ddimctl.files import is_special

STEM = "diffusion_pytorch_model"
NETWORKS = ("UNet2DModel", "UNetUnconditionalModel")  # the second is the first's old name
MAX_JSON = 20_000_000  # bytes of a header or an index; what is larger is not looked at


def recognises(content: Any) -> bool:
    """Whether `content` is a folder in this layout."""
    if not isinstance(content, Path) or not content.is_dir():
        return False
    return any((content / sub / "config.json").is_file() for sub in ("unet_ema", "unet", "."))


def licence(folder: Path) -> str | None:
    """The licence that a folder's card (README.md) states at its top."""
    path = folder / "README.md"
    if is_special(path):
        return None
    try:
        with path.open("rb") as f:
            text = f.read(100_000).decode("utf-8", "replace")
    except OSError:
        return None
    head = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = [line.partition(":")[2].strip(" \"'") for line in head.splitlines() if line.startswith("license:")]
    return found[0] if found and found[0] else None


def network(folder: Path) -> Path:
    """The folder of the network: averaged weights first, as they are loaded."""
    return next((folder / sub for sub in ("unet_ema", "unet") if (folder / sub / "config.json").is_file()), folder)


def settings(folder: Path) -> dict[str, Any]:
    """The network's fields as they stand in the folder; nothing if they cannot be read."""
    return _json(network(folder) / "config.json")


def parameters(folder: Path) -> int | None:
    """How many numbers the weights are, by the headers of their safetensors; None where there are none."""
    place = network(folder)
    for stem in (STEM, f"{STEM}.fp16", f"{STEM}.bf16"):
        files = [f for f in (place / f"{stem}.safetensors",) if f.is_file()] or sorted(
            place.glob(f"{stem}-*-of-*.safetensors")
        )
        counts = [_values(file) for file in files]
        if counts and None not in counts:
            return sum(n for n in counts if n is not None)
    return None


def _values(file: Path) -> int | None:
    try:
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: Any = json.loads(f.read(length)) if length <= MAX_JSON else None
        return sum(int(math.prod(v["shape"])) for k, v in header.items() if k != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _json(path: Path) -> dict[str, Any]:
    if is_special(path):
        return {}
    try:
        with path.open("rb") as f:
            value = json.loads(f.read(MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
