"""The model card: what a model is, what it was trained on and how, how well it does, and how to use it.

`write` puts a card together from a `Trainer`; `round_trip` measures the one table in it that costs time.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ddimctl import model, roundtrip
from ddimctl.checkpoints.diffusers import HELD_OUT_FOLDER
from ddimctl.families.pixel import from_checkpoint
from ddimctl.model import Model
from ddimctl.ode import DEFAULT_BATCH, Progress
from ddimctl.recipe import Way
from ddimctl.roundtrip import RoundTrip
from ddimctl.schedule import Schedule
from ddimctl.training import settings as kinds
from ddimctl.training import tokens
from ddimctl.training.data import signed
from ddimctl.training.loop import N_HELD_OUT_FILES, Trainer
from ddimctl.training.pixel import Pixel
from ddimctl.training.settings import AutoencoderSettings, Settings, TextSettings, UNetSettings

SAMPLES = "samples.png"
# The paper's way, and ours.
ROUND_TRIPS = [Way(*pair, s) for pair in (("ddim", "linear"), ("ab2", "karras")) for s in (10, 20, 50, 100)]
TITLES = ("Data", "Training", "Round trip", "Use")  # of the sections written here
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
    latent: str = ""  # the folder of the autoencoder
    start: str = ""  # the model whose weights it began with
    fit: tuple[str, ...] = ()  # the words that made the images fit, where the defaults did not


def round_trip(model: Model, images: Tensor, *, progress: Progress = iter) -> list[RoundTrip]:
    """Encodes and decodes `images` (N, C, H, W) in [−1, 1] in every way of the card's table."""
    return roundtrip.measure(model, images.split(DEFAULT_BATCH), ROUND_TRIPS, progress=progress)


def measure(trainer: Trainer, *, progress: Progress = iter) -> list[RoundTrip]:
    """`round_trip` of a network of pixels, over the held-out images that it shows; of others nothing."""
    task = trainer.task
    if not isinstance(task, Pixel):
        return []
    about = model.About(trainer.folder.name)
    net = from_checkpoint(task.checkpoint(trainer.average.module), about, device=str(task.device))
    return round_trip(net, signed(task.data.held_out[:N_HELD_OUT_FILES]).double(), progress=progress)


def round_trip_steps() -> int:
    """How many steps `round_trip` takes for a batch, so that a progress bar knows."""
    return roundtrip.steps(ROUND_TRIPS, ())


