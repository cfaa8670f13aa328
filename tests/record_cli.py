"""The command line as it was recorded: every command with its options, and what a list of runs comes to.

    python tests/record_cli.py            # records all anew, into tests/recorded/
    python tests/record_cli.py decode     # only the runs of one command

Whatever this changes in `tests/recorded/` is a change that users see: it belongs in the CHANGELOG. `test_recorded.py`
compares. A run is written as in a shell: NAME=value before it sets a variable, `< FILE` at its end is standard input.
Each scenario begins with the files that `prepare` puts into a new folder. Numbers are compared to 2 %; times, paths and
versions are not.
"""

# ruff: noqa: E501 (a run is one line, as it is typed)

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
FIXTURES = HERE / "fixtures"

ENVIRONMENT = {"DDIMCTL_MODEL": "grey", "DDIMCTL_DEVICE": "cpu", "DDIMCTL_ENGINE": "torch"}

# By command: scenario → its runs, one after the other in the same folder.
RUNS: dict[str, dict[str, list[str]]] = {
    "root": {
        "version and no command": ["--version", "", "nothing", "--nothing", "models", "models nothing"],
    },
    "encode": {
        "one image": ["encode a.png", "encode a.png", "encode a.png --force", "encode a.png --json --force --steps 5"],
        "named": ["encode a.png -o new/x.pt", "encode a.png -o x.safetensors -q", "encode a.png -o x.txt"],
        "into a folder": ["encode a.png -o new", "encode a.png -o new", "encode a.png -o new --dry-run"],
        "several into one": ["encode a.png b.png -o ab.pt --steps 5", "encode a.png b.png -o ab.pt --steps 5",
                             "encode a.png b.png -o ab.pt --steps 6", "encode b.png a.png -o ab.pt --steps 5",
                             "encode a.png b.png -o ab.pt --steps 6 --force --json"],
        "a folder": ["encode photos", "encode photos -o new --steps 5", "encode photos -o new --steps 5 --json",
                     "encode photos -o new --steps 6", "encode photos -o new --steps 6 --force -q"],
        "some bad": ["encode mixed -o new --steps 5", "encode mixed -o new --steps 5 --json", "encode bad.png",
                     "encode bad.png a.png -o new.pt --steps 5"],
        "dry runs": ["encode photos -o new --dry-run", "encode mixed -o new --dry-run --json",
                     "encode a.png b.png -o ab.pt --dry-run"],
        "lists and shards": ["encode --from-file list.txt -o new --steps 5", "encode --from-file - -o two --steps 5 < list.txt",
                             "encode photos -o three --steps 5 --shard 1/2", "encode photos -o three --shard 3/2",
                             "encode --from-file nothing.txt -o four"],
        "standard input": ["encode - --steps 5 < a.png", "encode - -o x.pt --steps 5 < a.png", "encode - -o y.pt < list.txt",
                           "encode - a.png -o new < a.png"],
        "to fit": ["encode wide.png --steps 5", "encode wide.png --fit pad --background black -o p.pt --steps 5 --json",
                   "encode wide.png --fit stretch -o s.pt --steps 5", "encode wide.png --fit nothing -o n.pt",
                   "encode anim.gif", "encode anim.gif --frame 1 --steps 5", "encode anim.gif --frame 9 -o f.pt",
                   "encode a.png -o r.pt --range 0", "encode deep.png -o d.pt --steps 5",
                   "encode deep.png -o e.pt --steps 5 --range 0,65535", "encode a.png -o m.pt --max-pixels 10",
                   "encode a.png -o b.pt --background nothing"],
        "solvers": ["encode a.png --solver exact --steps 10 -o e.pt", "encode a.png --solver heun --spacing log -o h.pt",
                    "encode a.png --solver adaptive --tolerance 1e-2 -o t.pt", "encode a.png --solver nothing",
                    "encode a.png --spacing nothing", "encode a.png --steps 0", "encode a.png --steps 1001",
                    "encode a.png --steps many", "encode a.png --tolerance 1e-3", "encode a.png --lossless --solver ddim",
                    "encode a.png --lossless --precision bf16", "encode c.png --lossless --steps 11 -o l.pt"],
        "models": ["encode a.png -m nothing", "encode a.png -m classes", "encode class.png -m classes --class 2 --steps 5 -o k.pt",
                   "encode class.png -m classes --class 3 -o x.pt", "encode a.png --class 1", "encode a.png --class -1",
                   "DDIMCTL_MODEL=colour encode colour.png --steps 5", "DDIMCTL_MODEL=colour encode a.png -m grey --steps 5",
                   "encode a.png --config nothing -o c.pt", "encode a.png --device nothing -o c.pt",
                   "encode a.png --engine nothing -o c.pt", "encode a.png --precision nothing -o c.pt"],
        "wrong usage": ["encode", "encode nothing.png", "encode empty", "encode '*.nothing'", "encode ''", "encode a.png -o ''",
                        "encode a.png --batch-size 0", "encode a.png --nothing", "encode one.pt -o new.pt",
                        "encode a.png a.png -o new", "encode photos -o a.png", "encode a.png -o a.png", "encode a.png -o"],
        "the bundled model": ["encode shirt.png -m fashion-mnist --steps 3 -o f.pt", "info f.pt --json"],
    },
    "decode": {
        "one latent": ["decode one.pt", "decode one.pt", "decode one.pt --force", "decode one.safetensors --json --force"],
        "named": ["decode one.pt -o new.png", "decode one.pt -o new.jpg", "decode one.pt -o new.txt", "decode one.pt -o new",
                  "decode one.pt -o two --dry-run", "decode one.pt -o two --dry-run --json"],
        "several in one": ["decode several.pt -o new", "decode several.pt -o new", "decode several.pt -o new.png",
                           "decode several.pt", "decode several.safetensors -o colours --json"],
        "a folder": ["decode latents", "decode latents -o new", "decode latents -o new --json",
                     "decode latents -o new --dry-run"],
        "other ways": ["decode one.pt -o x.png --steps 5", "decode one.pt -o y.png --solver heun --spacing log",
                       "decode one.pt -o z.png --steps 0", "decode one.pt -o z.png --solver nothing",
                       "decode one.pt -o z.png --spacing nothing", "decode one.pt -o z.png --tolerance 1e-3",
                       "decode class.pt -o f.png", "decode class.pt -o d.png --class 0", "decode class.pt -o e.png --class 7"],
        "other models": ["decode one.pt -m colour", "decode one.pt -m colour --force", "decode one.pt -m other",
                         "decode one.pt -m other --force", "decode one.pt -m nothing -o new.png"],
        "damaged": ["decode damaged.pt", "decode damaged.safetensors", "decode later.pt", "decode later.safetensors",
                    "decode damaged.pt one.pt -o new", "decode damaged.pt one.pt -o new --json", "decode a.png",
                    "decode nothing.pt"],
        "lists and shards": ["decode --from-file latents.txt -o new", "decode --from-file - -o two < latents.txt",
                             "decode latents -o three --shard 1/2 --dry-run"],
        "wrong usage": ["decode", "decode ''", "decode empty", "decode one.pt -o ''",
                        "decode one.pt --nothing"],
    },
    "interpolate": {
        "two latents": ["interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2", "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2",
                        "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 --force --frames 4 --json",
                        "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o x.webp --frames 3 --distances"],
        "other outputs": ["interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o strip.png --frames 3",
                          "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o frames --frames 3",
                          "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o frames --frames 3",
                          "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o x.txt", "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 -o x.apng --frames 3"],
        "a grid": ["interpolate several.pt class.pt --class 1 --steps 23 --grid --size 2x3", "interpolate one.pt one.pt --grid -o h.png",
                   "interpolate several.pt class.pt --class 1 --steps 23 --grid --size 2x3 -o g.png --json --force",
                   "interpolate several.pt class.pt --class 1 --steps 23 --grid --size 0", "interpolate several.pt class.pt --class 1 --steps 23 --grid -o g.gif"],
        "ways through": ["interpolate several.pt -o a.gif --frames 5 --loop --ease --lerp --zoom 2 --fps 5 --json",
                         "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 --fps 0", "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 --frames 1",
                         "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 --frames 0", "interpolate one.pt one.safetensors --steps 26 --spacing karras --solver ab2 --zoom 0"],
        "images": ["interpolate a.png b.png --frames 3 --steps 5 --json", "interpolate b.png one.pt -o x.gif --frames 3 --json",
                   "interpolate bad.png b.png -o y.gif", "interpolate anim.gif b.png -o y.gif"],
        "wrong usage": ["interpolate", "interpolate one.pt", "interpolate one.pt nothing.pt", "interpolate one.pt several.pt",
                        "interpolate several.pt class.pt --grid", "interpolate one.pt one.safetensors", "interpolate one.pt one.safetensors -m other", "interpolate one.pt one.safetensors -m other --force",
                        "interpolate one.pt one.safetensors --solver nothing -o z.gif", "interpolate one.pt damaged.pt -o z.gif",
                        "interpolate one.pt one.safetensors --solver ab2 --steps 0 -o z.gif"],
    },
    "reconstruct": {
        "held out": ["reconstruct --steps 10", "reconstruct --steps 10 --json", "reconstruct -n 1 --steps 5,10 --solver ddim,ab2"],
        "images": ["reconstruct a.png b.png --steps 20 --report mse,psnr", "reconstruct photos --steps 10 --report mse",
                   "reconstruct a.png --steps 10 --report ssim,norm,latent_error,xT_error --json",
                   "reconstruct a.png --spacing log,karras --steps 10 --report mse",
                   "reconstruct --from-file list.txt --steps 10 --report psnr", "reconstruct mixed --steps 10 --report mse",
                   "reconstruct bad.png", "reconstruct wide.png --fit pad --steps 10 --report mse --json"],
        "sheets and plots": ["reconstruct a.png --steps 10 --report mse -o s.png", "reconstruct a.png -o s.png",
                             "reconstruct a.png --steps 10 --report mse --plot p.svg", "reconstruct a.png --report psnr --plot q.svg",
                             "reconstruct a.png --plot p.txt", "reconstruct a.png -o a.png --force", "reconstruct a.png -o s.txt"],
        "limits": ["reconstruct a.png --steps 10 --report mse --fail-above 0", "reconstruct a.png --steps 10 --report mse --fail-above 1",
                   "reconstruct a.png --report psnr --fail-above 1"],
        "wrong usage": ["reconstruct --report nothing", "reconstruct --steps ten", "reconstruct --solver nothing a.png",
                        "reconstruct --tolerance 1e-3", "reconstruct -n 0", "reconstruct -m nothing", "reconstruct nothing.png",
                        "reconstruct --steps 0", "reconstruct --spacing , a.png"],
        "several models": ["reconstruct a.png -m grey,other --steps 10 --report mse", "reconstruct -m grey,other", "reconstruct a.png -m grey,./grey",
                           "reconstruct wide.png a.png -m grey,colour --steps 10 --report mse -o s.png --json",
                           "reconstruct a.png -m grey,nothing"],
        "the bundled model": ["reconstruct -m fashion-mnist -n 2 --steps 3,5 --report mse,psnr"],
    },
    "translate": {
        "class to class": ["translate class.png -m classes --class 2 --to-class 0 --steps 10", "translate class.png -m classes --class 2 --to-class 0 --steps 10",
                           "translate class.png -m classes --class 2 --to-class 0,1 --steps 10 -o s.png --json",
                           "translate class.png -m classes --class 2 --to-class 0,1 --steps 10 -o new"],
        "model to model": ["translate a.png --to-model other --steps 10 --json", "translate a.png b.png --to-model other --steps 10 -o new --keep-path",
                           "translate a.png --to-model colour -o x.png", "translate a.png --to-model nothing -o x.png"],
        "some bad": ["translate mixed --to-model other --steps 10 -o new", "translate mixed --to-model other --steps 10 -o s.png --json",
                     "translate bad.png --to-model other --steps 10 -o x.png"],
        "wrong usage": ["translate", "translate a.png", "translate nothing.png --to-model other", "translate a.png --to-class zero",
                        "translate a.png --to-class 1", "translate a.png b.png --to-model other", "translate a.png --to-prompt dog",
                        "translate a.png --to-model other -o x.txt", "translate class.png -m classes --to-class 7"],
    },
    "sample": {
        "a sheet": ["sample -n 3 --steps 5", "sample -n 3 --steps 5", "sample -n 3 --steps 5 --force --json"],
        "a folder": ["sample -n 2 --steps 5 -o new", "sample -n 2 --steps 5 -o new", "sample -n 2 --steps 3,5 -o two --seed 4"],
        "lengths": ["sample -n 2 --steps 5,10,20 --solver ddim", "sample -n 2 --steps 5,10 --json -o x.png"],
        "noise": ["sample -n 2 --steps 5 --eta 1", "sample -n 2 --steps 5 --sigma-hat -o x.png --json",
                  "sample --eta 2", "sample --eta 0.5 --solver ab2", "sample -n 2 --steps 5 --save-noise n.pt -o y.png",
                  "sample --save-noise n.txt -o z.png"],
        "wrong usage": ["sample -n 0", "sample --steps ten", "sample --solver nothing", "sample --spacing nothing",
                        "sample -m nothing", "sample -o x.pt", "sample -o x.txt", "sample -o - --json", "sample --seed -1",
                        "sample --tolerance 1e-3", "sample a.png", "sample -m classes", "sample --steps 0"],
    },
    "evaluate": {
        "the bundled model": ["evaluate -m fashion-mnist -n 3 --steps 2,3 --cache new --json",
                              "evaluate -m fashion-mnist -n 3 --steps 2,3 --cache new --json",
                              "evaluate -m fashion-mnist --reference nothing -n 3"],
        "wrong usage": ["evaluate", "evaluate -n 1", "evaluate --eta 2", "evaluate --eta much", "evaluate --steps ten",
                        "evaluate --steps 0", "evaluate --features nothing", "evaluate -m nothing", "evaluate --plot x.txt",
                        "evaluate --engine nothing", "evaluate --solver nothing"],
    },
    "bench": {
        "quick": ["bench --seconds 0 --batch-size 1 --steps 2,4 --engine torch --json",
                  "bench --seconds 0 --batch-size 1 --steps 2,4 --engine torch"],
        "wrong usage": ["bench --batch-size 0", "bench --batch-size ten", "bench --steps ten", "bench --engine nothing",
                        "bench --plot x.txt", "bench -m nothing", "bench --precision nothing --engine torch", "bench --steps 0"],
    },
    "info": {
        "latents": ["info one.pt", "info several.safetensors", "info exact.pt", "info lossless.safetensors", "info noise.pt",
                    "info class.pt --json"],
        "drawn": ["info one.pt -o new.png", "info one.pt -o new.png", "info one.pt -o new.txt",
                  "info several.safetensors -o colours.png --json"],
        "models": ["info grey", "info classes --json"],
        "the bundled model": ["info fashion-mnist"],
        "wrong": ["info", "info nothing", "info nothing.pt", "info damaged.pt", "info later.pt", "info a.png", "info one.pt --nothing",
                  "info one.pt other.pt"],
    },
    "train": {
        "a small one": ["train photos -o new --size 8 --channels 4,8 --groups 2 --head-dim 4 --attention none --steps 2 --grey"
                        " --held-out 0.3 --batch-size 2 --warmup 1 -q",
                        "train photos -o new --size 8 --steps 2", "train photos -o new --size 8 --steps 3 --resume"],
        "wrong usage": ["train", "train photos", "train nothing -o new", "train photos -o a.png", "train photos -o -",
                        "train photos -o new --size ten", "train photos -o new --channels ten", "train photos -o new --attention ten",
                        "train photos -o new --held-out 2", "train photos -o new --steps 0", "train mixed -o new --size 8",
                        "train '' -o new", "train photos -o new --ema 2"],
    },
    "models": {
        "the bundled models": ["models list", "models list --json", "models show fashion-mnist"],
        "show": ["models show grey", "models show classes --json", "models show nothing", "models show",
                 "models show one.pt"],
        "convert": ["models convert grey -o new", "models convert grey -o new", "models convert grey -o new --force --json",
                    "models convert grey -o grey --force", "models convert grey", "models convert nothing -o x",
                    "models convert grey -o a.png", "models show new"],
        "pull": ["models pull nothing", "models pull"],
    },
}  # fmt: skip

