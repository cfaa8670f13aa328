"""Stable Diffusion 1.5 at its full size, with random weights: python benchmarks/full_size.py [--small] [--folder DIR].

The published configurations are made here and filled with random numbers: U-Net 860 million parameters, autoencoder 84,
text encoder 123. Then one image of 512 × 512 is encoded and decoded in two steps each way, by diffusers' own pieces
(DDIMInverseScheduler, DDIMScheduler) and by ddimctl, one after the other, each in a process of its own, with as many
threads. Told are seconds of processors, on which other work on the machine weighs least, and the peak of memory, both
relative to the run of diffusers; OpenVINO's first run converts.
The table in docs/stable-diffusion.md is replaced, so it never shows a figure that this did not measure. `--small` runs
all of it in a minute, with a small network of the same kind, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "stable-diffusion.md"
PROMPT = "a photograph of a red dog"
STEPS = 2
BETAS = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False,
    "clip_sample": False, "timestep_spacing": "trailing",
}  # fmt: skip
# What is told of each run, and how it is made.
RUNS = {
    "diffusers": ("theirs", ""),
    "torch": ("ours", "torch"),
    "openvino, converting": ("ours", "openvino"),
    "openvino": ("ours", "openvino"),
}


def write(folder: Path, *, small: bool) -> None:
    """The model, as diffusers writes it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ddimctl.training import tokens

    torch.manual_seed(0)
    tokens.write(folder / "tokenizer", tokens.learn([PROMPT]), 77)
    words: Any = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    widths, deep = ((32, 64), 2) if small else ((320, 640, 1280, 1280), 4)
    down = ("CrossAttnDownBlock2D",) * (deep - 1) + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (deep - 1)
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=2,
        down_block_types=down, up_block_types=up, cross_attention_dim=768, attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=512, layers_per_block=2, scaling_factor=0.18215,
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=2 if small else 12,
            num_attention_heads=12, max_position_embeddings=77, eos_token_id=words.eos_token_id,
        )
    )  # fmt: skip
    StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=text, tokenizer=words, scheduler=DDIMScheduler(**BETAS), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def picture() -> Any:
    """(1, 3, 512, 512) in [−1, 1]: waves of a few lengths."""
    import torch

    line = torch.linspace(-1, 1, 512)
    waves = [torch.sin(k * line)[None] * torch.cos((9 - k) * line)[:, None] for k in (3, 4, 7)]
    return torch.stack(waves)[None]


def theirs(folder: Path, engine: str) -> tuple[Callable[[], Any], Any]:
    """diffusers' own pieces, as its users put them together."""
    import torch
    from diffusers import AutoencoderKL, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True).eval()
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).eval()
    text: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    words: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    inverse, scheduler = DDIMInverseScheduler(**BETAS), DDIMScheduler(**BETAS)
    images = picture()

    def work() -> Any:
        with torch.inference_mode():
            ids = words(PROMPT, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            heard, scale = text(ids)[0], vae.config.scaling_factor
            x = vae.encode(images).latent_dist.mean * scale
            for steps in (inverse, scheduler):
                steps.set_timesteps(STEPS)
                for t in steps.timesteps:
                    x = steps.step(unet(x, t, heard).sample, t, x).prev_sample
            return vae.decode(x / scale).sample

    return work, images


def ours(folder: Path, engine: str) -> tuple[Callable[[], Any], Any]:
    """ddimctl, as a library; its engine is made, and what it says of itself hashed, as by the command line."""
    from ddimctl import engines, ode
    from ddimctl.families import load
    from ddimctl.families.halves import evaluated
    from ddimctl.model import Condition
    from ddimctl.recipe import Recipe, Way

    model = load(str(folder), "cpu")
    model = model.with_network(engines.make(model.network.module, engine))
    model = replace(model, autoencoder=evaluated(model, engine))
    way, condition = Way("ddim", "trailing", STEPS), Condition(prompt=PROMPT)
    Recipe.of(model, way, condition)
    images = picture()

    def work() -> Any:
        xT = ode.encode(model, images, way, condition).x.float()
        return ode.decode(model, xT, way, condition).x

    return work, images


def one(who: str, folder: Path, engine: str) -> None:
    """A run, in this process; what it took goes to stdout."""
    begin = time.process_time()
    work, images = {"theirs": theirs, "ours": ours}[who](folder, engine)
    loaded = time.process_time()
    back = work()
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    mse = float((((back.double() - images.double()) / 2) ** 2).mean())
    print(
        json.dumps({"loading": loaded - begin, "work": done - loaded, "whole": done - begin, "peak": peak, "mse": mse})
    )


def measured(command: list[str], env: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--small", action="store_true", help="a small network, to see that it runs; writes nothing")
    parser.add_argument("--folder", type=Path, help="where the model and the cache are, or will be")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), help="these runs alone; writes nothing")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "FOLDER", "ENGINE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        one(asked.one[0], Path(asked.one[1]), asked.one[2])
        return
    from pages import put, table

    from ddimctl import bench
    from ddimctl.engines import processors

    with tempfile.TemporaryDirectory() as place:
        top = asked.folder or Path(place)
        model = top / "model"
        if not model.is_dir():
            command = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import full_size, pathlib; "
            command += f"full_size.write(pathlib.Path({str(model)!r}), small={asked.small})"
            subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True)
        env = {**os.environ, "XDG_CACHE_HOME": str(top / "cache")}
        found = {}
        for name, (who, engine) in RUNS.items():
            if asked.only and name not in asked.only:
                continue
            command_line = [sys.executable, str(Path(__file__).resolve()), "--one", who, str(model), engine]
            found[name] = measured(command_line, env)
            print(name, json.dumps(found[name]), flush=True)
    if asked.only:
        return
    lines, first = [], found["diffusers"]
    for name, r in found.items():
        times = [f"{r[k]:.0f} s" for k in ("loading", "work", "whole")]
        more = f"{r['whole'] / first['whole']:.2f}", f"{r['peak'] / 2**30:.1f} GiB", f"{r['peak'] / first['peak']:.2f}"
        lines.append([name, *times, *more])
    heads = ["", "loading", "there and back", "together", "× diffusers", "peak of memory", "× diffusers"]
    machine = f"{bench.processor()}, {processors.threads()} of them used"
    said = f"On {machine}; float32, 512 × 512, S = {STEPS} each way, guidance 1, each run once; seconds of processors:"
    text = f"{said}\n\n{table(heads, lines)}"
    print(text)
    if not asked.small:
        put(PAGE, __file__, text)


if __name__ == "__main__":
    main()
