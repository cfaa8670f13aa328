"""diffusers' layout: a folder with the U-Net's weights and configuration, and the scheduler's configuration.

`folders` knows where each lies. A field that a file leaves out means diffusers' default. The weights may be safetensors or
torch's, one file or shards with an index, under wrappers' names, or nested in what a training loop saved.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.checkpoints import NOTHING_SAID, Checkpoint, Said, configs, folders, identify, scheduler
from ddimctl.checkpoints.folders import CONFIG, INDEX, NETWORKS, WEIGHTS
from ddimctl.errors import DDIMError, FileError
from ddimctl.files import make_folder, write_bytes
from ddimctl.unet.config import UNetConfig

if TYPE_CHECKING:
    from torch import Tensor

MARKS = ("conv_in.weight", "time_embedding.linear_1.weight")
HELD_OUT_FOLDER = "held-out"  # beside the network: images it was not trained on
VERSION = "0.36.0"  # of the diffusers whose layout we write
# Old diffusers named the attention's weights so.
LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# The average's own fields, which training scripts write into unet_ema/, and diffusers into whatever is saved of it.
EMA_FIELDS = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
OLD_FIELDS = {"image_size": "sample_size"}
LATENT = ("vae", "vqvae", "text_encoder", "tokenizer", "bert", "transformer", "prior", "image_encoder", "movq")


def read(folder: Path, said: Said = NOTHING_SAID, *, part: bool = False) -> Checkpoint:
    """Reads a folder in diffusers' layout, `part` of a pipeline that was checked or a pipeline itself.

    Raises `FileError` if it is incomplete or not what we implement.
    """
    place = folders.find(folder)
    config = read_settings(place.unet, said.config, part=part)  # refuses what is not ours before its weights are read
    levels, guesses = read_levels(place, said)
    names = {p.name for p in place.unet.iterdir() if p.is_file()}
    files, index = folders.choose_weights(names, place.unet)
    if not files and not index:
        raise folders.no_weights(place.unet, names)
    state, notes = read_state(place.unet, files, index)
    notes = [*notes_of(place, files, index), *notes]
    return Checkpoint(config, modern(state), levels.schedule, levels.prediction, levels.label_scale, notes, guesses)


def notes_of(place: folders.Place, files: list[str], index: str) -> list[str]:
    """What to say of the choice of files."""
    averaged = ["the averaged weights in unet_ema/ were taken"] if place.unet.name == folders.SUBFOLDERS[0] else []
    return [*averaged, f"weights: {', '.join(files) or index}"]


def read_weights(file: Path, state: dict[str, Tensor], said: Said, *, notes: list[str]) -> Checkpoint:
    """The network of a weights file: its configuration is beside it, above it, or said. Raises as `read`."""
    unet, guesses = file.parent, []
    if (unet / CONFIG).is_file():
        config = read_settings(unet, said.config)
    elif said.config is not None and {"block_out_channels", "down_block_types"} <= said.config.keys():
        config = settings({}, said.config)
    elif (up := near(unet)) is not None:
        config = read_settings(up, said.config)
        guesses.append(f"its configuration is taken to be {up / CONFIG}")
        unet = up if up.name in folders.SUBFOLDERS else unet
    else:
        raise FileError(
            f"{file} has the weights of a diffusers U-Net, but there is no {CONFIG} beside it",
            hint=f"put {CONFIG} and {folders.SCHEDULER} beside it, or name its {CONFIG} with --config",
        )
    levels, guessed = read_levels(folders.around(unet), said)
    return Checkpoint(
        config, modern(state), levels.schedule, levels.prediction, levels.label_scale,
        [f"weights: {file.name}", *notes], [*guesses, *guessed],
    )  # fmt: skip


def near(folder: Path) -> Path | None:
    """The folder above with the configuration of a network of ours, for weights that have none beside them."""
    up = folders.near(folder)
    return up if up is not None and configs.read_json(up / CONFIG).get("_class_name") in NETWORKS else None


def read_levels(place: folders.Place, said: Said) -> tuple[scheduler.Scheduler, list[str]]:
    """The scheduler that was said, or lies there, or may be guessed; and what to say of it. Raises `FileError` where nobody
    says what a part of a pipeline or of a training run needs."""
    guesses: list[str] = []
    fields: dict[str, Any] = {}
    if place.scheduler is not None and not scheduler.is_whole(said.schedule or {}):
        fields = {"_class_name": "DDPMScheduler", **configs.read_json(place.scheduler)}
        guesses += [place.said] if place.said else []
    if said.config:
        fields = scheduler.merged(fields, configs.flat(said.config, scheduler.IN_CONFIGS)[0])
        known = (*scheduler.IN_CONFIGS, *UNetConfig.names(), *OLD_FIELDS, *EMA_FIELDS)
        guesses += configs.told([k for k in configs.flat(said.config, known)[1] if not k.startswith("_")])
    fields = scheduler.merged(fields, said.schedule or {})
    if lacking := scheduler.lacking(fields):
        names = " and ".join(lacking)
        if folders.is_part(place.unet) and not said.guess:
            raise FileError(
                f"{place.unet} has no {folders.SCHEDULER}, nor is one near it: nobody says its {names}",
                hint="name it with --schedule FILE, or NAME,PREDICTION; --guess takes DDPM's linear β and ε",
            )
        guesses.append(f"there is no {folders.SCHEDULER}: its {names} taken to be {' and '.join(lacking.values())}")
    return scheduler.read(fields), guesses


def read_settings(unet: Path, said: Mapping[str, Any] | None = None, *, part: bool = False) -> UNetConfig:
    """The network's fields; looks at no weights. Raises `FileError` by name on what is not a network of ours."""
    for index in dict.fromkeys((unet / INDEX, folders.root_of(unet) / INDEX)):
        if index.is_file() and not part:
            check_pipeline(configs.read_json(index), index.parent)
    config = configs.read_json(unet / CONFIG)
    kind = config.get("_class_name", NETWORKS[0])
    if "model_type" in config or "architectures" in config:
        raise FileError(f"{unet} is a transformers model, not a diffusion model", identify.NOT_HERE)
    if kind not in NETWORKS:
        what = "a text-conditional network" if "Condition" in str(kind) else "a network that ddimctl does not implement"
        raise FileError(f"{unet} holds a {kind}: {what}", identify.NOT_HERE)
    if "auto_map" in config:
        raise FileError(f"{unet} needs code of its own to load", identify.CODE)
    return settings(config, said)


