"""OpenAI's layout: ``.pt`` files of improved-diffusion and guided-diffusion, bare state dicts without a configuration.

Most of the architecture follows from the tensors. What does not (heads, the order of q, k and v in them, schedule, label
scaling, image size) are flags of the repositories' scripts: a preset knows them for each published file, and a
configuration gives them, under the flags' names, for any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddimctl.checkpoints import NOTHING_SAID, Checkpoint, Said, configs, scheduler
from ddimctl.errors import FileError
from ddimctl.unet import UNetConfig

MARKS = ("input_blocks.0.0.weight", "time_embed.0.weight", "output_blocks.0.0.in_layers.0.weight")
# What the tensors decide; a configuration may state them, and is then compared.
DECIDED = (
    "num_channels", "model_channels", "num_res_blocks", "learn_sigma", "class_cond", "use_scale_shift_norm",
    "resblock_updown", "in_channels",
)  # fmt: skip
# What they do not, with the value that both repositories' scripts take if a flag is left out.
FLAGS: dict[str, Any] = {
    "image_size": 64,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": None,  # the repositories differ: True in improved-diffusion, False in guided-diffusion
    "predict_xstart": False,
}
# No part in what the network computes, or read off the tensors: flags of both repositories and of those after them.
IGNORED = re.compile(
    r"channel_mult|dropout|use_fp16|use_checkpoint|use_kl|rescale_learned_sigmas|sigma_small"
    r"|timestep_respacing|schedule_sampler|out_channels|channels|type|var_type|model_var_type|resamp_with_conv|dataset"
    r"|category|rescaled|\w*dequantization|logit_transform|random_flip|num_workers|out_of_dist|subset_1k|classifier_\w+"
    r"|\w*_path|name|latex_name|method_name|clip_denoised|use_ddim|num_samples|batch_size|microbatch|lr|lr_anneal_steps"
    r"|weight_decay|ema_rate|log_interval|save_interval|resume_checkpoint|fp16_scale_growth|data_dir|show_progress|n_jobs"
    r"|lr_kernel_n_std|inpa_\w+|print_estimated_vars"
)
# What changes the network in a way that is not implemented, unless it has this value.
ONLY = {
    "num_heads_upsample": None,
    "conv_resample": True,
    "dims": 2,
    "use_spatial_transformer": False,
    "context_dim": None,
}
IMPROVED = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True, "num_heads": 4}
LINEAR = {"diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": False}
LSUN_IMPROVED = {**LINEAR, "image_size": 256, "num_heads": 1}
GUIDED = {**LINEAR, "num_head_channels": 64}
# The flags of the published files, by the files' names, from the README of both repositories.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10_uncond_50M_500K": {**IMPROVED, "image_size": 32},
    "cifar10_uncond_vlb_50M_500K": {**IMPROVED, "image_size": 32},
    "imagenet64_uncond_100M_1500K": {**IMPROVED, "image_size": 64},
    "imagenet64_uncond_vlb_100M_1500K": {**IMPROVED, "image_size": 64},
    "imagenet64_cond_270M_250K": {**IMPROVED, "image_size": 64, "rescale_timesteps": False},
    "lsun_uncond_100M_1200K_bs128": LSUN_IMPROVED,
    "lsun_uncond_100M_2400K_bs64": LSUN_IMPROVED,
    "64x64_diffusion": {**GUIDED, "image_size": 64, "noise_schedule": "cosine", "use_new_attention_order": True},
    "128x128_diffusion": {**LINEAR, "image_size": 128, "num_heads": 4},
    "256x256_diffusion": {**GUIDED, "image_size": 256},
    "256x256_diffusion_uncond": {**GUIDED, "image_size": 256},
    "512x512_diffusion": {**GUIDED, "image_size": 512},
    "lsun_bedroom": {**GUIDED, "image_size": 256},
    "lsun_cat": {**GUIDED, "image_size": 256},
    "lsun_horse": {**GUIDED, "image_size": 256},
    "lsun_horse_nodropout": {**GUIDED, "image_size": 256},
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def read(state: Mapping[str, Tensor], said: Said = NOTHING_SAID, name: str = "the checkpoint") -> Checkpoint:
    """Reads a state dict. What was said holds flags of OpenAI's scripts, or what others call the same.

    Without it, a published file is known by its `name`. Raises `FileError` where neither tells, or it does not fit.
    """
    guesses: list[str] = []
    config = said.config
    if config is None:
        if name not in PRESETS:
            raise FileError(
                f"{name} does not tell its heads, schedule and image size",
                hint=f"add --config NAME, or FILE with OpenAI's flags; names: {', '.join(PRESETS)}",
            )
        config = PRESETS[name]
        guesses.append(f"heads, schedule and image size are those published for {name}, by the file's name")
    flags, told = read_flags(config, said)
    guesses += told
    layout = Layout(state, name)
    for field in DECIDED:
        if field in flags and flags[field] != layout.flag(field):
            raise FileError(
                f"{name} does not fit its configuration: {field} is {layout.flag(field)}, not {flags[field]}"
            )
    _check_attention(flags, layout, name)
    fields = layout.fields()
    head_dim = _heads(flags, layout, name)
    attended = {i for i, has in enumerate(layout.attention) if has} | {layout.levels - 1}
    same = {head_dim[i] for i in attended}
    fields["attention_head_dim"] = same.pop() if len(same) == 1 else [max(d, 1) for d in head_dim]
    fields["sample_size"] = flags["image_size"]
    made = _scheduler(flags, said)
    renamed: dict[str, Tensor] = {}
    for key, w in state.items():
        for new, part in layout.convert(key, w, head_dim, new_order=flags["use_new_attention_order"]):
            renamed[new] = part
    scaled = f", labels scaled by {made.label_scale:g}" if made.label_scale != 1 else ""
    notes = [f"schedule: {flags['noise_schedule']}, T = {made.schedule.T}{scaled}"]
    return Checkpoint(
        UNetConfig.from_dict(fields), renamed, made.schedule, made.prediction, made.label_scale, notes, guesses
    )


def _check_attention(flags: Mapping[str, Any], layout: Layout, name: str) -> None:
    """Raises `FileError` if the attention would not be at the sizes that the configuration says: is its image size wrong?"""
    if "attention_resolutions" not in flags or not isinstance(flags["image_size"], int):
        return
    sizes = [int(v) for v in re.findall(r"\d+", str(flags["attention_resolutions"])) if int(v)]
    halvings = {flags["image_size"] // v for v in sizes}
    if [1 << i in halvings for i in range(layout.levels)] != layout.attention:
        at = (
            ", ".join(str(flags["image_size"] >> i) for i, has in enumerate(layout.attention) if has) or "no resolution"
        )
        raise FileError(
            f"{name} does not fit its configuration: its attention is at {at} of {flags['image_size']} pixels, "
            f"not at {flags['attention_resolutions']}"
        )


def _heads(flags: Mapping[str, Any], layout: Layout, name: str) -> list[int]:
    """The channels of a head at each resolution. Raises `FileError` where the heads do not divide the channels."""
    heads, width, channels = flags["num_heads"], flags["num_head_channels"], layout.channels
    head_dim = [width if width > 0 else c // heads for c in channels]
    attended = {i for i, has in enumerate(layout.attention) if has} | {len(channels) - 1}
    if any(head_dim[i] < 1 or channels[i] % head_dim[i] for i in attended):
        raise FileError(f"{name} does not fit its configuration: its heads do not divide {channels} channels")
    return head_dim


def _scheduler(flags: Mapping[str, Any], said: Said) -> scheduler.Scheduler:
    """Theirs: linear β keep the total noise whatever T is, unless the configuration says where they begin and end."""
    T = flags["diffusion_steps"]
    stretch = 1000 / T if T > 0 else 1.0
    fields: dict[str, Any] = {
        "num_train_timesteps": T,
        "beta_schedule": flags["noise_schedule"],
        "beta_start": flags.get("beta_start", stretch * 1e-4),
        "beta_end": flags.get("beta_end", stretch * 0.02),
        "prediction_type": flags["prediction"],
    }
    if flags["rescale_timesteps"] and T != 1000:
        fields["label_scale"] = 1000 / T
    return scheduler.read({**fields, **(said.schedule or {})})


def read_flags(config: Mapping[str, Any], said: Said = NOTHING_SAID) -> tuple[dict[str, Any], list[str]]:
    """The flags, checked, with defaults for those left out; and what to say of others."""
    known = (*FLAGS, *DECIDED, *ONLY, "attention_resolutions", *scheduler.IN_CONFIGS)
    given, others = configs.flat(config, known)
    told = configs.told([k for k in others if not IGNORED.fullmatch(k)])
    if "image_size" not in given:
        raise FileError("the configuration lacks image_size", hint="it cannot be told from the weights")
    for theirs, ours in (("num_diffusion_timesteps", "diffusion_steps"), ("beta_schedule", "noise_schedule")):
        if theirs in given:
            given.setdefault(ours, given.pop(theirs))
    schedule = said.schedule or {}
    unsaid = [k for k in ("noise_schedule", "diffusion_steps") if k not in given]
    if unsaid and not schedule:
        told.append(f"{' and '.join(unsaid)}: what OpenAI's scripts take, as the configuration does not say")
    flags = {**given, **{k: given.get(k, default) for k, default in FLAGS.items()}}
    for field in ("image_size", "num_heads", "num_head_channels", "diffusion_steps"):
        if not isinstance(flags[field], int) or isinstance(flags[field], bool) or not -1 <= flags[field] <= 100_000:
            raise FileError(f"the configuration's {field} = {flags[field]!r} makes no sense")
    if flags["num_heads"] < 1:
        raise FileError(f"the configuration's num_heads = {flags['num_heads']} makes no sense")
    if given.get("num_heads_upsample", -1) not in (-1, None, flags["num_heads"]):
        raise FileError("other heads on the way up (num_heads_upsample) are not implemented")
    for field, only in ONLY.items():
        if field != "num_heads_upsample" and given.get(field, only) != only:
            raise FileError(f"networks with {field} = {given[field]!r} are not implemented")
    if flags["rescale_timesteps"] is None:
        if flags["diffusion_steps"] != 1000 and "num_train_timesteps" not in schedule and not said.guess:
            raise FileError(
                "the configuration must say rescale_timesteps, as diffusion_steps is not 1000",
                hint="improved-diffusion's scripts default to true, guided-diffusion's to false; --guess takes true",
            )
        flags["rescale_timesteps"] = flags["diffusion_steps"] != 1000 and said.guess
        told += (
            ["rescale_timesteps: true, as improved-diffusion's scripts have it"] if flags["rescale_timesteps"] else []
        )
    for field in ("use_new_attention_order", "rescale_timesteps", "predict_xstart"):
        if not isinstance(flags[field], bool):
            raise FileError(f"the configuration's {field} = {flags[field]!r} is neither true nor false")
    said_of_it = (given[k] for k in ("prediction_type", "model_mean_type", "parameterization") if k in given)
    flags["prediction"] = next(said_of_it, "sample" if flags["predict_xstart"] else "epsilon")
    return flags, told


class Layout:
    """Where in the U-Net each of the numbered blocks belongs, read off the tensors' names and shapes."""

    def __init__(self, state: Mapping[str, Tensor], name: str):
        self.state, self.name = state, name
        ins, outs = self._count("input_blocks"), self._count("output_blocks")
        # A block of the up path that ends a resolution has an upsampling: a convolution, or a second residual block.
        self.ends = [k for k in range(outs) if self._upsampling(k)]
        self.levels = len(self.ends) + 1
        self.updown = any(self._upsampling(k) in ((1, True), (2, True)) for k in self.ends)
        self.layers = outs // self.levels - 1
        if self.layers < 1 or outs != self.levels * (self.layers + 1) or ins != self.levels * (self.layers + 1):
            raise FileError(
                f"{name} has {ins} blocks down, {outs} up and {self.levels} resolutions, which do not fit together",
                hint="networks that resample without a convolution (conv_resample) are not implemented",
            )
        self.channels = [
            self._width(f"input_blocks.{self._first(i)}.0.out_layers.3.weight") for i in range(self.levels)
        ]
        self.attention = [f"input_blocks.{self._first(i)}.1.qkv.weight" in state for i in range(self.levels)]
        # Their model_channels: the sinusoid's width. The first resolution may have half of it, as with 512 pixels.
        self.model_channels = self._tensor("time_embed.0.weight").shape[1]

    def _count(self, part: str) -> int:
        return len({m[1] for k in self.state if (m := re.match(rf"{part}\.(\d+)\.", k))})

    def _upsampling(self, k: int) -> tuple[int, bool] | None:
        """The upsampling in output block k: (its index in the block, whether it is a residual block)."""
        for i in (1, 2):
            if f"output_blocks.{k}.{i}.conv.weight" in self.state:
                return i, False
            if f"output_blocks.{k}.{i}.in_layers.0.weight" in self.state:
                return i, True
        return None

    def _first(self, level: int) -> int:
        """The input block with a resolution's first residual block: block 0 is the first convolution."""
        return 1 + level * (self.layers + 1)

    def _width(self, key: str) -> int:
        return self._tensor(key).shape[0]

    def _tensor(self, key: str) -> Tensor:
        """A convolution's, a linear layer's or an embedding's weight."""
        if key not in self.state:
            raise FileError(f"{self.name} lacks a tensor of OpenAI's U-Net: {key}")
        if self.state[key].ndim < 2:
            raise FileError(f"{self.name} does not fit OpenAI's U-Net: {key} has shape {tuple(self.state[key].shape)}")
        return self.state[key]

    def flag(self, field: str) -> Any:
        """The value of one of `DECIDED`."""
        out, into = self._width("out.2.weight"), self._tensor("input_blocks.0.0.weight").shape[1]
        return {
            "num_channels": self.model_channels,
            "model_channels": self.model_channels,
            "in_channels": into,
            "num_res_blocks": self.layers,
            "learn_sigma": out == 2 * into,
            "class_cond": "label_emb.weight" in self.state,
            "use_scale_shift_norm": self._width("input_blocks.1.0.emb_layers.1.weight") == 2 * self.channels[0],
            "resblock_updown": self.updown,
        }[field]

    def fields(self) -> dict[str, Any]:
        """The network's fields that the tensors give."""
        kind = "resnet" if self.updown else "conv"

        def block(i: int, side: str) -> str:
            word = side if not self.updown or self.attention[i] else side + "sample"
            prefix = "Attn" if self.attention[i] else "Resnet" if self.updown else ""
            return f"{prefix}{word}Block2D"

        return {
            "in_channels": self._tensor("input_blocks.0.0.weight").shape[1],
            "out_channels": self._width("out.2.weight"),
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "down_block_types": [block(i, "Down") for i in range(self.levels)],
            "up_block_types": [block(i, "Up") for i in reversed(range(self.levels))],
            "downsample_type": kind,
            "upsample_type": kind,
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "attn_norm_num_groups": 32,
            "resnet_time_scale_shift": "scale_shift" if self.flag("use_scale_shift_norm") else "default",
            "time_embedding_dim": self._width("time_embed.0.weight"),
            "sinusoid_channels": self.model_channels,
            "num_class_embeds": self._width("label_emb.weight") if self.flag("class_cond") else None,
            "add_attention": "middle_block.1.qkv.weight" in self.state,
        }

    def convert(self, key: str, w: Tensor, head_dim: list[int], *, new_order: bool) -> list[tuple[str, Tensor]]:
        """The tensor, or its three parts, under diffusers' names."""
        stem, _, leaf = key.rpartition(".")
        if stem in NAMES:
            return [(f"{NAMES[stem]}.{leaf}", w)]
        m = re.fullmatch(r"(input_blocks|output_blocks)\.(\d{1,4})\.(\d{1,4})\.(.+)", stem)
        middle = re.fullmatch(r"middle_block\.(\d)\.(.+)", stem)
        if middle:
            level, part = self.levels - 1, int(middle[1])
            where, rest = f"mid_block.{'attentions' if part == 1 else 'resnets'}.{part // 2}", middle[2]
        elif m:
            k, part, rest = int(m[2]), int(m[3]), m[4]
            down = m[1] == "input_blocks"
            level, j = divmod(k - 1 if down else k, self.layers + 1)
            side = "down" if down else "up"
            upsampling = None if down else self._upsampling(k)
            if (down and j == self.layers) or (upsampling and upsampling[0] == part):
                where = f"{side}_blocks.{level}.{side}samplers.0"
            else:
                where = f"{side}_blocks.{level}.{'attentions' if part else 'resnets'}.{j}"
            if not down:
                level = self.levels - 1 - level
        else:
            raise FileError(f"{self.name} has a tensor that OpenAI's U-Net does not: {key}")
        if not 0 <= level < self.levels:
            raise FileError(f"{self.name} has a tensor that OpenAI's U-Net does not: {key}")
        if rest in ("op", "conv"):
            return [(f"{where}.conv.{leaf}", w)]
        if rest in RESNET:
            return [(f"{where}.{RESNET[rest]}.{leaf}", w)]
        if rest == "norm":
            return [(f"{where}.group_norm.{leaf}", w)]
        if rest == "proj_out":
            return [(f"{where}.to_out.0.{leaf}", _linear(w))]
        if rest == "qkv":
            parts = split_qkv(_linear(w), head_dim[level], new_order)
            return [(f"{where}.to_{c}.{leaf}", p) for c, p in zip("qkv", parts, strict=True)]
        raise FileError(f"{self.name} has a tensor that OpenAI's U-Net does not: {key}")


def split_qkv(w: Tensor, head_dim: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v from one tensor of 3·C rows: all q, all k, all v in the new order; in the old, those of each head."""
    rows = w.shape[0] if w.ndim else 0
    if not rows or head_dim < 1 or rows % (3 * head_dim):
        raise FileError(f"heads of {head_dim} channels do not fit {rows} rows of q, k and v")
    if new_order:
        q, k, v = w.chunk(3)
    else:
        q, k, v = (part.flatten(0, 1) for part in w.unflatten(0, (-1, 3, head_dim)).unbind(1))
    return q, k, v


def _linear(w: Tensor) -> Tensor:
    """A 1×1 convolution's weight as a linear layer's."""
    return w.flatten(1) if w.ndim > 1 else w
