"""The commands as users type them: the promised lines, the same bytes twice, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, environment, in_process, write_tiny_model
from PIL import Image
from rounding import apart

from ddimctl import interpolate as slerps
from ddimctl import latent, ode
from ddimctl.cli import options
from ddimctl.families import bundled, load
from ddimctl.files import bundled_folder
from ddimctl.images import datasets, writing
from ddimctl.images.animation import count_frames
from ddimctl.metrics import METRICS
from ddimctl.paper import TABLE_2
from ddimctl.schedule import SPACINGS
from ddimctl.solvers import SOLVERS, decoder

Invoke = Callable[..., Result]
BUNDLED = "fashion-mnist" in bundled()
needs_bundled = pytest.mark.skipif(not BUNDLED, reason="models/fashion-mnist is not in this checkout")


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path) -> Callable[..., Result]:
    """`invoke` with the tiny model as the default one, and few steps where none are asked for."""

    def run(*args: object, input: bytes = b"", **env: str) -> Result:
        return invoke(*args, input=input, env={"DDIMCTL_MODEL": str(model_folder), **env})

    return run


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shape as the tiny model, with other weights."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "larger", seed=2, sample_size=20)


def copy_pictures(model_folder: Path, folder: Path) -> list[str]:
    names = ["img.png", "a.png", "b.png", "c.png"]
    for name, file in zip(names, sorted((model_folder / "held-out").iterdir()), strict=True):
        shutil.copy(file, folder / name)
    return names


@pytest.fixture
def pictures(model_folder: Path, tmp_path: Path) -> list[str]:
    """img.png, a.png … c.png in the working folder: different pictures of the tiny model's size."""
    return copy_pictures(model_folder, tmp_path)


