"""Files by URL: read as those here are; what is missing is one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image
from test_archives import samples, write_tar

from ddimctl import latent, remote
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.runs import plan

fsspec = pytest.importorskip("fsspec")
Invoke = Callable[..., Result]


@pytest.fixture
def store() -> Iterator[Callable[[str, bytes], None]]:
    """A store in memory, empty at the end."""
    memory = fsspec.filesystem("memory")
    yield lambda path, data: memory.pipe(path, data)
    memory.store.clear()


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_a_url_is_a_file_a_folder_or_a_pattern(store: Callable[[str, bytes], None]) -> None:
    for name in ("b/a.png", "b/deep/c.PNG", "b/.hidden.png", "b/notes.txt"):
        store(name, b"x")
    for url, names in {
        "memory://b/": ["a", "deep/c"],
        "memory://b": ["a", "deep/c"],
        "memory://b/a.png": ["a"],
        "memory://b/*.png": ["a"],
        "memory://b/d*/*": ["deep/c"],
    }.items():
        assert [item.name for item in plan.gather([url], (".png",))] == names, url
    (item,) = plan.listed(["memory://b/a.png"])
    assert (item.name, item.source) == ("a", "memory://b/a.png")
    with pytest.raises(UsageError, match="nothing to work on"):
        plan.gather(["memory://none/"], (".png",))


def test_what_cannot_be_read_is_one_line(store: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    store("b/large", b"x" * 20)
    with pytest.raises(UsageError, match="there is no file memory://b/none"):
        remote.read_bytes("memory://b/none", 10)
    with pytest.raises(FileError, match="larger than"):
        remote.read_bytes("memory://b/large", 10)
    with pytest.raises(UsageError, match="nonsense"):
        remote.read_bytes("nonsense://b/a", 10)
    with pytest.raises(UsageError, match="driver") as e:
        remote.read_bytes("abfs://b/a", 10)
    assert e.value.hint == "pip install adlfs"
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isfile", lambda *a: 1 / 0)
    with pytest.raises(DDIMError, match="cannot read memory://b/a: division by zero"):
        remote.gather("memory://b/a", (".png",))


def test_encode_and_decode_by_url(
    store: Callable[[str, bytes], None], tmp_path: Path, invoke: Invoke, model_folder: Path
) -> None:
    for i in range(3):
        store(f"photos/{i}.png", picture(i))
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    store("photos/bad.png", b"no image")
    how = ("-m", model_folder, "--steps", 2)
    assert "1 of 4 failed" in invoke("encode", "memory://photos/", "-o", "a", *how).failed(4)
    invoke("encode", "memory://photos/1.png", "-o", "one.pt", *how).ok()
    invoke("encode", "0.png", "1.png", "2.png", "-o", "b", *how).ok()
    for i in range(3):
        one, two = (latent.load(tmp_path / f / f"{i}.pt") for f in ("a", "b"))
        assert (one.xT == two.xT).all()
    assert latent.load(tmp_path / "one.pt").images[0]["name"] == "memory://photos/1.png"
    store("latents/1.pt", (tmp_path / "b" / "1.pt").read_bytes())
    store("latents/2.pt", (tmp_path / "b" / "2.pt").read_bytes())
    invoke("decode", "memory://latents/1.pt", "-o", "back.png").ok()
    invoke("decode", "memory://latents", "-o", "back").ok()
    assert (tmp_path / "back" / "1.png").is_file()
    assert (tmp_path / "back" / "2.png").is_file()
    assert "no file memory://latents/9.pt" in invoke("decode", "memory://latents/9.pt", "-o", "x.png").err
    tar = write_tar(tmp_path / "x.tar", samples()).read_bytes()
    store("sets/x.tar", tar)
    done = invoke("reconstruct", "memory://sets/x.tar", "-m", model_folder, "--steps", 2, "--json").ok()
    assert json.loads(done.out)["images"] == 6
