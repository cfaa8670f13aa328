"""Data sets as people keep them: each kind is read as plain files are, whoever wrote it."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from ddimctl import archives, latent
from ddimctl.archives import columns, member, streams, tars
from ddimctl.archives.member import checked
from ddimctl.errors import DDIMError, FileError, UsageError
from ddimctl.images import datasets, reading
from ddimctl.runs import plan

Invoke = Callable[..., Result]
N = 6
SUFFIXES = (".png", ".jpg")
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 16, 16), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, files: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format_) as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def samples() -> dict[str, bytes]:
    """As WebDataset has them: the files of a sample side by side."""
    return {
        name: data
        for i, pixels in enumerate(PIXELS)
        for name, data in ((f"{i:04}.png", png(pixels)), (f"{i:04}.txt", f"number\n{i}".encode()))
    }


def write_parquet(path: Path, values: list[object], name: str = "image", **more: list[object]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: values, **more}), path, row_group_size=4)
    return path


def write_idx(path: Path) -> Path:
    raw = struct.pack(">iiii", 0x803, *PIXELS.shape) + PIXELS.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def pixels_of(path: Path) -> np.ndarray:
    items = plan.gather([str(path)], SUFFIXES)
    return np.stack([reading.read(item.opens, 1, (16, 16))[0][..., 0] for item in items])


WRITERS: dict[str, Callable[[Path], Path]] = {
    "pax.tar": lambda p: write_tar(p, samples()),
    "gnu.tar": lambda p: write_tar(p, {f"{'d' * 120}/{k}": v for k, v in samples().items()}, tarfile.GNU_FORMAT),
    "ustar.tar": lambda p: write_tar(p, {f"./{k}": v for k, v in samples().items()}, tarfile.USTAR_FORMAT),
    "structs.parquet": lambda p: write_parquet(p, [{"bytes": png(x), "path": "/etc/passwd"} for x in PIXELS]),
    "bytes.parquet": lambda p: write_parquet(p, [png(x) for x in PIXELS], "anything", label=[0] * N),
    "images-idx3-ubyte": write_idx,
    "images.gz": write_idx,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_holds_the_images_that_were_put_in(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name)
    assert (pixels_of(path) == PIXELS).all()
    found = datasets.load(path, 1, (16, 16))
    assert (found.images[:, 0].numpy() == PIXELS).all()


@pytest.mark.parametrize(("labels", "channels"), [(1, 3), (2, 3)])
def test_cifar(labels: int, channels: int, tmp_path: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 256, (N, channels, 32, 32), dtype=np.uint8)
    rows = np.concatenate([np.full((N, labels), 7, np.uint8), planes.reshape(N, -1)], axis=1)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(rows.tobytes())
    items = plan.gather([str(path)], SUFFIXES)
    assert [item.name for item in items] == [f"{i:08}" for i in range(N)]
    read = np.stack([reading.read(item.opens, 3, (32, 32))[0] for item in items])
    assert (read == planes.transpose(0, 2, 3, 1)).all()


def test_a_name_is_the_key(tmp_path: Path) -> None:
    files = {"a/1.left.png": b"", "a/1.right.PNG": b"", "a/1.json": b"", "b.c/2.jpg": b"", "b.c/.hidden.png": b""}
    items = plan.gather([str(write_tar(tmp_path / "x.tar", files))], SUFFIXES)
    assert [item.name for item in items] == ["a/1.left", "a/1.right", "b.c/2"]
    assert items[2].source == f"{tmp_path}/x.tar::b.c/2.jpg"
    both = plan.gather([str(write_tar(tmp_path / "y.tar", {"1.jpg": b"", "1.png": b""}))], SUFFIXES)
    assert [item.name for item in plan.name_apart(both)[0]] == ["1.jpg", "1.png"]
    one, two = (write_parquet(tmp_path / n, [b"x"] * 5) for n in ("train-0.parquet", "train-1.parquet"))
    assert plan.gather([str(one)], SUFFIXES)[4].name == "00000004"
    for named in ([str(one), str(two)], [f"{tmp_path}/*.parquet"]):
        assert [i.name for i in plan.gather(named, (*SUFFIXES, ".parquet") if len(named) > 1 else SUFFIXES)][4:6] == [
            "train-0/00000004",
            "train-1/00000000",
        ]
    keyed = write_parquet(tmp_path / "keyed.parquet", [b"x"], __key__=["a/b"])
    assert [item.name for item in plan.gather([str(keyed)], SUFFIXES)] == ["a/b"]


def test_captions_come_with_the_images(tmp_path: Path) -> None:
    for path in (
        write_tar(tmp_path / "x.tar", samples()),
        write_parquet(tmp_path / "x.parquet", [png(x) for x in PIXELS], text=[f"number  {i}" for i in range(N)]),
    ):
        assert datasets.load(path, 1, (16, 16), captions=True).captions == tuple(f"number {i}" for i in range(N))
    files = {"1.json": json.dumps({"caption": "first"}).encode(), "1.png": png(PIXELS[0]), "2.png": png(PIXELS[1])}
    found = datasets.load(write_tar(tmp_path / "y.tar", files), 1, (16, 16), captions=True)
    assert found.captions == ("first", None)


def hostile(tmp_path: Path) -> dict[str, Path]:
    whole = write_tar(tmp_path / "whole.tar", samples()).read_bytes()
    out = {}
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "member": whole[: 512 + 100],
        "ends": whole[: whole.rindex(b"number") + 512],
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "header": whole[:1024] + b"\xff" * 512 + whole[1536:],
    }.items():
        out[name] = tmp_path / f"{name}.tar"
        out[name].write_bytes(data)
    for name in ("../up.png", "/etc/x.png", "a\nb.png", f"{'x' * 250}.png"):
        out[name] = write_tar(tmp_path / f"{len(out)}.tar", {name: b""})
    parquet = write_parquet(tmp_path / "p.parquet", [b"x"] * 9).read_bytes()
    out["parquet"] = tmp_path / "cut.parquet"
    out["parquet"].write_bytes(parquet[: len(parquet) // 2])
    out["words"] = write_parquet(tmp_path / "words.parquet", ["a"], "text")
    out["two"] = write_parquet(tmp_path / "two.parquet", [b"a"], "first", second=[b"b"])
    return out


def test_what_is_damaged_or_hostile_is_one_line(tmp_path: Path, invoke: Invoke, model_folder: Path) -> None:
    for name, path in hostile(tmp_path).items():
        with pytest.raises(FileError):
            list(archives.members(str(path), SUFFIXES))
        if name in ("cut", "parquet", "words"):
            assert path.name in invoke("encode", path, "-m", model_folder, "-o", "out").failed(3)
    assert not (tmp_path / "out").exists()
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(UsageError, match="is packed"):
        plan.gather([str(tmp_path / "x.tar.gz")], SUFFIXES)
    with pytest.raises(DDIMError, match="nothing to work on"):
        plan.gather([str(write_tar(tmp_path / "texts.tar", {"1.txt": b"a"}))], SUFFIXES)


def test_a_tar_with_a_size_below_zero(tmp_path: Path) -> None:
    """Its reader would go back and forth, or read the rest of the file as one image."""
    for size in ("-1", "-512"):
        about = tarfile.TarInfo("x.png")
        about.pax_headers = {"size": size}
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(about)
        with pytest.raises(FileError, match="damaged"):
            list(archives.members(str(tmp_path / "x.tar"), SUFFIXES))


def test_a_small_parquet_file_takes_little_memory(tmp_path: Path) -> None:
    """A value that stands in every row is held once, and rows that nothing stands for are not made."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    n, value = 100_000, pa.array([np.random.default_rng(0).bytes(1 << 20)], pa.binary())
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), value)
    how = {"store_schema": False, "dictionary_pagesize_limit": 1 << 24, "data_page_size": 1 << 10}
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("image", rows.type)]), **how) as writer:
        writer.write_table(pa.table({"image": rows}))
    before = pa.total_allocated_bytes()
    row = columns.row(str(tmp_path / "x.parquet"), ("image",), n - 1)["image"]
    assert pa.total_allocated_bytes() - before < 1 << 23
    assert len(row.as_py()) == 1 << 20
    pq.write_table(pa.table({"image": pa.array([None] * n, pa.binary())}), tmp_path / "y.parquet")
    with pytest.raises(FileError, match="announces 100,000 rows"):
        list(archives.members(str(tmp_path / "y.parquet"), SUFFIXES))


