"""What commands write: refused before any work where it cannot be, told of where it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Result
from PIL import Image

from ddimctl import latent
from ddimctl.checkpoints import diffusers
from ddimctl.cli.console import figure

Invoke = Callable[..., Result]


@pytest.fixture
def image(model_folder: Path, tmp_path: Path) -> Path:
    """a.png, which the tiny model may take."""
    return Path(shutil.copy(model_folder / "held-out" / "000.png", tmp_path / "a.png"))


def tame(model_folder: Path, out: Path) -> Path:
    """The tiny model with a hundredth of its output: random weights alone make a flow that nothing inverts."""
    checkpoint = diffusers.read(model_folder)
    weights = {k: 0.01 * w if k.startswith("conv_out") else w for k, w in checkpoint.weights.items()}
    diffusers.write(out, replace(checkpoint, weights=weights))
    shutil.copytree(model_folder / "held-out", out / "held-out")
    return out


# Folders that are not there


@pytest.mark.parametrize(
    "words",
    [
        ("reconstruct", "a.png", "--plot", "no/p.png"),
        ("reconstruct", "a.png", "-o", "no/s.png"),
        ("bench", "--plot", "no/p.png"),
        ("evaluate", "--plot", "no/p.png"),
        ("sample", "-o", "no/x.png"),
        ("sample", "--save-noise", "no/n.pt"),
        ("interpolate", "a.png", "a.png", "-o", "no/i.gif"),
        ("encode", "--lossless", "a.png", "-o", "no/l.pt"),
    ],
    ids=" ".join,
)
def test_a_missing_folder_is_told_of_first(image: Path, invoke: Invoke, tmp_path: Path, words: tuple[str, ...]) -> None:
    """The model is not there either: nothing was done before."""
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    done = invoke(*words, "-m", "nothing")
    assert done.failed(2) == "there is no folder no"
    assert "hint: make it first: mkdir -p no" in done.err
    (tmp_path / "no").write_text("no folder")
    done = invoke(*words, "-m", "nothing")
    assert done.failed(2) == "there is no folder no"
    assert "hint: a file is called that" in done.err


def test_a_missing_folder_of_a_decoded_image(image: Path, invoke: Invoke, model_folder: Path) -> None:
    invoke("encode", image, "-m", model_folder, "--steps", 2).ok()
    assert invoke("decode", "a.pt", "-o", "no/x.png").failed(2) == "there is no folder no"
    assert invoke("info", "a.pt", "-o", "no/x.png").failed(2) == "there is no folder no"


def test_folders_of_results_are_made(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    invoke("encode", image, "-o", "new/latents", "-m", model_folder, "--steps", 2).ok()
    invoke("decode", "new/latents/a.pt", "-o", "new/images").ok()
    words = ("sample", "-n", 2, "--steps", 2, "-m", model_folder, "-o", "new/samples")
    invoke(*words, "--save-noise", "new/samples/n.pt").ok()
    assert {p.name for p in (tmp_path / "new" / "samples").iterdir()} == {
        "000.png",
        "001.png",
        "n.pt",
        "manifest.jsonl",
    }


def test_the_table_comes_before_the_plot(
    image: Path, invoke: Invoke, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not lost with a plot that cannot be drawn."""
    pytest.importorskip("matplotlib")
    from ddimctl import plots
    from ddimctl.errors import DDIMError

    def fail(*_: object, **__: object) -> None:
        raise DDIMError("no ink")

    monkeypatch.setattr(plots, "draw", fail)
    done = invoke("reconstruct", image, "-m", model_folder, "--steps", 2, "--plot", "p.png")
    assert done.failed(1) == "no ink"
    assert done.out.startswith("solver  spacing")


# Lossless