# What depends on the machine or the moment; and what iterative solvers need, on the last digits.
MASKED = {
    "seconds",
    "seconds_per_image",
    "processor",
    "threads",
    "starving",
    "starts",
    "lines",
    "residuals",
    "notes",
    "unrelated_mse",
}
SCENARIOS = [(command, name) for command, scenarios in RUNS.items() for name in scenarios]


SHOWN = ("", "encode", "models list")  # whose help is recorded
WIDTHS = (60, 80, 120)


# Files


def prepare(folder: Path) -> None:
    """Everything the runs work on: the models and latents of `fixtures`, and images that are made here."""
    import numpy as np
    from PIL import Image

    shutil.copytree(FIXTURES / "models", folder, dirs_exist_ok=True)
    shutil.copytree(FIXTURES / "latents", folder, dirs_exist_ok=True)
    held_out = [FIXTURES / "models/grey/held-out" / f"{i:03}.png" for i in range(3)]
    for name, file in zip("abc", held_out, strict=True):
        shutil.copy(file, folder / f"{name}.png")
    shutil.copy(FIXTURES / "models/classes/held-out/002.png", folder / "class.png")
    shutil.copy(FIXTURES / "models/colour/held-out/000.png", folder / "colour.png")
    for name in ("photos", "photos/more", "mixed", "latents", "empty"):
        (folder / name).mkdir()
    for file in held_out:
        shutil.copy(file, folder / "photos" / file.name)
    shutil.copy(held_out[0], folder / "photos/more/again.png")
    y, x = np.mgrid[0:20, 0:30]
    Image.fromarray(np.stack([8 * x, 12 * y, 4 * x + 6 * y], 2).astype(np.uint8)).save(folder / "wide.png")
    Image.fromarray((1000 * x[:16, :12] + 2000 * y[:16, :12]).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(((x[:28, :28] * 7 + np.mgrid[0:28, 0:28][0][:20] * 2) % 256).astype(np.uint8)).save(
        folder / "shirt.png"
    )
    frames = [Image.fromarray((10 * x[:16, :12] + 30 * i).astype(np.uint8)) for i in range(3)]
    frames[0].save(folder / "anim.gif", save_all=True, append_images=frames[1:])
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:100])
    for name in ("a.png", "bad.png"):
        shutil.copy(folder / name, folder / "mixed" / name)
    (folder / "mixed/note.txt").write_text("no image")
    for name in ("one.pt", "lossless.safetensors"):
        shutil.copy(folder / name, folder / "latents" / name)
    (folder / "list.txt").write_text("a.png\nphotos/001.png\n")
    (folder / "latents.txt").write_text("one.pt\nlossless.safetensors\n")
    for suffix in (".pt", ".safetensors"):
        data = (folder / f"one{suffix}").read_bytes()
        middle = data.index(b"spacing")  # what it says of itself
        (folder / f"damaged{suffix}").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        (folder / f"later{suffix}").write_bytes(later(data))
    other(folder)


