"""Formats beyond Pillow's own: read where their plugin is, refused by name where it is not, told of in folders."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.errors import FileError
from ddimctl.images import formats, plugins
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read
from ddimctl.runs import plan

Invoke = Callable[..., Result]
SIZE = (16, 24)
SMOOTH = (np.mgrid[0:16, 0:24].sum(0)[..., None] * [4, 3, 5] + [10, 90, 30]).astype(np.uint8)
INSTALLED = [
    pytest.param(n, marks=pytest.mark.skipif(not plugins.available(n), reason=f"no {n} here")) for n in plugins.PLUGINS
]


def encoded(name: str, picture: Image.Image, **options: object) -> bytes:
    if name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    if name == "JXL":
        import pillow_jxl  # noqa: F401
    out = io.BytesIO()
    picture.save(out, name, **options)
    return out.getvalue()


@pytest.mark.parametrize("name", INSTALLED)
def test_a_format_by_plugin_is_read(name: str, tmp_path: Path) -> None:
    """By any name, as its content says; lossy codecs are some levels off."""
    data = encoded(name, Image.fromarray(SMOOTH), quality=95)
    for suffix in (*plugins.PLUGINS[name].suffixes, ".png", ""):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        pixels, record = read(path, 3, SIZE)
        assert record["format"] == name
        assert np.abs(pixels.astype(int) - SMOOTH).max() <= 12, suffix
    assert set(plugins.PLUGINS[name].suffixes) <= plugins.readable().keys()


@pytest.mark.parametrize("name", INSTALLED)
def test_damaged_files_and_too_many_pixels_are_refused(name: str) -> None:
    data = encoded(name, Image.fromarray(SMOOTH), quality=95)
    with pytest.raises(FileError, match="too many"):
        read(data, 3, SIZE, how=Preprocessing(max_pixels=16 * 24 - 1))
    for end in (12, len(data) // 3, len(data) * 2 // 3):
        with pytest.raises(FileError):
            read(data[:end], 3, SIZE)


@pytest.mark.parametrize("name", ["HEIF", "JXL"])
def test_without_its_plugin_a_file_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "available", lambda n: False)
    data = {"HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JXL": b"\xff\x0a"}[name] + bytes(200)
    with pytest.raises(FileError, match=f"is {name}, which is not read here") as refused:
        read(data, 3, SIZE)
    extra = {"HEIF": "heic", "JXL": "jxl"}[name]
    assert (
        refused.value.hint == f"known formats: {', '.join(formats.FORMATS)}; pip install 'ddimctl[{extra}]' adds {name}"
    )
    assert not plugins.readable().keys() & {*plugins.PLUGINS[name].suffixes}


def test_a_broken_plugin_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_heif.py").write_text("raise OSError('libheif.so.1: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(plugins.PLUGINS, "HEIF", plugins.Plugin((".heic",), plugins.begins_heic, "broken_heif", "heic"))
    plugins.available.cache_clear()
    plugins._register.cache_clear()
    try:
        with pytest.raises(FileError, match="is HEIF, which is not read here"):
            read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), 3, SIZE)
    finally:
        plugins.available.cache_clear()
        plugins._register.cache_clear()


def test_plugins_are_imported_for_their_own_files_only(ddimctl: Invoke, model_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    code = "import sys; from ddimctl.images.reading import read; read('a.png', 3, (8, 8)); print(*sys.modules)"

    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert not {"pillow_heif", "pillow_jxl", "av"} & {m.split(".")[0] for m in out.split()}


SIDES = st.one_of(st.integers(1, 2000), st.integers(1, 40).map(lambda n: 8 * n))


@pytest.mark.skipif(not plugins.available("JXL"), reason="no JXL here")
@given(
    SIDES, st.one_of(SIDES, st.sampled_from([(1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1)])), st.booleans()
)
def test_the_size_of_a_jpeg_xl_is_what_its_encoder_wrote(height: int, wide: object, container: bool) -> None:
    width = wide if isinstance(wide, int) else max(1, height * wide[0] // wide[1])  # type: ignore[index]
    data = encoded("JXL", Image.new("L", (width, height)), effort=1, use_container=container)
    assert plugins.jxl_size(data) == (width, height)


def test_a_jpeg_xl_hides_no_size() -> None:
    """2²⁶ × 2²⁶ pixels, in a bare codestream, and in a container whose parts cut the header anywhere."""
    bits = 0 | 3 << 1 | (2**26 - 1) << 3 | 0 << 33 | 3 << 36 | (2**26 - 1) << 38
    stream = b"\xff\x0a" + bits.to_bytes(14, "little")
    assert plugins.jxl_size(stream) == (2**26, 2**26)
    for cut in range(1, 15):
        parts = [stream[:cut], stream[cut:]]
        boxes = [struct.pack(">I4sI", 12 + len(p), b"jxlp", i) + p for i, p in enumerate(parts)]
        data = plugins.CONTAINER + struct.pack(">I4s", 12, b"ftyp") + b"jxl " + b"".join(boxes)
        assert plugins.jxl_size(data) == (2**26, 2**26)
        if plugins.available("JXL"):
            with pytest.raises(FileError, match="too many pixels"):
                read(data, 3, SIZE)
    with pytest.raises(ValueError, match="no JPEG XL"):
        plugins.jxl_size(plugins.CONTAINER + bytes(8))


@pytest.mark.parametrize("suffix", formats.READ_ONLY)
def test_less_common_names_are_read(suffix: str, tmp_path: Path) -> None:
    picture = Image.fromarray(SMOOTH)
    if suffix in (".pbm", ".pfm"):
        picture = picture.convert("1" if suffix == ".pbm" else "F")
    picture.save(tmp_path / f"x{suffix}", "MPO" if suffix == ".mpo" else formats.READ_ONLY[suffix])
    pixels, _ = read(tmp_path / f"x{suffix}", 3, SIZE, how=Preprocessing(value_range=(0, 255)))
    want = np.asarray(picture.convert("RGB") if suffix != ".pfm" else picture.convert("L").convert("RGB"))
    assert np.abs(pixels.astype(int) - want).max() <= (8 if suffix == ".mpo" else 1)
    assert batch_names(tmp_path) == ["x"]


def batch_names(folder: Path) -> list[str]:
    return [item.name for item in plan.gather([str(folder)], plugins.readable())]


# Folders


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """What phones and the web leave: three JPEGs by less common names, and files that nothing here reads."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("phone.jfif", "b.jpe", "CAPS.JPG"):
        Image.fromarray(SMOOTH).save(folder / name, "JPEG")
    for name in ("a.HEIC", "deep/b.heic", "c.cr2", "notes.txt", ".hidden/e.psd", "d.json"):
        (folder / name).write_bytes(b"x")
    return folder