def saved(folder: Path, table: object, **how: object) -> Path:
    """A folder as `save_to_disk` leaves it, with rows that were packed."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    schema = table.schema  # type: ignore[attr-defined]
    options = pa.ipc.IpcWriteOptions(**how)
    with pa.OSFile(str(folder / "a.arrow"), "wb") as f, pa.ipc.new_stream(f, schema, options=options) as writer:
        writer.write_table(table, max_chunksize=4)
    return folder


@pytest.mark.parametrize("packed", [None, "lz4", "zstd"])
def test_a_saved_data_set_is_bounded_by_what_it_unpacks_to(
    packed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of itself is what pyarrow then takes; one that lies as it is takes nothing."""
    pa = pytest.importorskip("pyarrow")
    words = pa.array(["a", "b"] * 3).dictionary_encode()
    whole = pa.table({"image": [png(x) + bytes(1 << 16) for x in PIXELS], "text": words})
    folder = saved(tmp_path / "s", whole, compression=packed)
    assert (pixels_of(folder) == PIXELS).all()
    file = str(folder / "a.arrow")
    said = streams.unpacked(pa, file)
    before = pa.total_allocated_bytes()
    held = columns.Opened(file)
    taken = pa.total_allocated_bytes() - before
    assert held.rows == N
    assert said == taken == 0 if packed is None else said <= taken < said + 4096
    monkeypatch.setattr(columns, "MAX_GROUP", 1 << 18)
    if packed is None:
        assert columns.Opened(file).rows == N
        return
    before = pa.total_allocated_bytes()
    with pytest.raises(FileError, match="unpacks to more than"):
        columns.Opened(file)
    assert pa.total_allocated_bytes() == before


