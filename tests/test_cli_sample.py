"""``ddimctl sample`` as users type it: the same images by every way, honest latents, one line for whatever goes wrong."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, write_tiny_model
from PIL import Image

from ddimctl import latent, sampling, seeds
from ddimctl.families import load
from ddimctl.images import levels, sheets, writing
from ddimctl.metrics import mse
from ddimctl.recipe import Way
from ddimctl.sampling import Noising, sample
from ddimctl.solvers import SOLVERS

Invoke = Callable[..., Result]
SHAPE = (1, 16, 16)


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path) -> Invoke:
    """`invoke` with the tiny model as the default one."""
    return lambda *args: invoke(*args, env={"DDIMCTL_MODEL": str(model_folder)})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def folder_of(path: Path) -> list[np.ndarray]:
    return [pixels(p) for p in sorted(path.glob("*.png"))]


def expected(
    model_folder: Path, n: int, steps: int, spacing: str = "karras", solver: str = "ab2", seed: int = 0, **how: Any
) -> np.ndarray:
    """What the library makes, uint8 (n, H, W)."""
    model = load(str(model_folder), "cpu")
    way = Way(solver, spacing, steps, how.pop("tolerance", None))
    return levels.to_pixels(sample(model, n, Noising(way, **how), seed=seed).x)[..., 0]


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ((), {}),
        (("--seed", 7, "--solver", "ddim", "--spacing", "linear"), {"seed": 7, "solver": "ddim", "spacing": "linear"}),
        (("--eta", 0.5), {"eta": 0.5}),
        (("--eta", 1, "--solver", "ddim"), {"eta": 1.0}),
        (("--sigma-hat",), {"sigma_hat": True}),
        (("--sigma-hat", "--eta", 1), {"sigma_hat": True}),
        (("--solver", "adaptive", "--tolerance", 1e-2), {"solver": "adaptive", "tolerance": 1e-2}),
    ],
    ids=str,
)
def test_it_makes_what_the_library_makes(
    tiny: Invoke, model_folder: Path, tmp_path: Path, options: tuple[object, ...], how: dict[str, Any]
) -> None:
    done = tiny("sample", "-n", 3, "--steps", 4, "-o", "out", *options).ok()
    assert done.out.split() == ["out/000.png", "out/001.png", "out/002.png"]
    np.testing.assert_array_equal(folder_of(tmp_path / "out"), expected(model_folder, 3, 4, **how))


def test_the_sheet_holds_them_row_by_row(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 10, "--steps", 3, "--no-labels").ok()
    assert done.out == "samples.png\n"
    assert "writing samples.png" in done.err
    want = sheets.sheet(sheets.enlarge(expected(model_folder, 10, 3)[..., None], 7), 8, gap=4)
    np.testing.assert_array_equal(pixels(tmp_path / "samples.png"), want[..., 0])


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (5, 5), (64, 8), (65, 9), (100, 10)])
def test_the_sheet_is_no_ribbon(tiny: Invoke, tmp_path: Path, n: int, columns: int) -> None:
    tiny("sample", "-n", n, "--steps", 1, "-o", "s.png", "--no-labels").ok()
    height, width = pixels(tmp_path / "s.png").shape
    assert (width + 4) == columns * 116
    assert (height + 4) == math.ceil(n / columns) * 116


@pytest.mark.parametrize("options", [(), ("--eta", 0.8), ("--sigma-hat",)], ids=str)
def test_image_k_of_a_seed_is_the_same_whatever_the_number_and_the_batch(
    tiny: Invoke, tmp_path: Path, options: tuple[object, ...]
) -> None:
    """To a level of 255: convolutions of another batch size differ in float32's last digits."""
    tiny("sample", "-n", 5, "--steps", 4, "-o", "five", *options).ok()
    tiny("sample", "-n", 3, "--steps", 4, "-o", "three", "--batch-size", 2, *options).ok()
    five, three = (np.array(folder_of(tmp_path / f)).astype(int) for f in ("five", "three"))
    assert len({image.tobytes() for image in five}) == 5
    assert np.abs(five[:3] - three).max() <= 1
    tiny("sample", "-n", 3, "--steps", 4, "-o", "other", "--seed", 1, *options).ok()
    other = np.array(folder_of(tmp_path / "other")).astype(int)
    assert np.abs(other - three).max() > 1


