"""Files by URL: read as those here are; what is missing is one line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image
from test_archives import samples, write_tar

from ddimctl import latent, remote
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets
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


def test_folders_are_made_where_a_store_has_some(tmp_path: Path) -> None:
    remote.write_bytes(f"file://{tmp_path}/deep/er/a", b"x")
    assert (tmp_path / "deep" / "er" / "a").read_bytes() == b"x"
    assert remote.size(f"file://{tmp_path}/deep/er/a") == 1
    assert remote.size(f"file://{tmp_path}/deep") is None
    assert remote.size(f"file://{tmp_path}/none") is None
    with pytest.raises(DDIMError, match="cannot write file:///no-such-root/a"):
        remote.write_bytes("file:///no-such-root/a", b"x")


def test_without_the_driver(
    invoke: Invoke, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    how = ("-m", model_folder, "--steps", 2)
    for args in (("s3://photos/a.png", "-o", "a.pt"), ("a.png", "-o", "s3://made/a.pt")):
        done = invoke("encode", *args, *how)
        assert done.failed(2).startswith("s3:// needs a driver that is not installed")
        assert done.err.splitlines()[-1] == "hint: pip install s3fs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_store_cannot_name_outputs_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key of an object store is any text, and outputs are called after it."""
    system = type("Store", (), {"isfile": lambda self, path: False, "exists": lambda self, path: True})()
    monkeypatch.setattr(remote, "_system", lambda url: (system, "b/in/"))
    for key in ("b/in/a\x1b[2J.png", f"b/in/{'x' * 300}.png", "b/in/a\\..\\b.png"):
        system.find = lambda path, key=key: ["b/in/a.png", key]
        with pytest.raises(FileError, match="holds"):
            plan.gather(["s3://b/in/"], (".png",))
    system.find = lambda path: ["b/in/a.png", "b/in/../../up.png"]
    assert [item.name for item in plan.gather(["s3://b/in/"], (".png",))] == ["a"]


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


def test_captions_of_a_folder_by_url_are_those_of_one_here(store: Callable[[str, bytes], None], tmp_path: Path) -> None:
    """From tables, and from files beside the images, whose words go first; what changes is noticed."""
    files = {f"{name}.png": picture(i) for i, name in enumerate(("a", "b", "deep/c", "none"))}
    files |= {
        "a.txt": b"beside  it\n",
        "metadata.jsonl": b'{"file_name": "a.png", "text": "x"}\n{"file_name": "deep/c.png", "text": "red heart"}\n',
        "captions.txt": "b.png\té\n".encode(),
    }
    for name, data in files.items():
        store(f"photos/{name}", data)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    here = datasets.load(tmp_path, 1, (16, 16), captions=True)
    assert here.captions == ("beside it", "é", "red heart", None)
    for url in ("memory://photos/", "memory://photos", "memory://photos/*"):
        there = datasets.load(Path(url), 1, (16, 16), captions=True)
        n = 4 if "*" not in url else 3
        assert sorted(map(str, there.captions)) == sorted(
            map(str, here.captions if n == 4 else ("beside it", "é", None))
        )
        assert len(there.images) == n
    assert datasets.load(Path("memory://photos/"), 1, (16, 16)).captions == ()
    stamps = [remote.stamp(remote.top("memory://photos/*.png"))]
    store("photos/b.txt", b"more")
    assert remote.stamp(remote.top("memory://photos/*.png")) not in stamps
    store("photos/captions.txt", b"b.png")
    with pytest.raises(FileError, match=r"memory://photos/captions.txt, line 1 has no caption"):
        datasets.load(Path("memory://photos/"), 1, (16, 16), captions=True)


# Results by URL


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a", "b", "deep/c")):
        (tmp_path / "photos" / f"{name}.png").write_bytes(picture(i))
    return tmp_path / "photos"


def stored(below: str) -> dict[str, bytes]:
    """What the store in memory holds, by the name below a folder."""
    held = fsspec.filesystem("memory").store
    return {name.removeprefix(below): file.getvalue() for name, file in held.items() if name.startswith(below)}


def made(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_latents_and_images_are_put_into_a_store(
    store: Callable[[str, bytes], None], invoke: Invoke, model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """The same files as here, skipped where they are there already, refused where they are something else."""
    how = ("-m", model_folder, "--steps", 2, "--batch-size", 2)
    encode = ("encode", "photos", *how, "-o")
    done = invoke(*encode, "memory://b/latents/").ok()
    assert done.out.splitlines() == [f"memory://b/latents/{name}.pt" for name in ("a", "b", "deep/c")]
    invoke(*encode, "latents").ok()
    assert stored("/b/latents/") == made(tmp_path / "latents")
    assert "encoded: 0, there already: 3, failed: 0" in invoke(*encode, "memory://b/latents/").ok().err
    store("/b/latents/b.pt", b"something else")
    failed = invoke(*encode, "memory://b/latents/")
    assert failed.failed(4) == "1 of 3 failed"
    assert "memory://b/latents/b.pt exists already and is not what this would make" in failed.err
    invoke(*encode, "memory://b/latents/", "--force").ok()
    invoke("decode", "memory://b/latents/", "-o", "memory://b/back/").ok()
    invoke("decode", "latents", "-o", "back").ok()
    assert stored("/b/back/").keys() == made(tmp_path / "back").keys()
    assert "there already: 3" in invoke("decode", "memory://b/latents/", "-o", "memory://b/back/").ok().err
    assert (tmp_path / "manifest.jsonl").exists()
    assert not (tmp_path / "memory:").exists()


def test_one_result_is_put_into_a_store(
    store: Callable[[str, bytes], None], invoke: Invoke, model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    encode = ("encode", "photos/a.png", "-m", model_folder, "--steps", 2, "-o")
    assert invoke(*encode, "memory://b/x.pt").ok().out == "memory://b/x.pt\n"
    assert "memory://b/x.pt exists already" in invoke(*encode, "memory://b/x.pt").failed(2)
    invoke(*encode, "memory://b/x.pt", "--force").ok()
    invoke(*encode, "x.pt").ok()
    assert stored("/b/") == {"x.pt": (tmp_path / "x.pt").read_bytes()}
    assert invoke("decode", "x.pt", "-o", "memory://b/x.png").ok().out == "memory://b/x.png\n"
    invoke("decode", "x.pt", "-o", "x.png").ok()
    assert stored("/b/")["x.png"] == (tmp_path / "x.png").read_bytes()
    assert not (tmp_path / "memory:").exists()


def test_what_is_put_into_no_store(invoke: Invoke, model_folder: Path, photos: Path, tmp_path: Path) -> None:
    encode = ("encode", "photos", "-m", model_folder, "--steps", 2, "-o")
    assert "one file of many latents" in invoke(*encode, "memory://b/all.pt").failed(2)
    assert "abfs:// needs a driver" in invoke(*encode, "abfs://b/latents/").failed(2)
    invoke(*encode, "all.pt").ok()
    assert "a film is made here" in invoke("decode", "all.pt", "-o", "memory://b/all.gif").failed(2)
    assert not any((tmp_path / f"{scheme}:").exists() for scheme in ("memory", "abfs"))