@pytest.mark.slow
def test_lossless_says_so(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    """Of one image with its figures, of several in a line; the file says it again, unless what it says is no number."""
    folder = tame(model_folder, tmp_path / "tame")
    words = ("encode", "--lossless", "-m", folder, "--steps", 10)
    done = invoke(*words, image).ok()
    found = re.search(
        r"^lossless: all 256 values of the 16 × 16 image come back \(worst (0\.\d\d) levels, \d+ evaluations\)$",
        done.err,
        re.M,
    )
    assert found, done.err
    assert f"\n  lossless    yes, worst {found[1]} levels\n" in invoke("info", "a.pt").ok().out
    assert "lossless" not in invoke(*words, image, "-o", "q.pt", "-q").ok().err
    several = invoke(*words, folder / "held-out", "-o", "latents").ok()
    assert several.err.endswith("lossless: every 8-bit value of all 4 images comes back\n")

    known = latent.load(tmp_path / "a.pt")
    for worst, line in ((0.75, "\n  lossless    no, worst 0.75 levels\n"), ("1", None), (10**400, None), (None, None)):
        about = {**known.provenance, "lossless": [{"worst": worst}]}
        latent.save(tmp_path / "odd.pt", latent.Latent(known.xT, about))
        out = invoke("info", "odd.pt").ok().out
        assert line in out if line else "  lossless" not in out


# Features


# Hints


def test_interpolate_names_no_option_that_it_lacks(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    one, two = (Image.new("L", (16, 16), v) for v in (0, 255))
    one.save(tmp_path / "two.gif", save_all=True, append_images=[two])
    Image.new("F", (16, 16)).save(tmp_path / "floats.tif")
    for name, option in (("two.gif", "--frame"), ("floats.tif", "--range")):
        done = invoke("interpolate", name, name, "-m", model_folder)
        assert f"{name} holds" in done.failed(2)
        assert f"hint: encode it first, with {option}\n" in done.err


# Sheets


def test_each_line_of_a_sheet_has_its_own_gain(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    """One bad line hides no other's differences."""
    folder = tame(model_folder, tmp_path / "tame")
    words = ("reconstruct", image, "-m", folder, "--steps", "2,20", "--solver", "ddim,exact")
    done = invoke(*words, "-o", "sheet.png", "--report", "max_abs", "--json").ok()
    said = "sheet.png: original, then for each line its reconstruction and the difference: "
    (line,) = (text.removeprefix(said) for text in done.err.splitlines() if text.startswith(said))
    gains = {}
    for part, result in zip(line.split(", "), json.loads(done.out)["results"], strict=True):
        name, gain = part.split(" × ")
        assert name == f"{result['solver']} {result['spacing']} {result['steps']}"
        gains[name] = float(gain.replace(",", ""))
        assert 0.99 < gains[name] * result["max_abs"] / 127.5 < 1 + 2e-9  # the range is filled, and not left
    assert gains["exact log 20"] > gains["ddim karras 2"]
    several = invoke(*words[:-1], "ddim", "--spacing", "karras,log", "-o", "s.png").ok().err
    assert "the difference: ddim karras 2 × " in several
    assert ", ddim log 20 × " in several


# Files that are read, or written twice


def test_no_input_is_written_over(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    """By none of its names, and not with --force."""
    invoke("encode", image, "-m", model_folder, "--steps", 2).ok()
    shutil.copy(image, tmp_path / "image.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "latent.png")
    (tmp_path / "link.png").symlink_to("a.png")
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.p*")}
    model = ("-m", model_folder, "--steps", 2)
    for words in (
        ("reconstruct", "a.png", *model, "-o", "a.png"),
        ("reconstruct", "link.png", *model, "-o", "./a.png"),
        ("reconstruct", image.parent, *model, "-o", "a.png"),
        ("interpolate", "a.pt", "a.png", "-o", "a.png"),
        ("interpolate", "a.png", "a.pt", "-o", "link.png"),
        ("interpolate", "a.png", "a.pt", "--grid", "-o", "a.png"),
        ("encode", "image.pt", *model, "-o", "image.pt"),
        ("encode", "image.pt", "a.png", *model, "-o", "image.pt"),
        ("decode", "latent.png", "-o", "latent.png"),
    ):
        assert "would be written over" in invoke(*words, "--force").failed(2)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.p*")} == before


def test_two_outputs_need_two_names(image: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("reconstruct", image, "-m", model_folder, "--steps", 2, "-o", "x.png", "--plot")
    assert invoke(*words, "x.png").failed(2) == "x.png would be written over x.png"
    assert "would be written over" in invoke(*words, tmp_path / "x.png", "--force").failed(2)
    assert "would be written over" in invoke(*words[:-3], "--plot", image, "--force").failed(2)
    (tmp_path / "images.png").write_bytes(b"")
    evaluate = ("evaluate", "-m", model_folder, "--reference", "images.png", "--plot", "images.png")
    assert "would be written over" in invoke(*evaluate, "--force").failed(2)


# More than memory holds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--frames", 5_000_000), "5,000,000 images of 224 × 224 × 1 values take 239,258 MiB"),
        (("--frames", 2, "--zoom", 100_000, "-o", "i.apng"), "2 images of 1,600,000 × 1,600,000 × 1 values"),
        (("--frames", 10_000_000, "-o", "frames"), "10,000,000 images of 16 × 16 × 1 values"),
        (("--grid", "--size", "4096x4096", "-o", "x.png"), "16,777,216 images of"),
    ],
)
def test_what_memory_cannot_hold_is_refused(
    image: Path, invoke: Invoke, model_folder: Path, words: tuple[object, ...], said: str
) -> None:
    done = invoke("interpolate", *[image] * 4, "-m", model_folder, "--steps", 2, *words)
    assert said in done.failed(2)
    assert "at most 2,048 are held" in done.err


def test_a_sheet_says_how_many_images_it_shows(invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    for i in range(10):
        Image.new("L", (16, 16), 20 * i).save(tmp_path / f"{i}.png")
    files = [f"{i}.png" for i in range(10)]
    words = ("reconstruct", *files, "-m", model_folder, "--steps", 2, "-o", "s.png", "--force")
    assert invoke(*words).ok().err.splitlines()[-1].endswith("; 8 of 10 shown")
    assert "shown" not in invoke(*words, "-n", 8).ok().err
    assert "shown" not in invoke(*words, "--rows", 10, "--no-labels").ok().err
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.height == 10 * 112 + 9 * 4


def test_counts_are_exact_in_tables(invoke: Invoke, model_folder: Path) -> None:
    """How many values are wrong is a number to compare, at any size."""
    done = invoke("reconstruct", "-m", model_folder, "--steps", "1", "--solver", "ddim", "--report", "wrong_pixels")
    (row,) = done.ok().out.splitlines()[1:]
    count = json.loads(invoke("reconstruct", "-m", model_folder, "--steps", "1", "--solver", "ddim", "--json").out)
    assert row.split()[-1] == str(int(count["results"][0]["wrong_pixels"]))
    assert figure(86_012) == "86012"
    assert figure(86_012.0) == "8.6e+04"
