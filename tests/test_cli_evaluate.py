"""``ddimctl evaluate``: the table, its JSON, its plot; the cache, whatever happens to it; and wrong input."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, isolated, write_tiny_model
from PIL import Image
from test_features import small

from ddimctl import evaluate, features, frechet, sampling
from ddimctl.cli.console import figure
from ddimctl.families import load
from ddimctl.images import levels
from ddimctl.model import NOTHING, Condition, Model
from ddimctl.paper import TABLE_1
from ddimctl.recipe import Way

Run = Callable[..., Result]
FEW = ("--steps", "2,3", "-n", 20)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a (random) classifier."""
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "rated")
    small(folder / features.FILE)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 8)


@pytest.fixture
def run(invoke: Run, rated: Path) -> Run:
    """``ddimctl evaluate`` of that model."""
    return lambda *args, **kw: invoke("evaluate", "-m", rated, *args, **kw)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images at each evaluation of the network."""
    calls: list[int] = []
    eps = Model.eps

    def counting(self: Model, condition: Condition = NOTHING) -> Any:
        inner = eps(self, condition)

        def counted(xbar: torch.Tensor, sigma: Any) -> torch.Tensor:
            calls.append(len(xbar))
            return inner(xbar, sigma)

        return counted

    monkeypatch.setattr(Model, "eps", counting)
    return calls


def results(result: Result) -> list[Any]:
    """What does not depend on the clock or on the cache."""
    kept = ("eta", "sigma_hat", "steps", "distance")
    return [[r[k] for k in kept] for r in json.loads(result.ok().out)["results"]]


def chunks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.chunk"))


def test_the_table_has_a_row_an_eta_and_a_column_a_number_of_steps(run: Run) -> None:
    done = run(*FEW, "--eta", "0,0.5,1", "--sigma-hat").ok()
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["S", "2", "3"]
    assert [r.rsplit(maxsplit=2)[0] for r in rows] == ["η = 0", "η = 0.5", "η = 1", "σ̂"]
    assert last.startswith("seconds an image")
    assert all(float(v) >= 0 for r in [*rows, last] for v in r.split()[-2:])
    assert "100 training images" in done.err


def test_several_seeds_are_a_line_each_with_their_mean_and_deviation(run: Run, tmp_path: Path) -> None:
    """Each cell is what its seed gives alone."""
    asked = (*FEW, "--eta", "0,1", "--json", "--cache", tmp_path / "cache")
    together = json.loads(run(*asked, "--seed", "2,5-6").ok().out)
    assert together["seeds"] == [2, 5, 6]
    assert "seed" not in together
    alone = {seed: results(run(*asked, "--seed", seed)) for seed in (2, 5, 6)}
    cells = {(c["seed"], c["eta"], c["steps"]): c["distance"] for c in together["results"]}
    assert cells == {(seed, eta, steps): d for seed, found in alone.items() for eta, _, steps, d in found}
    assert [(c["eta"], c["steps"]) for c in together["over_seeds"]] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    for c in together["over_seeds"]:
        values = [cells[seed, c["eta"], c["steps"]] for seed in (2, 5, 6)]
        assert c["mean"] == pytest.approx(np.mean(values))
        assert c["deviation"] == pytest.approx(np.std(values, ddof=1))
        assert c["deviation"] > 0
    text = run(*asked[:-3], "--cache", tmp_path / "cache", "--seed", "2,5-6", "--html", "p.html").ok().out
    names = [line.rsplit(maxsplit=2)[0] for line in text.splitlines()[1:-1]]
    assert names == [f"η = {e}, {n}" for e in (0, 1) for n in ("seed 2", "seed 5", "seed 6", "mean", "deviation")]
    page = (tmp_path / "p.html").read_text()
    for c in together["over_seeds"]:
        assert f"<td>{figure(c['mean'])} ± {figure(c['deviation'])}</td>" in page
    assert page.count("seed 5</th>") == 2  # a line for each η
    assert page.count("<dd>2, 5, 6</dd>") == 1
    assert page.count('<th scope="row">η = 0\nS = 2</th>') == 1  # its samples, of one seed
    for wrong in ("x", "3-1", "", "1.5"):
        run(*FEW, "--seed", wrong).failed(2)


def test_a_cell_is_the_distance_of_the_samples_of_that_name(run: Run, rated: Path) -> None:
    """Found again from the library's parts: eq. 12 on the paper's path, 8 bits, features, Fréchet."""
    record = json.loads(run(*FEW, "--eta", "0,0.5", "--sigma-hat", "--seed", 3, "--json").ok().out)
    model, extractor = load(str(rated), "cpu"), features.load_classifier(rated / features.FILE)
    assert extractor.reference is not None
    assert len(record["results"]) == 6
    for cell in record["results"]:
        how = sampling.Noising(Way("ddim", "linear", cell["steps"]), cell["eta"], cell["sigma_hat"])
        x = sampling.sample(model, 20, how, seed=3).x
        pixels = torch.from_numpy(np.moveaxis(levels.to_pixels(x), -1, 1).copy())
        expected = frechet.distance(frechet.statistics(extractor.parts(pixels)), extractor.reference)
        assert cell["distance"] == pytest.approx(expected, rel=1e-3)  # a value of a pixel may round another way
        assert cell["seconds_per_image"] > 0
    assert (record["images"], record["seed"], record["spacing"], record["solver"]) == (20, 3, "linear", "ddim")
    assert record["model"]["digest"] == model.digest
    assert record["features"]["digest"] == extractor.about["digest"]
    assert set(record["seconds_per_image"]) == {"2", "3"}


def test_a_second_run_evaluates_nothing(run: Run, evaluations: list[int]) -> None:
    first = run(*FEW, "--json").ok()
    assert sum(evaluations) == 2 * 20 * (2 + 3)
    evaluations.clear()
    second = run(*FEW, "--json").ok()
    assert not evaluations
    assert results(first) == results(second)
    assert "80 of 80 images were in the cache" in second.err
    timed = [[c["seconds_per_image"] for c in json.loads(r.out)["results"]] for r in (first, second)]
    assert timed[0] == pytest.approx(timed[1])


def test_more_images_make_only_the_missing_ones(run: Run, evaluations: list[int]) -> None:
    few = ("--eta", "1", "--steps", "2", "--json")
    run(*few, "-n", 11).ok()
    evaluations.clear()
    more = run(*few, "-n", 20).ok()
    assert sum(evaluations) == 9 * 2
    evaluations.clear()
    assert results(run(*few, "-n", 11).ok())
    assert not evaluations
    fresh = results(run(*few, "-n", 20, "--cache", "other"))
    assert results(more)[0][3] == pytest.approx(fresh[0][3], rel=1e-3)


def test_what_decides_about_the_images_decides_about_the_cache(run: Run, evaluations: list[int]) -> None:
    few = ("--eta", "0", "--steps", "2", "-n", 4)
    run(*few).ok()
    for other in (
        ["--seed", 1], ["--spacing", "quadratic"], ["--solver", "heun"], ["--eta", "0.1"], ["--steps", "4"],
        ["--precision", "bf16"],
    ):  # fmt: skip
        evaluations.clear()
        run(*few, *other).ok()
        assert evaluations, other
    run(*few, "--eta", "0,0.1", "--solver", "ab2").ok()
    evaluations.clear()
    run(*few, "--eta", "0.1", "--solver", "ddim").ok()  # where noise is added no solver is used
    run(*few, "--batch-size", 2, "--engine", "torch").ok()
    assert not evaluations


def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, evaluations: list[int]
) -> None:
    whole = run(*FEW, "--json", "--cache", "whole").ok()
    total = sum(evaluations)
    evaluations.clear()
    sample, calls = sampling.sample, 0

    def stops(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "sample", stops)
        assert run(*FEW, "--json").failed(143) == "interrupted"
    again = run(*FEW, "--json").ok()
    assert results(again) == results(whole)
    assert total <= sum(evaluations) <= total + 8 * 3  # one chunk at most was made twice
    here, there = (chunks(p) for p in (Path(os.environ["XDG_CACHE_HOME"], "ddimctl"), Path("whole")))
    assert [c.read_bytes().partition(b"\n")[2] for c in here] == [c.read_bytes().partition(b"\n")[2] for c in there]


@pytest.mark.slow
def test_a_killed_process_leaves_only_whole_chunks(ddimctl: Run, rated: Path, tmp_path: Path) -> None:
    words = ["evaluate", "-m", rated, "--steps", "5,10", "-n", 256, "--json"]
    whole = results(ddimctl(*words, "--cache", "whole"))
    process = subprocess.Popen(
        [sys.executable, "-m", "ddimctl", *map(str, words), "--cache", "killed"],
        cwd=tmp_path,
        env=isolated(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(chunks(tmp_path / "killed")) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    survived = len(chunks(tmp_path / "killed"))
    assert 2 <= survived <= 8
    assert results(ddimctl(*words, "--cache", "killed")) == whole
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def damaged(data: bytes) -> Iterator[bytes]:
    """A chunk as a disk may leave it, and as somebody may have made it."""
    head, _, pixels = data.partition(b"\n")
    about = json.loads(head)
    yield b""
    yield data[:-1]
    yield data[:100]
    yield data + b"x"
    yield data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    yield b"\x80\x04" + data
    yield b"[" * 100_000
    yield b"null\n" + pixels
    for key, value in (
        ("images", 10**12), ("images", -1), ("images", "x"), ("seconds", -1), ("seconds", float("nan")),
        ("seconds", "x"), ("setting", None), ("sha256", None),
    ):  # fmt: skip
        yield json.dumps({**about, key: value}).encode() + b"\n" + pixels


def test_a_damaged_chunk_is_made_again(run: Run, evaluations: list[int]) -> None:
    few = ("--eta", "0", "--steps", "2", "-n", 16, "--json", "--cache", "c")
    expected = results(run(*few))
    first, second = chunks(Path("c"))
    good = first.read_bytes()
    for bad in damaged(good):
        first.write_bytes(bad)
        evaluations.clear()
        assert results(run(*few)) == expected
        assert evaluations == [8, 8], bad[:50]  # two steps of the eight images of that chunk
    assert first.read_bytes().partition(b"\n")[2] == good.partition(b"\n")[2]
    first.write_bytes(second.read_bytes())  # whole, but other images: the file says so itself
    assert results(run(*few)) == expected


def test_a_cache_that_cannot_be_written_is_one_line(run: Run) -> None:
    Path("file").write_text("no folder")
    assert "cannot make the folder" in run(*FEW, "--cache", "file").failed(1)
    assert "cannot make the folder" in run(*FEW, env={"XDG_CACHE_HOME": str(Path("file").resolve())}).failed(1)


def test_a_full_disk_is_one_line_and_nothing_is_half_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert "No space left on device" in run(*FEW, "--cache", "c").failed(1)
    assert not [p for p in Path("c").rglob("*") if p.is_file()]


def test_the_cache_is_where_the_system_keeps_such(run: Run, tmp_path: Path) -> None:
    run(*FEW, env={"XDG_CACHE_HOME": str(tmp_path / "xdg")}).ok()
    assert len(chunks(tmp_path / "xdg" / "ddimctl" / "samples")) == 2 * 2 * 3


def test_a_reference_of_ones_own(run: Run, tmp_path: Path) -> None:
    """As a folder and as an IDX file of the same images."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), np.uint8)
    (tmp_path / "folder").mkdir()
    for i, p in enumerate(pixels):
        Image.fromarray(p).save(tmp_path / "folder" / f"{i:02}.png")
    (tmp_path / "images-idx3-ubyte").write_bytes(struct.pack(">iiii", 0x803, 12, 16, 16) + pixels.tobytes())
    done = [run(*FEW, "--json", "--reference", r).ok() for r in ("folder", "images-idx3-ubyte")]
    assert results(done[0]) == results(done[1])
    assert results(done[0]) != results(run(*FEW, "--json"))
    record = json.loads(done[0].out)
    assert record["reference"]["images"] == 12
    assert record["floor"]["halves"] > 0
    assert "its halves are" in done[0].err
    assert "resampled" not in done[0].err


