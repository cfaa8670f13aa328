"""Pipelines of several parts in diffusers' layout: ``model_index.json`` and a sub-folder for each part.

diffusers' own loader imports whatever module the index names. Here the index is only compared with the classes that we
make ourselves, and configurations and weights are read by our own readers; no file decides what code runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Said, configs, diffusers, folders, identify, scheduler, weights
from ddimctl.errors import FileError

INDEX = "model_index.json"
Classes = tuple[tuple[str, str], ...]  # (library, class), any of them
CLIP: Classes = (("transformers", "CLIPTextModel"),)
CLIP_PROJECTED: Classes = (("transformers", "CLIPTextModelWithProjection"),)
CLIP_TOKENS: Classes = (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
T5: Classes = (("transformers", "T5EncoderModel"),)
T5_TOKENS: Classes = (("transformers", "T5Tokenizer"), ("transformers", "T5TokenizerFast"))
FLOW: Classes = (("diffusers", "FlowMatchEulerDiscreteScheduler"),)
KL: Classes = (("diffusers", "AutoencoderKL"),)
VP: Classes = tuple(("diffusers", f"{name}Scheduler") for name in scheduler.SCHEDULERS)
# Each pipeline's parts, and the classes that these may be of.
PIPELINES: dict[str, dict[str, Classes]] = {
    "StableDiffusionPipeline": {
        "unet": (("diffusers", "UNet2DConditionModel"),), "vae": KL, "text_encoder": CLIP, "tokenizer": CLIP_TOKENS,
        "scheduler": VP,
    },
    "StableDiffusionXLPipeline": {
        "unet": (("diffusers", "UNet2DConditionModel"),), "vae": KL, "text_encoder": CLIP, "tokenizer": CLIP_TOKENS,
        "text_encoder_2": CLIP_PROJECTED, "tokenizer_2": CLIP_TOKENS, "scheduler": VP,
    },
    "LDMPipeline": {
        "unet": tuple(("diffusers", name) for name in folders.NETWORKS),
        "vqvae": (("diffusers", "VQModel"), ("diffusers", "AutoencoderKL")), "scheduler": VP,
    },
    "StableDiffusion3Pipeline": {
        "transformer": (("diffusers", "SD3Transformer2DModel"),), "vae": KL, "scheduler": FLOW,
        "text_encoder": CLIP_PROJECTED, "tokenizer": CLIP_TOKENS,
        "text_encoder_2": CLIP_PROJECTED, "tokenizer_2": CLIP_TOKENS,
        "text_encoder_3": T5, "tokenizer_3": T5_TOKENS,
    },
    "FluxPipeline": {
        "transformer": (("diffusers", "FluxTransformer2DModel"),), "vae": KL, "scheduler": FLOW,
        "text_encoder": CLIP, "tokenizer": CLIP_TOKENS, "text_encoder_2": T5, "tokenizer_2": T5_TOKENS,
    },
}  # fmt: skip
OPTIONAL = {"StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3")}
# What is there in many folders, and of no use here.
UNMADE: dict[str, Classes] = {
    "safety_checker": (("stable_diffusion", "StableDiffusionSafetyChecker"),),
    "feature_extractor": (("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor")),
    "image_encoder": tuple(("transformers", k) for k in ("CLIPVisionModelWithProjection", "SiglipVisionModel")),
}
FOREIGN = ("auto_map", "quantization_config", "custom_pipelines")  # fields that ask for other code
MOST = 1 << 20  # of any number in a part's configuration
MOST_LAYERS = 64


def is_pipeline(path: Path, kind: str) -> bool:
    """Whether a folder's index says that it is such a pipeline. Raises `FileError` on an index that cannot be read."""
    index = path / INDEX
    return path.is_dir() and index.is_file() and configs.read_json(index).get("_class_name") == kind