def later(data: bytes) -> bytes:
    """A latent file as a later format version might begin."""
    if data[:2] != b"PK":
        return data.replace(b'"version":"1"', b'"version":"9"')
    import io

    import torch

    content = torch.load(io.BytesIO(data), weights_only=True)
    out = io.BytesIO()
    torch.save({**content, "version": "9"}, out)
    return out.getvalue()


def other(folder: Path) -> None:
    """A model of the grey one's shape with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "grey", folder / "other")
    file = folder / "other/unet/diffusion_pytorch_model.safetensors"
    save_file({k: 0.9 * v for k, v in load_file(file).items()}, file)


# Runs


def play(command: str, scenario: str, root: Path) -> dict[str, Any]:
    """What the runs of a scenario come to, in a new folder below `root`."""
    from conftest import environment, in_process

    root.mkdir(exist_ok=True)
    work, home = root / "work", root / "home"
    work.mkdir()
    home.mkdir()
    prepare(work)
    out = {}
    with environment(home, work, ENVIRONMENT):
        for number, line in enumerate(RUNS[command][scenario]):
            words = shlex.split(line)
            env = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            words = words[len(env) :]
            data = b""
            if len(words) > 1 and words[-2] == "<":
                data, words = (work / words[-1]).read_bytes(), words[:-2]
            before = files(work)
            done = in_process(*words, input=data, env=env)
            assert "Traceback" not in done.err, f"{line}\n{done.err}"
            errors = [e.removeprefix("error: ") for e in done.err.splitlines() if e.startswith("error: ")]
            errors += [json.loads(e)["error"] for e in done.err.splitlines() if e.startswith('{"error": ')]
            out[f"{number} {line}"] = {
                "code": done.code,
                "stdout": ["help"] if "Usage:" in done.out else [said(text, root) for text in done.out.splitlines()],
                "error": said(errors[0], root) if errors else "",
                "new": sorted(files(work) - before),
            }
    return out


def files(folder: Path) -> set[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {f for f in found if not re.search(r"(^|/)\.|\.chunk$", f)}


def said(text: str, root: Path) -> Any:
    """A line of output without what differs everywhere: a value where it is JSON."""
    from ddimctl import __version__
    from ddimctl.files import bundled_folder

    text = text.replace(f"{root / 'work'}/", "").replace(f"{root}/home", "~").replace(str(bundled_folder()), "<models>")
    text = text.replace(f"ddimctl {__version__}", "ddimctl <version>").replace(
        f'"ddimctl": "{__version__}"', '"ddimctl": ""'
    )
    return masked(json.loads(text)) if text.startswith("{") else text.rstrip()


def masked(value: Any, key: str = "") -> Any:
    if key in MASKED:
        return "masked"
    if isinstance(value, dict):
        return {k: masked(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def differences(recorded: Any, found: Any, loose: bool = False, where: str = "") -> Iterator[str]:
    """Where two recordings differ, in words. `loose` is for what was measured: any number will do."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in recorded.keys() | found.keys():
            if key not in found or key not in recorded:
                yield f"{where}/{key}: {'gone' if key not in found else 'new'}"
            else:
                yield from differences(recorded[key], found[key], loose, f"{where}/{key}")
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for i, (a, b) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(a, b, loose, f"{where}/{i}")
    elif isinstance(recorded, str) and isinstance(found, str):
        words, numbers = ([NUMBER.sub("#", t).split() for t in (recorded, found)]), []
        numbers = [[float(n) for n in NUMBER.findall(t)] for t in (recorded, found)]
        if words[0] != words[1] or not (loose or same(*numbers)):
            yield f"{where}: {recorded!r} was recorded, not {found!r}"
    elif isinstance(recorded, float) or isinstance(found, float):
        if not loose and not (
            isinstance(found, int | float) and isinstance(recorded, int | float) and same([recorded], [found])
        ):
            yield f"{where}: {recorded!r} was recorded, not {found!r}"
    elif recorded != found:
        yield f"{where}: {recorded!r} was recorded, not {found!r}"