def test_what_is_done_to_a_reference_is_said(run: Run, tmp_path: Path) -> None:
    """In one line, whatever their number: they are made to fit as `train` would."""
    (tmp_path / "folder").mkdir()
    for i in range(6):
        Image.new("RGB", (20, 20), (i * 20, 0, 50)).save(tmp_path / "folder" / f"{i}.png")
    (tmp_path / "idx").write_bytes(struct.pack(">iiii", 0x803, 6, 20, 20) + bytes(6 * 400))
    for name, words in (("folder", ("colour to grey", "resampled")), ("idx", ("20 × 20 IDX", "resampled"))):
        (line,) = [x for x in run(*FEW, "--reference", name).ok().err.splitlines() if x.startswith(f"{name}: ")]
        assert all(w in line for w in words)


def test_too_few_images_for_the_features_are_warned_about(run: Run) -> None:
    few = ("--eta", "0", "--steps", "2")
    assert "warning: 6 generated images are too few for 6 features" in run(*few, "-n", 6).ok().err
    assert "warning" not in run(*few, "-n", 7).ok().err


def test_the_page(run: Run, rated: Path, tmp_path: Path) -> None:
    done = run(*FEW, "--eta", "0,0.7", "--html", "p.html", "--json").ok()
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    begin = text.index('id="record">') + len('id="record">')
    assert json.loads(text[begin : text.index("</script>", begin)]) == json.loads(done.out)
    assert text.count("<svg ") == 2
    cells = json.loads(done.out)["results"]
    names = [f"η = {r['eta']:g}\nS = {r['steps']}" for r in cells]
    assert len(names) == 4
    assert re.findall(r'<th scope="row">(η = [^<]*\n[^<]*)</th>', text) == names
    shown = re.findall(r'alt="([^"]*)" width="16" height="16"[^>]*src="data:image/png;base64,([^"]*)"', text)
    assert [alt for alt, _ in shown] == [f"{name}, {i}" for name in names for i in range(8)]
    x = sampling.sample(load(str(rated), "cpu"), 20, sampling.Noising(Way("ddim", "linear", 3)), seed=0).x
    with Image.open(io.BytesIO(base64.b64decode(shown[8 + 2][1]))) as picture:  # the third of S = 3
        assert np.abs(np.asarray(picture).astype(int) - levels.to_pixels(x)[2, ..., 0]).max() <= 1
    assert "exists already" in run(*FEW, "--html", "p.html").failed(2)