def test_a_saved_data_set_that_lies_is_one_line(tmp_path: Path) -> None:
    """Rows that nothing stands for; values that end outside of the file, for which the system would end the process."""
    pa = pytest.importorskip("pyarrow")
    empty = saved(tmp_path / "e", pa.table({"image": pa.array([b""]), "none": pa.nulls(1)}).slice(0, 0))
    assert columns.Opened(str(empty / "a.arrow")).rows == 0
    nothing = saved(tmp_path / "n", pa.table({"none": pa.nulls(3)}))
    path = nothing / "a.arrow"
    path.write_bytes(path.read_bytes().replace((3).to_bytes(8, "little"), (10**9).to_bytes(8, "little")))
    with pytest.raises(FileError, match="announces 1,000,000,000 rows"):
        columns.table(str(path))
    path = saved(tmp_path / "o", pa.table({"image": [b"a" * 77, b"b" * 99]})) / "a.arrow"
    ends = [np.array([0, 77, end], "<i4").tobytes() for end in (176, 2**31 - 2)]
    assert ends[0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*ends))
    with pytest.raises(FileError, match="damaged"):
        columns.table(str(path))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(FileError, match="damaged"):
        columns.table(str(path))


def test_a_row_without_a_key_is_called_by_its_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [b"a", b"b", b"c"], __key__=["one", None, ""])
    assert [m.key for m in archives.members(str(path), SUFFIXES)] == ["one", "00000001", "00000002"]


def test_a_path_in_a_row_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(PIXELS[0]))
    rows: list[object] = [
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": png(PIXELS[1]), "path": None},
    ]
    first, second = plan.gather([str(write_parquet(tmp_path / "x.parquet", rows))], SUFFIXES)
    with pytest.raises(FileError, match="not followed"):
        reading.read(first.opens, 1, (16, 16))
    assert (reading.read(second.opens, 1, (16, 16))[0][..., 0] == PIXELS[1]).all()