def check_index(folder: Path, kind: str) -> dict[str, Any]:
    """The index, which names the parts of such a pipeline, of the classes they have there; some may be missing.

    Raises `FileError` where it names anything else.
    """
    index, wanted = configs.read_json(folder / INDEX), PIPELINES[kind]
    for name, value in index.items():
        if not isinstance(value, list) or value in ([None, None], []):
            continue
        known = wanted.get(name) or UNMADE.get(name)
        if known is None or tuple(map(str, value)) not in known:
            what = ".".join(map(str, value))
            if known is not None and value[:1] in (["diffusers"], ["transformers"]):
                raise FileError(
                    f"{folder}: its {name} is a {what}, which ddimctl does not implement", identify.NOT_HERE
                )
            raise FileError(f"{folder} needs code of its own to load ({name}: {what})", identify.CODE)
    for name in wanted:
        if not has(index, name):
            if name in OPTIONAL.get(kind, ()):
                continue
            raise FileError(f"{folder} has no {name} in its {INDEX}")
        if not (folder / name).is_dir():
            raise FileError(f"{folder} lacks a part of its model: {name}/", hint="copy or download all of it")
    return index


def has(index: Mapping[str, Any], part: str) -> bool:
    """Whether a checked index has an optional part."""
    return isinstance(index.get(part), list) and index[part] not in ([None, None], [])


def read_levels(folder: Path, said: Said) -> scheduler.Scheduler:
    """The noise levels and prediction of a pipeline, and what was said of them. Raises as `refuse_config`."""
    refuse_config(folder, said.config)
    fields = configs.read_json(folder / "scheduler" / folders.SCHEDULER)
    return scheduler.read(scheduler.merged(fields, said.schedule or {}))


def refuse_config(folder: Path, *said: Mapping[str, Any] | None) -> None:
    """Raises `FileError` where something was said of what the folder says itself."""
    if any(said):
        raise FileError(f"{folder} has a configuration of its own", hint="leave --config and --schedule away")


def read_config(folder: Path, kind: str, file: str = "config.json") -> dict[str, Any]:
    """A part's configuration. Raises `FileError` where it asks for code, is of another class, or is absurd."""
    config = configs.read_json(folder / file)
    for name in FOREIGN:
        if config.get(name):
            raise FileError(f"{folder} needs code of its own to load ({name})", identify.CODE)
    made = config.get("architectures")
    own = made[0] if isinstance(made, list) and made else made or kind
    said = config.get("_class_name", config.get("tokenizer_class", own))
    if str(said).removesuffix("Fast") != kind:
        raise FileError(f"{folder} holds a {said}, not a {kind}", identify.NOT_HERE)
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in name else MOST
        if name == "model_max_length" and (value is None or _is_length(value)):  # one without a limit says 1e30
            continue
        if (
            name == "model_max_length"
            or len(numbers) > MOST_LAYERS
            or any(isinstance(n, int) and abs(n) > most for n in numbers)
        ):
            raise FileError(f"{folder}: {name} = {str(value)[:40]} makes no sense")
    return config


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def read_weights(folder: Path, stem: str = folders.STEM) -> dict[str, Tensor]:
    """A part's weights in float32: one file or shards, full precision before half. Raises `FileError` if there are none."""
    names = {p.name for p in folder.iterdir() if p.is_file() and ".safetensors" in p.name}
    files, index = folders.choose_weights(names, folder, stem=stem)
    if index:
        files = folders.shards(configs.read_json(folder / index, limit=folders.MAX_JSON), folder / index)
    if not files or not all(f.endswith(".safetensors") for f in files):
        hint = "only safetensors are read; copy or download them"
        raise FileError(f"{folder} has no weights ({stem}.safetensors)", hint)
    state = weights.state(weights.load_parts(folder, files, index), str(folder))
    state = {k: w for k, w in state.items() if not k.endswith("position_ids")}  # no weights; older files have them
    odd = sorted({str(w.dtype) for w in state.values() if not w.is_floating_point()})
    if odd:
        raise FileError(
            f"the weights of {folder} are {odd[0].removeprefix('torch.')}, which ddimctl does not implement"
        )
    return {k: w.float() for k, w in diffusers.modern(state).items()}


def fill(module: torch.nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Gives a module that was made without memory its weights. Raises `FileError` unless they fit exactly."""
    wanted = {k: v.shape for k, v in module.state_dict().items()}
    given = {k: v.shape for k, v in state.items()}
    if wanted != given:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        raise FileError(f"the weights of {where} do not fit its configuration ({len(odd)} tensors, {odd[0]} first)")
    module.load_state_dict(dict(state), assign=True)
    module.eval().requires_grad_(False)
