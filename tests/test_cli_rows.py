"""What a latent file says is honoured file by file, and what it was made from is never written over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, write_tiny_model
from PIL import Image

from ddimctl.files import sha256

Run = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Path:
    """Images a.png, b.png, c.png and the model `tiny`."""
    shutil.copytree(model_folder, tmp_path / "tiny")
    for i, name in enumerate("abc"):
        shutil.copy(model_folder / f"held-out/{i:03}.png", tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def encode(place: Path, invoke: Run) -> Run:
    def run(*args: object, **kw: object) -> Result:
        return invoke("encode", *args, "-m", "tiny", "--steps", 4, "-q", **kw).ok()

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


def test_the_default_name_is_never_the_sources(place: Path, encode: Run, invoke: Run) -> None:
    before = (place / "a.png").read_bytes()
    encode("a.png")
    assert invoke("decode", "a.pt").ok().out == "a.decoded.png\n"
    assert (place / "a.png").read_bytes() == before
    (place / "a.png").unlink()
    invoke("decode", "a.pt", "--force").ok()
    assert not (place / "a.png").exists()
    shutil.move(place / "a.pt", place / "other.pt")
    assert invoke("decode", "other.pt").ok().out == "other.png\n"


def test_a_source_is_not_overwritten_and_force_is_not_suggested(place: Path, encode: Run, invoke: Run) -> None:
    before = (place / "a.png").read_bytes()
    encode("a.png", "b.png", "-o", "latents")
    shutil.copy(place / "a.png", place / "renamed.png")
    for target in ("a.png", "renamed.png"):
        for force in ([], ["--force"]):
            done = invoke("decode", "latents/a.pt", "-o", target, *force)
            assert "left alone" in done.failed(2)
            assert "--force" not in done.err
    for command in (["decode", "latents", "-o", "."], ["decode", "latents", "-o", ".", "--force"]):
        done = invoke(*command)
        assert done.code == 4
        assert "--force" not in done.err
    done = invoke("interpolate", "latents/a.pt", "latents/b.pt", "-o", "a.png", "--force", "--frames", 2)
    assert "left alone" in done.failed(2)
    assert (place / "a.png").read_bytes() == before


def test_a_source_that_would_be_written_anyway_may_be(tmp_path: Path) -> None:
    """--force over a source loses nothing where the very same bytes would be written."""
    from ddimctl.errors import UsageError
    from ddimctl.runs import local

    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    targets = local.Targets(tmp_path, ".png", force=True, single=True)
    assert local.put(path, b"x", targets, sources={sha256(b"x")}) == sha256(b"x")
    with pytest.raises(UsageError, match="left alone"):
        local.put(path, b"y", targets, sources={sha256(b"x")})
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_images_of_a_packed_file_keep_their_names_and_are_counted(
    suffix: str, place: Path, encode: Run, invoke: Run
) -> None:
    encode("c.png", "a.png", "b.png", "-o", f"packed{suffix}")
    done = invoke("decode", f"packed{suffix}", "-o", "d").ok()
    assert done.out.split() == ["d/c.png", "d/a.png", "d/b.png"]
    assert "decoded: 3, there already: 0" in done.err
    assert "decoded: 0, there already: 3" in invoke("decode", f"packed{suffix}", "-o", "d").ok().err
    encode("a.png", "b.png", "-o", "two.pt")
    done = invoke("decode", f"packed{suffix}", "two.pt", "-o", "e", "--json").ok()
    assert '"decoded": 5' in done.out
    assert (place / "e/packed/a.png").is_file()
    assert (place / "e/two/b.png").is_file()
    assert invoke("decode", "two.pt").ok().out.split() == ["a.decoded.png", "b.decoded.png"]


def test_names_from_strangers_lead_nowhere() -> None:
    import torch

    from ddimctl.latent import Latent
    from ddimctl.runs.names import of_images

    def names(*recorded: str) -> list[str]:
        return of_images(Latent(torch.zeros(len(recorded), 1, 2, 2), {"images": [{"name": r} for r in recorded]}), "x")

    assert names("a.png", "photos/b.png", "C:\\c.png") == ["x/a", "x/b", "x/c"]
    for odd in ("../..", ".hidden", "a\n.png", "", "-rf.png", "a:b.png", "B" * 300, "a.jpg", "A.png"):
        assert names("a.png", odd) == ["x-0", "x-1"]


def test_a_list_may_end_its_names_with_nul(place: Path, invoke: Run) -> None:
    strange = place / "two\nlines.png"
    shutil.copy(place / "a.png", strange)
    listed = b"a.png\0two\nlines.png\0"
    how = ("--from-file", "-", "-m", "tiny", "--steps", 2, "-o", "new")
    invoke("encode", *how, "-0", input=listed).ok()
    assert {p.name for p in (place / "new").glob("*.pt")} == {"a.pt", "two\nlines.pt"}
    done = invoke("encode", *how, input=listed)
    assert len(done.failed(2)) < 100
    assert "hint: add -0" in done.err
    invoke("encode", "a.png", "--null", "-o", "x.pt").failed(2)


def test_latents_of_two_ways_are_not_mixed(place: Path, encode: Run, invoke: Run) -> None:
    encode("a.png")
    invoke("encode", "b.png", "-m", "tiny", "--steps", 7, "--solver", "ddim", "--spacing", "linear").ok()
    done = invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "film")
    message = done.failed(3)
    assert "7 steps of ddim, linear" in message
    assert "4 steps of ab2, karras" in message
    assert "--steps" in done.err
    invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "film", "--steps", 7).failed(3)
    asked = ("--steps", 7, "--solver", "ddim", "--spacing", "linear")
    invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "film", *asked).ok()
    invoke("decode", "b.pt", "-o", "alone.png").ok()
    last = pixels(sorted((place / "film").glob("*.png"))[-1])
    assert (np.abs(last - pixels(place / "alone.png")) > 2).mean() < 0.05  # another batch, other last digits


def test_latents_of_two_classes_are_not_mixed(place: Path, invoke: Run) -> None:
    write_tiny_model(place / "classes", num_class_embeds=3)
    for name, label in (("a", 0), ("b", 2)):
        invoke("encode", f"{name}.png", "-m", "classes", "--class", label, "--steps", 3).ok()
    assert "class" in invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "film").failed(3)
    invoke("interpolate", "a.pt", "b.pt", "--frames", 2, "-o", "film", "--class", 1).ok()


def test_each_file_is_decoded_by_the_model_it_names(place: Path, encode: Run, invoke: Run) -> None:
    """Two models, two ways and two classes in one run: each image is what its file alone gives."""
    write_tiny_model(place / "classes", seed=1, num_class_embeds=3)
    encode("a.png")
    invoke("encode", "b.png", "-m", "classes", "--class", 0, "--steps", 3).ok()
    invoke("encode", "c.png", "-m", "classes", "--class", 2, "--steps", 6, "--solver", "ddim").ok()
    invoke("decode", "a.pt", "b.pt", "c.pt", "-o", "all").ok()
    for name in "abc":
        invoke("decode", f"{name}.pt", "-o", f"{name}1.png").ok()
        assert np.array_equal(pixels(place / f"all/{name}.png"), pixels(place / f"{name}1.png"))
    shutil.rmtree(place / "classes")
    done = invoke("decode", "a.pt", "b.pt", "c.pt", "-o", "again")
    assert done.code == 4
    assert "b.pt" in done.err
    assert "c.pt" in done.err
    assert (place / "again/a.png").is_file()
