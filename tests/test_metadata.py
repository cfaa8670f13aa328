"""Pictures that say how they were made; and pictures of strangers, which may say anything."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image, PngImagePlugin

from ddimctl import __version__, origin
from ddimctl.errors import FileError, UsageError
from ddimctl.files import sha256
from ddimctl.images import animation, formats, metadata, writing
from ddimctl.model import Pixels
from ddimctl.recipe import Way

Invoke = Callable[..., Result]
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
MADE: dict[str, Any] = {
    "ddimctl": "0.1.0",
    "command": "decode",
    "model": {"name": "emoji", "digest": "ab" * 32},
    "steps": 20,
    "seed": 3,
    "parents": [{"name": 'Ünï " \\ <x>.pt', "sha256": "cd" * 32}],
}
KEPT = [s for s, f in formats.SUFFIXES.items() if f not in ("BMP", "PPM")]


@pytest.mark.parametrize("suffix", KEPT)
def test_a_picture_says_how_it_was_made(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    writing.save_image(path, PIXELS, made=MADE)
    assert metadata.find(path) == MADE
    plain = tmp_path / f"b{suffix}"
    writing.save_image(plain, PIXELS)
    assert metadata.find(plain) is None
    with Image.open(path) as a, Image.open(plain) as b:
        assert a.tobytes() == b.tobytes()
    assert writing.is_same(plain, path.read_bytes())


@pytest.mark.parametrize("suffix", [*animation.ANIMATED, ".png", ""])
def test_an_animation_says_how_it_was_made(suffix: str, tmp_path: Path) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    frames = np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]])
    animation.save_frames(tmp_path / f"a{suffix}", frames, 10, made=MADE)
    for path in [tmp_path / f"a{suffix}"] if suffix else sorted((tmp_path / "a").iterdir()):
        assert metadata.find(path) == MADE
    animation.save_frames(tmp_path / f"b{suffix}", frames, 10)
    for path in [tmp_path / f"b{suffix}"] if suffix else sorted((tmp_path / "b").iterdir()):
        assert metadata.find(path) is None


@pytest.mark.parametrize("suffix", [".bmp", ".ppm"])
def test_formats_without_remarks_say_nothing(suffix: str, tmp_path: Path) -> None:
    writing.save_image(tmp_path / f"a{suffix}", PIXELS, made=MADE)
    assert metadata.find(tmp_path / f"a{suffix}") is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_what_is_too_long_is_left_away(suffix: str, tmp_path: Path) -> None:
    for made in ({**MADE, "more": "x" * 70_000}, {**MADE, "more": float("nan")}):
        writing.save_image(tmp_path / f"a{suffix}", PIXELS, made=made)
        assert metadata.find(tmp_path / f"a{suffix}") is None
    long = {**MADE, "more": "x" * (metadata.MAX_TEXT - 300)}
    writing.save_image(tmp_path / f"a{suffix}", PIXELS, made=long)
    assert metadata.find(tmp_path / f"a{suffix}") == long


# Strangers


def png(text: str, zipped: bool = False) -> bytes:
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text(metadata.KEY, text, zip=zipped)
    Image.fromarray(PIXELS).save(out, "PNG", pnginfo=info)
    return out.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[" * 50_000,
        '{"a":' * 9_000 + "1" + "}" * 9_000,
        json.dumps([MADE]),
        json.dumps({"ddimctl": 1}),
        json.dumps({"command": "decode"}),
        json.dumps({**MADE, "x": "y" * 100_000}),
        "1" * 59_000,
    ],
    ids=lambda t: t[:12],
)
def test_what_is_none_of_ours_is_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(text))
    assert metadata.find(tmp_path / "a.png") is None
    assert metadata.parse(text.encode()) is None


def test_a_bomb_of_text_is_not_unpacked(tmp_path: Path) -> None:
    """100 MB of text in 100 kB."""
    body = metadata.KEY.encode() + b"\0\0" + zlib.compress(b" " * 100_000_000)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = png("x")
    at = whole.index(b"tEXt") - 4
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    tracemalloc.start()
    with contextlib.suppress(FileError):
        assert metadata.find(tmp_path / "a.png") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def mp4(*boxes: tuple[bytes, bytes]) -> bytes:
    return b"".join(struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in boxes)


def comment(text: bytes) -> bytes:
    data = mp4((b"data", struct.pack(">II", 1, 0) + text))
    meta = bytes(4) + mp4((b"hdlr", bytes(20)), (b"ilst", mp4((b"\xa9too", b"x"), (b"\xa9cmt", data))))
    return mp4(
        (b"ftyp", b"isom\0\0\0\0"), (b"free", b""), (b"moov", mp4((b"mvhd", b""), (b"udta", mp4((b"meta", meta)))))
    )


def test_the_boxes_of_an_mp4(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(comment(json.dumps(MADE).encode()))
    assert metadata.find(path) == MADE
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(300):
        broken = bytearray(whole[: int(rng.integers(8, len(whole)))] if i % 2 else whole)
        for at in rng.integers(0, len(broken), 3):
            broken[at] = int(rng.integers(0, 256))
        path.write_bytes(bytes(broken))
        try:
            found = metadata.find(path)
        except FileError:
            continue
        assert found is None or found["ddimctl"] == MADE["ddimctl"] or isinstance(found["ddimctl"], str)
    path.write_bytes(mp4((b"ftyp", b"isom\0\0\0\0"), (b"moov", b"")) + struct.pack(">I4sQ", 1, b"free", 2**63))
    assert metadata.find(path) is None
    path.write_bytes(comment(b"x" * 10_000_000))
    assert metadata.find(path) is None


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        metadata.find(tmp_path / "none.png")
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(FileError, match="not an image"):
        metadata.find(tmp_path / "a.png")


# Commands


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path) -> Invoke:
    return lambda command, *args: invoke(command, *args, "-m", model_folder)


def test_every_command_that_makes_pictures_says_so(
    tiny: Invoke, invoke: Invoke, model_folder: Path, tmp_path: Path
) -> None:
    picture = model_folder / "held-out" / "000.png"
    tiny("encode", picture, "-o", "a.pt", "--steps", 3, "--solver", "ddim").ok()
    tiny("encode", picture, model_folder / "held-out" / "001.png", "-o", "two.safetensors", "--steps", 3).ok()
    invoke("decode", "a.pt", "-o", "back.png").ok()
    made = metadata.find(tmp_path / "back.png")
    assert made is not None
    assert made["ddimctl"] == __version__
    assert made["command"] == "decode"
    assert (made["solver"], made["spacing"], made["steps"]) == ("ddim", "karras", 3)
    assert made["parents"] == [{"name": "a.pt", "sha256": sha256((tmp_path / "a.pt").read_bytes())}]
    assert made["image"] == {"name": "000.png", "sha256": sha256(picture.read_bytes())}
    assert str(tmp_path) not in json.dumps(made)  # where files lie is nobody's business
    invoke("decode", "two.safetensors", "-o", "both").ok()
    found = [metadata.find(p) for p in sorted((tmp_path / "both").glob("*.png"))]
    assert [(m["latent"], m["image"]["name"]) for m in found if m] == [(0, "000.png"), (1, "001.png")]

    tiny("sample", "-n", 2, "--seed", 7, "--steps", 3, "-o", "s").ok()
    made = metadata.find(tmp_path / "s" / "001.png")
    assert made is not None
    assert (made["command"], made["seed"], made["number"], made["steps"]) == ("sample", 7, 1, 3)
    tiny("sample", "-n", 2, "--seed", 7, "--steps", "3,4", "--eta", "0.5", "-o", "s.png", "--save-noise", "n.pt").ok()
    made = metadata.find(tmp_path / "s.png")
    assert made is not None
    assert (made["all_steps"], made["eta"], made["seed"]) == ([3, 4], 0.5, 7)
    invoke("decode", "n.pt", "-o", "noise").ok()
    made = metadata.find(tmp_path / "noise" / "n-1.png")
    assert made is not None
    assert (made["seed"], made["number"]) == (7, 1)

    tiny("reconstruct", picture, "--steps", "2,3", "-o", "r.png").ok()
    made = metadata.find(tmp_path / "r.png")
    assert made is not None
    assert made["parents"] == [{"name": "000.png", "sha256": sha256(picture.read_bytes())}]
    assert len(made["lines"]) == 2
    for name in ("i.gif", "i.webp", "i.apng", "i.png"):
        tiny("interpolate", "a.pt", picture, "-o", name, "--frames", 3).ok()
        made = metadata.find(tmp_path / name)
        assert made is not None
        assert [p["name"] for p in made["parents"]] == ["a.pt", "000.png"]
    tiny("interpolate", *["a.pt"] * 4, "--grid", "--size", "2x2", "-o", "g.png").ok()
    made = metadata.find(tmp_path / "g.png")
    assert made is not None
    assert made["frames"] == 4


def test_info_reads_it_back(tiny: Invoke, invoke: Invoke, tmp_path: Path) -> None:
    tiny("sample", "-n", 1, "--seed", 7, "--steps", 3, "-o", "s.png").ok()
    out = invoke("info", "s.png").ok().out
    assert "s.png says of itself:" in out
    assert [line.split() for line in out.splitlines() if "seed" in line] == [["seed", "7"]]
    assert json.loads(invoke("info", "s.png", "--json").ok().out)["made"] == metadata.find(tmp_path / "s.png")
    (tmp_path / "x.png").write_bytes(png(json.dumps({**MADE, "e\x1b[31mvil": "\x1b[2J\n\nmodel  yours"})))
    out = invoke("info", "x.png").ok().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 1 + len(MADE) + 1
    writing.save_image(tmp_path / "plain.png", PIXELS)
    assert invoke("info", "plain.png").failed(3) == "plain.png is a PNG image"
    assert "none.png" in invoke("info", tmp_path / "none.png").failed(2)


def test_a_picture_that_says_something_else_of_itself_is_the_same(
    tiny: Invoke, invoke: Invoke, model_folder: Path, tmp_path: Path
) -> None:
    """As an earlier version wrote it, without a manifest beside it: it is left as it is, and not refused."""
    (tmp_path / "l").mkdir()
    for i in range(2):
        tiny("encode", model_folder / "held-out" / f"00{i}.png", "-o", f"l/{i}.pt", "--steps", 3).ok()
    invoke("decode", "l", "-o", "out").ok()
    with Image.open(tmp_path / "out" / "0.png") as image:
        pixels = np.asarray(image).copy()
    writing.save_image(tmp_path / "out" / "0.png", pixels[..., None])
    (tmp_path / "out" / "manifest.jsonl").unlink()
    before = (tmp_path / "out" / "0.png").read_bytes()
    invoke("decode", "l", "-o", "out").ok()
    assert (tmp_path / "out" / "0.png").read_bytes() == before
    writing.save_image(tmp_path / "out" / "0.png", pixels[..., None] ^ 1)
    (tmp_path / "out" / "manifest.jsonl").unlink()
    assert "not what this would make" in invoke("decode", "l", "-o", "out").err


def test_origins_are_bounded() -> None:
    parents = [{"name": "\u00fc" * 100, "sha256": "0" * 64}] * 1000

    class Named:
        name, digest, autoencoder, worse = "x" * 1000, "0" * 64, Pixels(), None

    made = origin.of("interpolate", Named(), Way(), parents=parents)  # type: ignore[arg-type]
    assert made["parents_in_all"] == 1000
    assert 0 < len(metadata.text(made)) <= metadata.MAX_TEXT
    assert origin.parent("/no/such/file.pt") == {"name": "file.pt"}
