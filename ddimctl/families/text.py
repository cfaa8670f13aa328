"""Text encoders with their tokenizers: transformers' CLIP and T5, with a folder's weights.

Their libraries are imported when a folder is loaded, and nothing in it decides what code runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import pipelines
from ddimctl.errors import FileError, UsageError
from ddimctl.families.autoencoders import quiet
from ddimctl.files import refuse_special
from ddimctl.model import Condition
from ddimctl.network import Embedded

# What of an encoder's configuration decides what it computes. Others might name code, such as an attention's.
CLIP_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
T5_FIELDS = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
    "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj", "pad_token_id", "eos_token_id",
)  # fmt: skip
PROMPTS = 64  # embeddings that are kept


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its encoder."""

    tokenizer: Any
    encoder: Any
    fields: tuple[str, ...]
    length: int  # tokens that are read, those of beginning and end among them
    masked: bool = False  # whether what fills up the length is hidden from the encoder

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return int(self.encoder.config.hidden_size)

    @property
    def essence(self) -> str:
        """What beside the weights decides the embedding of a prompt."""
        c, t = self.encoder.config, self.tokenizer
        fields = {k: getattr(c, k) for k in self.fields}
        rules = json.loads(t.backend_tokenizer.to_str())
        return json.dumps([fields, self.length, self.masked, t.pad_token_id, rules["model"]], sort_keys=True)

    @torch.no_grad()
    def read(self, prompt: str, *, layers: bool = False) -> Any:
        """What the encoder gives for a prompt, in float32; with `layers`, the states of each of its layers too."""
        with quiet():
            found = self.tokenizer(
                prompt, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            )
        mask = found.attention_mask.to(self.encoder.device) if self.masked else None
        return self.encoder(found.input_ids.to(self.encoder.device), attention_mask=mask, output_hidden_states=layers)

    def unread(self, prompt: str) -> str:
        """What of the prompt is beyond the length."""
        with quiet():
            ids = self.tokenizer(prompt, padding=False, truncation=False).input_ids
        rest: str = self.tokenizer.decode(ids[self.length - 1 : -1]) if len(ids) > self.length else ""
        return rest.strip()


def shortest(encoders: Sequence[Encoder]) -> Callable[[str], str]:
    """What of a prompt none of them reads."""

    def unread(prompt: str) -> str:
        return min((e.unread(prompt) for e in encoders), key=len)

    return unread


def embedder(
    name: str, states: Callable[[str | None], Embedded], *, distilled: float | None = None
) -> Callable[[Condition], Embedded]:
    """What a condition becomes, from what its prompt becomes. Each prompt is encoded once, those of a blend are added.

    `distilled` is the guidance that a distilled network is told where the condition says none; None for others.
    """
    kept = lru_cache(PROMPTS)(states)

    def said(condition: Condition) -> Embedded:
        if not condition.blend:
            return kept(condition.prompt)
        if condition.prompt is not None:
            raise UsageError("a blend of prompts stands instead of a prompt", hint="give the prompt a share in it")
        parts = [(share.weight, kept(share.prompt)) for share in condition.blend]
        return {name: sum(w * embedded[name] for w, embedded in parts) for name in parts[0][1]}

    def embed(condition: Condition) -> Embedded:
        if condition.class_label is not None:
            raise UsageError(f"the model {name} has no classes", hint="leave --class away; it takes a --prompt")
        if not math.isfinite(condition.guidance) or abs(condition.guidance) > 1000:
            raise UsageError(f"a guidance of {condition.guidance:g} makes no sense", hint="1 is none, 7.5 is usual")
        if distilled is None and condition.distilled is not None:
            raise UsageError(f"the model {name} is not told of guidance", hint="leave --distilled away; see --guidance")
        told = distilled if condition.distilled is None else condition.distilled
        if told is None:
            return said(condition)
        if not 0 <= told <= 1000:
            raise UsageError(f"a distilled guidance of {told:g} makes no sense", hint=f"{distilled:g} is usual")
        return {**said(condition), "guidance": torch.tensor([float(told)])}

    return embed


