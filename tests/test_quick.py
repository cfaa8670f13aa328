"""Commands that print what they know: no torch, and soon done. A glance at a model's files says what loading it does."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from conftest import Result, isolated, write_tiny_model
from safetensors.torch import load_file, save_file

from ddimctl.checkpoints import NOTHING_SAID, Said, diffusers, formats, glance, told
from ddimctl.errors import FileError
from ddimctl.families import load, pixel
from ddimctl.unet import UNet2DModel, UNetConfig, shapes

Invoke = Callable[..., Result]
FIXTURES = Path(__file__).parent / "fixtures"
PRINT = """
import sys
from ddimctl.cli.app import main
sys.argv = ["ddimctl", *sys.argv[1:]]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("loaded:", *[m for m in ("torch", "numpy", "diffusers", "openvino") if m in sys.modules])
"""
LATENT = next((FIXTURES / "latents").glob("*.pt"))
# Words → how many times as long as `python -c pass` they may take. Measured: 8 (--version) to 37 times (info).
COMMANDS: dict[tuple[str, ...], int] = {
    ("--version",): 60,
    ("--help",): 60,
    ("models", "list"): 60,
    ("info", str(LATENT)): 90,
    ("info", str(FIXTURES / "models" / "grey")): 90,
    ("info", "fashion-mnist"): 90,
    ("models", "show", "emoji"): 90,
}


def timed(words: list[str], home: Path) -> tuple[float, str]:
    """The shortest of three runs, in seconds of the processor, and what it printed."""
    times = []
    for _ in range(3):
        begun = spent()
        done = subprocess.run(words, env=isolated(home), cwd=home, capture_output=True, text=True, check=False)
        times.append(spent() - begun)
        assert done.returncode == 0, done.stderr
    return min(times), done.stdout


def spent() -> float:
    """Seconds of the processor of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_is_known_needs_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    """The time is the processor's, beside that of Python itself, so that a busy machine changes little."""
    python, _ = timed([sys.executable, "-c", "pass"], tmp_path)
    seconds, out = timed([sys.executable, "-c", PRINT, *words], tmp_path)
    assert "torch" not in out.splitlines()[-1].removeprefix("loaded:").split()
    assert seconds < COMMANDS[words] * python


CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_class_embeds": 5, "layers_per_block": 3},
    {"add_attention": False},
    {"mid_block_type": None},
    {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None, "in_channels": 3, "out_channels": 6},
    {"time_embedding_dim": 40, "sinusoid_channels": 12, "attention_head_dim": None},
    {"down_block_types": ("ResnetDownsampleBlock2D",) * 3, "up_block_types": ("ResnetUpsampleBlock2D",) * 3,
     "block_out_channels": (8, 16, 24)},
    {"down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"), "downsample_type": "resnet",
     "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "upsample_type": "resnet",
     "block_out_channels": (16, 8, 24), "attention_head_dim": 5},
    {"down_block_types": ("DownBlock2D",), "up_block_types": ("AttnUpBlock2D",), "block_out_channels": (8,)},
]  # fmt: skip
BASE = {
    "sample_size": 16, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_shapes_are_the_networks(fields: dict[str, Any]) -> None:
    config = UNetConfig.from_dict({**BASE, **fields})
    with torch.device("meta"):
        network = UNet2DModel(config)
    assert shapes.weights(config) == {k: tuple(v.shape) for k, v in network.state_dict().items()}


def loaded(folder: Path, said: Said = NOTHING_SAID) -> tuple[Any, ...]:
    checkpoint = formats.read(folder, said)
    facts = pixel.make_module(checkpoint, folder.name).facts
    return (replace(checkpoint, weights={}), facts.digest, facts.parameters)


def seen(folder: Path, said: Said = NOTHING_SAID) -> tuple[Any, ...] | None:
    found = glance.look(folder, said)
    return None if found is None else (found[0], found[1].digest, found[1].parameters)


def shard(folder: Path) -> None:
    """The weights in two files with an index."""
    whole = folder / "unet/diffusion_pytorch_model.safetensors"
    state, table = load_file(whole), {}
    for i, names in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        file = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({k: state[k] for k in names}, whole.with_name(file))
        table |= dict.fromkeys(names, file)
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    whole.unlink()


def flatten(folder: Path) -> None:
    for path in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()):
        path.rename(folder / path.name)
    (folder / "model_index.json").unlink()


def average(folder: Path) -> None:
    (folder / "unet").rename(folder / "unet_ema")


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


PLAIN: dict[str, Callable[[Path], object]] = {
    "as written": lambda folder: None,
    "shards": shard,
    "flat": flatten,
    "unet_ema": average,
    "v": lambda folder: edit(folder, prediction_type="v_prediction"),
    "scaled labels": lambda folder: edit(folder, label_scale=0.25),
    "another name": lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(f / "unet/model.safetensors"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_glance_says_what_loading_does(kind: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", held_out=0)
    PLAIN[kind](folder)
    assert seen(folder) == loaded(folder)


def test_what_is_said_is_heeded(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", held_out=0)
    said = Said(schedule={"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"})
    assert seen(folder, said) == loaded(folder, said) != seen(folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileError, match="nobody says"):
        seen(folder)
    assert seen(folder, Said(guess=True)) == loaded(folder, Said(guess=True))


def halve(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({k: w.half() for k, w in load_file(path).items()}, path)


def pickle(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def wrap(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    save_file({f"module.{k}": w for k, w in load_file(path).items()}, path)


@pytest.mark.parametrize("change", [halve, pickle, wrap])
def test_what_is_not_plain_is_loaded(change: Callable[[Path], None], tmp_path: Path, invoke: Invoke) -> None:
    folder = write_tiny_model(tmp_path / "m", held_out=0)
    change(folder)
    assert seen(folder) is None
    record = json.loads(invoke("info", folder, "--json").ok().out)
    assert record["digest"] == load(str(folder), "cpu").digest


def cut(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def grow(folder: Path) -> None:
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers_per_block": 2}))


def point(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("change", "said"), [(cut, "truncated or corrupt"), (grow, "do not fit its configuration"), (point, "git-lfs")]
)
def test_damage_is_told_as_ever(change: Callable[[Path], None], said: str, tmp_path: Path, invoke: Invoke) -> None:
    folder = write_tiny_model(tmp_path / "m", held_out=0)
    change(folder)
    assert said in invoke("info", folder).failed(3)


def test_other_layouts_are_loaded(tmp_path: Path, invoke: Invoke) -> None:
    torch.save(layouts.openai_state(), tmp_path / "x.pt")
    (tmp_path / "c.json").write_text(json.dumps({"image_size": 16, "num_heads": 4}))
    assert glance.look(tmp_path / "x.pt", NOTHING_SAID) is None
    record = json.loads(invoke("info", "x.pt", "--config", "c.json", "--json").ok().out)
    assert record["digest"] == load(str(tmp_path / "x.pt"), "cpu", config=str(tmp_path / "c.json")).digest


def test_notes_are_the_same(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", held_out=0, in_channels=3, out_channels=6)
    shutil.copytree(folder / "unet", folder / "unet_ema")
    found = glance.look(folder, NOTHING_SAID)
    assert found is not None
    assert told(found[0]) == load(str(folder), "cpu").about.notes == told(diffusers.read(folder))
