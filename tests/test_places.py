"""What a name means: a file, a folder, standard output, a pipe; the same in every command."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from ddimctl import latent, places

Invoke = Callable[..., Result]


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path, tmp_path: Path) -> Invoke:
    """`invoke` with the tiny model as the default one, and a.png, b.png, a.pt and b.pt in the folder."""
    for name, image in (("a", "000"), ("b", "001")):
        (tmp_path / f"{name}.png").write_bytes((model_folder / f"held-out/{image}.png").read_bytes())

    def run(*args: object, input: bytes = b"") -> Result:
        return invoke(*args, input=input, env={"DDIMCTL_MODEL": str(model_folder)})

    run("encode", "a.png", "--steps", 2).ok()
    run("encode", "b.png", "--steps", 2).ok()
    return run


def test_a_name_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert places.parse("a.b/").suffix == ""
    assert (places.parse("a.b/") / "c.pt").suffix == ".pt"
    assert places.parse("a.b").suffix == ".b"
    for name in ("-", "/dev/stdout", "pipe"):
        place = places.parse(name)
        assert places.is_stream(place)
        assert str(place) == name
        assert places.is_stdout(place) == (name != "pipe")
        kind = places.of_kind(place, ".png")
        assert kind is not None
        assert (kind.suffix, place.suffix) == (".png", "")
    os.mkfifo("pipe.pt")
    kept = places.of_kind(places.parse("pipe.pt"), ".png")
    assert kept is not None
    assert kept.suffix == ".pt"
    assert not places.is_stream(places.parse("./-"))


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_what_one_command_writes_the_next_one_reads(tiny: Invoke, tmp_path: Path, output: str) -> None:
    encoded = tiny("encode", "-", "--steps", 2, "-o", output, input=(tmp_path / "a.png").read_bytes()).ok()
    assert encoded.err == ""
    assert np.array_equal(latent.from_bytes(encoded.stdout, "-").xT, latent.load(tmp_path / "a.pt").xT)
    decoded = tiny("decode", "-", "-o", output, input=encoded.stdout).ok()
    tiny("decode", "a.pt", "-o", "back.png").ok()
    image = Image.open(io.BytesIO(decoded.stdout))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "back.png")))
    assert not (tmp_path / "-").exists()


def test_every_command_with_one_output_writes_it_to_stdout(tiny: Invoke, tmp_path: Path) -> None:
    read = (tmp_path / "a.pt").read_bytes()
    for command, kind, told in (
        (("sample", "-n", 2, "--steps", "1,2"), "PNG", "evaluations"),
        (("interpolate", "a.pt", "b.pt", "--frames", 3), "GIF", ""),
        (("interpolate", "-", "b.png", "--frames", 2, "--dither", "none"), "GIF", ""),
        (("interpolate", "a.pt", "b.pt", "--grid", "--size", "2x2"), "PNG", ""),
        (("reconstruct", "a.png", "--steps", 2), "PNG", "wrong_pixels"),
        (("info", "a.pt"), "PNG", "kurtosis"),
        (("info", "-"), "PNG", "kurtosis"),
    ):
        if command[1:3] == ("a.pt", "b.pt") and "--grid" in command:
            command = ("interpolate", "a.pt", "b.pt", "a.pt", "b.pt", "--grid", "--size", "2x2")
        done = tiny(*command, "-o", "-", input=read).ok()
        assert Image.open(io.BytesIO(done.stdout)).format == kind, command
        assert told in done.err, command
    done = tiny("encode", "a.png", "--steps", 2, "--to", "npy", "-o", "-").ok()
    assert np.array_equal(np.load(io.BytesIO(done.stdout)), latent.load(tmp_path / "a.pt").xT)
    assert "both go to standard output" in tiny("encode", "a.png", "-o", "-", "--json").failed(2)
    assert "fit into -" in tiny("encode", "a.png", "b.png", "-o", "-").failed(2)
    assert "one file" in tiny("decode", "a.pt", "b.pt", "-o", "-").failed(2)
    assert "no place for a folder" in tiny("train", "x", "-o", "-").failed(2)


def test_latents_go_through_pipes_of_sums(tiny: Invoke, tmp_path: Path) -> None:
    """What one command writes the next one reads, and it is what files would give."""
    a, b = ((tmp_path / f"{n}.pt").read_bytes() for n in "ab")
    tiny("latent", "add", "a.pt", "0.5", "b.pt", "-o", "sum.pt").ok()
    wanted = latent.load(tmp_path / "sum.pt").xT
    for output, kind in (("-", b"PK"), ("/dev/stdout", b"PK")):
        done = tiny("latent", "add", "a.pt", "0.5", "-", "-o", output, input=b).ok()
        assert done.stdout.startswith(kind)
        found = latent.from_bytes(done.stdout, "-")
        assert np.array_equal(found.xT, wanted)
        assert [p["name"] for p in found.provenance["made"]["parents"]] == ["a.pt", "-"]
    assert tiny("decode", "-", "-o", "x.png", input=done.stdout).ok().out == "x.png\n"
    for command in ("mean", "mix", "stack", "sub"):
        made = tiny("latent", command, "-", "b.pt", "-o", "-", input=a).ok().stdout
        tiny("latent", command, "a.pt", "b.pt", "-o", f"{command}.pt").ok()
        assert np.array_equal(latent.from_bytes(made, "-").xT, latent.load(tmp_path / f"{command}.pt").xT)
    stacked = (tmp_path / "stack.pt").read_bytes()
    assert tiny("latent", "split", "-", "-o", "parts", input=stacked).ok().out.split() == ["parts/a.pt", "parts/b.pt"]
    assert "a.png" in tiny("latent", "nearest", "-", "a.pt", "b.pt", input=a).ok().out
    led = tiny("latent", "direction", "-", "b.pt", "-o", "-", input=a).ok().stdout
    assert np.array_equal(latent.from_bytes(led, "-").xT, latent.load(tmp_path / "sub.pt").xT)
    assert "need a folder" in tiny("latent", "split", "stack.pt", "-o", "-").failed(2)
    assert "one file" in tiny("latent", "add", "-", "-", input=a).failed(2)
    assert "both go to standard output" in tiny("latent", "add", "a.pt", "b.pt", "-o", "-", "--json").failed(2)
    assert "not a latent" in tiny("latent", "mean", "-", "-o", "-", input=b"rubbish").failed(3)
    assert not (tmp_path / "-").exists()


def test_what_comes_on_stdin_is_read(tiny: Invoke, tmp_path: Path) -> None:
    picture = (tmp_path / "a.png").read_bytes()
    (tmp_path / "-").mkdir()  # which is ./-
    assert "wrong_pixels" in tiny("reconstruct", "-", "--steps", 2, input=picture).ok().out
    assert tiny("encode", "-", "--steps", 2, input=picture).ok().out == "latent.pt\n"
    assert tiny("decode", "-", input=(tmp_path / "b.pt").read_bytes()).ok().out == "image.png\n"
    assert "1 latent of" in tiny("info", "-", input=(tmp_path / "a.pt").read_bytes()).ok().out
    assert "command" in tiny("info", "-", input=(tmp_path / "image.png").read_bytes()).ok().out
    assert "no latent" in tiny("info", "-", input=picture).failed(3)
    assert "not a latent" in tiny("decode", "-", input=b"rubbish").failed(3)
    bare = tiny("encode", "a.png", "--steps", 2, "--to", "npy", "-o", "-").ok().stdout
    model = os.environ.get("DDIMCTL_MODEL", "")
    assert model == ""  # it was that command's alone
    assert "-m MODEL" in tiny("decode", "-", input=bare).err


def test_a_pipe_takes_one_file(tiny: Invoke, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    tiny("decode", "a.pt", "-o", "pipe").ok()
    reader.join()
    assert Image.open(io.BytesIO(read[0])).format == "PNG"
    tiny("encode", "a.png", "-o", "/dev/null", "--steps", 2).ok()


def test_a_suffix_is_a_file_of_that_kind_or_refused(tiny: Invoke, tmp_path: Path) -> None:
    assert "k.npz is no name for a latent" in tiny("encode", "a.png", "b.png", "-o", "k.npz").failed(2)
    assert "k.npz is no name for a latent" in tiny("encode", "a.png", "-o", "k.npz").failed(2)
    assert "k.npz" in tiny("decode", "a.pt", "-o", "k.npz").failed(2)
    assert not (tmp_path / "k.npz").exists()
    tiny("encode", "a.png", "b.png", "--steps", 2, "-o", "run.5/").ok()
    assert sorted(p.name for p in (tmp_path / "run.5").glob("*.pt")) == ["a.pt", "b.pt"]
    tiny("decode", "run.5/", "-o", "back.5/").ok()
    tiny("sample", "-n", 1, "--steps", 1, "-o", "samples.5/").ok()
    assert (tmp_path / "samples.5/000.png").exists()


def test_a_refusal_says_what_force_would_cost(tiny: Invoke, tmp_path: Path) -> None:
    done = tiny("encode", "a.png", "-o", "a.pt")
    assert "a.pt exists already" in done.failed(2)
    assert f"--force writes over it ({(tmp_path / 'a.pt').stat().st_size:,} bytes of 20" in done.err
    (tmp_path / "mine.pt").write_bytes(b"not a latent at all")
    refused = tiny("encode", "a.png", "b.png", "-o", "mine.pt")
    assert "is no latent file" in refused.failed(2)
    assert "--force" not in refused.err


# info of many


def test_info_of_several_is_a_table(tiny: Invoke, tmp_path: Path) -> None:
    import json

    tiny("encode", "a.png", "b.png", "--steps", 3, "--solver", "ddim", "-o", "all/both.pt").ok()
    tiny("decode", "a.pt", "-o", "all/back.png").ok()
    (tmp_path / "all/photo.png").write_bytes((tmp_path / "a.png").read_bytes())
    header, *rows = tiny("info", "all").ok().out.splitlines()
    assert header.split()[:4] == ["file", "kind", "images", "size"]
    assert [row.split()[:3] for row in rows] == [
        ["all/back.png", "picture", "1"], ["all/both.pt", "latent", "2"], ["all/photo.png", "picture", "1"],
    ]  # fmt: skip
    assert "ddim, karras, 3 steps" in rows[1]
    assert "decode, ab2, karras, 2 steps" in rows[0]
    records = json.loads(tiny("info", "a.pt", "b.pt", "all", "--json").ok().out)
    assert [r["file"] for r in records] == ["a.pt", "b.pt", "all/back.png", "all/both.pt", "all/photo.png"]
    assert [r["kind"] for r in records] == ["latent", "latent", "picture", "latent", "picture"]
    one = json.loads(tiny("info", "a.pt", "--json").ok().out)
    assert {"file": "a.pt", **one} == records[0]
    (tmp_path / "all/damaged.pt").write_bytes(b"rubbish")
    done = tiny("info", "all")
    assert "1 of 4 files" in done.failed(4)
    assert len(done.out.splitlines()) == 4
    (tmp_path / "empty").mkdir()
    assert "nothing to tell of" in tiny("info", "empty").failed(2)
    assert "draws one" in tiny("info", "a.pt", "b.pt", "-o", "x.png").failed(2)