def load_clip(path: Path, device: str, number: str = "", *, projected: bool = False) -> Encoder:
    """CLIP's text encoder and tokenizer, those of that number, with a projection of what it pools if that is wanted.

    Raises `FileError` where they cannot be used.
    """
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    folder, words = path / f"text_encoder{number}", path / f"tokenizer{number}"
    config = pipelines.read_config(folder, kind)
    tokenizer = _load_tokenizer(words, "CLIPTokenizer", (("tokenizer.json",), ("vocab.json", "merges.txt")))
    encoder = _make(kind, "CLIPTextConfig", {k: config[k] for k in CLIP_FIELDS if k in config}, where=folder)
    # Their names have begun with text_model. in some versions of transformers, and not in others.
    state = pipelines.read_weights(folder, "model")
    bare = {k.removeprefix("text_model."): w for k, w in state.items()}
    names = {k.removeprefix("text_model."): k for k in encoder.state_dict()}
    pipelines.fill(encoder, {names.get(k, k): w for k, w in bare.items()}, folder)
    for part in encoder.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:  # position_ids, which no file holds
                part.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    length = min(int(tokenizer.model_max_length), encoder.config.max_position_embeddings)
    _check_tokens(path, tokenizer, encoder, length=length)
    return Encoder(tokenizer, encoder.to(device), CLIP_FIELDS, length, bool(config.get("use_attention_mask")))


def load_t5(path: Path, device: str, number: str, *, length: int) -> Encoder:
    """T5's encoder and tokenizer, those of that number, to read so many tokens. Raises `FileError` as `load_clip`."""
    folder, words = path / f"text_encoder{number}", path / f"tokenizer{number}"
    config = pipelines.read_config(folder, "T5EncoderModel")
    tokenizer = _load_tokenizer(words, "T5Tokenizer", (("tokenizer.json",), ("spiece.model",)))
    buckets, far = config.get("relative_attention_num_buckets", 32), config.get("relative_attention_max_distance", 128)
    # A quarter of the buckets have one distance each; those of the rest follow from a logarithm.
    if not (isinstance(buckets, int) and isinstance(far, int) and 0 < buckets // 4 < far):
        raise FileError(f"{folder} makes no sense: its relative distances have no buckets")
    encoder = _make("T5EncoderModel", "T5Config", {k: config[k] for k in T5_FIELDS if k in config}, where=folder)
    state = pipelines.read_weights(folder, "model")
    for a, b in (("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight", "shared.weight")):
        if a in state:  # one weight of two names, of which files hold one
            state.setdefault(b, state[a])
    pipelines.fill(encoder, state, folder)
    length = min(length, int(tokenizer.model_max_length))
    _check_tokens(path, tokenizer, encoder, length=length)
    return Encoder(tokenizer, encoder.to(device), T5_FIELDS, length)


def _load_tokenizer(folder: Path, kind: str, vocabularies: Sequence[Sequence[str]]) -> Any:
    files = {file.name: file for file in folder.iterdir()}
    for file in files.values():
        refuse_special(file)
    if not any(set(v) <= files.keys() for v in vocabularies):  # it would be made empty
        raise FileError(f"{folder} has no vocabulary: neither {' nor '.join(' and '.join(v) for v in vocabularies)}")
    if (folder / "tokenizer_config.json").is_file():
        said = pipelines.read_config(folder, kind, "tokenizer_config.json")
        if elsewhere := next((name for name in ("vocab", "merges") if said.get(name) is not None), None):
            raise FileError(f"{folder} names a vocabulary elsewhere ({elsewhere})", hint="do not trust this folder")
    with quiet():
        import transformers
    try:
        with quiet():
            return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    except Exception as e:  # missing and broken files, and nonsense, raise anything
        raise FileError(f"{folder} has a tokenizer that cannot be read: {_reason(e)}") from e


def _make(kind: str, configuration: str, fields: dict[str, Any], *, where: Path) -> Any:
    """An encoder of transformers' without memory for its weights."""
    with quiet():
        import transformers
    try:
        with quiet(), torch.device("meta"):
            return getattr(transformers, kind)(getattr(transformers, configuration)(**fields))
    except Exception as e:
        raise FileError(f"{where} has a text encoder that cannot be read: {_reason(e)}") from e


def _reason(e: Exception) -> str:
    return " ".join(str(e).split())[:120] or type(e).__name__


def _check_tokens(path: Path, tokenizer: Any, encoder: Any, *, length: int) -> None:
    if len(tokenizer) > encoder.config.vocab_size or length < 2:
        raise FileError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the encoder {encoder.config.vocab_size}")


def zeros_like(embedded: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stands for no prompt where the network was trained so."""
    return {k: torch.zeros_like(v) for k, v in embedded.items()}
