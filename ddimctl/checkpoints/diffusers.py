"""diffusers' layout: a folder with the U-Net's weights and configuration, and the scheduler's configuration.

Two layouts exist: sub-folders ``unet/`` and ``scheduler/``, or everything flat at the root. A field that a file leaves
out means diffusers' default. The weights may be safetensors or torch's, one file or shards with an index.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, betas, identify, weights
from ddimctl.checkpoints.folders import NETWORKS, STEM
from ddimctl.checkpoints.folders import recognises as recognises
from ddimctl.errors import DDIMError, FileError
from ddimctl.files import is_special, make_folder, write_bytes
from ddimctl.schedule import Schedule
from ddimctl.unet import UNetConfig

WEIGHTS = f"{STEM}.safetensors"
HELD_OUT_FOLDER = "held-out"  # beside the network: images it was not trained on
VERSION = "0.36.0"  # of the diffusers whose layout we write
# Old diffusers named the attention's weights so.
LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Training scripts save the averaged weights in unet_ema/, whose configuration has the average's fields too.
EMA_FIELDS = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LATENT = ("vae", "vqvae", "text_encoder", "tokenizer", "bert", "transformer", "prior", "image_encoder", "movq")
# The schedulers that mean x_t = √α x_0 + √(1−α) ε with integer labels, and their default β_1 and β_T.
DDPM_BETAS, LDM_BETAS = (1e-4, 0.02), (0.00085, 0.012)
SCHEDULERS = {
    **dict.fromkeys(("DDPM", "DDPMParallel", "DDIM", "DDIMInverse", "DDIMParallel", "PNDM", "RePaint"), DDPM_BETAS),
    **dict.fromkeys(("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "DEISMultistep"), DDPM_BETAS),
    **dict.fromkeys(("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"), DDPM_BETAS),
    **dict.fromkeys(("UniPCMultistep", "SASolver"), DDPM_BETAS),
    **dict.fromkeys(("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"), LDM_BETAS),
}


def is_unet(content: Any) -> bool:
    """Whether `content` is the state dict of a ``UNet2DModel``."""
    return weights.is_state(content) and {"conv_in.weight", "time_embedding.linear_1.weight"} <= content.keys()


def read(
    folder: Path, config: Mapping[str, Any] | None = None, name: str = "", *, file: Path | None = None
) -> Checkpoint:
    """Reads a folder in diffusers' layout, with the weights in `file` if it is given.

    Raises `FileError` if it is incomplete or not what we implement.
    """
    if config:
        raise FileError(f"{folder} has a configuration of its own", hint="leave --config away")
    unet, scheduler = find(folder)
    settings = read_settings(folder)
    notes: list[str] = []
    guesses: list[str] = []
    if scheduler is None:
        guesses.append("there is no scheduler_config.json: taken to be DDPM's linear schedule, predicting ε")
    schedule, prediction = read_scheduler(read_json(scheduler) if scheduler else {})
    label_scale = read_json(scheduler).get("label_scale", 1.0) if scheduler else 1.0
    if not isinstance(label_scale, int | float) or not 0 < label_scale <= 1000:
        raise FileError(f"{scheduler}: label_scale = {label_scale!r} makes no sense")
    if unet.name == "unet_ema":
        notes.append("the averaged weights in unet_ema/ were taken")
    names = {p.name for p in unet.iterdir() if p.is_file()}
    files, index = choose_weights(names) if file is None else ([file.name], "")
    if not files and not index:
        raise no_weights(unet, names)
    notes.append(f"weights: {', '.join(files) or index}")
    state = read_shards(unet, index) if index else weights.load_state(file or unet / files[0])
    return Checkpoint(settings, modern(state), schedule, prediction, float(label_scale), notes, guesses)


def find(folder: Path) -> tuple[Path, Path | None]:
    """The folder of the network, and the scheduler's configuration if there is one."""
    unet = next(f for f in (folder / "unet_ema", folder / "unet", folder) if (f / "config.json").is_file())
    places = [folder / "scheduler", folder]
    if folder.name in ("unet", "unet_ema"):  # the user gave the network's own folder
        places += [folder.absolute().parent / "scheduler"]
    files = [place / "scheduler_config.json" for place in places]
    return unet, next((f for f in files if f.is_file()), None)