def test_what_a_folder_hides_is_told(
    mixed: Path, invoke: Invoke, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "available", lambda n: False)
    done = invoke("encode", mixed, "-m", model_folder, "--steps", 2, "-o", "out").ok()
    assert "3 files left out (.cr2 .heic)" in done.err.splitlines()
    assert "hint: pip install 'ddimctl[heic]' adds what reads them" in done.err.splitlines()
    assert sorted(Path(line).stem for line in done.out.splitlines()) == ["CAPS", "b", "phone"]
    done = invoke("encode", f"{mixed}/*", "-m", model_folder, "--steps", 2, "-o", "out2").ok()
    assert "2 files left out (.cr2 .heic)" in done.err.splitlines()
    done = invoke("encode", f"{mixed}/*.JPG", "-m", model_folder, "--steps", 2, "-o", "out3").ok()
    assert "left out" not in done.err
    done = invoke("reconstruct", mixed, "-m", model_folder, "--steps", 2).ok()
    assert "3 files left out (.cr2 .heic)" in done.err.splitlines()
    (mixed / "c.cr2").unlink()
    done = invoke("encode", mixed / "deep", "-m", model_folder, "--steps", 2, "-o", "out4")
    assert "holds nothing to work on" in done.failed(2)
    assert "1 file left out (.heic)" in done.err.splitlines()


def test_nothing_is_called_left_out_that_is_read() -> None:
    assert not formats.LIKE & {*formats.SUFFIXES, *formats.READ_ONLY}
    assert {s for p in plugins.PLUGINS.values() for s in p.suffixes} <= formats.LIKE


def test_left_out_counts_by_suffix(mixed: Path) -> None:
    found = plan.left_out([str(mixed), "-", "", str(mixed / "none.heic")], formats.SUFFIXES, formats.LIKE)
    assert found == {".heic": 2, ".cr2": 1}