@pytest.fixture(scope="session")
def encoded(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with img.pt, a.pt … c.pt: the pictures in four steps. Read only."""
    folder = tmp_path_factory.mktemp("encoded")
    with environment(folder, folder):
        for picture in copy_pictures(model_folder, folder):
            name = f"{Path(picture).stem}.pt"
            in_process("encode", picture, "-m", model_folder, "-o", name, "--steps", 4, "-q").ok()
    return folder


@pytest.fixture
def latents(encoded: Path, tmp_path: Path) -> list[str]:
    """img.pt, a.pt … c.pt in the working folder."""
    return [Path(shutil.copy(encoded / name, tmp_path)).name for name in ("img.pt", "a.pt", "b.pt", "c.pt")]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def nothing_new(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it when everything is in place: after the test the folder must hold that and nothing else, unchanged."""
    before: dict[str, bytes] = {}

    def remember() -> None:
        before.update({f: (tmp_path / f).read_bytes() for f in files(tmp_path) if (tmp_path / f).is_file()})

    remember()
    yield remember
    after = {f: (tmp_path / f).read_bytes() for f in files(tmp_path) if (tmp_path / f).is_file()}
    assert sorted(after) == sorted(before)
    assert after == before


# The three promised lines


def promised(run: Invoke, folder: Path) -> float:
    """Runs them; the mse that the last one prints."""
    done = run("encode", "img.png", "-o", "latent.pt").ok()
    assert done.out == "latent.pt\n"
    assert latent.load(folder / "latent.pt").images[0]["name"] == "img.png"
    for name in "ab":
        run("encode", f"{name}.png", "-o", f"{name}.pt").ok()
    done = run("interpolate", "a.pt", "b.pt", "--frames", 10).ok()
    assert done.out == "interpolation.gif\n"
    assert "interpolation.gif" in done.err
    assert count_frames(folder / "interpolation.gif") == (10, 1000)
    done = run("reconstruct", "--steps", 100, "--report", "mse").ok()
    header, row = done.out.splitlines()
    assert header.split() == ["solver", "spacing", "steps", "evaluations", "mse", "paper's", "mse"]
    assert row.split()[:4] == ["ab2", "karras", "100", "100+100"]
    assert float(row.split()[-1]) == TABLE_2[100]
    return float(row.split()[4])


def test_the_promised_lines(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    assert promised(tiny, tmp_path) > 0


# The same twice, and whatever the batch


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "img.png", "-o", "OUT.pt"),
        ("encode", "img.png", "-o", "OUT.safetensors"),
        ("encode", "img.png", "a.png", "-o", "OUT.pt"),
        ("encode", "img.png", "a.png", "-o", "OUT.safetensors"),
        ("encode", "img.png", "-o", "OUT.pt", "--solver", "exact"),
        ("decode", "img.pt", "-o", "OUT.png"),
        ("interpolate", "a.pt", "b.pt", "-o", "OUT.gif"),
        ("interpolate", "a.pt", "b.pt", "-o", "OUT.png"),
        ("interpolate", "a.pt", "b.pt", "c.pt", "img.pt", "--grid", "--size", "3x3", "-o", "OUT.png"),
        ("reconstruct", "img.png", "a.png", "-o", "OUT.png"),
        ("info", "img.pt", "-o", "OUT.png"),
    ],
    ids=lambda c: " ".join(c),
)
def test_the_same_command_twice_makes_the_same_bytes(
    tiny: Invoke, latents: list[str], model_folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for name, file in zip(("img.png", "a.png"), sorted((model_folder / "held-out").iterdir()), strict=False):
        (tmp_path / name).write_bytes(file.read_bytes())
    contents = []
    for name in ("one", "two"):
        args = [a.replace("OUT", name) for a in command]
        steps = ("--steps", 4) if command[0] in ("encode", "reconstruct") else ()
        tiny(*args, *steps).ok()
        (written,) = (tmp_path / a for a in args if a.startswith(f"{name}."))
        contents.append(written.read_bytes())
    assert contents[0] == contents[1]


def test_a_result_does_not_depend_on_the_batch(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    """But for rounding: the convolutions of another batch size differ in float32's last digits."""
    settings = ("--steps", 10, "--solver", "ddim")
    tiny("encode", *pictures, "-o", "all.pt", *settings).ok()
    tiny("encode", *pictures, "-o", "single.pt", *settings, "--batch-size", 1).ok()
    together = latent.load(tmp_path / "all.pt").xT
    assert apart(latent.load(tmp_path / "single.pt").xT, together) < 1e-3
    for i, picture in enumerate(pictures):
        tiny("encode", picture, "-o", f"{i}.pt", *settings).ok()
        assert apart(latent.load(tmp_path / f"{i}.pt").xT[0], together[i]) < 1e-3


@pytest.mark.slow
@needs_bundled
@pytest.mark.parametrize("solver", sorted(SOLVERS.keys() - {"adaptive"}))
def test_nor_with_the_bundled_model(invoke: Invoke, tmp_path: Path, solver: str) -> None:
    """Encoded and decoded, alone and among others.

    Not so `adaptive`: the network's last float32 digits decide which steps it takes, so that it agrees with itself only
    as well as with the truth, to about 1e-3 at its default tolerance.
    """
    held_out = datasets.find_images(bundled_folder() / "fashion-mnist" / "held-out")[:5]
    for size in (1, 5):
        invoke("encode", *held_out, "-o", f"{size}.pt", "--solver", solver, "--batch-size", size, "--steps", 20).ok()
        found = latent.load(tmp_path / f"{size}.pt")
        net = load("fashion-mnist", "cpu")
        way = replace(found.recipe.way, solver=decoder(solver), tolerance=None)
        back = [ode.decode(net, x, way).x for x in found.xT.split(size)]
        torch.save(torch.cat(back), tmp_path / f"{size}.tensor")
    xT, x0 = ([latent.load(tmp_path / f"{n}.pt").xT for n in (1, 5)], [torch.load(f"{n}.tensor") for n in (1, 5)])
    assert apart(*xT) < 1e-3
    assert apart(*x0) < 1e-3


# reconstruct


def test_reconstruct_several_ways(tiny: Invoke, pictures: list[str], model_folder: Path, tmp_path: Path) -> None:
    done = tiny(
        "reconstruct", *pictures, "--steps", "3,10", "--solver", "ab2,ddim", "--spacing", "karras,linear",
        "--report", "mse,wrong_pixels,max_abs,norm", "--json",
    ).ok()  # fmt: skip
    record = json.loads(done.out)
    assert record["images"] == 4
    assert record["model"]["digest"] == load(str(model_folder), "cpu").digest
    ways = [(r["solver"], r["spacing"], r["steps"]) for r in record["results"]]
    assert ways == [(s, p, n) for s in ("ab2", "ddim") for p in ("karras", "linear") for n in (3, 10)]
    for r in record["results"]:
        each = r["each"]
        assert set(each) == {"mse", "wrong_pixels", "max_abs", "norm"}
        assert all(len(v) == 4 for v in each.values())
        assert r["encode_evaluations"] == r["decode_evaluations"] == r["steps"]
        assert r["mse"] == pytest.approx(np.mean(each["mse"]))
        assert r["norm"] == pytest.approx(np.mean(each["norm"]))
        assert r["wrong_pixels"] == sum(each["wrong_pixels"])
        assert r["max_abs"] == max(each["max_abs"])
        assert r["paper"] == TABLE_2.get(r["steps"])
    # One of the figures by hand, through the other commands.
    tiny("encode", "img.png", "-o", "x.pt", "--steps", 3, "--solver", "ddim").ok()
    tiny("decode", "x.pt", "-o", "x.png").ok()
    wrong = np.asarray(Image.open(tmp_path / "x.png")) != np.asarray(Image.open(tmp_path / "img.png"))
    assert record["results"][4]["each"]["wrong_pixels"][0] == wrong.sum()


def test_reconstruct_table(tiny: Invoke, pictures: list[str]) -> None:
    lines = tiny("reconstruct", "img.png", "--steps", "3,10", "--report", "psnr,mse").ok().out.splitlines()
    assert lines[0].split() == ["solver", "spacing", "steps", "evaluations", "psnr", "mse", "paper's", "mse"]
    assert lines[1].split()[-1] == "-"  # the paper has no figure for 3 steps
    assert float(lines[2].split()[-1]) == TABLE_2[10]
    assert "paper" not in tiny("reconstruct", "img.png", "--steps", 10, "--report", "psnr").ok().out


@pytest.mark.slow
def test_reconstruct_reports_everything_it_knows(tiny: Invoke, pictures: list[str]) -> None:
    done = tiny("reconstruct", "img.png", "a.png", "--steps", 3, "--report", "all", "--json").ok()
    (result,) = json.loads(done.out)["results"]
    assert {*METRICS, "norm", "latent_error", "xT_error"} == set(result["each"])
    assert all(v is None or v >= 0 for name in set(result["each"]) - {"psnr", "ssim"} for v in result["each"][name])


def test_reconstruct_in_batches_is_the_same(tiny: Invoke, pictures: list[str]) -> None:
    command = ("reconstruct", *pictures[:3], "--steps", 3, "--report", "mse,norm,xT_error", "--json")
    whole, parts = (json.loads(tiny(*command, "--batch-size", n).ok().out)["results"][0] for n in (64, 2))
    for name, values in whole["each"].items():
        np.testing.assert_allclose(parts["each"][name], values, rtol=1e-3, atol=1e-5)


def test_reconstruct_without_images_takes_the_models_own(tiny: Invoke) -> None:
    done = tiny("reconstruct", "--steps", 2, "--json").ok()
    assert json.loads(done.out)["images"] == 4
    assert "4 held-out images of tiny" in done.err
    assert json.loads(tiny("reconstruct", "--steps", 2, "-n", 3, "--json").ok().out)["images"] == 3


def test_reconstruct_sheet(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    """A row an image; a column for the original, and two for each way: 112 // 16 times enlarged, gaps of 4."""
    tiny("reconstruct", *pictures[:3], "--steps", "2,3", "-o", "sheet.png", "--no-labels").ok()
    with Image.open(tmp_path / "sheet.png") as sheet:
        columns, rows = 5, 3
        assert sheet.size == (columns * 112 + (columns - 1) * 4, rows * 112 + (rows - 1) * 4)
        pixels = np.asarray(sheet)
    original = np.asarray(Image.open(tmp_path / pictures[1]))
    np.testing.assert_array_equal(pixels[116:228:7, :112:7], original)


def test_reconstruct_fails_above_a_limit(tiny: Invoke, pictures: list[str]) -> None:
    command = ("reconstruct", "img.png", "--steps", 2, "--solver", "ddim,ab2", "--report", "mse")
    record = json.loads(tiny(*command, "--json").ok().out)
    worst = max(r["mse"] for r in record["results"])
    assert worst > 0
    done = tiny(*command, "--fail-above", worst * 0.99)
    assert done.failed(5).startswith("mse ")
    assert len(done.out.splitlines()) == 3  # the table is printed all the same
    tiny(*command, "--fail-above", worst * 1.01).ok()


def test_reconstruct_above_a_limit_without_the_mse_measured(tiny: Invoke, pictures: list[str]) -> None:
    tiny("reconstruct", "img.png", "--report", "psnr", "--steps", 2, "--fail-above", 1).failed(2)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_reconstruct_plot(tiny: Invoke, pictures: list[str], tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    done = tiny("reconstruct", "img.png", "--steps", "2,3", "--solver", "ab2,ddim", "--plot", f"p{suffix}").ok()
    assert f"p{suffix}" in done.err
    start = (tmp_path / f"p{suffix}").read_bytes()[:100]
    assert {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix] in start


# info


def test_info(tiny: Invoke, latents: list[str], model_folder: Path, tmp_path: Path) -> None:
    text = tiny("info", "img.pt").ok().out
    assert "1 latent of 1 × 16 × 16" in text
    assert "ab2, karras, 4 steps, 4 evaluations" in text
    assert "img.png: " in text
    for name in ("mean", "std", "norm/√d", "kurtosis", "autocorrelation, lag 2", "low-variance patches"):
        assert name in text
    record = json.loads(tiny("info", "img.pt", "--json").ok().out)
    assert record["kind"] == "latent"
    assert record["shape"] == [1, 1, 16, 16]
    assert record["provenance"] == latent.load(tmp_path / "img.pt").provenance
    (health,) = record["health"]
    xT = latent.load(tmp_path / "img.pt").xT
    assert health["figures"]["mean"]["value"] == pytest.approx(float(xT.double().mean()))
    assert health["verdict"] in text
    record = json.loads(tiny("info", str(model_folder), "--json").ok().out)
    assert (record["kind"], record["image_size"], record["schedule"]["T"]) == ("model", [16, 16], 1000)
    assert f"digest      {record['digest']}" in tiny("info", str(model_folder)).ok().out


def test_info_of_a_latent_of_equal_values(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    known = latent.load(tmp_path / "img.pt")
    latent.save(tmp_path / "zeros.pt", latent.Latent(torch.zeros_like(known.xT), known.provenance))
    assert "too weak" in tiny("info", "zeros.pt").ok().out
    record = json.loads(tiny("info", "zeros.pt", "--json").ok().out)
    assert record["health"][0]["figures"]["kurtosis"]["value"] is None


def test_info_draws_the_latent(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    done = tiny("info", "img.pt", "-o", "x.png", "--no-labels").ok()
    assert "x.png" in done.err
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (112, 112)
    xT = latent.load(tmp_path / "img.pt").xT[0, 0].double().numpy()
    want = np.clip(np.round((xT / 3 + 1) * 127.5), 0, 255)
    np.testing.assert_array_equal(pixels[::7, ::7], want)


def test_info_of_many(tiny: Invoke, pictures: list[str]) -> None:
    tiny("encode", *pictures, "-o", "four.pt", "--steps", 2).ok()
    text = tiny("info", "four.pt").ok().out
    assert "4 latents of" in text
    assert all(f"{p}: " in text for p in pictures)


# interpolate


@pytest.mark.parametrize(
    ("flags", "n", "options"),
    [
        ((), 10, {}),
        (("--frames", 7), 7, {}),
        (("--loop",), 10, {"loop": True}),
        (("--ease",), 10, {"ease": True}),
        (("--lerp",), 10, {"interpolant": slerps.lerp}),
        (("--loop", "--ease", "--lerp"), 10, {"loop": True, "ease": True, "interpolant": slerps.lerp}),
    ],
)
def test_interpolate_decodes_the_keyframes(
    tiny: Invoke, latents: list[str], tmp_path: Path, flags: tuple[object, ...], n: int, options: dict[str, object]
) -> None:
    """Every frame is what `decode` makes of that latent, to one level: the batches differ."""
    names = ["a.pt", "b.pt", "c.pt"]
    tiny("interpolate", *names, "-o", "frames", *flags).ok()
    found = [latent.load(tmp_path / name) for name in names]
    xT = slerps.keyframes([f.xT[0] for f in found], n, **options)  # type: ignore[arg-type]
    records = [found[0].images[0]] * n
    about = {**found[0].provenance, "images": records, "evaluations": [4] * n}
    latent.save(tmp_path / "keys.pt", latent.Latent(xT, about))
    tiny("decode", "keys.pt", "-o", "decoded").ok()
    decoded = sorted((tmp_path / "decoded").rglob("*.png"))
    frames = sorted((tmp_path / "frames").iterdir())
    assert len(frames) == len(decoded) == n
    for p, q in zip(frames, decoded, strict=True):
        assert np.abs(np.asarray(Image.open(p)).astype(int) - np.asarray(Image.open(q))).max() <= 1


def test_interpolate_grid(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    done = tiny(
        "interpolate", "a.pt", "b.pt", "c.pt", "img.pt", "--grid", "--size", "2x3", "--zoom", 1, "--no-labels"
    ).ok()
    assert done.out == "interpolation.png\n"
    assert "interpolation.png" in done.err
    pixels = np.asarray(Image.open(tmp_path / "interpolation.png"))
    assert pixels.shape == (2 * 16 + 2, 3 * 16 + 4)
    corners = {"a": (0, 0), "b": (0, 2), "c": (1, 0), "img": (1, 2)}
    for name, (row, column) in corners.items():
        tiny("decode", f"{name}.pt", "-o", f"{name}.png").ok()
        part = pixels[row * 18 : row * 18 + 16, column * 18 : column * 18 + 16].astype(int)
        assert np.abs(part - np.asarray(Image.open(tmp_path / f"{name}.png"))).max() <= 1


def test_interpolate_from_images_directly(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    tiny(
        "interpolate", "a.png", "b.png", "--steps", 4, "-o", "direct.png", "--frames", 4, "--zoom", 1, "--no-labels",
        "--dither", "none",
    ).ok()  # fmt: skip
    for name in "ab":
        tiny("encode", f"{name}.png", "-o", f"{name}.pt", "--steps", 4).ok()
    tiny("interpolate", "a.pt", "b.pt", "-o", "by-latents.png", "--frames", 4, "--zoom", 1, "--no-labels").ok()
    tiny("interpolate", "a.pt", "b.png", "-o", "mixed.png", "--frames", 4, "--zoom", 1, "--no-labels").ok()
    direct, by_latents, mixed = (
        np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("direct", "by-latents", "mixed")
    )
    assert direct.shape == (16, 4 * 16 + 3 * 2)
    assert np.abs(direct - by_latents).max() <= 1
    assert np.abs(mixed - by_latents).max() <= 1


def test_interpolate_with_exact_encodes_and_decodes_what_belongs_together(tiny: Invoke, pictures: list[str]) -> None:
    """Images encoded with `exact` are decoded with `ddim`, as latents of it are."""
    done = tiny("interpolate", "a.png", "b.png", "--steps", 3, "--solver", "exact", "--tolerance", 1e-3, "-o", "f.gif")
    assert done.ok().out == "f.gif\n"


@pytest.mark.slow
def test_interpolate_image_with_latent_of_exact(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    """An image beside a latent is encoded as the latent was, so it comes back as well as the latent's does."""
    tiny("encode", "a.png", "-o", "a.pt", "--steps", 4, "--solver", "exact").ok()
    tiny("encode", "b.png", "-o", "b.pt", "--steps", 4, "--solver", "exact").ok()
    tiny("interpolate", "a.pt", "b.png", "-o", "mixed", "--frames", 2).ok()
    tiny("interpolate", "a.pt", "b.pt", "-o", "pure", "--frames", 2).ok()
    mixed, pure = (np.asarray(Image.open(sorted((tmp_path / n).iterdir())[1])).astype(int) for n in ("mixed", "pure"))
    assert np.abs(mixed - pure).max() <= 1


def test_interpolate_distances(tiny: Invoke, latents: list[str]) -> None:
    done = tiny("interpolate", "a.pt", "b.pt", "--frames", 4, "-o", "x.gif", "--distances").ok()
    lines = done.out.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [["0", "to", "1"], ["1", "to", "2"], ["2", "to", "3"]]
    assert lines[-1] == "x.gif"
    record = json.loads(tiny("interpolate", "a.pt", "b.pt", "--frames", 4, "-o", "y.gif", "--json").ok().out)
    assert (record["file"], record["frames"], len(record["distances"])) == ("y.gif", 4, 3)
    for line, distance in zip(lines[1:4], record["distances"], strict=True):
        assert float(line.split()[-1]) == pytest.approx(distance, rel=0.01)


def test_interpolate_a_file_of_several(tiny: Invoke, pictures: list[str], tmp_path: Path) -> None:
    tiny("encode", *pictures, "-o", "four.pt", "--steps", 2).ok()
    tiny("interpolate", "four.pt", "--frames", 9, "-o", "x.gif").ok()
    assert count_frames(tmp_path / "x.gif") == (9, 900)


def test_interpolate_tells_of_merged_frames(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    done = tiny("interpolate", "a.pt", "a.pt", "--frames", 5, "-o", "x.gif").ok()
    assert "x.gif holds 1 of the 5 frames" in done.err
    assert count_frames(tmp_path / "x.gif") == (1, 500)
    assert "holds" not in tiny("interpolate", "a.pt", "a.pt", "--frames", 5, "-o", "x.apng").ok().err


@pytest.mark.parametrize("fps", [30, 12.5])
def test_interpolate_fps(tiny: Invoke, latents: list[str], tmp_path: Path, fps: float) -> None:
    tiny("interpolate", "a.pt", "b.pt", "--fps", fps, "-o", "x.gif").ok()
    n, total = count_frames(tmp_path / "x.gif")
    assert n == 10
    assert abs(total - 10_000 / fps) <= 5


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("a.pt",), "at least two"),
        (("a.pt", "--loop"), "at least two"),
        (("a.pt", "b.pt", "c.pt", "--frames", 2), "2 frames cannot show 3"),
        (("a.pt", "b.pt", "--frames", 0), "0 frames"),
        (("a.pt", "b.pt", "--frames", -5), "-5 frames"),
        (("a.pt", "b.pt", "--grid"), "four corners, not 2"),
        (("a.pt", "b.pt", "c.pt", "img.pt", "--grid", "--size", "1x5"), "2 rows"),
        (("a.pt", "b.pt", "c.pt", "img.pt", "--grid", "--size", "big"), "not a size"),
        (("a.pt", "b.pt", "c.pt", "img.pt", "--grid", "-o", "x.mp4"), "suffix"),
        (("a.pt", "b.pt", "-o", "x.txt"), "suffix"),
        (("a.pt", "b.pt", "--fps", 0), "fps"),
        (("a.pt", "b.pt", "--zoom", 0), "zoom"),
    ],
)
def test_interpolate_what_makes_no_sense(
    tiny: Invoke, latents: list[str], nothing_new: Callable[[], None], args: tuple[object, ...], why: str
) -> None:
    nothing_new()
    assert why in tiny("interpolate", *args).failed(2)


def test_interpolate_latents_of_different_models(
    invoke: Invoke, model_folder: Path, other_model: Path, pictures: list[str], tmp_path: Path
) -> None:
    invoke("encode", "a.png", "-o", "a.pt", "--steps", 2, "-m", model_folder).ok()
    invoke("encode", "b.png", "-o", "b.pt", "--steps", 2, "-m", other_model).ok()
    assert "another model" in invoke("interpolate", "a.pt", "b.pt").failed(3)
    assert not (tmp_path / "interpolation.gif").exists()


# Bad input: one line, the right exit code, no traceback, no partial file


def truncated_png(path: Path) -> None:
    whole = writing.to_bytes(np.random.default_rng(0).integers(0, 256, (64, 64, 1)).astype(np.uint8), ".png")
    path.write_bytes(whole[: len(whole) // 2])


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (lambda p: None, 2, "no file"),
    "text": (lambda p: p.write_text("I am not a picture\n" * 50), 3, "not an image"),
    "empty": (lambda p: p.write_bytes(b""), 3, "not an image"),
    "truncated": (truncated_png, 3, "damaged"),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("command", ["encode", "reconstruct", "interpolate"])
def test_bad_images(
    tiny: Invoke, pictures: list[str], tmp_path: Path, nothing_new: Callable[[], None], command: str, bad: str
) -> None:
    make, code, why = BAD_IMAGES[bad]
    make(tmp_path / "bad.png")
    nothing_new()
    args = {"encode": ("bad.png", "-o", "x.pt"), "reconstruct": ("bad.png",), "interpolate": ("a.png", "bad.png")}
    said = tiny(command, *args[command], "--steps", 2).failed(code)
    assert why in said
    assert "bad.png" in said


def flipped(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)


BAD_LATENTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (lambda p: p.unlink(), 2, "no file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), 2, ""),
    "text": (lambda p: p.write_text("I am not a latent\n" * 50), 3, "not a latent"),
    "empty": (lambda p: p.write_bytes(b""), 3, "not a latent"),
    "flipped in the middle": (lambda p: flipped(p, 0.5), 3, "damaged"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-100]), 3, "damaged"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("bad", BAD_LATENTS)
@pytest.mark.parametrize("command", ["decode", "interpolate", "info"])
def test_bad_latents(
    tiny: Invoke,
    pictures: list[str],
    tmp_path: Path,
    nothing_new: Callable[[], None],
    command: str,
    bad: str,
    suffix: str,
) -> None:
    name = f"bad{suffix}"
    for source, target in (("a.png", "a.pt"), ("b.png", name)):
        tiny("encode", source, "-o", target, "--steps", 2).ok()
    make, code, why = BAD_LATENTS[bad]
    make(tmp_path / name)
    nothing_new()
    args = {"decode": (name, "-o", "x.png"), "interpolate": ("a.pt", name), "info": (name, "-o", "x.png")}
    if bad == "a folder" and command == "decode":
        why = "no"  # a folder of latents is fine, if there are any
    said = tiny(command, *args[command]).failed(code)
    assert why in said
    assert name in said


@pytest.mark.parametrize("at", np.linspace(0.02, 0.98, 13).round(2).tolist())
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_flipped_byte_anywhere_is_noticed(
    tiny: Invoke, model_folder: Path, tmp_path: Path, suffix: str, at: float
) -> None:
    """In a zip some bytes mean nothing: then what is read is what was written."""
    source = sorted((model_folder / "held-out").iterdir())[0]
    name = f"x{suffix}"
    tiny("encode", source, "-o", name, "--steps", 2).ok()
    whole = latent.load(tmp_path / name)
    flipped(tmp_path / name, at)
    done = tiny("decode", name, "-o", "x.png")
    if done.code == 0:
        again = latent.load(tmp_path / name)
        assert torch.equal(again.xT, whole.xT)
        assert again.provenance == whole.provenance
    else:
        done.failed(3)
        assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("--solver", "abc2", tuple(SOLVERS)),
        ("--spacing", "caras", tuple(SPACINGS)),
        ("--report", "mses", tuple(METRICS)),
    ],
)
def test_unknown_names_list_the_known_ones(
    tiny: Invoke, pictures: list[str], nothing_new: Callable[[], None], option: str, value: str, known: tuple[str, ...]
) -> None:
    nothing_new()
    commands = [("reconstruct", "a.png")]
    if option != "--report":
        commands += [("encode", "a.png", "-o", "x.pt"), ("interpolate", "a.png", "b.png")]
    for command in commands:
        done = tiny(*command, option, value)
        assert repr(value) in done.failed(2)
        assert all(name in done.err.splitlines()[-1] for name in known)
        assert "did you mean" in done.err.splitlines()[-1]


@pytest.mark.parametrize("command", [("encode", "a.png", "-o", "x.pt"), ("reconstruct", "a.png"), ("info",)])
def test_unknown_model(
    invoke: Invoke, pictures: list[str], nothing_new: Callable[[], None], command: tuple[str, ...]
) -> None:
    nothing_new()
    done = invoke(*command, "no-such-model") if command == ("info",) else invoke(*command, "-m", "no-such-model")
    assert "no model 'no-such-model'" in done.failed(2)
    assert all(name in done.err.splitlines()[-1] for name in bundled())


@pytest.mark.parametrize("steps", [0, 1001, -1])
@pytest.mark.parametrize(
    "command",
    [("encode", "a.png", "-o", "x.pt"), ("reconstruct", "a.png"), ("interpolate", "a.png", "b.png")],
    ids=lambda c: c[0],
)
def test_impossible_steps(
    tiny: Invoke, pictures: list[str], nothing_new: Callable[[], None], command: tuple[str, ...], steps: int
) -> None:
    nothing_new()
    done = tiny(*command, "--steps", steps)
    assert f"{steps} steps" in done.failed(2)
    assert "1 to 1000" in done.err


@pytest.mark.parametrize("steps", [0, 1001])
@pytest.mark.parametrize("command", ["decode", "interpolate"])
def test_impossible_steps_for_latents(
    tiny: Invoke, latents: list[str], tmp_path: Path, command: str, steps: int
) -> None:
    args = ("a.pt", "-o", "x.png") if command == "decode" else ("a.pt", "b.pt", "-o", "x.png")
    done = tiny(command, *args, "--steps", steps)
    assert f"{steps} steps" in done.failed(2)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("steps", ["ten", "1.5", "", "5,,6"])
def test_steps_that_are_no_numbers(tiny: Invoke, pictures: list[str], steps: str) -> None:
    tiny("reconstruct", "a.png", "--steps", steps).failed(2)
    tiny("encode", "a.png", "-o", "x.pt", "--steps", steps).failed(2)


def test_nothing_to_compare(tiny: Invoke, pictures: list[str]) -> None:
    for option in ("--solver", "--spacing", "--report"):
        tiny("reconstruct", "a.png", "--steps", 2, option, "").failed(2)


@pytest.mark.parametrize("command", ["decode", "interpolate"])
def test_a_latent_from_another_model(
    invoke: Invoke, model_folder: Path, other_model: Path, pictures: list[str], tmp_path: Path, command: str
) -> None:
    for name in "ab":
        invoke("encode", f"{name}.png", "-o", f"{name}.pt", "--steps", 2, "-m", model_folder).ok()
    args = ("a.pt", "-o", "x.png") if command == "decode" else ("a.pt", "b.pt", "-o", "x.png")
    done = invoke(command, *args, "-m", other_model)
    assert "another model (tiny)" in done.failed(3)
    assert "--force" in done.err
    assert not (tmp_path / "x.png").exists()
    forced = invoke(command, *args, "-m", other_model, "--force").ok()
    assert "warning: " in forced.err
    assert (tmp_path / "x.png").exists()


def test_a_latent_of_another_shape_is_refused_even_by_force(
    invoke: Invoke, model_folder: Path, larger_model: Path, pictures: list[str], tmp_path: Path
) -> None:
    invoke("encode", "a.png", "-o", "a.pt", "--steps", 2, "-m", model_folder).ok()
    for force in ((), ("--force",)):
        done = invoke("decode", "a.pt", "-o", "x.png", "-m", larger_model, *force)
        assert "shape" in done.failed(3)
        assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (("encode", "a.png", "-o"), "x.pt"),
        (("decode", "a.pt", "-o"), "x.png"),
        (("interpolate", "a.pt", "b.pt", "-o"), "x.gif"),
        (("interpolate", "a.pt", "b.pt", "-o"), "x.png"),
        (("interpolate", "a.pt", "b.pt", "-o"), "frames"),
        (("reconstruct", "a.png", "--steps", "2", "-o"), "x.png"),
        (("reconstruct", "a.png", "--steps", "2", "--plot"), "x.svg"),
        (("info", "a.pt", "-o"), "x.png"),
    ],
)
def test_targets_that_cannot_be_written(
    tiny: Invoke,
    latents: list[str],
    model_folder: Path,
    tmp_path: Path,
    nothing_new: Callable[[], None],
    command: tuple[str, ...],
    target: str,
) -> None:
    """Below a file, where not even root can write."""
    (tmp_path / "a.png").write_bytes(sorted((model_folder / "held-out").iterdir())[1].read_bytes())
    (tmp_path / "file").write_text("a file")
    nothing_new()
    if target == "frames":  # a folder, which is made at the end
        assert "file/frames" in tiny(*command, "file/frames").failed(1)
    else:
        assert tiny(*command, f"file/{target}").failed(2) == "there is no folder file"


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (("encode", "a.png", "-o"), "x.pt"),
        (("decode", "a.pt", "-o"), "x.png"),
        (("interpolate", "a.pt", "b.pt", "-o"), "x.gif"),
        (("interpolate", "a.pt", "b.pt", "--grid", "c.pt", "img.pt", "--size", "2x2", "-o"), "x.png"),
        (("interpolate", "a.pt", "b.pt"), "interpolation.gif"),
        (("interpolate", "a.pt", "b.pt", "-o"), "frames"),
        (("reconstruct", "a.png", "--steps", "2", "-o"), "x.png"),
        (("reconstruct", "a.png", "--steps", "2", "--plot"), "x.svg"),
        (("info", "a.pt", "-o"), "x.png"),
    ],
)
def test_existing_targets(
    tiny: Invoke, latents: list[str], model_folder: Path, tmp_path: Path, command: tuple[str, ...], target: str
) -> None:
    (tmp_path / "a.png").write_bytes(sorted((model_folder / "held-out").iterdir())[1].read_bytes())
    if target == "frames":
        (tmp_path / target).mkdir()
        held = tmp_path / target / "frame-0.png"
    else:
        held = tmp_path / target
    held.write_bytes(b"mine")
    before = files(tmp_path)
    args = (*command, target) if command[-1] in ("-o", "--plot") else command
    done = tiny(*args)
    assert target in done.failed(2)
    assert "--force" in done.err or target == "frames"
    assert held.read_bytes() == b"mine"
    assert files(tmp_path) == before
    if target != "frames":
        tiny(*args, "--force").ok()
        assert held.read_bytes() != b"mine"


def test_a_folder_instead_of_a_file(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.gif").mkdir()
    assert "folder" in tiny("info", "a.pt", "-o", "folder.png").failed(2)
    assert "folder" in tiny("interpolate", "a.pt", "b.pt", "-o", "folder.gif").failed(2)
    assert "folder" in tiny("interpolate", "a.pt", "folder.png").failed(2)
    assert "folder.png" in tiny("reconstruct", "folder.png").failed(2)
    assert "folder.png" in tiny("encode", "folder.png", "-o", "x").failed(2)


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "a.png", "-o", "x.txt"),
        ("decode", "a.pt", "-o", "x.txt"),
        ("reconstruct", "a.png", "-o", "x.txt"),
        ("reconstruct", "a.png", "--plot", "x.gif"),
        ("info", "a.pt", "-o", "x.txt"),
    ],
)
def test_unknown_suffixes_are_refused_before_any_work(
    tiny: Invoke, latents: list[str], model_folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a.png").write_bytes(sorted((model_folder / "held-out").iterdir())[1].read_bytes())
    done = tiny(*command)
    assert command[-1] in done.failed(2)
    assert done.err.splitlines()[-1].startswith("hint: ")
    assert not (tmp_path / command[-1]).exists()


def test_plots_without_their_extra(tiny: Invoke, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else real(n, *a))
    done = tiny("reconstruct", "a.png", "--plot", "p.png")
    assert "'plots'" in done.failed(2)
    assert "ddimctl[plots]" in done.err


def test_a_solver_that_takes_no_tolerance(tiny: Invoke, pictures: list[str]) -> None:
    for command in (("encode", "a.png", "-o", "x.pt"), ("reconstruct", "a.png"), ("interpolate", "a.png", "b.png")):
        done = tiny(*command, "--tolerance", "1e-4")
        assert "takes no tolerance" in done.failed(2)


def test_quiet_says_nothing_but_the_data(tiny: Invoke, latents: list[str]) -> None:
    for command in (("interpolate", "a.pt", "b.pt"), ("info", "a.pt", "-o", "x.png"), ("reconstruct", "--steps", 2)):
        done = tiny(*command, "-q").ok()
        assert done.err == ""
        assert done.out


def test_a_colour_image_for_a_grey_model_is_told_which_model_keeps_colour(
    tiny: Invoke, pictures: list[str], tmp_path: Path
) -> None:
    """Once, however many images lose their colour; not for grey ones, not with -q."""
    from PIL import Image

    for name in ("red.png", "blue.png"):
        Image.new("RGB", (16, 16), name.removesuffix(".png")).save(tmp_path / name)
    for words in (("encode", "red.png", "-o", "x.pt"), ("reconstruct", "red.png", "blue.png")):
        told = tiny(*words, "--steps", 2).ok().err
        assert told.count("-m emoji") == 1, told
    for words in (("encode", pictures[0], "-o", "y.pt"), ("encode", "red.png", "-o", "z.pt", "-q")):
        assert "emoji" not in tiny(*words, "--steps", 2).ok().err


@pytest.mark.skipif(options.COLOUR_MODEL not in bundled(), reason="the colour model is not here")
def test_the_colour_model_is_of_colour() -> None:
    assert load(options.COLOUR_MODEL, "cpu").channels == 3


def test_interpolate_tells_of_weak_latents_and_renorm_is_the_cure(
    invoke: Callable[..., Result], model_folder: Path, tmp_path: Path
) -> None:
    images = [str(model_folder / "held-out" / f"{i:03}.png") for i in range(2)]
    flat = tmp_path / "flat.png"
    Image.new("L", (16, 16), 128).save(flat)  # its x_T is next to nothing
    common = ("--frames", 3, "--steps", 3, "-m", model_folder, "--force", "--dither", "none")
    told = invoke("interpolate", flat, images[1], "-o", "x.gif", *common).ok().err
    assert "unlike noise, too weak" in told
    assert "--renorm" in told
    cured = invoke("interpolate", flat, images[1], "-o", "y.gif", *common, "--renorm").ok().err
    assert "too weak" not in cured
    assert (tmp_path / "x.gif").read_bytes() != (tmp_path / "y.gif").read_bytes()
    invoke("interpolate", *images, "-o", "z.gif", *common, "--renorm", "--lerp").failed(2)


def test_images_are_dithered_before_what_lies_between_and_the_ends_are_themselves(
    invoke: Callable[..., Result], tame_folder: Path, tmp_path: Path
) -> None:
    """As `encode --dither` makes latents, byte for byte; the first and last frames are what their latents decode to."""
    a, b = (str(tame_folder / "held-out" / f"{i:03}.png") for i in range(2))
    common = ("-m", tame_folder, "--steps", 10, "--solver", "exact")
    invoke("interpolate", a, b, "-o", "frames", "--frames", 3, "--dither", 5, *common).ok()
    invoke("encode", a, b, "-o", "ab.pt", "--dither", 5, *common).ok()
    invoke("interpolate", "ab.pt", "-o", "again", "--frames", 3).ok()
    invoke("interpolate", a, b, "-o", "without", "--frames", 3, "--dither", "none", *common).ok()
    invoke("interpolate", a, b, "-o", "default", "--frames", 3, *common).ok()

    def frames(folder: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(f)).astype(int) for f in sorted((tmp_path / folder).iterdir())]

    assert all(np.abs(x - y).max() <= 1 for x, y in zip(frames("frames"), frames("again"), strict=True))
    for i, original in ((0, a), (2, b)):
        for folder in ("frames", "without", "default"):
            assert np.abs(frames(folder)[i] - np.asarray(Image.open(original))).max() <= 1
    assert (frames("frames")[1] != frames("without")[1]).any()
    assert (frames("frames")[1] != frames("default")[1]).any()  # another seed
    assert "a number from 0" in invoke("interpolate", a, b, "-o", "no.gif", "--dither", "x").failed(2)
    plain = ("-m", tame_folder, "--steps", 3, "--spacing", "linear")
    assert "without --dither" in invoke("interpolate", a, b, "-o", "linear.gif", *plain).ok().err