def test_the_plot(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(*FEW, "--eta", "0,0.7", "--sigma-hat", "--plot", "p.png").ok()
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 2 * image.height
    assert "exists already" in run(*FEW, "--plot", "p.png").failed(2)
    assert "no suffix of a plot" in run(*FEW, "--plot", "p.txt").failed(2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eta", "1.5"], "eta of 1.5"),
        (["--eta", "-0.1"], "eta of -0.1"),
        (["--eta", "nan"], "eta of nan"),
        (["--eta", "a"], "numbers from 0 to 1"),
        (["--eta", ","], "names nothing"),
        (["-n", 1], "1 images have no covariance"),
        (["--steps", "0"], "0 steps are not possible"),
        (["--steps", "2,x"], "whole numbers"),
        (["--features", "clip"], "unknown features 'clip'"),
        (["--features", "no.safetensors"], "no file no.safetensors"),
        (["--solver", "rk45"], "unknown solver"),
        (["--solver", "rk45", "--eta", "1"], "unknown solver"),
        (["--solver", "ab2", "--eta", "0.2,1"], "no row is for the solver ab2: all add noise on the way"),
        (["--solver", "ab2", "--eta", "1", "--sigma-hat"], "no row is for the solver ab2"),
        (["--engine", "steam"], "unknown engine"),
        (["--precision", "int4"], "unknown precision"),
        (["--spacing", "cubic"], "unknown spacing"),
        (["--reference", "nowhere"], "no file nowhere"),
        (["--reference", "empty"], "holds no images"),
        (["--reference", "three"], "holds 3 images, too few"),
    ],
)
def test_wrong_input_is_one_line(run: Run, tmp_path: Path, words: list[object], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "three").mkdir()
    for i in range(3):
        Image.new("L", (16, 16), i).save(tmp_path / "three" / f"{i}.png")
    assert message in run(*words).failed(2)
    assert not (tmp_path / ".cache").exists()