def test_encode_makes_of_a_tar_what_it_makes_of_its_files(tmp_path: Path, invoke: Invoke, model_folder: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for i, pixels in enumerate(PIXELS):
        (folder / f"{i:04}.png").write_bytes(png(pixels))
    files = {**samples(), "bad.png": b"no image"}
    write_tar(tmp_path / "x.tar", files)
    how = ("-m", model_folder, "--steps", 2, "--batch-size", 4)
    invoke("encode", "files", "-o", "a", *how).ok()
    message = invoke("encode", "x.tar", "-o", "b", *how).failed(4)
    assert "1 of 7 failed" in message
    for i in range(N):
        one, two = (latent.load(tmp_path / f / f"{i:04}.pt") for f in ("a", "b"))
        assert (one.xT == two.xT).all()
        assert two.images[0]["name"] == f"x.tar::{i:04}.png"
        assert two.images[0]["sha256"] == one.images[0]["sha256"]
    again = invoke("encode", "x.tar", "-o", "b", *how)
    assert again.code == 4
    assert f"there already: {N}" in again.err
    assert "name a folder" in invoke("encode", "x.tar", *how).err
    done = invoke("reconstruct", "x.tar", "-m", model_folder, "--steps", 2, "-n", N, "--json").ok()
    assert json.loads(done.out)["images"] == N


def test_a_folder_of_nothing_but_shards_is_their_images(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for n in range(2):
        write_tar(tmp_path / "shards" / f"{n:05}.tar", {f"{n}-{i}.png": png(PIXELS[i]) for i in range(2)})
    assert [i.name for i in plan.gather([str(tmp_path / "shards")], SUFFIXES)] == ["0-0", "0-1", "1-0", "1-1"]
    (tmp_path / "shards" / "a.png").touch()
    assert [i.name for i in plan.gather([str(tmp_path / "shards")], SUFFIXES)] == ["a"]


@pytest.mark.slow
def test_what_datasets_and_webdataset_write_is_read(tmp_path: Path) -> None:
    hf, wds = pytest.importorskip("datasets"), pytest.importorskip("webdataset")
    made = hf.Dataset.from_dict(
        {"image": [{"bytes": png(x), "path": None} for x in PIXELS], "text": [f"number {i}" for i in range(N)]}
    ).cast_column("image", hf.Image())
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    made.to_parquet(str(tmp_path / "made.parquet"))
    hf.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "splits"))
    with wds.TarWriter(str(tmp_path / "made.tar")) as sink:
        for i, pixels in enumerate(PIXELS):
            sink.write({"__key__": f"s/{i:03}", "png": Image.fromarray(pixels), "txt": f"number {i}"})
    for name in ("saved", "made.parquet", "made.tar", "splits/train"):
        assert (pixels_of(tmp_path / name) == PIXELS).all(), name
        found = datasets.load(tmp_path / name, 1, (16, 16), captions=True)
        assert found.captions == tuple(f"number {i}" for i in range(N))
    with pytest.raises(UsageError, match="several data sets") as e:
        plan.gather([str(tmp_path / "splits")], SUFFIXES)
    assert "splits/train" in e.value.hint


def by_tarfile(data: bytes) -> list[tuple[str, int, int]] | None:
    """What tarfile lists; None where it refuses, or finds no end."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            found = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError):
        return None
    whole = data[end : end + tars.BLOCK] == bytes(tars.BLOCK) and all(size >= 0 for _, _, size in found)
    return [f for f in found if not Path(f[0]).name.startswith(".")] if whole else None


def ours(data: bytes) -> list[tuple[str, int, int]] | None:
    try:
        return list(tars.headers(io.BytesIO(data), "x.tar"))
    except FileError:
        return None


@pytest.mark.parametrize("how", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_those_that_tarfile_finds(how: int) -> None:
    """Of every kind of member, with what pax says of the next; cut off anywhere, and with any byte changed."""
    rng = np.random.default_rng(how)
    names = [
        "a.png",
        "./b.png",
        "d/c.x.png",
        "d/.hidden.png",
        "é.png",
        "l" * 90 + "/" + "m" * 90 + ".png",
        "z.png",
        "y" * 100,
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=how) as tar:
        for i, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size, about.mtime = int(rng.integers(0, 1500)), 1.5 if i % 2 else 1
            tar.addfile(about, io.BytesIO(rng.bytes(about.size)))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                other = tarfile.TarInfo(f"other{i}")
                other.type, other.linkname = kind, "a.png"
                tar.addfile(other)
    data = out.getvalue()
    whole = by_tarfile(data)
    assert whole is not None
    assert len(whole) == len(names) - 1
    assert ours(data) == whole
    for cut in range(0, len(data), 256):
        assert ours(data[:cut]) == by_tarfile(data[:cut]), cut
    for at in rng.integers(0, len(data), 400):
        changed = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        assert ours(changed) in (by_tarfile(changed), whole), at


def test_what_pax_says_of_the_size_is_so() -> None:
    about = tarfile.TarInfo("a.png")
    about.size, about.pax_headers = 700, {"comment": "path", "size": "10"}
    data = about.tobuf(tarfile.PAX_FORMAT) + bytes(512) + bytes(1024)
    assert ours(data) == by_tarfile(data)
    assert [size for _, _, size in ours(data) or []] == [10]


@pytest.mark.parametrize(
    "key", ["a", "a/b.c", "a//b", "é", "../a", "/a", "a/../b", ".a", "a/.b", "x" * 200, "x" * 201, "a b", ""]
)
def test_a_key_is_what_it_was(key: str) -> None:
    """The short way of a name in plain letters changes no answer."""

    def answer() -> str:
        try:
            return checked(key, "x.tar")
        except FileError as e:
            return str(e)

    short = answer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "PLAIN", re.compile("(?!)"))
        assert short == answer()
