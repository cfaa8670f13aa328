"""Data sets that are too many for memory: mapped from one file, which is whole or not there, and the same images."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import environment, isolated
from PIL import Image
from test_archives import PIXELS, WRITERS, N, png, samples, write_tar
from test_train import OPTIONS

from ddimctl import cache
from ddimctl.cli import watching
from ddimctl.cli.console import Console
from ddimctl.errors import DDIMError, FileError
from ddimctl.images import datasets, mapped
from ddimctl.training.data import Data, Rows, split

KEY = cache.name("a key")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path) -> Iterator[None]:
    with environment(tmp_path, tmp_path):
        yield


def arrays(n: int = 9) -> Iterator[np.ndarray]:
    yield from np.random.default_rng(0).integers(0, 256, (n, 2, 3), dtype=np.uint8)


def kept() -> list[Path]:
    return sorted(mapped.folder().iterdir()) if mapped.folder().exists() else []


@pytest.mark.parametrize("memory", [0, 6, 20, 53, 54, float("inf")])
def test_what_is_mapped_is_what_would_be_held(memory: float) -> None:
    expected = torch.from_numpy(np.stack(list(arrays())))
    found = mapped.collect(arrays(), KEY, memory=memory, about=lambda: {"captions": ["é"]})
    assert torch.equal(found, expected)
    whole = mapped.load(KEY)
    assert (whole is None) == (memory >= 54)
    if whole is not None:
        assert torch.equal(whole[0], expected)
        assert whole[1]["captions"] == ["é"]
    assert mapped.collect(iter(()), KEY, memory=memory, about=dict).numel() == 0


def test_other_numbers_than_bytes_are_mapped_too() -> None:
    values = [np.arange(6, dtype=np.float32).reshape(2, 3) * k for k in range(4)]
    found = mapped.collect(iter(values), KEY, memory=0, about=dict)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(np.stack(values)))


@pytest.mark.parametrize("at", [0, 30, -45, -10, None])
def test_a_damaged_file_counts_as_none(at: int | None) -> None:
    mapped.collect(arrays(), KEY, memory=0, about=dict)
    (path,) = kept()
    data = bytearray(path.read_bytes())
    if at is None:
        del data[-7:]
    else:
        data[at] ^= 1
    path.write_bytes(data)
    assert mapped.load(KEY) is None


def test_what_fails_on_the_way_leaves_nothing() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from arrays(3)
        raise FileError("no more")

    with pytest.raises(FileError, match="no more"):
        mapped.collect(failing(), KEY, memory=0, about=dict)
    assert not kept()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DDIMError, match="cannot make the folder") as failed:
        mapped.collect(arrays(), KEY, memory=0, about=dict)
    assert failed.value.hint == "XDG_CACHE_HOME names another folder, --memory what may be held"
    assert len(mapped.collect(arrays(), KEY, memory=54, about=dict)) == 9  # what is held needs none


def test_what_was_not_opened_for_long_goes_when_another_is_made() -> None:
    old, new = cache.name("old"), cache.name("new")
    for key in (old, new):
        mapped.collect(arrays(), key, memory=0, about=dict)
    before = mapped.load(old)
    for path in kept():
        os.utime(path, (0, 0))
    assert mapped.load(new) is not None  # opening counts
    mapped.collect(arrays(), KEY, memory=0, about=dict)
    assert {p.name for p in kept()} == {new, KEY}
    assert before is not None
    assert torch.equal(before[0], torch.from_numpy(np.stack(list(arrays()))))  # what is mapped stays


def folder_of_images(path: Path) -> Path:
    path.mkdir()
    for i, pixels in enumerate(PIXELS):
        (path / f"{i}.png").write_bytes(png(pixels))
        (path / f"{i}.txt").write_text(f"number {i}")
    return path


def folder_of_tars(path: Path) -> Path:
    path.mkdir()
    files = list(samples().items())
    write_tar(path / "0.tar", dict(files[:4]))
    write_tar(path / "1.tar", dict(files[4:]))
    return path


SETS = {**WRITERS, "images": folder_of_images, "tars": folder_of_tars}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_the_same_mapped_or_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SETS[name](tmp_path / name)
    heard = not name.endswith((".parquet", ".gz", "ubyte"))
    held, bounded = (datasets.load(path, 1, (8, 8), captions=heard, memory=m) for m in (None, 0))
    assert held.images.shape == (N, 1, 8, 8)
    assert torch.equal(held.images, bounded.images)
    assert held.captions == bounded.captions == (tuple(f"number {i}" for i in range(N)) if heard else ())
    if name in ("images-idx3-ubyte", "images.gz"):
        return  # it is unpacked to memory, of which it says how much it will be
    assert len(kept()) == 1
    monkeypatch.setattr(datasets, "read", None)  # nothing is decoded again
    again = datasets.load(path, 1, (8, 8), captions=heard, memory=0)
    assert torch.equal(again.images, held.images)
    assert again.captions == held.captions


def test_a_changed_data_set_is_read_again(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images")
    (folder / "bad.png").write_text("no image")
    first = datasets.load(folder, 1, (8, 8), captions=True, memory=0)
    again = datasets.load(folder, 1, (8, 8), captions=True, memory=0)
    assert [(str(e), e.exit_code) for e in again.failures] == [(str(e), e.exit_code) for e in first.failures]
    assert len(again.failures) == 1
    (folder / "0.txt").write_text("another caption")
    assert datasets.load(folder, 1, (8, 8), captions=True, memory=0).captions[0] == "another caption"
    (folder / "1.png").write_bytes(png(PIXELS[1] // 2))
    assert not torch.equal(datasets.load(folder, 1, (8, 8), captions=True, memory=0).images, first.images)
    (folder / "bad.png").unlink()
    assert not datasets.load(folder, 1, (8, 8), memory=0).failures
    assert torch.equal(datasets.load(folder, 3, (4, 8), memory=0).images, datasets.load(folder, 3, (4, 8)).images)


def test_what_takes_long_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(watching, "EVERY", 0)
    path = write_tar(tmp_path / "a.tar", samples())
    for memory, quiet in ((0, True), (10_000, False)):
        found = datasets.load(
            path, 1, (8, 8), memory=memory, progress=functools.partial(watching.counted, console=Console(quiet=quiet))
        )
        assert found.mapped == (memory == 0)
        monkeypatch.setattr(mapped, "load", lambda key: None)
    assert capsys.readouterr().err.splitlines() == [f"{i + 1} images read" for i in range(N)]


def test_rows_are_what_a_tensor_would_be() -> None:
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[7] = images[21]
    plain, rows = split(images, 0.25, 3), split(Rows(images, torch.arange(40)), 0.25, 3)
    for a, b in ((plain.images, rows.images), (plain.held_out, rows.held_out)):
        assert (len(a), tuple(a.shape)) == (len(b), tuple(b.shape))
        assert torch.equal(a[:], b[:])
        assert torch.equal(a[torch.tensor([3, 1])], b[torch.tensor([3, 1])])
        assert torch.equal(torch.cat(list(b.split(7))), a[:])
    assert plain.digest == rows.digest
    everything = Rows(images, torch.arange(40))
    assert Data(everything, Rows(images, torch.tensor([2, 5]))).shared == 2
    assert Data(Rows(images, torch.arange(20)), Rows(images, torch.tensor([21, 22, 21]))).shared == 2


TRAIN = [*OPTIONS, "--batch-size", "2", "--steps", "2", "--held-out", "0.3", "--float32", "--license", "MIT"]


def checkpoint(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(Path(folder) / "training" / "checkpoint.pt", weights_only=True)
    return found


@pytest.mark.slow
def test_a_run_is_the_same_mapped_or_held(tmp_path: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, card and a resumed run included; an archive by its URL is an archive."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    from ddimctl.training import card

    monkeypatch.setattr(card, "ROUND_TRIPS", card.ROUND_TRIPS[:1])
    many = {f"{i:03}.png": png(np.roll(PIXELS[i % N], i, 1)) for i in range(24)}
    write_tar(tmp_path / "a.tar", many)
    memory.pipe("b/a.tar", (tmp_path / "a.tar").read_bytes())
    invoke("train", "a.tar", "-o", "held", *TRAIN, "--features").ok()
    done = invoke("train", "a.tar", "-o", "mapped", *TRAIN, "--memory", "0", "--features").ok()
    assert f"0 MiB of images are mapped from {mapped.folder()}" in done.err
    invoke("train", "memory://b/a.tar", "-o", "far", *TRAIN, "--memory", "0").ok()
    memory.pipe("b/photos/x.png", png(PIXELS[0]))
    for name, data in many.items():
        memory.pipe(f"b/photos/{name}", data)
    invoke("train", "memory://b/photos/0*.png", "-o", "photos", *TRAIN).ok()
    memory.store.clear()
    assert len(kept()) == 2
    first = checkpoint("held")
    for other in map(checkpoint, ("mapped", "far", "photos")):
        assert first["data"] == other["data"]
        assert all(torch.equal(w, other["average"][k]) for k, w in first["average"].items())
    features = [(Path(f) / "features.safetensors").read_bytes() for f in ("held", "mapped")]
    assert features[0] == features[1]
    again = invoke("train", "--resume", "-o", "mapped", "--steps", "3", "--memory", "0").ok()
    assert "continuing at step 2" in again.err


@pytest.mark.slow
def test_latents_of_captions_are_mapped_as_the_images_are(tmp_path: Path, invoke: Any) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    write_tar(tmp_path / "a.tar", samples())
    words = ["--captions", "--text-width", "32", *[w if w != "none" else "1" for w in TRAIN]]
    invoke("train", "a.tar", "-o", "held", *words).ok()
    invoke("train", "a.tar", "-o", "mapped", *words, "--memory", "0").ok()
    assert len(kept()) == 2  # pixels and latents
    invoke("train", "--resume", "-o", "mapped", "--memory", "0").ok()
    assert len(kept()) == 2
    one, two = checkpoint("held"), checkpoint("mapped")
    assert all(torch.equal(w, two["average"][k]) for k, w in one["average"].items())


MEASURED = """
import json, re, sys, threading, time
from pathlib import Path
import torch
from ddimctl.images import datasets
from ddimctl.training.data import Rows, batch, split
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
path, memory = Path(sys.argv[1]), int(sys.argv[2])
datasets.load(Path(sys.argv[3]), 3, (32, 32))  # what reading itself needs
before, most, done = anonymous(), [0.0], threading.Event()
def watch():
    while not done.wait(0.01):
        most[0] = max(most[0], anonymous())