@pytest.mark.parametrize("output", ["s.png", "s.jpg", "s.webp", "s.tiff"])
def test_the_same_command_twice_makes_the_same_bytes(tiny: Invoke, tmp_path: Path, output: str) -> None:
    command = ("sample", "-n", 3, "--steps", 3, "-o", output, "--eta", 0.5, "--save-noise", "xT.safetensors")
    tiny(*command).ok()
    before = {n: (tmp_path / n).read_bytes() for n in names(tmp_path)}
    assert sorted(before) == sorted([output, "xT.safetensors"])
    tiny(*command, "--force").ok()
    assert {n: (tmp_path / n).read_bytes() for n in names(tmp_path)} == before


# A folder is resumed


def test_the_same_command_again_makes_what_is_not_there(
    tiny: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted by Ctrl-C in the middle, then again; then longer."""
    command = ("sample", "--steps", "2,4", "-o", "out", "--batch-size", 2)
    whole = tiny("sample", "-n", 6, "--steps", "2,4", "-o", "whole", "--batch-size", 2, "--json").ok()
    calls, sampled = [], sampling.sample

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["first"])
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return sampled(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample", stopped)
    assert tiny(*command, "-n", 6).code == 130
    done = tiny(*command, "-n", 6, "--json").ok()
    assert calls[4:] == [(2, 3), (2, 3), (4, 5), (4, 5)]  # the first two were whole
    assert "sampled: 8, there already: 4" in done.err
    found, wanted = json.loads(done.out), json.loads(whole.out)
    assert found["results"] == wanted["results"]
    assert found["unrelated_mse"] == wanted["unrelated_mse"]
    for n in names(tmp_path / "whole"):
        if n.endswith(".png"):
            assert (tmp_path / "out" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes()
    del calls[4:]
    assert "there already: 12" in tiny(*command, "-n", 6).ok().err
    assert calls[4:] == []
    (tmp_path / "out/steps-2/003.png").unlink()
    (tmp_path / "out/steps-4/005.png").write_bytes((tmp_path / "out/steps-4/000.png").read_bytes())
    assert "out/steps-4/005.png" in tiny(*command, "-n", 6).failed(2)  # number 0's picture is not number 5's
    (tmp_path / "out/steps-4/005.png").unlink()
    tiny(*command, "-n", 8).ok()
    assert calls[4:] == [(3, 5), (3, 5), (6, 7), (6, 7)]


def test_without_a_manifest_the_pictures_speak(tiny: Invoke, tmp_path: Path) -> None:
    """As after kill -9, or of a version that wrote none: what is there is made again to see, and is the same."""
    command = ("sample", "-n", 3, "--steps", 2, "-o", "out")
    tiny(*command).ok()
    before = (tmp_path / "out/001.png").stat()
    (tmp_path / "out/manifest.jsonl").unlink()
    tiny(*command).ok()
    assert (tmp_path / "out/001.png").stat().st_mtime_ns == before.st_mtime_ns
    assert "there already: 3" in tiny(*command).ok().err
    with (tmp_path / "out/manifest.jsonl").open("a") as f:  # which anybody may have written
        f.write(json.dumps({"name": "000", "key": 1, "sha256": None}) + "\n")
    assert "there already: 2" in tiny(*command).ok().err


def test_no_older_runs_pictures_are_left_among_new_ones(tiny: Invoke, tmp_path: Path) -> None:
    tiny("sample", "-n", 5, "--steps", 2, "-o", "out").ok()
    writing.save_image(tmp_path / "out" / "100.png", np.zeros((4, 4, 1), np.uint8))  # somebody's own
    (tmp_path / "out" / "notes.txt").write_text("mine")
    tiny("sample", "-n", 3, "--steps", 2, "-o", "out").ok()  # of the same run: they are what they would be
    assert len(names(tmp_path / "out")) == 8
    other = ("sample", "-n", 2, "--steps", 2, "-o", "out", "--seed", 9)
    refused = tiny(*other)
    assert "out/000.png and 4 more exist already and are not what this would make" in refused.failed(2)
    assert "--force writes over 2 and removes 3" in refused.err
    assert len(names(tmp_path / "out")) == 8
    tiny(*other, "--force").ok()
    assert names(tmp_path / "out") == ["000.png", "001.png", "100.png", "manifest.jsonl", "notes.txt"]


# Several seeds


def test_seeds_are_lists_and_ranges(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    done = tiny("sample", "--seed", "1,4,10-12", "--steps", 2, "-o", "out", "--batch-size", 2, "--json").ok()
    record = json.loads(done.out)
    assert record["seed"] == [1, 4, 10, 11, 12]
    assert record["files"] == [f"out/seed-{s}-000.png" for s in record["seed"]]
    wanted = [expected(model_folder, 1, 2, seed=s)[0] for s in record["seed"]]
    assert np.abs(np.array(folder_of(tmp_path / "out")).astype(int)[[0, 4, 1, 2, 3]] - np.array(wanted)).max() <= 1
    tiny("sample", "--seed", "4,1", "-n", 2, "--steps", 2, "-o", "s.png", "--no-labels", "--save-noise", "x.pt").ok()
    drawn = [i["noise"] for i in latent.load(tmp_path / "x.pt").images]
    assert drawn == [{"seed": s, "number": k} for s in (4, 1) for k in (0, 1)]
    assert pixels(tmp_path / "s.png").shape == (2 * 116 - 4, 2 * 116 - 4)  # a row for each seed
    assert "sample" in tiny("info", "s.png").ok().out
    for wrong in ("", "a", "3-", "-3", "5-2", "0-99999999", "1,,x", "1.5"):
        assert tiny("sample", f"--seed={wrong}", "-o", "w.png").code == 2, wrong


# Several numbers of steps


def test_consistency(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 4, "--steps", "2,8,4", "-o", "s.png", "--no-labels").ok()
    header, *rows, file = done.out.splitlines()
    assert header.split() == ["steps", "evaluations", "mse", "to", "8", "rms"]
    assert file == "s.png"
    model = load(str(model_folder), "cpu")
    xs = {s: sample(model, 4, Noising(Way(steps=s))).x for s in (2, 8, 4)}
    for row, s in zip(rows, (2, 8, 4), strict=False):
        errors = mse(xs[s], xs[8])
        assert row.split()[:2] == [str(s), str(s)]
        assert float(row.split()[2]) == pytest.approx(float(errors.mean()), rel=0.01)
        assert float(row.split()[3]) == pytest.approx(float(errors.sqrt().mean()), rel=0.01)
    assert rows[3].split()[:2] == ["another", "x_T"]
    assert float(rows[3].split()[3]) == pytest.approx(float(mse(xs[8][1:], xs[8][:-1]).mean()), rel=0.05)
    stacked = levels.to_pixels(torch.cat([xs[s] for s in (2, 8, 4)]))
    np.testing.assert_array_equal(
        pixels(tmp_path / "s.png"), sheets.sheet(sheets.enlarge(stacked, 7), 4, gap=4)[..., 0]
    )


def test_several_steps_into_a_folder_each(tiny: Invoke, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 3, "--steps", "2,4,2", "-o", "out", "--batch-size", 2).ok()
    wanted = [f"out/steps-{s}/{k:03}.png" for s in (2, 4) for k in range(3)]
    assert done.out.splitlines()[-6:] == wanted
    assert names(tmp_path) == sorted([*wanted, "out/manifest.jsonl"])
    tiny("sample", "-n", 3, "--steps", 4, "-o", "alone", "--batch-size", 2).ok()
    np.testing.assert_array_equal(folder_of(tmp_path / "alone"), folder_of(tmp_path / "out" / "steps-4"))


def test_json(tiny: Invoke, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 2, "--steps", "2,4", "--json", "-o", "s.png", "--seed", 3, "--save-noise", "x.pt").ok()
    record = json.loads(done.out)
    assert record["files"] == ["s.png", "x.pt"]
    assert {k: record[k] for k in ("images", "seed", "eta", "sigma_hat", "solver", "spacing")} == {
        "images": 2, "seed": 3, "eta": 0.0, "sigma_hat": False, "solver": "ab2", "spacing": "karras",
    }  # fmt: skip
    assert [(r["steps"], r["evaluations"]) for r in record["results"]] == [(2, 2.0), (4, 4.0)]
    assert record["results"][1]["mse"] == 0.0 < record["results"][0]["mse"]
    record = json.loads(tiny("sample", "-n", 1, "--steps", 2, "--json", "-o", "t.png", "--sigma-hat").ok().out)
    assert (record["eta"], record["sigma_hat"], record["solver"]) == (1.0, True, "ddim")
    assert record["unrelated_mse"] is None


def test_an_image_that_did_not_converge_is_told_of(tiny: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddimctl.solvers.ADAPTIVE_SMALLEST", 2.0)  # it may not refine its steps
    command = ("sample", "-n", 2, "--solver", "adaptive", "--tolerance", 1e-9, "--steps", 2, "-o", "s.png")
    assert "warning: 2 of 2 images did not converge" in tiny(*command).ok().err
    record = json.loads(tiny(*command, "--force", "--json").ok().out)
    assert record["results"][0]["unconverged"] == 2
    assert min(record["results"][0]["residuals"]) > 1e-9


# x_T as a latent


@pytest.mark.parametrize("suffix", latent.SUFFIXES)
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_decode_makes_the_same_images_of_the_saved_noise(
    tiny: Invoke, tmp_path: Path, solver: str, suffix: str
) -> None:
    loose = ("--tolerance", 0.01) if solver == "adaptive" else ()
    tiny("sample", "-n", 3, "--steps", 4, "-o", "out", "--solver", solver, *loose, "--save-noise", f"xT{suffix}").ok()
    tiny("decode", f"xT{suffix}", "-o", "back", *loose).ok()
    np.testing.assert_array_equal(folder_of(tmp_path / "back"), folder_of(tmp_path / "out"))


def test_saved_noise_says_that_it_was_drawn(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 2, "--seed", 5, "--steps", "2,4", "-o", "s.png", "--save-noise", "xT.pt").ok()
    assert done.out.splitlines()[-2:] == ["s.png", "xT.pt"]
    found = latent.load(tmp_path / "xT.pt")
    assert torch.equal(found.xT, seeds.noise(SHAPE, 2, 5))
    assert found.provenance["evaluations"] == [0, 0]
    assert found.provenance["steps"] == 4  # the longest
    assert [i["noise"] for i in found.images] == [{"seed": 5, "number": 0}, {"seed": 5, "number": 1}]
    assert not any("sha256" in i for i in found.images)
    told = tiny("info", "xT.pt").ok().out
    assert "drawn" in told
    assert "encoded" not in told
    assert "noise 1 of seed 5" in told
    told = tiny("interpolate", "xT.pt", "-o", "film.gif", "--frames", 3, "--steps", 2).ok()
    assert told.out == "film.gif\n"


def test_an_encoded_latent_is_not_called_drawn(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    picture = model_folder / "held-out" / "000.png"
    tiny("encode", picture, "-o", "a.pt", "--steps", 2).ok()
    told = tiny("info", "a.pt").ok().out
    assert "  encoded     ab2, karras, 2 steps, 2 evaluations\n" in told
    assert "drawn" not in told


def test_with_noise_on_the_way_the_latent_is_x_T_alone(tiny: Invoke, tmp_path: Path) -> None:
    done = tiny("sample", "-n", 2, "--steps", 3, "--eta", 1, "-o", "s.png", "--save-noise", "xT.pt").ok()
    assert "decode adds no noise on the way" in done.err
    assert torch.equal(latent.load(tmp_path / "xT.pt").xT, seeds.noise(SHAPE, 2, 0))
    assert latent.load(tmp_path / "xT.pt").provenance["decoder"] == "ddim"


# Misuse


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--eta", "1.5"), "eta of 1.5"),
        (("--eta", "-0.1"), "eta of -0.1"),
        (("--eta", "nan"), "eta of nan"),
        (("--eta", "0.5", "--solver", "ab2"), "ab2 adds no noise on the way"),
        (("--sigma-hat", "--solver", "heun"), "heun adds no noise on the way"),
        (("--sigma-hat", "--eta", "0.5"), "direction of eta 1"),
        (("--eta", "0.5", "--tolerance", "0.1"), "nothing iterates"),
        (("--tolerance", "0.1"), "ab2 takes no tolerance"),
        (("--solver", "eulr"), "unknown solver 'eulr'"),
        (("--eta", "1", "--solver", "eulr"), "unknown solver 'eulr'"),
        (("--spacing", "cubic"), "unknown spacing 'cubic'"),
        (("--steps", "0"), "0 steps are not possible"),
        (("--steps", "10,1001"), "1001 steps are not possible"),
        (("--steps", "10,x"), "whole numbers"),
        (("--steps", ""), "whole numbers"),
        (("-n", "0"), "'-n'"),
        (("-m", "no-such"), "no model 'no-such'"),
        (("--class", "3"), "has no classes"),
        (("--device", "abacus"), "'abacus' is not available"),
        (("-o", "x.pt"), "no name for images"),
        (("-o", "x.xyz"), "known image format"),
        (("--save-noise", "x.png"), "no name for a latent"),
        (("-o", "there.png"), "there.png exists already"),
        (("--save-noise", "there.pt"), "there.pt exists already"),
        (("-o", "there"), "there/001.png exists already"),
        (("-o", "there.folder"), "there.folder/000.png exists already"),
    ],
    ids=str,
)
def test_misuse_is_one_line_and_changes_nothing(
    tiny: Invoke, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    for name in ("there.png", "there.pt", "there/001.png", "there.folder/000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    before = names(tmp_path)
    assert said in tiny("sample", "-n", "2", "--steps", "2", *options).failed(2)
    assert names(tmp_path) == before
    assert all((tmp_path / name).read_bytes() == b"mine" for name in before)


def test_force_overwrites(tiny: Invoke, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("out/001.png", "x.pt", "out/other.txt"):
        (tmp_path / name).write_bytes(b"old")
    tiny("sample", "-n", 2, "--steps", 2, "-o", "out", "--save-noise", "x.pt", "--force").ok()
    assert (tmp_path / "out/001.png").read_bytes() != b"old"
    assert len(latent.load(tmp_path / "x.pt").xT) == 2
    assert (tmp_path / "out/other.txt").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made(tiny: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "file" in tiny("sample", "-n", 1, "--steps", 1, "-o", "file/inside").failed(1)
    assert "nowhere" in tiny("sample", "-n", 1, "--steps", 1, "-o", "nowhere/s.png").failed(2)
    assert names(tmp_path) == ["file"]


def test_a_model_with_classes_is_asked_for_one(invoke: Invoke, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "classy", num_class_embeds=3)
    command = ("sample", "-m", folder, "-n", 2, "--steps", 2)
    assert "class-conditional" in invoke(*command, "-o", "s.png").failed(2)
    for label in (0, 2):
        invoke(*command, "--class", label, "-o", f"{label}", "--save-noise", f"{label}.pt").ok()
    assert not np.array_equal(folder_of(tmp_path / "0"), folder_of(tmp_path / "2"))
    invoke("decode", "2.pt", "-o", "back").ok()
    np.testing.assert_array_equal(folder_of(tmp_path / "back"), folder_of(tmp_path / "2"))


def test_colour(invoke: Invoke, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "colour", in_channels=3, out_channels=3)
    invoke("sample", "-m", folder, "-n", 2, "--steps", 2, "-o", "s.png", "--eta", 1, "--no-labels").ok()
    assert pixels(tmp_path / "s.png").shape == (112, 228, 3)


def test_quiet_and_verbose(tiny: Invoke) -> None:
    done = tiny("sample", "-n", 1, "--steps", 1, "-q").ok()
    assert (done.out, done.err) == ("samples.png\n", "")
    assert "parameters on cpu" in tiny("sample", "-n", 1, "--steps", 1, "-v", "--force", "--device", "cpu").ok().err