def write(trainer: Trainer, about: About, held_out_loss: float | None, *, measured: Sequence[RoundTrip] = ()) -> str:
    """The card, in Markdown. What has not been measured is left out; sections that were added to the last one are kept."""
    s = trainer.settings
    name = trainer.folder.resolve().name
    data = trainer.task.data
    story = STORIES[kinds.kind_of(s)]
    shown = min(len(data.held_out), N_HELD_OUT_FILES)
    warning = f" {data.shared} of them are equal, pixel by pixel, to an image trained on." if data.shared else ""
    facts = _facts(trainer) | ({story.held_out: story.figure(held_out_loss)} if held_out_loss is not None else {})
    parts = [
        _front_matter(about.license, story.tag),
        f"# {name}",
        f"{story.opening(s)} Trained {_beginning(about)} on {about.data_name} with ddimctl, in diffusers' layout.",
    ]
    if trainer.step < s.steps:
        parts.append(f"**Unfinished: step {trainer.step:,} of {s.steps:,}.** `ddimctl train … --resume` continues.")
    if (trainer.folder / SAMPLES).is_file():
        parts.append(f"![Samples]({SAMPLES})\n\n{story.samples(trainer)}")
    parts += [
        "## Data",
        f"- Trained on {about.data_name}: {len(data.images):,} images (`{about.images}`; SHA-256 of the pixels "
        f"{'and captions ' if data.captions else ''}`{trainer.data_digest}`).\n"
        f"- Licence of the images: {about.license}. It covers those in `{HELD_OUT_FOLDER}/` too.\n"
        f"- Held out: {len(data.held_out):,} images (`{about.held_out}`), never trained on.{warning} "
        f"The first {shown} are in `{HELD_OUT_FOLDER}/`{', with their captions' if data.captions else ''}.",
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
    return "\n\n".join(parts + _added(trainer.folder / "README.md") + ["## Use", *story.use(trainer, name)]) + "\n"


def _facts(trainer: Trainer) -> dict[str, str]:
    """How it was trained, a line a fact."""
    s, n = trainer.settings, len(trainer.task.data.images)
    seen = trainer.step * s.batch
    facts = {
        "Network": _architecture(s),
        "Parameters": f"{sum(p.numel() for p in trainer.task.network.parameters()):,}",
        "Objective": _objective(s),
        "Images seen": f"{seen:,} ({trainer.step:,} steps of {s.batch}; {seen / n:.1f} passes)",
        "Optimiser": f"AdamW, peak learning rate {s.lr:g}, {s.warmup} steps of warm-up, cosine decay to 0; "
        f"weight decay {s.weight_decay:g}, gradient norm at most {s.clip:g}",
        "Weights published": f"exponential moving average, decay {s.ema:g}",
        "Augmentation": _augmentation(s),
    }
    if isinstance(s, UNetSettings):
        facts["Dropout"] = f"{s.dropout:g}"
    return facts | {
        "Arithmetic": "bfloat16 autocast in training, float32 weights" if s.bf16 else "float32",
        "Seed": str(s.seed),
    }


def _architecture(s: Settings) -> str:
    channels = f"channels {_list(s.block_channels)}, {s.layers} residual block(s) each"
    if isinstance(s, AutoencoderSettings):
        height, width = (side >> len(s.block_channels) - 1 for side in s.size)
        return f"AutoencoderKL, {channels}, no attention; latents {height} × {width} × {s.latent_channels}"
    assert isinstance(s, UNetSettings)
    height, width = s.state_size
    attention = ", ".join(f"{height >> i} × {width >> i}" for i in sorted(s.attention)) or "the middle block only"
    text = ""
    if isinstance(s, TextSettings):
        text = (
            f"; a CLIP text encoder of {s.text_layers} layers, width {s.text_width}, {s.words} words, trained with it"
        )
    return f"U-Net, {channels}, attention at {attention}{text}"


def _objective(s: Settings) -> str:
    if isinstance(s, AutoencoderSettings):
        return f"|x − y| + |x − y|² + ½ |∇x − ∇y|, and {s.kl:g} nats a dimension"
    alpha = Schedule.linear().alpha
    betas = f"{1 - alpha[1]:.3g} to {1 - alpha[-1] / alpha[-2]:.3g}"
    weight = f", weighted by 1 + min(σ², {s.balance:g})" if isinstance(s, UNetSettings) and s.balance else ""
    dropped = f"; {s.drop:.0%} of the captions dropped" if isinstance(s, TextSettings) else ""
    return f"ε (epsilon), T = {len(alpha) - 1}, linear β from {betas}{weight}{dropped}"


def _augmentation(s: Settings) -> str:
    done = ["mirrored at random"] if s.flip else []
    done += ["half of the images with hues turned or channels permuted"] if getattr(s, "hue", False) else []
    return "; ".join(done) or "none"


def _beginning(about: About) -> str:
    return f"from the weights of `{about.start}`" if about.start else "from scratch"


@dataclass(frozen=True)
class Story:
    """What the card of one kind of model says that no other does."""

    tag: str
    held_out: str  # the name of the held-out loss
    figure: Callable[[float], str]
    opening: Callable[[Any], str]
    samples: Callable[[Any], str]
    use: Callable[[Any, str], list[str]]


def _kind(s: Settings) -> str:
    return f"{s.size[0]} × {s.size[1]} " + {1: "grey", 3: "colour"}.get(s.channels, f"{s.channels}-channel")


def _epsilon(loss: float) -> str:
    return f"{loss:.4f} (mean squared error of ε over all noise levels, averaged weights)"


def _weighted(loss: float) -> str:
    return f"{loss:.4f} (mean squared error of ε over all noise levels, weighted as in training, averaged weights)"


def _use_pixels(trainer: Trainer, name: str) -> list[str]:
    quoted = shlex.quote(name)
    return [
        f"```sh\nddimctl reconstruct -m {quoted}\nddimctl encode image.png -o latent.pt -m {quoted}\n```",
        "```python\n"
        "from diffusers import DDIMPipeline\n\n"
        f"pipeline = DDIMPipeline.from_pretrained({json.dumps(name)})\n"
        "image = pipeline(num_inference_steps=50).images[0]\n"
        "```",
        "It draws what its training images show, at their size, and nothing else; it has no notion of text or classes.",
    ]


def _use_text(trainer: Trainer, name: str) -> list[str]:
    counts = Counter(w for c in trainer.task.data.captions for w in tokens.words(c))
    known = ", ".join(w for w, n in counts.most_common(150) if n > 1)
    prompt = trainer.task.data.held_out_captions[0]
    return [
        "```python\n"
        "from diffusers import StableDiffusionPipeline\n\n"
        f"pipeline = StableDiffusionPipeline.from_pretrained({json.dumps(name)})\n"
        f"image = pipeline({json.dumps(prompt)}, num_inference_steps=50, guidance_scale=3.0).images[0]\n"
        "```",
        f"The words it was trained on most often, in this order: {known}. Others say little or nothing to it.",
    ]


def _use_autoencoder(trainer: Trainer, name: str) -> list[str]:
    return [
        f"```sh\nddimctl train captioned-images/ -o my-model --latent {shlex.quote(name)}\n```",
        "```python\n"
        "from diffusers import AutoencoderKL\n\n"
        f'autoencoder = AutoencoderKL.from_pretrained({json.dumps(name)}, subfolder="vae")\n'
        "```",
    ]


def _prompts(trainer: Trainer) -> str:
    captions = list(dict.fromkeys(trainer.task.data.held_out_captions))[:16]
    return (
        "Four images of each of these held-out captions, row by row, not selected, guidance 3, 20 steps of ab2: "
        + "; ".join(f"*{c}*" for c in captions) + "."
    )  # fmt: skip


STORIES = {
    "pixel": Story(
        "unconditional-image-generation",
        "Held-out ε-loss",
        _epsilon,
        lambda s: (
            f"A diffusion model of {_kind(s)} images, for DDIM: encode images into latents x_T, decode, "
            "interpolate, sample."
        ),
        lambda trainer: "Images from noise, not selected: 20 steps of ab2, karras spacing.",
        _use_pixels,
    ),
    "text": Story(
        "text-to-image",
        "Held-out ε-loss",
        _weighted,
        lambda s: f"A diffusion model of {_kind(s)} images that listens to prompts.",
        _prompts,
        _use_text,
    ),
    "autoencoder": Story(
        "image-to-image",
        "Held-out error",
        lambda loss: f"{-10 * math.log10(loss):.1f} dB (mean squared error {loss:.2e}, pixels in [0, 1])",
        lambda s: f"An autoencoder of {_kind(s)} images, for diffusion in its latent space.",
        lambda trainer: "Held-out images, each beside what comes back of it.",
        _use_autoencoder,
    ),
}


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


def command(s: Settings, about: About, name: str) -> str:
    """The command line that makes this run, with every setting that is not the default."""
    default = {f.name: f.default for f in fields(s)}
    line = ["ddimctl", "train", about.images, "--held-out", about.held_out, "-o", name]
    line += ["--autoencoder"] if isinstance(s, AutoencoderSettings) else []
    line += (["--latent", about.latent] if about.latent else ["--captions"]) if isinstance(s, TextSettings) else []
    line += ["--start", about.start] if about.start else []
    line += about.fit
    line += [w for f in ("size", "channels") for w in kinds.words(s, f)]
    for field, value in default.items():
        if field not in ("size", "channels") and getattr(s, field) != value:
            line += kinds.words(s, field)
    line += ["--data-name", about.data_name, "--license", about.license]
    return shlex.join(line)


def _table(measured: Sequence[RoundTrip]) -> str:
    ways = list(dict.fromkeys((m.way.solver, m.way.spacing) for m in measured))
    error = {(m.way.solver, m.way.spacing, m.way.steps): m.total("mse") for m in measured}
    lines = [
        f"| S | {' | '.join(f'{solver}, {spacing}' for solver, spacing in ways)} |",
        "|---" * (len(ways) + 1) + "|",
    ]
    for steps in dict.fromkeys(m.way.steps for m in measured):
        lines.append(f"| {steps} | {' | '.join(f'{error[(*way, steps)]:.1e}' for way in ways)} |")
    return "\n".join(lines)


def _front_matter(license_: str, tag: str) -> str:
    """What model hubs read."""
    known = license_.lower() if license_.lower() in HUB_LICENSES else "other"
    return f"---\nlicense: {known}\nlibrary_name: diffusers\npipeline_tag: {tag}\ntags: [ddim]\n---"


def _list(values: Iterable[int], separator: str = ", ") -> str:
    return separator.join(map(str, values))