threading.Thread(target=watch).start()
found = datasets.load(path, 3, (32, 32), memory=memory if memory >= 0 else None)
data = split(Rows(found.images, torch.arange(len(found.images))), 0.1, 0)
digest, shared, n = data.digest, data.shared, len(data.images)
for step in range(2 * n // 64):
    data.images[batch(step, 64, n, seed=1)].float()
done.set()
print(json.dumps({"grown": max(most[0], anonymous()) - before, "images": found.images.numel() / 2**20}))
"""


STATUS = Path("/proc/self/status")


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="memory is not told from files")
def test_what_is_mapped_takes_no_memory(tmp_path: Path) -> None:
    """59 MiB of images: read, digested, and drawn from for two passes. Held, they take all of that, and more."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    out = io.BytesIO()
    image.save(out, "PPM")
    data = bytearray(out.getvalue())
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        for i in range(20_000):
            about = tarfile.TarInfo(f"{i:06}.ppm")
            about.size = len(data)
            data[-4:] = i.to_bytes(4, "big")
            tar.addfile(about, io.BytesIO(bytes(data)))
    out = io.BytesIO()
    image.save(out, "PPM")
    write_tar(tmp_path / "few.tar", {"0.ppm": out.getvalue()})

    def grown(memory: int) -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "many.tar", str(memory), "few.tar"], cwd=tmp_path, env=isolated(tmp_path),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found: dict[str, float] = json.loads(done.stdout)
        return found

    made, opened, held = grown(4 << 20), grown(4 << 20), grown(-1)
    assert made["images"] > 58
    assert made["grown"] < 20
    assert opened["grown"] < 20
    assert held["grown"] > 58
