"""Many images at once: what a folder holds, what in it is of no use, and MNIST's files."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from ddimctl.archives.binaries import read_idx
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets, plugins
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read

Invoke = Callable[..., Result]
RNG = np.random.default_rng(0)


def test_find_images_is_sorted_and_skips_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.jpg", ".hidden.png", ".git/x.png", "notes.txt", "b/c/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = [str(p.relative_to(tmp_path)) for p in datasets.find_images(tmp_path)]
    assert found == ["a.jpg", "b/10.PNG", "b/2.png", "b/c/d.webp", "broken.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        datasets.find_images(tmp_path / "empty")
    with pytest.raises(DDIMError, match="cannot list"):
        datasets.find_images(tmp_path / "none")


def test_idx(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (5, 4, 6), dtype=np.uint8)
    raw = struct.pack(">iiii", 0x803, 5, 4, 6) + data.tobytes()
    plain, packed = tmp_path / "images", tmp_path / "images.gz"
    plain.write_bytes(raw)
    packed.write_bytes(gzip.compress(raw))
    for path in (plain, packed):
        assert (read_idx(path) == data).all()
        assert datasets.load_dataset(path, 1, (4, 6)).shape == (5, 1, 4, 6)
        assert datasets.load_dataset(path, 3, (2, 3)).shape == (5, 3, 2, 3)
    broken = bytearray(packed.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    for wrong in (
        raw[:-1],
        raw[:7],
        b"",
        b"\0" + raw[1:15] + b"\xff" + raw[16:],
        bytes(broken),
        packed.read_bytes()[:-20],
    ):
        plain.write_bytes(wrong)
        with pytest.raises(FileError):
            read_idx(plain)


def test_an_idx_takes_its_own_size_and_no_more_than_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    raw = struct.pack(">iiii", 0x803, 1600, 100, 100) + bytes(16_000_000)
    path.write_bytes(gzip.compress(raw))
    tracemalloc.start()
    data = read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.shape == (1600, 100, 100)
    assert data.flags.writeable  # torch wants that
    assert peak < 1.5 * len(raw)
    path.write_bytes(gzip.compress(struct.pack(">iiii", 0x803, 1025, 1024, 1024)))
    with pytest.raises(FileError, match="more than 1,073,741,824"):
        read_idx(path)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four images that can be used, an animation among them; a text, a half and one of floats, which cannot; a .psd."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, shape in (("a.png", (16, 16)), ("b.jfif", (16, 32, 3)), ("z.png", (16, 16, 4))):
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(folder / name, "PNG")
    frames = [Image.new("L", (16, 16), v) for v in (10, 200)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    (folder / "text.png").write_text("no image")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:-40])
    Image.new("F", (16, 16)).save(folder / "floats.tif")
    (folder / "layers.psd").write_bytes(b"8BPS")
    return folder


def test_what_is_of_no_use_is_left_out_with_its_reason(mixed: Path) -> None:
    found = datasets.load(mixed, 1, (16, 16))
    assert [Path(s).name for s in found.sources] == ["a.png", "b.jfif", "film.gif", "z.png"]
    assert found.images.shape == (4, 1, 16, 16)
    assert found.images.dtype == torch.uint8
    assert (found.images[2] == 10).all()  # the animation's first frame
    assert [str(e).split(" ")[0] for e in found.failures] == [
        str(mixed / n) for n in ("floats.tif", "half.png", "text.png")
    ]
    assert found.left_out == {".psd": 1}
    for i, source in enumerate(found.sources):
        if not source.endswith(".gif"):
            assert (found.images[i].numpy() == read(source, 1, (16, 16))[0][..., 0]).all()
    with pytest.raises(UsageError, match=r"floats\.tif holds floats"):
        datasets.load_dataset(mixed, 1, (16, 16))


def test_a_data_set_is_made_to_fit_as_is_asked_for(mixed: Path) -> None:
    how = Preprocessing("pad", "black", frame=1, value_range=(0.0, 1.0))
    found = datasets.load(mixed, 3, (16, 16), how=how)
    by_name = {Path(s).name: x.numpy() for s, x in zip(found.sources, found.images, strict=True)}
    assert set(by_name) == {"film.gif"}  # no other has a second frame
    assert (by_name["film.gif"] == 200).all()
    assert len(found.failures) == 6
    found = datasets.load(mixed, 3, (16, 16), how=Preprocessing("pad", "black", value_range=(0.0, 1.0)))
    by_name = {Path(s).name: x.numpy() for s, x in zip(found.sources, found.images, strict=True)}
    assert (by_name["b.jfif"][:, :4] == 0).all()  # 32 × 16 pixels, between black bars
    assert by_name["b.jfif"][:, 4:12].any()
    assert "floats.tif" in by_name
    plain = mixed.parent / "idx"
    plain.write_bytes(struct.pack(">iiii", 0x803, 1, 8, 16) + bytes([255]) * 128)
    assert (datasets.load(plain, 1, (16, 16), how=how).images[0, 0, :4] == 0).all()
    assert (datasets.load(plain, 1, (16, 16)).images == 255).all()


def test_a_folder_of_nothing_usable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(FileError, match=r"none of the 1 images in .* can be used: .*x.png is not an image"):
        datasets.load(tmp_path, 1, (8, 8))
    (tmp_path / "x.png").rename(tmp_path / "x.heic")
    monkeypatch.setattr(plugins, "available", lambda name: False)
    with pytest.raises(UsageError, match=r"holds no images; 1 file left out \(\.heic\)") as refused:
        datasets.load(tmp_path, 1, (8, 8))
    assert "ddimctl[heic]" in refused.value.hint


def test_training_goes_on_without_what_is_of_no_use(mixed: Path, invoke: Invoke) -> None:
    words = ("train", mixed, "-o", "m", "--size", 8, "--grey", "--channels", 8, "--attention", "none")
    done = invoke(*words, "--steps", 1, "--batch-size", 2, "--head-dim", 8, "--held-out", "0.3").ok()
    lines = done.err.splitlines()
    assert f"failed: {mixed}/half.png is damaged" in done.err
    assert f"failed: {mixed}/text.png is not an image that can be read" in lines
    assert "3 of 7 images cannot be used and are left out" in lines
    assert "1 file left out (.psd)" in lines
    assert "3 images to train on, 1 held out" in done.err
    words = ("train", mixed, "-o", "m2", *words[4:], "--range", "0,1", "--fit", "pad", "--background", "black")
    done = invoke(*words, "--steps", 1, "--batch-size", 2, "--head-dim", 8, "--held-out", "0.3").ok()
    assert "3 images to train on, 2 held out" in done.err
