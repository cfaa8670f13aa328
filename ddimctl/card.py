"""The model card: what a model is, what it was trained on and how, how well it does, and how to use it.

`write` puts a card together from a `Trainer`; `round_trip` measures the one table in it that costs time.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from ddimctl import ddim
from ddimctl.checkpoints.diffusers import HELD_OUT_FOLDER
from ddimctl.metrics import mse
from ddimctl.model import Model
from ddimctl.train import N_HELD_OUT_FILES, Settings, Trainer

SAMPLES = "samples.png"
ROUND_TRIPS = (("ddim", "linear"), ("ab2", "karras"))  # the paper's way, and ours
ROUND_TRIP_STEPS = (10, 20, 50, 100)
TITLES = ("Data", "Training", "Round trip", "Use")  # of the sections written here
# The options of `ddimctl train` that set a number of the same meaning in `Settings`.
OPTIONS = {
    "layers": "--layers", "groups": "--groups", "head_dim": "--head-dim", "dropout": "--dropout", "steps": "--steps",
    "batch": "--batch-size", "lr": "--lr", "warmup": "--warmup", "weight_decay": "--weight-decay", "ema": "--ema",
    "clip": "--clip", "seed": "--seed",
}  # fmt: skip
# Licences that model hubs know by these names.
HUB_LICENSES = {
    "mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "bsd-3-clause", "ofl-1.1", "openrail"
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What the caller knows about the images, and no tensor tells."""

    images: str  # the file or folder trained on, without its path
    held_out: str  # the same, or the fraction held out
    data_name: str
    license: str
    shared: int = 0  # held-out images that are, pixel by pixel, among the others as well


@dataclass(frozen=True)
class RoundTrip:
    """The mean error of encoding and decoding with S steps each way."""

    solver: str
    spacing: str
    steps: int
    mse: float  # per dimension, pixels in [0, 1]: the paper's table 2


def round_trip(model: Model, images: Tensor, progress: ddim.Progress = iter) -> list[RoundTrip]:
    """Encodes and decodes `images` (N, C, H, W) in [−1, 1] in every way of the card's table."""
    result = []
    for solver, spacing in ROUND_TRIPS:
        for steps in ROUND_TRIP_STEPS:
            path = model.schedule.path(steps, spacing)
            xT = ddim.encode(model, images, path, solver, progress=progress).x.float()  # what a latent file holds
            back = ddim.decode(model, xT, path, solver, progress=progress).x.cpu()
            result.append(RoundTrip(solver, spacing, steps, float(mse(images, back).mean())))
    return result


def round_trip_steps() -> int:
    """How many steps `round_trip` takes for a batch, so that a progress bar knows."""
    return 2 * len(ROUND_TRIPS) * sum(ROUND_TRIP_STEPS)