def same(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=0.02, abs_tol=1e-12) for x, y in zip(a, b, strict=True))


# Options


def options() -> dict[str, Any]:
    """Every command, with what its help says of each argument and option."""
    import typer.main

    from ddimctl.cli.app import app

    def walk(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command

    root = typer.main.get_command(app)
    return {name: {label(p): describe(p) for p in command.params} for name, command in [("", root), *walk(root)]}


def label(parameter: Any) -> str:
    return (
        ", ".join(sorted(parameter.opts, key=len)) if parameter.param_type_name == "option" else parameter.name.upper()
    )


def describe(p: Any) -> dict[str, Any]:
    found = {
        "required": p.required,
        "many": p.nargs == -1 or bool(getattr(p, "multiple", False)),
        "flag": bool(getattr(p, "is_flag", False)),
        "off": sorted(p.secondary_opts),
        "type": getattr(p.type_descriptor.annotation, "__name__", str(p.type_descriptor.annotation)),
        "range": [p.min, p.max],
        "metavar": p.metavar,
        "default": p.default if isinstance(p.default, str | int | float | bool | None) else str(p.default),
        "environment": p.envvar,
        "help": " ".join((p.help or "").split()),
    }
    return {k: v for k, v in found.items() if v not in (None, False, [], [None, None], "")}


def helps() -> dict[str, list[str]]:
    """What the help of some commands looks like, at some widths."""
    from conftest import environment, in_process

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            with environment(Path(folder), Path(folder), {"COLUMNS": str(width)}):
                for command in SHOWN:
                    text = in_process(*command.split(), "--help").ok().out
                    found[f"{command} --help, {width} columns"] = [line.rstrip() for line in text.splitlines()]
    return found


# Recording


def read(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, value: Any) -> None:
    RECORDED.mkdir(exist_ok=True)
    (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(wanted: list[str]) -> None:
    write("options", options())
    write("help", helps())
    for command in wanted or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            write(command, {name: play(command, name, root / str(i)) for i, name in enumerate(RUNS[command])})
        print(RECORDED / f"{command}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
