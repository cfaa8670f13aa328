"""Packed shards of latents: written whole, resumed shard by shard, opened by other libraries, checked by ours."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import HANGS, Result, isolated
from PIL import Image

from ddimctl import latent
from ddimctl.archives import latents
from ddimctl.errors import FileError
from ddimctl.families import load
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.recipe import Way, of_image
from ddimctl.runs import plan, shards
from ddimctl.runs.work import Encoding

Invoke = Callable[..., Result]
N = 7
KINDS = ["tar", "parquet"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep.er").mkdir(parents=True)
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep.er" if i % 2 else ".") / f"{i}.x%.png")
    return folder


@pytest.fixture
def encode(invoke: Invoke, model_folder: Path) -> Invoke:
    def run(*args: object) -> Result:
        return invoke("encode", "photos", "-m", model_folder, "--steps", 2, "--batch-size", 2, *args)

    return run


def held(folder: Path, pattern: str) -> dict[str, latent.Latent]:
    items = plan.gather([str(p) for p in sorted(folder.glob(pattern))], latent.SUFFIXES)
    return {item.name: latent.from_bytes(item.held.read(), item.source) for item in items if item.held}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_hold_what_files_hold(kind: str, photos: Path, encode: Invoke, invoke: Invoke, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    name = f"{{shard:03}}.{kind}"
    encode("-o", f"s/{name}", "--per-shard", 4).ok()
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [f"000.{kind}", f"001.{kind}", "manifest.jsonl"]
    encode("-o", "files").ok()
    found = held(tmp_path / "s", f"*.{kind}")
    assert len(found) == N
    for key, value in found.items():
        alone = latent.load(tmp_path / "files" / f"{key}.pt")
        np.testing.assert_allclose(value.xT.numpy(), alone.xT.numpy(), rtol=1e-4, atol=1e-4)
        assert value.images == alone.images
    invoke("decode", f"s/000.{kind}", f"s/001.{kind}", "-o", "back").ok()
    assert sum(1 for _ in (tmp_path / "back").rglob("*.png")) == N


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_shard_by_shard(kind: str, photos: Path, encode: Invoke, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    how = ("-o", f"s/{{shard}}.{kind}", "--per-shard", 3)
    encode(*how).ok()
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").glob(f"*.{kind}")}
    assert len(before) == 3
    (tmp_path / "s" / f"1.{kind}").unlink()
    done = encode(*how).ok()
    assert "encoded: 3, there already: 4" in done.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").glob(f"*.{kind}")} == before
    assert "is not what this would make" in encode(*how, "--solver", "ddim").failed(2)
    assert f"encoded: 0, there already: {N}" in encode(*how, "--force").ok().err
    assert f"encoded: {N}, there already: 0" in encode(*how, "--force", "--solver", "ddim").ok().err
    whole = (tmp_path / "s" / f"0.{kind}").read_bytes()
    (tmp_path / "s" / f"0.{kind}").write_bytes(whole[: len(whole) // 2])
    assert "is not what this would make" in encode(*how, "--solver", "ddim").failed(2)


def test_what_is_bad_is_left_out_and_tried_again(photos: Path, encode: Invoke, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    how = ("-o", "all.tar")
    assert f"1 of {N + 1} failed" in encode(*how).failed(4)
    assert f"1 of {N + 1} failed" in encode(*how).failed(4)
    assert len(held(tmp_path, "all.tar")) == N
    Image.new("L", (16, 16)).save(photos / "bad.png")
    assert "is not what this would make" in encode(*how).failed(2)
    encode(*how, "--force").ok()
    assert len(held(tmp_path, "all.tar")) == N + 1
    for file in photos.rglob("*.png"):
        file.write_bytes(b"no image")
    encode("-o", "none.tar").failed(4)
    assert not (tmp_path / "none.tar").exists()


def test_names_that_make_no_shards(photos: Path, encode: Invoke, tmp_path: Path) -> None:
    for output, more in {
        "{shard}{shard}.tar": (),
        "{other}.tar": (),
        "{shard.x}.tar": (),
        "all.tar": ("--per-shard", 2),
        "folder": ("--per-shard", 2),
        "all.pt": ("--per-shard", 2),
    }.items():
        encode("-o", output, *more).failed(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
    encode("-o", "m/{shard}.tar", "--per-shard", 2, "--shard", "1/2").ok()
    encode("-o", "m/{shard}.tar", "--per-shard", 2, "--shard", "2/2").ok()
    assert len(held(tmp_path / "m", "*.tar")) == N


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_noticed(kind: str, photos: Path, encode: Invoke, invoke: Invoke, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    encode("-o", f"all.{kind}").ok()
    path = tmp_path / f"all.{kind}"
    data = bytearray(path.read_bytes())
    at = data.index(b"\x93NUMPY") + 300 if kind == "tar" else len(data) // 4
    data[at] ^= 0x40
    path.write_bytes(data)
    result = invoke("decode", path, "-o", "back")
    assert result.code in (3, 4), result.err
    assert "Traceback" not in result.err
    with pytest.raises(FileError):
        _ = [latent.from_bytes(member.read(), member.name) for member in latents.members(str(path))]


def test_damaged_shards_are_one_line(photos: Path, encode: Invoke, tmp_path: Path) -> None:
    """A byte anywhere in a row group, and arrays that claim more than there is of them, or are no arrays."""
    pytest.importorskip("pyarrow")
    encode("-o", "all.parquet").ok()
    whole, path = (tmp_path / "all.parquet").read_bytes(), tmp_path / "bad.parquet"
    caught = 0
    for at in range(4, 600, 9):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            _ = [latent.from_bytes(member.read(), member.name) for member in latents.members(str(path))]
        except FileError:
            caught += 1
    assert caught
    header = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"
    for kind, shape in (
        ("'<f4'", "(1, 99999999, 99999999)"),
        ("'<f4'", f"(1, 1, {10**30})"),
        ("[('a', '<f4')]", "(1,)"),
    ):
        text = header.format(kind, shape).ljust(117).encode() + b"\n"
        content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4)
        for data in (content, b"PK\x03\x04" + bytes(99)):
            with tarfile.open(tmp_path / "bad.tar", "w") as tar:
                for name, part in (("a.npy", data), ("a.json", b"{}")):
                    about = tarfile.TarInfo(name)
                    about.size = len(part)
                    tar.addfile(about, io.BytesIO(part))
            (member,) = latents.members(str(tmp_path / "bad.tar"))
            with pytest.raises(FileError, match="damaged"):
                member.read()


def test_shards_go_to_a_store(photos: Path, encode: Invoke, invoke: Invoke, tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    try:
        how = ("-o", "memory://bucket/s/{shard:02}.tar", "--per-shard", 4)
        encode(*how).ok()
        assert sorted(memory.find("/bucket")) == ["/bucket/s/00.tar", "/bucket/s/01.tar"]
        assert f"encoded: 0, there already: {N}" in encode(*how).ok().err
        invoke("decode", "memory://bucket/s/", "-o", "back").ok()
        assert sum(1 for _ in (tmp_path / "back").rglob("*.png")) == N
    finally:
        memory.store.clear()


@pytest.mark.slow
def test_other_libraries_open_them(photos: Path, encode: Invoke, tmp_path: Path) -> None:
    hf, wds = pytest.importorskip("datasets"), pytest.importorskip("webdataset")
    for kind in KINDS:
        encode("-o", f"s/{{shard:02}}.{kind}", "--per-shard", 4).ok()
    expected = {key: value.xT[0].numpy() for key, value in held(tmp_path / "s", "*.tar").items()}
    assert {k: v.xT[0].numpy().tobytes() for k, v in held(tmp_path / "s", "*.parquet").items()} == {
        k: v.tobytes() for k, v in expected.items()
    }
    seen = {}
    for sample in wds.WebDataset(str(tmp_path / "s" / "{00..01}.tar"), shardshuffle=False).decode():
        seen[sample["__key__"].replace("%2E", ".").replace("%25", "%")] = sample["npy"]
    assert seen.keys() == expected.keys()
    assert all((seen[k] == expected[k]).all() for k in seen)
    cache = str(tmp_path / "cache")
    files = [str(tmp_path / "s" / f"{i:02}.parquet") for i in range(2)]
    rows = hf.load_dataset("parquet", data_files=files, split="train", cache_dir=cache).with_format("numpy")
    assert {*rows["__key__"]} == {*expected}
    for row in rows:
        assert (row["xT"].reshape(row["shape"]) == expected[str(row["__key__"])]).all()
    tars = [str(tmp_path / "s" / f"{i:02}.tar") for i in range(2)]
    assert len(hf.load_dataset("webdataset", data_files=tars, split="train", cache_dir=cache)) == N


@pytest.mark.slow
def test_a_killed_run_leaves_whole_shards_only(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    args = ["encode", "photos", "-m", model_folder, "--steps", 40, "--batch-size", 1, "--per-shard", 2]
    command = [sys.executable, "-m", "ddimctl", *map(str, args), "-o"]
    env = isolated(tmp_path)
    subprocess.run(
        [*command, "whole/{shard}.tar"], env=env, cwd=tmp_path, check=True, timeout=HANGS, capture_output=True
    )
    run = subprocess.Popen(
        [*command, "s/{shard}.tar"], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "s" / "0.tar").exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for path in (tmp_path / "s").glob("[0-9].tar"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    subprocess.run([*command, "s/{shard}.tar"], env=env, cwd=tmp_path, check=True, timeout=HANGS, capture_output=True)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes()
    assert not list((tmp_path / "s").glob(".*.tmp"))


@pytest.mark.parametrize("left", [0, 5000])
def test_a_tars_summary_is_found_at_its_end_or_before(left: int, tmp_path: Path) -> None:
    """And none is found in a tar that is cut short, or goes on."""
    said = {"key": "k", "left": [f"image {i:06}" for i in range(left)]}
    path = tmp_path / "a.tar"
    with path.open("wb") as f:
        writer = latents.Tar(f)
        for i in range(40):
            writer.add(str(i), np.zeros((1, 8, 8), np.float32), {"format": "x"})
        writer.close(said)
    assert latents.summary(str(path)) == said
    data = path.read_bytes()
    for cut in (data.rindex(b"__ddimctl__") + 600, len(data) // 2, 0):
        path.write_bytes(data[:cut])
        assert latents.summary(str(path)) is None
    path.write_bytes(data)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("more"))
    assert latents.summary(str(path)) is None


def test_a_key_is_the_digest_of_a_list_that_is_not_held(model_folder: Path) -> None:
    """Shards that are there already are known by it."""
    encoding = Encoding(load(str(model_folder)), Way(steps=2), Preprocessing())
    records = [(f"é{i}", {"name": "x", "sha256": str(i), "pixels": [16, 16, 1]}) for i in range(3)]
    for some in (records, []):
        key = shards._Key(encoding)
        for name, record in some:
            key.add(name, record)
        whole = [repr(encoding.recipe), *([name, of_image(record)] for name, record in some)]
        assert key.end() == hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def test_tars_have_no_dates_and_no_owners() -> None:
    out = io.BytesIO()
    writer = latents.Tar(out)
    writer.add("a.b", np.zeros((1, 2, 2), np.float32), {"format": "x"})
    writer.close({})
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}
        assert [m.name for m in tar] == ["a%2Eb.npy", "a%2Eb.json", "__ddimctl__"]
        assert json.loads(tar.extractfile("a%2Eb.json").read()) == {"format": "x"}  # type: ignore[union-attr]