def write(trainer: Trainer, about: About, held_out_loss: float | None, measured: Sequence[RoundTrip] = ()) -> str:
    """The card, in Markdown. What has not been measured is left out; sections that were added to the last one are kept."""
    s, config = trainer.settings, trainer.network.config
    name = trainer.folder.resolve().name
    quoted = shlex.quote(name)
    height, width = s.size
    kind = {1: "grey", 3: "colour"}.get(s.channels, f"{s.channels}-channel")
    parameters = sum(p.numel() for p in trainer.network.parameters())
    seen, n = trainer.step * s.batch, len(trainer.data)
    attention = ", ".join(f"{height >> i} × {width >> i}" for i in sorted(s.attention)) or "the middle block only"
    shown = min(len(trainer.held_out), N_HELD_OUT_FILES)
    alpha = trainer.schedule.alpha
    betas = f"{1 - alpha[1]:.3g} to {1 - alpha[-1] / alpha[-2]:.3g}"
    facts = {
        "Network": f"U-Net, channels {_list(s.block_channels)}, {s.layers} residual block(s) each, attention at {attention}",
        "Parameters": f"{parameters:,}",
        "Objective": f"ε (epsilon), T = {trainer.schedule.T}, linear β from {betas}",
        "Images seen": f"{seen:,} ({trainer.step:,} steps of {s.batch}; {seen / n:.1f} passes)",
        "Optimiser": f"AdamW, peak learning rate {s.lr:g}, {s.warmup} steps of warm-up, cosine decay to 0; "
        f"weight decay {s.weight_decay:g}, gradient norm at most {s.clip:g}",
        "Weights published": f"exponential moving average, decay {s.ema:g}",
        "Augmentation": "mirrored at random" if s.flip else "none",
        "Dropout": f"{config.dropout:g}",
        "Arithmetic": "bfloat16 autocast in training, float32 weights" if s.bf16 else "float32",
        "Seed": str(s.seed),
    }
    if held_out_loss is not None:
        facts["Held-out ε-loss"] = (
            f"{held_out_loss:.4f} (mean squared error of ε over all noise levels, averaged weights)"
        )
    warning = f" {about.shared} of them are equal, pixel by pixel, to an image trained on." if about.shared else ""
    parts = [
        _front_matter(about.license),
        f"# {name}",
        f"A diffusion model of {height} × {width} {kind} images, for DDIM: encode images into latents x_T, decode, "
        f"interpolate, sample. Trained from scratch on {about.data_name} with ddimctl, in diffusers' layout.",
    ]
    if trainer.step < s.steps:
        parts.append(f"**Unfinished: step {trainer.step:,} of {s.steps:,}.** `ddimctl train … --resume` continues.")
    if (trainer.folder / SAMPLES).is_file():
        parts.append(f"![Samples]({SAMPLES})\n\nImages from noise, not selected: 20 steps of ab2, karras spacing.")
    parts += [
        "## Data",
        f"- Trained on {about.data_name}: {n:,} images (`{about.images}`; SHA-256 of the pixels "
        f"`{trainer.data_digest}`).\n"
        f"- Licence of the images: {about.license}. It covers those in `{HELD_OUT_FOLDER}/` too.\n"
        f"- Held out: {len(trainer.held_out):,} images (`{about.held_out}`), never trained on.{warning} "
        f"The first {shown} are in `{HELD_OUT_FOLDER}/`.",
        "## Training",
        "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in facts.items()),
        f"To train it again:\n\n```sh\n{command(s, about, name)}\n```",
    ]
    if measured:
        parts += [
            "## Round trip",
            f"Mean squared error per dimension, pixels in [0, 1], of the {shown} images in `{HELD_OUT_FOLDER}/`, encoded "
            "and decoded with S steps each way:",
            _table(measured),
        ]
    parts += _added(trainer.folder / "README.md")
    parts += [
        "## Use",
        f"```sh\nddimctl reconstruct -m {quoted}\nddimctl encode image.png -o latent.pt -m {quoted}\n```",
        "```python\n"
        "from diffusers import DDIMPipeline\n\n"
        f"pipeline = DDIMPipeline.from_pretrained({json.dumps(name)})\n"
        "image = pipeline(num_inference_steps=50).images[0]\n"
        "```",
        "It draws what its training images show, at their size, and nothing else; it has no notion of text or classes.",
    ]
    return "\n\n".join(parts) + "\n"


def _added(readme: Path) -> list[str]:
    """The sections that somebody added to the card that is there: those with a title that `write` does not use."""
    if not readme.is_file():
        return []
    sections: list[str] = []
    fenced = False
    for line in readme.read_text(encoding="utf-8", errors="replace").splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            sections.append(line)
        elif sections:
            sections[-1] += f"\n{line}"
    return [s.rstrip() for s in sections if s.split("\n")[0].removeprefix("## ").strip() not in TITLES]


def command(settings: Settings, about: About, name: str) -> str:
    """The command line that makes this run, with every setting that is not the default."""
    default = {f.name: f.default for f in fields(Settings)}
    height, width = settings.size
    words = ["ddimctl", "train", about.images, "--held-out", about.held_out, "-o", name]
    words += ["--size", str(height) if height == width else f"{height}x{width}"]
    words += ["--grey"] if settings.channels == 1 else []
    if settings.block_channels != default["block_channels"]:
        words += ["--channels", _list(settings.block_channels, ",")]
    if settings.attention != default["attention"]:
        words += ["--attention", _list(settings.attention, ",") or "none"]
    for field, option in OPTIONS.items():
        value = getattr(settings, field)
        words += [option, str(value)] if value != default[field] else []
    words += ["--flip"] if settings.flip else []
    words += ["--float32"] if not settings.bf16 else []
    words += ["--data-name", about.data_name, "--license", about.license]
    return shlex.join(words)


def _table(measured: Sequence[RoundTrip]) -> str:
    ways = list(dict.fromkeys((m.solver, m.spacing) for m in measured))
    error = {(m.solver, m.spacing, m.steps): m.mse for m in measured}
    lines = [
        f"| S | {' | '.join(f'{solver}, {spacing}' for solver, spacing in ways)} |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for steps in dict.fromkeys(m.steps for m in measured):
        lines.append(f"| {steps} | {' | '.join(f'{error[(*way, steps)]:.1e}' for way in ways)} |")
    return "\n".join(lines)


def _front_matter(license_: str) -> str:
    """What model hubs read."""
    known = license_.lower() if license_.lower() in HUB_LICENSES else "other"
    return f"---\nlicense: {known}\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\ntags: [ddim]\n---"


def _list(values: Iterable[int], separator: str = ", ") -> str:
    return separator.join(map(str, values))
