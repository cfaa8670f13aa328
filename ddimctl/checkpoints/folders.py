"""Model folders in diffusers' layout, without torch: where network, weights and scheduler lie, and what their headers say.

Two layouts exist: sub-folders ``unet/`` and ``scheduler/``, or everything flat at the root. A training run keeps its
scheduler at its root, one level above its checkpoints.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import identify
from ddimctl.errors import FileError
from ddimctl.files import is_special

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # of weights, the best first
SUBFOLDERS = ("unet_ema", "unet")  # sub-folders; training scripts save the averaged weights in the first
NETWORKS = ("UNet2DModel", "UNetUnconditionalModel")  # the second is the first's old name
CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
MAX_JSON = 20_000_000  # bytes of a header or an index; what is larger is not looked at
LEVELS = 2  # above a checkpoint that are searched for what it lacks: runs/x/checkpoints/checkpoint-500
PRECISIONS = ("", "fp32", "fp16", "bf16")  # variants, the best first
# What training leaves beside weights, and other files with a weights file's suffix that are none.
OF_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|sampler|grad_scaler|random_states|rng_state|training_args|trainer_state"
    r"|custom_checkpoint|dl_state_dict|pytorch_lora_weights|adapter_model)\w*\.\w+|features\.safetensors"
)
SHARD = re.compile(r"-(\d{5})-of-(?P<of>\d{5})")
# model.safetensors.index.json, with a variant: ….index.fp16.json, ….fp16.index.json, or a part of the stem.
SHARDS_INDEX = re.compile(
    r"(?P<stem>.+?)(?P<suffix>\.safetensors|\.bin|\.pt)(\.(?P<legacy>\w+))?\.index(\.(?P<variant>\w+))?\.json"
)


@dataclass(frozen=True)
class Place:
    """Where a model lies. `said` tells where the scheduler was found, if not where it belongs."""

    unet: Path  # the folder of its configuration
    scheduler: Path | None  # the file
    said: str = ""


def recognises(content: Any) -> bool:
    """Whether `content` is a folder in this layout."""
    if not isinstance(content, Path) or not content.is_dir():
        return False
    return any((content / sub / CONFIG).is_file() for sub in (*SUBFOLDERS, "."))


def find(folder: Path) -> Place:
    """The parts of a folder that `recognises` took: the whole model, its network, or a checkpoint of a training run."""
    return around(next(f for f in (*(folder / sub for sub in SUBFOLDERS), folder) if (f / CONFIG).is_file()))


def around(unet: Path) -> Place:
    """The parts of a model whose network is in that folder. Training runs keep one scheduler for all their checkpoints."""
    root = root_of(unet)
    for place in (unet, root):
        if (found := _scheduler(place)) is not None:
            return Place(unet, found)
    for place in list(root.absolute().parents)[:LEVELS]:
        if (found := _scheduler(place)) is not None:
            return Place(unet, found, f"its scheduler is taken to be {found}")
    return Place(unet, None)


def root_of(folder: Path) -> Path:
    """The model's folder, where `folder` may be its network's."""
    if folder.name in SUBFOLDERS:
        return folder.parent
    return folder.absolute().parent if folder.absolute().name in SUBFOLDERS else folder


def _scheduler(folder: Path) -> Path | None:
    files = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER, folder / "scheduler" / CONFIG)
    return next((f for f in files if f.is_file()), None)


def near(folder: Path) -> Path | None:
    """The nearest folder above with the configuration that weights in `folder` may belong to, which has none itself."""
    ups = list(folder.absolute().parents)[:LEVELS]
    return next((f for up in ups for f in (up / "unet", up) if (f / CONFIG).is_file()), None)


def is_part(unet: Path) -> bool:
    """Whether a network without a scheduler is plainly a part of something that had one: a pipeline, a training run."""
    root = root_of(unet).absolute()
    if unet.absolute() != root or re.fullmatch(r"(checkpoint|step|epoch)[-_]?\d+", root.name):
        return True
    names = [p.name for p in root.iterdir()]
    return INDEX in names or any(OF_TRAINING.fullmatch(n) for n in names if not n.startswith("features"))


def choose_weights(names: Collection[str], where: object = "the folder", *, stem: str = STEM) -> tuple[list[str], str]:
    """Which of a folder's files hold the weights: (files, "") or ([], index of shards), or ([], "") if there are none.

    Those whose name begins with `stem` first: full precision before half, safetensors before torch's. Else the only other
    one there is.
    Raises `FileError` if there are several, or a shard is missing.
    """
    # What a name says without suffix, number of shard and "index" → suffix → files, the best first.
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names, key=lambda n: (SHARD.search(n) is not None, n.endswith(".json"), n)):
        if index := SHARDS_INDEX.fullmatch(name):
            variant = index["variant"] or index["legacy"]
            found[f"{index['stem']}.{variant}" if variant else index["stem"]][index["suffix"]].append(name)
        elif (suffix := Path(name).suffix) in SUFFIXES and not OF_TRAINING.fullmatch(name):
            found[SHARD.sub("", name.removesuffix(suffix))][suffix].append(name)
    chosen = next((found[s] for p in PRECISIONS if (s := f"{stem}.{p}".rstrip(".")) in found), None)
    if chosen is None:
        stems = [s for s in found if s.startswith(stem)] or list(found)  # another variant, or any other name
        if not stems:
            return [], ""
        if len(stems) > 1:
            ones = ", ".join(next(iter(found[s].values()))[0] for s in stems)
            raise FileError(f"{where} has several files with weights: {ones}", hint="give the one that you mean")
        chosen = found[stems[0]]
    files = next(chosen[suffix] for suffix in SUFFIXES if suffix in chosen)
    if files[0].endswith(".json"):
        return [], files[0]
    return (files[:1] if not SHARD.search(files[0]) else _complete(files, where)), ""


def _complete(files: list[str], where: object) -> list[str]:
    """The shards, all of them."""
    shard = SHARD.search(files[0])
    assert shard is not None
    wanted = [SHARD.sub(f"-{i + 1:05}-of-{shard['of']}", files[0]) for i in range(int(shard["of"]))]
    if missing := [f for f in wanted if f not in files]:
        raise FileError(f"{where} lacks a part of its weights: {missing[0]}", hint="copy or download all shards")
    return wanted


def shards(index: Mapping[str, Any], where: object) -> list[str]:
    """The files that an index of shards names. Raises `FileError` if it names any outside its folder."""
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FileError(f"{where} has no weight_map")
    files = sorted({str(v) for v in table.values()})
    for file in files:
        if Path(file).name != file or file in (".", "..") or "\\" in file:
            raise FileError(f"{where} names a file outside its folder: {file!r}", hint="do not trust this checkpoint")
    return files


def explain_names(where: object, names: Collection[str]) -> FileError:
    """What to say of a folder or repository without a configuration, by the names of its files."""
    if not names:
        return FileError(f"{where} is empty", hint="give a model folder or a checkpoint file")
    if other := other_framework(names):
        return FileError(f"{where} holds {other[0]}", other[1])
    files = sorted(n for n in names if n.endswith(SUFFIXES) and not OF_TRAINING.fullmatch(n))
    hint = (
        f"give the checkpoint file itself, such as {files[0]}" if files else "it needs unet/config.json or config.json"
    )
    return FileError(f"{where} is not a model folder: it has no configuration", hint)


def other_framework(names: Collection[str]) -> tuple[str, str] | None:
    """What other framework's files are among `names`, and what to do about it."""
    kinds = [identify.SUFFIXES[Path(n).suffix] for n in sorted(names) if Path(n).suffix in identify.SUFFIXES]
    return kinds[0] if kinds else None


