"""`reconstruct -m a,b`: models side by side are what each is alone; and images under captions of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, write_tiny_model
from PIL import Image

Run = Callable[..., Result]
REPORT = ("--report", "mse,psnr,norm", "--json")


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Path:
    """The model `tiny`, another of its shape, `other`, and one of larger images in colour; the images a.png and b.png."""
    shutil.copytree(model_folder, tmp_path / "tiny")
    write_tiny_model(tmp_path / "other", seed=1)
    write_tiny_model(tmp_path / "colour", seed=2, sample_size=20, in_channels=3, out_channels=3)
    for name, seed in (("a", 0), ("b", 1)):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def reconstruct(place: Path, invoke: Run) -> Run:
    return lambda *words: invoke("reconstruct", *words, "--steps", "2,3")


def figures(record: Any) -> list[Any]:
    return [[r[k] for k in ("solver", "steps", "mse", "psnr", "norm")] for r in record["results"]]


def test_each_model_gives_what_it_gives_alone(reconstruct: Run) -> None:
    """Of several sizes, too: each has the images as it takes them."""
    together = json.loads(reconstruct("a.png", "b.png", "-m", "tiny,other,colour", *REPORT).ok().out)
    assert [m["name"] for m in together["models"]] == ["tiny", "other", "colour"]
    assert [m["shape"] for m in together["models"]] == [[1, 16, 16], [1, 16, 16], [3, 20, 20]]
    assert [r["model"] for r in together["results"]] == ["tiny", "tiny", "other", "other", "colour", "colour"]
    alone = [json.loads(reconstruct("a.png", "b.png", "-m", m, *REPORT).ok().out) for m in ("tiny", "other", "colour")]
    assert [m["digest"] for m in together["models"]] == [r["model"]["digest"] for r in alone]
    assert figures(together) == [line for record in alone for line in figures(record)]
    assert len({str(line) for line in figures(together)}) == 6
    assert "model" not in alone[0]["results"][0]


def test_the_table_says_whose_a_line_is(reconstruct: Run) -> None:
    done = reconstruct("a.png", "-m", "tiny,colour").ok()
    assert [line.split()[0] for line in done.out.splitlines()] == ["model", "tiny", "tiny", "colour", "colour"]
    assert "tiny takes images of 16 × 16, grey" in done.err
    assert "colour takes images of 20 × 20, colour" in done.err
    assert done.err.count("a.png") == 2  # what was done to it for each
    assert reconstruct("a.png", "-m", "tiny,other").ok().err.count("a.png") == 1
    assert "model" not in reconstruct("a.png", "-m", "tiny").ok().out


def test_models_of_one_name_are_told_apart_by_what_they_were_named_by(place: Path, reconstruct: Run) -> None:
    shutil.copytree(place / "other", place / "sub/tiny")
    record = json.loads(reconstruct("a.png", "-m", "tiny,sub/tiny", "--json").ok().out)
    assert [m["name"] for m in record["models"]] == ["tiny", "sub/tiny"]
    assert {r["model"] for r in record["results"]} == {"tiny", "sub/tiny"}


def test_a_name_with_a_comma_is_one_model(place: Path, reconstruct: Run) -> None:
    (place / "tiny").rename(place / "ti,ny")
    assert json.loads(reconstruct("a.png", "-m", "ti,ny", "--json").ok().out)["model"]["name"] == "ti,ny"


def test_a_sheet_has_each_original_once(place: Path, reconstruct: Run) -> None:
    """Models of one shape share theirs; others begin with their own, all as large as the largest."""
    words = ("a.png", "b.png", "-o", "s.png", "--no-labels", "--force")
    for models, columns, side in (("tiny,other", 1 + 4 + 4, 112), ("tiny,colour", 1 + 4 + 1 + 4, 112)):
        done = reconstruct(*words, "-m", models).ok()
        assert f"{models.split(',')[1]} ab2 3 × " in done.err
        with Image.open(place / "s.png") as sheet:
            assert sheet.size == (columns * (side + 4) - 4, 2 * (side + 4) - 4)
            pixels = np.asarray(sheet.convert("RGB"))
    # 16 pixels 7 times are 112; 20 pixels 5 times are 100, 6 from each edge
    assert (pixels[:6, 5 * 116 : 5 * 116 + 112] == 255).all()
    assert (pixels[:112, 112:116] == 255).all()
    own = pixels[6:106:5, 5 * 116 + 6 : 5 * 116 + 106 : 5]
    assert len(np.unique(own.reshape(-1, 3), axis=0)) > 300  # noise in colour, whole
    assert (pixels[:112, :112, 0] == pixels[:112, :112, 2]).all()


def test_words_around_the_sheet_the_page_and_the_plot(place: Path, reconstruct: Run) -> None:
    pytest.importorskip("matplotlib")
    words = ("a.png", "-m", "tiny,colour", "-o", "s.png", "--html", "p.html", "--plot", "p.svg", "--json")
    record = json.loads(reconstruct(*words).ok().out)
    page = (place / "p.html").read_text(encoding="utf-8")
    assert "Round trips of tiny and colour" in page
    assert 'id="compared"' in page
    assert 'id="compared-1"' in page
    assert "Original and reconstruction: 20 × 20, colour" in page
    assert "colour, ab2, karras, S = 3" in page
    assert json.dumps(record["models"][1]["digest"]) in page
    drawn = (place / "p.svg").read_text(encoding="utf-8")
    for model in ("tiny", "colour"):
        assert f"{model}, ab2, karras" in drawn
    with Image.open(place / "s.png") as sheet:
        said = json.loads(sheet.text["ddimctl"])  # type: ignore[attr-defined]
    assert [line.split(",")[0] for line in said["lines"]] == ["tiny", "tiny", "colour", "colour"]
    assert [m.split(" (")[0] for m in said["models"]] == ["tiny", "colour"]


def test_what_cannot_be_compared_is_one_line(place: Path, reconstruct: Run, invoke: Run) -> None:
    assert "the same model twice" in reconstruct("a.png", "-m", "tiny,./tiny").failed(2)
    assert "other held-out images" in reconstruct("-m", "tiny,other").failed(2)
    assert "nothing" in reconstruct("a.png", "-m", "tiny,nothing").failed(2)
    assert "the model tiny has no classes" in reconstruct("a.png", "-m", "tiny,other", "--class", 1).failed(2)
    (place / "a.txt").write_text("a dog")
    assert "the model tiny" in reconstruct("a.png", "-m", "tiny,other", "--captions").failed(2)
    assert "names nothing" in reconstruct("a.png", "-m", ",").failed(2)
    data = (place / "a.png").read_bytes()
    assert "standard input" in invoke("reconstruct", "-", "-m", "tiny,other", input=data).failed(2)
    worst = max(r["mse"] for r in json.loads(reconstruct("a.png", "-m", "tiny,other", "--json").ok().out)["results"])
    reconstruct("a.png", "-m", "tiny,other", "--fail-above", worst * 0.99).failed(5)
    reconstruct("a.png", "-m", "tiny,other", "--fail-above", worst * 1.01).ok()


def test_models_with_the_same_held_out_images_need_no_others(place: Path, reconstruct: Run) -> None:
    shutil.rmtree(place / "other/held-out")
    shutil.copytree(place / "tiny/held-out", place / "other/held-out")
    assert "4 held-out images of tiny and other" in reconstruct("-m", "tiny,other").ok().err


def test_what_cannot_be_read_is_told_once(place: Path, reconstruct: Run) -> None:
    (place / "bad.png").write_bytes(b"no picture")
    done = reconstruct("a.png", "bad.png", "b.png", "-m", "tiny,other,colour", "--json")
    assert done.failed(4) == "1 of 3 images could not be read"
    assert done.err.count("failed: bad.png") == 1
    record = json.loads(done.out)
    assert record["images"] == 2
    assert [len(r["each"]["mse"]) for r in record["results"]] == [2] * 6