def read_settings(folder: Path) -> UNetConfig:
    """The network's fields; looks at no weights. Raises `FileError` by name on what is not a network of ours."""
    index = folder / "model_index.json"
    if index.is_file():
        check_pipeline(read_json(index), folder)
    unet, _ = find(folder)
    config = read_json(unet / "config.json")
    kind = config.get("_class_name", NETWORKS[0])
    if "model_type" in config or "architectures" in config:
        raise FileError(f"{folder} is a transformers model, not a diffusion model", identify.NOT_HERE)
    if kind not in NETWORKS:
        what = "a text-conditional network" if "Condition" in str(kind) else "a network that ddimctl does not implement"
        raise FileError(f"{folder} holds a {kind}: {what}", identify.NOT_HERE)
    if "auto_map" in config:
        raise FileError(f"{folder} needs code of its own to load", identify.CODE)
    if unet.name == "unet_ema":
        config = {k: v for k, v in config.items() if k not in EMA_FIELDS}
    return UNetConfig.from_dict(config)


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


def choose_weights(names: Collection[str], stem: str = STEM) -> tuple[list[str], str]:
    """Which of a folder's files hold the weights: ([file], "") or ([], index of shards), or ([], "") if there are none.

    Full precision before half, safetensors before torch's. `stem` is what their names begin with.
    """
    for variant in ("", "fp16", "bf16"):
        dot = f".{variant}" if variant else ""
        for kind in ("safetensors", "bin"):
            if (one := f"{stem}{dot}.{kind}") in names:
                return [one], ""
            if (index := f"{stem}.{kind}.index{dot}.json") in names:
                return [], index
    return [], ""


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


def read_shards(folder: Path, index: str) -> dict[str, Tensor]:
    """The state dict from the shards that `index` names."""
    table = read_json(folder / index, limit=20_000_000)
    state: dict[str, Tensor] = {}
    for file in shards(table, folder / index):
        if not (folder / file).is_file():
            raise FileError(f"{folder} lacks a part of its weights: {file}", hint="copy or download all shards")
        state.update(weights.load_state(folder / file))
    return {k: w for k, w in state.items() if k in table["weight_map"]}


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with today's names."""
    return {".".join(LEGACY.get(part, part) for part in name.split(".")): w for name, w in state.items()}


def read_json(path: Path, limit: int = 1_000_000) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises `FileError` if it is none; no pipe is waited for."""
    if is_special(path):
        raise FileError(f"{path} is a pipe or a device, not a file", hint="name a file")
    try:
        with path.open("rb") as f:
            data = f.read(limit + 1)
    except FileNotFoundError as e:
        raise FileError(f"{path.parent} has no {path.name}") from e
    except OSError as e:
        raise FileError(f"cannot read {path}: {e.strerror or e}") from e
    if len(data) > limit:
        raise FileError(f"{path} has more than {limit:,} bytes, which makes no sense")
    if data.startswith(b"version https://git-lfs"):
        raise FileError(f"{path} is a git-lfs pointer, not the file itself", hint="run: git lfs pull")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise FileError(f"cannot read {path}: {e}") from e
    if not isinstance(value, dict):
        raise FileError(f"{path} is not a JSON object")
    return value


def read_scheduler(config: Mapping[str, Any]) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from ``scheduler_config.json``."""
    kind = str(config.get("_class_name", "DDPMScheduler")).removesuffix("Scheduler")
    if kind not in SCHEDULERS:
        raise FileError(f"the scheduler is a {kind}Scheduler, whose noise is not DDPM's", identify.NOT_HERE)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise FileError(f"the network predicts {prediction!r}, which ddimctl does not implement")
    schedule = _schedule(config, *SCHEDULERS[kind])
    if not config.get("rescale_betas_zero_snr"):
        return schedule, prediction
    if prediction == "epsilon":
        raise FileError(
            "the schedule has zero final SNR (rescale_betas_zero_snr): its σ(T) is infinite, where ε says nothing of images"
        )
    return betas.zero_snr(schedule), prediction


def _schedule(config: Mapping[str, Any], start: float, end: float) -> Schedule:
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list) or not 1 <= len(trained) <= betas.MAX_T:
            raise FileError("the scheduler's trained_betas are not a list of numbers")
        return betas.checked(trained)
    return betas.schedule(
        config.get("beta_schedule", "linear"),
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", start),
        end=config.get("beta_end", end),
    )


