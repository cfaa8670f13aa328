"""What once went wrong in the commands, and is now one line or no fault at all."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, isolated, write_tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

from ddimctl.cli.console import Console
from ddimctl.errors import DDIMError
from ddimctl.images import animation, formats, writing

Invoke = Callable[..., Result]


@pytest.fixture
def tiny(invoke: Invoke, model_folder: Path) -> Invoke:
    """`invoke` with the tiny model as the default one."""
    return lambda *args, **more: invoke(*args, env={"DDIMCTL_MODEL": str(model_folder)}, **more)


@pytest.fixture(scope="session")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one weight that is not a number."""
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "broken")
    (file,) = folder.rglob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"][0] = math.nan
    save_file(weights, file)
    return folder


@pytest.fixture(scope="session")
def four_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "four", held_out=0, in_channels=4, out_channels=4)


@pytest.fixture
def latents(tiny: Invoke, model_folder: Path) -> list[str]:
    """a.pt and b.pt, of the tiny model."""
    for name, number in (("a.pt", "000"), ("b.pt", "001")):
        tiny("encode", model_folder / "held-out" / f"{number}.png", "--steps", 2, "-o", name).ok()
    return ["a.pt", "b.pt"]


# Which files


def test_one_held_out_image_is_one_of_a_folder(tiny: Invoke) -> None:
    done = tiny("reconstruct", "--limit", 1, "--steps", 2, "--json").ok()
    assert json.loads(done.out)["images"] == 1


def test_a_list_is_cut_at_newlines_alone(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    data = (model_folder / "held-out" / "000.png").read_bytes()
    names = ["form\x0cfeed", "file\x1cseparator", "next\x85line", "line\u2028separator"]
    for name in names:
        (tmp_path / f"{name}.png").write_bytes(data)
    (tmp_path / "list").write_bytes("".join(f"{name}.png\r\n" for name in names).encode())
    tiny("encode", "--from-file", "list", "--steps", 1, "-o", "out").ok()
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.pt")) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["encode", "-"], ["encode", "--from-file", "-", "-o", "out"]], ids=" ".join)
def test_a_closed_standard_input_is_wrong_usage(arguments: list[str], model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddimctl", *arguments, "-m", str(model_folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        cwd=tmp_path,
        env=isolated(tmp_path),
        preexec_fn=lambda: os.close(0),
        check=False,
    )
    assert "standard input is closed" in Result(done.returncode, done.stdout, done.stderr).failed(2)


# Models that make no images


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "-n", "2", "-o", "s.png"],
        ["sample", "-n", "2", "-o", "folder", "--json"],
        ["sample", "-n", "2", "-o", "s.png", "--steps", "1,2", "--json"],
        ["reconstruct", "-o", "s.png"],
        ["reconstruct", "--json"],
        ["decode", "a.pt", "-o", "a.png", "--force"],
        ["interpolate", "a.pt", "b.pt", "-o", "i.gif", "--force"],
        ["interpolate", "a.pt", "b.pt", "--force", "--json"],
    ],
    ids=" ".join,
)
def test_what_is_not_finite_becomes_no_image(
    command: list[str], tiny: Invoke, broken_model: Path, latents: list[str], tmp_path: Path
) -> None:
    steps = [] if "--steps" in command else ["--steps", "2"]
    done = tiny(*command, *steps, "-m", broken_model)
    assert done.failed(1) == f"the model {broken_model.name} gives values that are not finite"
    assert done.out == ""
    assert sorted(p.name for p in tmp_path.rglob("*.*") if p.name != "manifest.jsonl") == latents


def test_a_batch_counts_what_is_not_finite(
    tiny: Invoke, broken_model: Path, latents: list[str], tmp_path: Path
) -> None:
    done = tiny("decode", *latents, "-o", "out", "-m", broken_model, "--force")
    assert done.failed(4) == "2 of 2 failed"
    assert "gives values that are not finite" in done.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize("command", [["encode", "a.png"], ["sample", "-o", "s.png"], ["reconstruct", "a.png"]], ids=str)
