"""Films as input: every frame, as `read` gives that frame alone, with its time; and back to a film."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from ddimctl import latent
from ddimctl.errors import FileError
from ddimctl.images import animation, films, formats, metadata
from ddimctl.images.preprocessing import Preprocessing
from ddimctl.images.reading import read

Invoke = Callable[..., Result]
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 12, 16, 1), np.uint8)
TIMES = [100.0, 250.0, 30.0, 1000.0, 40.0]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_comes_back_frame_by_frame(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    animation.save_frames(path, FRAMES, 10, times=TIMES)
    film = films.read(path, 1, (12, 16))
    np.testing.assert_array_equal(film.pixels, FRAMES)
    assert film.times == TIMES
    for i, record in enumerate(film.records):
        pixels, alone = read(path, 1, (12, 16), how=Preprocessing(frame=i))
        np.testing.assert_array_equal(pixels, film.pixels[i])
        assert record == {**alone, "duration": TIMES[i]}
    again = tmp_path / f"b{suffix}"
    animation.save_frames(again, film.pixels, 10, times=films.times_of(film.records))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_mp4_comes_back_frame_by_frame(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    smooth = np.stack([np.full((48, 64, 3), v, np.uint8) for v in (20, 90, 160, 230, 128)])
    animation.save_frames(tmp_path / "a.mp4", smooth, 10, times=TIMES)
    path = (tmp_path / "a.mp4").rename(tmp_path / f"b{suffix}")
    film = films.read(path, 3, (48, 64))
    assert np.abs(film.pixels.astype(int) - smooth).max() <= 4
    assert film.times[:4] == pytest.approx(TIMES[:4], abs=1)
    assert [r["frame"] for r in film.records] == list(range(5))
    assert {r["format"] for r in film.records} == {"film"}
    grey = films.read(path, 1, (8, 8), how=Preprocessing("pad", "black"))
    assert grey.pixels.shape == (5, 8, 8, 1)
    assert (grey.pixels[:, 0] == 0).all()
    with pytest.raises(FileError, match="too many"):
        films.read(path, 1, (8, 8), how=Preprocessing(max_pixels=48 * 64 - 1))


def test_an_image_is_a_film_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(FRAMES[0, ..., 0]).save(tmp_path / "a.png")
    film = films.read(tmp_path / "a.png", 1, (12, 16))
    np.testing.assert_array_equal(film.pixels, FRAMES[:1])
    assert film.times == [films.DEFAULT_TIME]


def test_times_that_browsers_would_not_honour_are_theirs(tmp_path: Path) -> None:
    out = io.BytesIO()
    pictures = [Image.fromarray(f[..., 0]) for f in FRAMES]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=[0, 10, 20, 0, 50])
    assert films.read(out.getvalue(), 1, (12, 16)).times == [100, 100, 20, 100, 50]


def test_more_than_is_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    animation.save_frames(tmp_path / "a.gif", FRAMES, 10)
    monkeypatch.setattr(films, "MAX_HELD", 3 * 12 * 16)
    with pytest.raises(FileError, match="more than 3 frames"):
        films.read(tmp_path / "a.gif", 1, (12, 16))
    assert formats.MAX_HELD > 3 * 12 * 16


def test_damaged_films_are_refused(tmp_path: Path) -> None:
    for suffix in (".gif", ".webp", ".apng"):
        path = tmp_path / f"a{suffix}"
        animation.save_frames(path, FRAMES, 10)
        for end in (5, len(path.read_bytes()) // 2):
            with pytest.raises(FileError):
                films.read(path.read_bytes()[:end], 1, (12, 16))
    for data in (b"", b"\0\0\0\x18ftypisom" + bytes(16), b"RIFF\0\0\0\0AVI " + bytes(99), b"\x1aE\xdf\xa3" + bytes(99)):
        with pytest.raises(FileError):
            films.read(data, 1, (8, 8))


@pytest.mark.parametrize("wrong", [None, "1", float("nan"), float("inf"), -1, 0, 1e9, [1]])
def test_times_of_strangers_are_checked(wrong: object) -> None:
    assert films.times_of([{"duration": 100}, {"duration": 40.5}]) == [100, 40.5]
    assert films.times_of([{"duration": 100}, {"duration": wrong}]) is None
    assert films.times_of([{"duration": 100}]) is None
    assert films.times_of([]) is None


# The command line


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.stack([np.full((16, 16, 1), v, np.uint8) for v in (10, 80, 120, 190, 250)])
    frames[:, 4:8] //= 2
    animation.save_frames(tmp_path / "clip.gif", frames, 10, times=TIMES)
    return tmp_path / "clip.gif"


def test_a_film_becomes_latents_and_a_film_again(
    clip: Path, invoke: Invoke, model_folder: Path, tmp_path: Path
) -> None:
    how = ("-m", model_folder, "--steps", 4, "--batch-size", 2)
    done = invoke("encode", clip, "--all-frames", *how, "--json").ok()
    assert json.loads(done.out)["images"] == 5
    assert f"{clip}: 5 frames" in done.err.splitlines()
    found = latent.load(tmp_path / "clip.pt")
    assert len(found.xT) == 5
    for i, record in enumerate(found.images):
        assert (record["frame"], record["duration"]) == (i, TIMES[i])
        invoke("encode", clip, "--frame", i, *how, "-o", f"{i}.pt", "--batch-size", 1).ok()
        alone = latent.load(tmp_path / f"{i}.pt").xT[0]
        assert float((alone - found.xT[i]).norm() / alone.norm()) < 1e-4
    invoke("decode", "clip.pt", "-o", "stills").ok()
    for suffix in animation.ANIMATED:
        if suffix == ".mp4":
            pytest.importorskip("av")
        name = f"back{suffix}"
        assert json.loads(invoke("decode", "clip.pt", "-o", name, "--json").ok().out)["images"] == 5
        back = films.read(tmp_path / name, 1, (16, 16))
        assert back.times == pytest.approx(TIMES, abs=1) or suffix == ".mp4"
        assert back.times[:4] == pytest.approx(TIMES[:4], abs=1)
        for i, pixels in enumerate(back.pixels):
            with Image.open(tmp_path / "stills" / f"clip-{i}.png") as image:
                off = np.abs(np.asarray(image).astype(int) - pixels[..., 0])
            assert off.max() == 0 or (suffix == ".mp4" and off.mean() < 20)  # of noise, unlike frames are 85 apart
        made = metadata.find(tmp_path / name)
        assert made is not None
        assert (made["command"], made["frames"]) == ("decode", 5)
        assert "exists already" in invoke("decode", "clip.pt", "-o", name).failed(2)
    assert "do not fit into one file" in invoke("decode", "clip.pt", "-o", "a.png").failed(2)


def test_a_folder_of_films_is_resumed(clip: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    clip.rename(folder / "clip.gif")
    Image.fromarray(FRAMES[0, ..., 0]).save(folder / "still.png")
    (folder / "bad.gif").write_bytes((folder / "clip.gif").read_bytes()[:200])
    words = ("encode", folder, "--all-frames", "-m", model_folder, "--steps", 2, "-o", "out", "--json")
    assert json.loads(invoke(*words, "--dry-run").out)["encoded"] == 2
    assert not (tmp_path / "out").exists()
    done = invoke(*words)
    assert done.code == 4
    assert [json.loads(done.out)[k] for k in ("encoded", "skipped", "failed")] == [2, 0, 1]
    assert len(latent.load(tmp_path / "out" / "clip.pt").xT) == 5
    assert len(latent.load(tmp_path / "out" / "still.pt").xT) == 1
    assert [json.loads(invoke(*words).out)[k] for k in ("encoded", "skipped", "failed")] == [0, 2, 1]
    assert [json.loads(invoke(*words, "--steps", 3).out)[k] for k in ("encoded", "skipped", "failed")] == [0, 0, 3]
    assert [json.loads(invoke(*words, "--steps", 3, "--force").out)[k] for k in ("encoded", "failed")] == [2, 1]


def test_what_makes_no_sense_of_films(clip: Path, invoke: Invoke, model_folder: Path, tmp_path: Path) -> None:
    how = ("-m", model_folder, "--steps", 2)
    assert "contradict" in invoke("encode", clip, "--all-frames", "--frame", 1, *how).failed(2)
    said = invoke("encode", clip, clip, "--all-frames", "-o", "x.pt", *how).failed(2)
    assert "same file" in said or "a file of each film" in said
    assert "clip.pt" in invoke("encode", clip, "--all-frames", "--dry-run", *how).ok().out
    assert not (tmp_path / "clip.pt").exists()
    pytest.importorskip("av")
    animation.save_frames(tmp_path / "a.mp4", FRAMES, 10)
    done = invoke("encode", "a.mp4", *how)
    assert done.failed(3) == "a.mp4 is a film, not an image"
    assert "--all-frames" in done.err
    invoke("encode", "a.mp4", "--all-frames", *how).ok()
    assert len(latent.load(tmp_path / "a.pt").xT) == 5