def explain(folder: Path) -> FileError:
    """What to say of a folder that is not in this layout."""
    names = sorted(p.name for p in folder.iterdir())
    if "model_index.json" in names:
        try:
            check_pipeline(read_json(folder / "model_index.json"), folder)
        except FileError as e:
            return e
    return explain_names(folder, names)


def explain_names(where: object, names: Collection[str]) -> FileError:
    """What to say of a folder or repository without a configuration, by the names of its files."""
    if not names:
        return FileError(f"{where} is empty", hint="give a model folder or a checkpoint file")
    if other := other_framework(names):
        return FileError(f"{where} holds {other[0]}", other[1])
    files = sorted(n for n in names if n.endswith((".pt", ".pth", ".ckpt", ".safetensors", ".bin")))
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


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `checkpoint` so that diffusers' ``from_pretrained`` and `read` load it. Each file atomic.

    A network with scaled labels is beyond diffusers: it gets no ``model_index.json``, so that diffusers refuses it.
    """
    config = checkpoint.config
    scheduler: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": checkpoint.schedule.T,
        **_betas(checkpoint.schedule),
        "prediction_type": checkpoint.prediction,
        "clip_sample": False,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }
    if config.out_channels == config.in_channels:
        scheduler["set_alpha_to_one"] = True
    else:  # only DDPMScheduler knows what to do with learned variances
        scheduler |= {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    if checkpoint.label_scale != 1:
        scheduler["label_scale"] = checkpoint.label_scale
    index = {
        "_class_name": scheduler["_class_name"].replace("Scheduler", "Pipeline"),
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    make_folder(folder / "unet")
    make_folder(folder / "scheduler")
    # Not safetensors' own `save_file`: it puts another file in the place of a locked temporary one.
    tensors = {k: _own(w) for k, w in checkpoint.weights.items()}
    write_bytes(folder / "unet" / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    files = {
        folder / "unet" / "config.json": {**config.to_dict(), "_diffusers_version": VERSION},
        folder / "scheduler" / "scheduler_config.json": scheduler,
    }
    if checkpoint.label_scale == 1:
        files[folder / "model_index.json"] = index
    else:
        (folder / "model_index.json").unlink(missing_ok=True)
    for path, value in files.items():
        write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def clear(folder: Path) -> None:
    """Removes what an earlier model left in its folder and would pass for the next one's: averaged weights, the card,
    features, samples, held-out images. Raises `DDIMError` where that is not possible."""
    shutil.rmtree(folder / "unet_ema", ignore_errors=True)
    names = ["README.md", "features.safetensors", "samples.png"]
    held_out = [p for p in (folder / HELD_OUT_FOLDER).glob("*.png") if re.fullmatch(r"\d{3}", p.stem)]
    try:
        for path in (*(folder / name for name in names), *held_out):
            path.unlink(missing_ok=True)
    except OSError as e:
        raise DDIMError(f"cannot remove {path}: {e.strerror or e}") from e


def _own(w: Tensor) -> Tensor:
    """The tensor in storage of its own; safetensors refuses to write two that share one."""
    w = w.detach().contiguous()
    return w if w.untyped_storage().nbytes() == w.numel() * w.element_size() else w.clone()


def _betas(schedule: Schedule) -> dict[str, Any]:
    """The schedule by its name where that gives exactly the same α, else by its list of β."""
    exact = [1 - q / p for p, q in zip(schedule.alpha, schedule.alpha[1:], strict=False)]
    start, end = (round(b, 12) for b in (exact[0], exact[-1]))
    for kind, formula in betas.BETAS.items():
        if _gives(formula(schedule.T, start, end), schedule):
            return {"beta_schedule": kind, "beta_start": start, "beta_end": end}
    # β = 1 − α_t/α_(t−1) has rounding errors; the shorter decimals that it came from may give the α back exactly.
    shorter = ([float(f"{b:.{digits}g}") for b in exact] for digits in (7, 9, 12, 15))
    return {"beta_schedule": "linear", "trained_betas": next((b for b in shorter if _gives(b, schedule)), exact)}


def _gives(listed: list[float], schedule: Schedule) -> bool:
    try:
        return Schedule.from_betas(listed).alpha == schedule.alpha
    except ValueError:  # one of the formulas need not make sense between these ends
        return False