def test_images_have_one_or_three_channels(
    command: list[str], tiny: Invoke, four_channels: Path, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes((model_folder / "held-out" / "000.png").read_bytes())
    assert "would have 4 channels" in tiny(*command, "-m", four_channels).failed(3)
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["a.png"]


# What is written


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "-n", "142", "--steps", "1,2", "-o", "s.webp"],
        ["sample", "-n", "20000", "--steps", "1", "-o", "s.webp"],
        ["reconstruct", "--steps", ",".join(map(str, range(1, 72))), "-o", "s.webp"],
        ["interpolate", "a.pt", "b.pt", "--zoom", "1100", "-o", "i.webp"],
        ["interpolate", "a.pt", "b.pt", "--zoom", "4200", "-o", "i.gif"],
        ["interpolate", "a.pt", "b.pt", "--frames", "300", "-o", "i.jpg"],
        ["interpolate", "a.pt", "b.pt", "a.pt", "b.pt", "--grid", "--size", "2x80", "-o", "i.webp"],
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_what_no_file_can_hold_is_refused_before_any_work(
    command: list[str], tiny: Invoke, latents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddimctl import ode, sampling

    def works(*args: object, **more: object) -> None:
        raise AssertionError("work was done")

    for module, name in ((ode, "encode"), (ode, "decode"), (sampling, "sample")):
        monkeypatch.setattr(module, name, works)
    assert "holds at most" in tiny(*command).failed(2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix) == latents


@pytest.mark.parametrize("output", ["new", "back.png", "old.png"])
def test_a_dry_run_of_one_latent_names_its_image(output: str, tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    before = sorted(p.name for p in tmp_path.iterdir())
    done = tiny("decode", "a.pt", "-o", output, "--dry-run", "--force").ok()
    assert done.out == f"decode\ta.pt\t{'new/a.png' if output == 'new' else output}\n"
    assert "would be decoded: 1" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert "exists already" in tiny("decode", "a.pt", "-o", "old.png", "--dry-run").failed(2)


def test_more_pixels_than_pillow_allows(tiny: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    writing.save_image(tmp_path / "a.png", np.zeros((40, 40, 1), np.uint8))
    tiny("encode", "a.png", "--steps", 1, "--max-pixels", 1600).ok()


def test_frames_of_more_pixels_than_pillow_allows(
    tiny: Invoke, latents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    tiny("interpolate", *latents, "--frames", 2, "-o", "i.webp").ok()


@pytest.mark.parametrize(("name", "side"), [("i.webp", 16384), ("i.gif", 65536)])
def test_what_a_writer_of_frames_refuses_is_one_line(
    name: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "LARGEST", {})  # as if the limit were not known
    with pytest.raises(DDIMError, match="cannot write"):
        animation.save_frames(tmp_path / name, np.zeros((2, 1, side, 1), np.uint8), 10)
    assert list(tmp_path.iterdir()) == []


# What is said


def test_names_steer_no_terminal(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\x1b[31m\xff.png")
    picture = Image.open(model_folder / "held-out" / "000.png").resize((30, 40))
    picture.save(tmp_path / name)
    said = tiny("encode", name, "--steps", 1, "-o", "a.pt").ok().err
    assert said.startswith("\\x1b[31m\\udcff.png: 30 × 40 PNG")


def test_a_notice_keeps_its_lines_and_its_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(verbose=True)
    console.notice("one  two\n\x07three\r")
    console.detail("\x9b1m\ud800")
    assert capsys.readouterr().err == "one  two\n\\x07three\\r\n\\x9b1m\\ud800\n"


def test_json_has_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).data("", {"a": [math.nan, 1.5, "x"], "b": {"c": (math.inf, -math.inf)}, "d": True, "e": 2})
    assert json.loads(capsys.readouterr().out) == {
        "a": [None, 1.5, "x"],
        "b": {"c": [None, None]},
        "d": True,
        "e": 2,
    }


# Pipes


def test_training_waits_for_no_pipe(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe or a device" in tiny("train", "pipe", "-o", "m").failed(2)
    held_out = model_folder / "held-out"
    assert "a pipe or a device" in tiny("train", held_out, "--held-out", "pipe", "--size", 16, "-o", "m").failed(2)


def test_interpolation_waits_for_no_pipe(tiny: Invoke, latents: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "a pipe or a device" in tiny("interpolate", latents[0], "pipe.pt").failed(2)


# Streams


@pytest.mark.parametrize("command", [[], ["models"]], ids=str)
def test_no_command_gets_the_help_alone(command: list[str], ddimctl: Invoke) -> None:
    done = ddimctl(*command)
    assert (done.code, done.err) == (2, "")
    assert "Usage: " in done.out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stderr_stops_no_work(unbuffered: str, model_folder: Path, tmp_path: Path) -> None:
    Image.new("L", (30, 40)).save(tmp_path / "a.png")  # cropped, which is a notice
    for arguments, code in (("a.png -o a.pt -v", 0), ("a.png a.png -o b.pt", 2), ("a.png none.png -o out", 4)):
        python, model = shlex.quote(sys.executable), shlex.quote(str(model_folder))
        command = f"{python} -m ddimctl encode --steps 1 -m {model} {arguments} 2>/dev/full"
        env = isolated(tmp_path, {"PYTHONUNBUFFERED": unbuffered})
        assert subprocess.run(command, shell=True, cwd=tmp_path, env=env, check=False).returncode == code
    assert (tmp_path / "a.pt").exists()
    assert (tmp_path / "out" / "a.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--version"], ["--help"], ["models"], ["models", "list"]], ids=str)
def test_a_pipe_that_nobody_reads_is_a_failure(command: list[str], unbuffered: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = isolated(tmp_path, {"PYTHONUNBUFFERED": unbuffered})
    ddimctl = [sys.executable, "-m", "ddimctl", *command]
    done = subprocess.run(ddimctl, stdout=writer, stderr=subprocess.PIPE, env=env, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_result_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []

    class Stream:
        write = staticmethod(pieces.append)

    monkeypatch.setattr(sys, "stdout", Stream())
    Console().data("one\ntwo", {})
    assert [piece for piece in pieces if piece] == ["one\ntwo\n"]


# Names


@pytest.mark.parametrize(
    "command",
    [
        ["encode", "", "-o", "out"],
        ["encode", "a.png", "", "-o", "out"],
        ["decode", ""],
        ["reconstruct", ""],
        ["encode", "a.png", "-o", ""],
        ["decode", "a.pt", "-o", ""],
        ["reconstruct", "-o", ""],
        ["sample", "-o", ""],
        ["train", "", "-o", "out"],
        ["train", ".", "-o", ""],
    ],
    ids=str,
)
def test_an_empty_name_is_not_the_folder_one_is_in(command: list[str], tiny: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert "empty" in tiny(*command).failed(2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("command", [["train", "."], ["models", "convert", "x"]], ids=str)
def test_standard_output_is_no_place_for_folders(command: list[str], tiny: Invoke, tmp_path: Path) -> None:
    done = tiny(*command, "-o", "-")
    assert "is no place for a folder" in done.failed(2)
    assert "hint: ./-" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_called_like_standard_output(tiny: Invoke, model_folder: Path, tmp_path: Path) -> None:
    tiny("encode", model_folder / "held-out" / "000.png", "--steps", 1, "-o", "./-").ok()
    assert (tmp_path / "-" / "000.pt").exists()


def test_each_advice_about_a_batch_is_given_once(tiny: Invoke, tmp_path: Path) -> None:
    frames = [Image.new("L", (16, 16), c) for c in (0, 200)]
    for name in ("a.gif", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for command in (["encode", "-o", "out"], ["reconstruct"]):
        done = tiny(*command, "a.gif", "b.gif", "--steps", 1)
        assert done.code != 0
        assert done.err.count("holds several images") == 2
        assert done.err.count("hint: choose one with --frame N") == 1


def test_errors_are_json_where_the_result_would_be(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"no latent")
    done = invoke("info", "bad.pt", "--json")
    assert done.out == ""
    (line,) = done.err.splitlines()
    said = json.loads(line)
    assert set(said) == {"error", "hint", "exit_code"}
    plain = invoke("info", "bad.pt")
    assert said["error"] == plain.failed(3)
    assert said["exit_code"] == done.code == 3
    assert invoke("encode", "--nothing", "--json").failed(2)