def no_weights(where: object, names: Collection[str]) -> FileError:
    """What to say where there is a configuration but no weights."""
    what, hint = other_framework(names) or ("", "copy or download them too")
    return FileError(f"{where} has {what or 'a configuration'} but no weights ({WEIGHTS} or .bin)", hint)


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
    return next((folder / sub for sub in SUBFOLDERS if (folder / sub / CONFIG).is_file()), folder)


def settings(folder: Path) -> dict[str, Any]:
    """The network's fields as they stand in the folder; nothing if they cannot be read."""
    return _json(network(folder) / CONFIG)


def pixels(folder: Path) -> tuple[tuple[int, ...], int | None]:
    """The sides of the images, as far as they are said, and their channels: an autoencoder may stand before the network."""
    ours, before = settings(folder), _json(folder / "vae" / CONFIG)
    size, blocks = ours.get("sample_size"), before.get("block_out_channels")
    sides = [size, size] if isinstance(size, int) else size if isinstance(size, list) else []
    times = 2 ** (min(len(blocks), 16) - 1) if isinstance(blocks, list) and blocks else 1
    channels = (before or ours).get("in_channels", 3)
    known = all(isinstance(side, int) for side in sides)
    return tuple(times * side for side in sides) if known else (), channels if isinstance(channels, int) else None


def parameters(folder: Path) -> int | None:
    """How many numbers the weights are, by the headers of their safetensors; None where there are none."""
    place = network(folder)
    try:
        files, index = choose_weights({p.name for p in place.iterdir() if p.is_file()}, place)
        files = shards(_json(place / index), place / index) if index else files
    except FileError:
        return None
    counts = [_values(place / file) for file in files]
    return sum(n for n in counts if n is not None) if counts and None not in counts else None


def _values(file: Path) -> int | None:
    try:
        if is_special(file):
            return None
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: Any = json.loads(f.read(length)) if length <= MAX_JSON else None
        return sum(int(math.prod(v["shape"])) for k, v in header.items() if k != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
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