def settings(config: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> UNetConfig:
    """The network's fields from those of a file, and of a configuration that was said beside it."""
    fields = {k: v for k, v in config.items() if k not in EMA_FIELDS}
    for old, new in OLD_FIELDS.items():
        if old in fields:
            fields.setdefault(new, fields.pop(old))
    if said:
        whole = "_class_name" in said  # a network's own file: nothing in it may be passed over
        known = said if whole else configs.flat(said, (*UNetConfig.names(), *OLD_FIELDS))[0]
        fields |= {OLD_FIELDS.get(k, k): v for k, v in known.items() if k not in EMA_FIELDS}
    return UNetConfig.from_dict(fields)


def check_pipeline(index: Mapping[str, Any], where: object) -> None:
    """Raises `FileError` unless ``model_index.json`` describes one pixel-space U-Net and its scheduler."""
    pipeline = index.get("_class_name", "an unknown pipeline")
    latent = [part for part in index if part.startswith(LATENT)]
    if latent and any(index[part] not in (None, [None, None]) for part in latent):
        raise FileError(
            f"{where} is a {pipeline}: it has a {latent[0]}, so it is latent or conditional", identify.NOT_HERE
        )
    unet = index.get("unet")
    if not isinstance(unet, list) or len(unet) != 2:
        raise FileError(f"{where} is a {pipeline} without a U-Net", identify.NOT_HERE)
    if unet[0] != "diffusers":
        raise FileError(f"{where} needs code of its own to load ({'.'.join(map(str, unet))})", identify.CODE)
    if unet[1] not in NETWORKS:
        raise FileError(f"{where} is a {pipeline} with a {unet[1]}", identify.NOT_HERE)


def read_state(folder: Path, files: list[str], index: str) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors in a folder's files, or in the shards that `index` names; and what to say of the choice."""
    from ddimctl.checkpoints import unwrap, weights

    content = weights.load_parts(folder, files, index)
    found = unwrap.network(content, {"diffusers": MARKS}, folder / (index or files[0]))
    if found is None:
        raise identify.content(folder / (index or files[0]), content)
    return found[0].state, found[1]


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with today's names; where the attention's layers were 1×1 convolutions, they are linear now."""
    renamed = {".".join(LEGACY.get(part, part) for part in name.split(".")): w for name, w in state.items()}
    return {
        name: w.flatten(1) if ".to_" in name and w.ndim == 4 and w.shape[2:] == (1, 1) else w
        for name, w in renamed.items()
    }


def explain(folder: Path) -> FileError:
    """What to say of a folder that is not in this layout."""
    names = sorted(p.name for p in folder.iterdir())
    if "model_index.json" in names:
        try:
            check_pipeline(configs.read_json(folder / "model_index.json"), folder)
        except FileError as e:
            return e
    return folders.explain_names(folder, names)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` so that diffusers' ``from_pretrained`` and `read` load it. Each file atomic.

    A network with scaled labels, or with fields of ours, is beyond diffusers: it gets no ``model_index.json``, so that
    diffusers refuses it.
    """
    from safetensors.torch import save

    config = checkpoint.config
    fields: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": checkpoint.schedule.T,
        **scheduler.fields(checkpoint.schedule),
        "prediction_type": checkpoint.prediction,
        "clip_sample": False,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }
    if config.out_channels == config.in_channels:
        fields["set_alpha_to_one"] = True
    else:  # only DDPMScheduler knows what to do with learned variances
        fields |= {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    if checkpoint.label_scale != 1:
        fields["label_scale"] = checkpoint.label_scale
    index = {
        "_class_name": fields["_class_name"].replace("Scheduler", "Pipeline"),
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", fields["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    make_folder(folder / "unet")
    make_folder(folder / "scheduler")
    # Not safetensors' own `save_file`: it puts another file in the place of a locked temporary one.
    tensors = {k: _own(w) for k, w in checkpoint.weights.items()}
    write_bytes(folder / "unet" / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    files = {
        folder / "unet" / "config.json": {**config.to_dict(), "_diffusers_version": VERSION},
        folder / "scheduler" / "scheduler_config.json": fields,
    }
    if checkpoint.label_scale == 1 and not config.beyond_diffusers:
        files[folder / "model_index.json"] = index
    else:
        (folder / "model_index.json").unlink(missing_ok=True)
    for path, value in files.items():
        write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def clear(folder: Path) -> None:
    """Removes what an earlier model left in its folder and would pass for the next one's: averaged weights, the card,
    features, samples, tuned paths, held-out images with their captions. Raises `DDIMError` where that is not possible."""
    shutil.rmtree(folder / "unet_ema", ignore_errors=True)
    names = ["README.md", "features.safetensors", "samples.png", "paths.json"]
    held_out = [p for p in (folder / HELD_OUT_FOLDER).glob("*.*") if re.fullmatch(r"\d{3}\.(png|txt)", p.name)]
    try:
        for path in (*(folder / name for name in names), *held_out):
            path.unlink(missing_ok=True)
    except OSError as e:
        raise DDIMError(f"cannot remove {path}: {e.strerror or e}") from e


def _own(w: Tensor) -> Tensor:
    """The tensor in storage of its own; safetensors refuses to write two that share one."""
    w = w.detach().contiguous()
    return w if w.untyped_storage().nbytes() == w.numel() * w.element_size() else w.clone()