def test_a_model_without_a_classifier(invoke: Run, model_folder: Path, rated: Path) -> None:
    """It has its own bottleneck, or takes a classifier from elsewhere that fits, or Inception."""
    few = ("evaluate", "-m", model_folder, *FEW)
    assert "came without a classifier" in invoke(*few, "--features", "classifier").failed(2)
    invoke(*few, "--features", rated / features.FILE).ok()
    assert "the features bottleneck came without a reference" in invoke(*few).failed(2)
    if not _has_fidelity():
        assert "extra 'fid'" in invoke(*few, "--features", "inception").failed(2)


def _has_fidelity() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch_fidelity") is not None


def test_a_classifier_for_other_images_is_refused(invoke: Run, rated: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", sample_size=20)
    said = invoke("evaluate", "-m", other, *FEW, "--features", rated / features.FILE).failed(3)
    assert "is for images of shape (1, 16, 16)" in said


def test_the_papers_table_is_whole() -> None:
    assert list(TABLE_1) == ["η = 0", "η = 0.2", "η = 0.5", "η = 1", "σ̂"]
    assert all(list(row) == [10, 20, 50, 100, 1000] for row in TABLE_1.values())
    for steps in (10, 20, 50, 100):  # at few steps less noise is better
        column = [row[steps] for row in TABLE_1.values()]
        assert column == sorted(column)
