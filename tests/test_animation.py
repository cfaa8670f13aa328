"""Animations, read back: as many frames as were given, for as long as was asked, whatever the format does to them."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.errors import DDIMError, UsageError
from ddimctl.images import animation
from ddimctl.images.animation import SHORTEST, STEP, check_target, count_frames, durations, save_frames

Invoke = Callable[..., Result]

SIDE = 12
RAMP = np.linspace(0, 60, SIDE * SIDE).reshape(SIDE, SIDE)
A, B, C, D = (np.uint8(RAMP + shift)[..., None] for shift in (0, 50, 100, 150))
SEQUENCES = {
    "distinct": [A, B, C, D],
    "first twice": [A, A, B, C],
    "middle twice": [A, B, B, C],
    "last twice": [A, B, C, C],
    "twice each": [A, A, B, B],
    "there and back": [A, B, A, B],
    "all the same": [A, A, A, A],
    "two the same": [A, A],
    "one": [A],
}
FORMATS = (".gif", ".webp", ".apng")


def shown(path: Path, step: int) -> list[np.ndarray]:
    """What a viewer shows, one picture for every `step` milliseconds."""
    out = []
    with Image.open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            picture = np.asarray(image.convert("L"))  # which loads it: a WebP tells the time only then
            out += [picture] * round(image.info["duration"] / step)
    return out


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_frame_is_shown_for_its_time(tmp_path: Path, suffix: str, name: str) -> None:
    frames = np.stack(SEQUENCES[name])
    path = tmp_path / f"a{suffix}"
    save_frames(path, frames, fps=10)
    n, total = count_frames(path)
    # Documented: a WebP of nothing but the same frame is a still picture, without a time. So is an APNG of one frame.
    if suffix in {"all the same": (".webp",), "two the same": (".webp",), "one": (".webp", ".apng")}.get(name, ()):
        assert (n, total) == (1, 0)
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("L")), frames[0, ..., 0])
        return
    assert total == 100 * len(frames)
    distinct = 1 + sum(not np.array_equal(p, q) for p, q in zip(frames, frames[1:], strict=False))
    assert n == (len(frames) if suffix == ".apng" else distinct)
    np.testing.assert_array_equal(np.stack(shown(path, 100)), frames[..., 0])


@pytest.mark.parametrize("suffix", FORMATS)
def test_distinct_frames_are_all_there_and_loop_for_ever(tmp_path: Path, suffix: str) -> None:
    frames = np.stack([np.uint8(RAMP + i)[..., None] for i in range(40)])
    path = tmp_path / f"a{suffix}"
    save_frames(path, frames, fps=20)
    assert count_frames(path) == (40, 2000)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_colour(tmp_path: Path, suffix: str) -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    for i in range(3):
        frames[i, ..., i] = 200
    path = tmp_path / f"a{suffix}"
    save_frames(path, frames, fps=10)
    with Image.open(path) as image:
        for i in range(3):
            image.seek(i)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frames[i])


@pytest.mark.parametrize("fps", [0.1, 3, 7.5, 24, 30, 60, 100])
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_whole_runs_for_n_over_fps(tmp_path: Path, suffix: str, fps: float) -> None:
    """Unless frames would be too short for browsers."""
    frames = np.stack([A, B, B, C, D, A, A])
    path = tmp_path / f"a{suffix}"
    save_frames(path, frames, fps)
    step = 10 if suffix == ".gif" else 1
    _, total = count_frames(path)
    assert abs(total - 7 * max(1000 / fps, SHORTEST[suffix])) <= step / 2
    assert total % step == 0


@given(n=st.integers(1, 300), fps=st.floats(0.1, 100), suffix=st.sampled_from(FORMATS))
def test_durations_are_even(n: int, fps: float, suffix: str) -> None:
    step, time = STEP.get(suffix, 1), max(1000 / fps, SHORTEST[suffix])
    times = durations([1000 / fps] * n, suffix)
    assert len(times) == n
    assert all(t % step == 0 and t >= SHORTEST[suffix] for t in times)
    assert max(times) - min(times) <= step
    assert abs(sum(times) - n * time) <= step / 2 + 1e-6


@given(st.lists(st.floats(0.1, 2000), min_size=1, max_size=60), st.sampled_from(FORMATS))
def test_any_durations_are_kept_as_well_as_the_format_can(times: list[float], suffix: str) -> None:
    step, least = STEP.get(suffix, 1), SHORTEST[suffix]
    found = durations(times, suffix)
    assert all(t % step == 0 and t >= least for t in found)
    assert all(abs(f - max(t, least)) <= step for f, t in zip(found, times, strict=True))
    assert abs(sum(found) - sum(max(t, least) for t in times)) <= step / 2 + 1e-6


def test_no_frame_is_shorter_than_browsers_honour(tmp_path: Path, invoke: Invoke, model_folder: Path) -> None:
    """They show a GIF's 10 ms as 100; what is asked for in vain is told."""
    assert durations([10.0] * 3, ".gif") == [20, 20, 20]
    assert durations([1000 / 30] * 3, ".gif") == [30, 40, 30]
    files = [model_folder / "held-out" / f"00{i}.png" for i in (0, 1)]
    words = ("interpolate", *files, "-m", model_folder, "--frames", 4, "--steps", 2, "--force", "--fps")
    for fps, name, shortest in ((60, "a.gif", 20), (100, "a.gif", 20), (100, "a.webp", 11), (100, "a.apng", 11)):
        done = invoke(*words, fps, "-o", name).ok()
        slow = "browsers slow down what is faster"
        said = f"{name} shows each frame for {shortest} ms: {slow} ({fps} frames a second); use .mp4"
        assert said in done.err.splitlines()
        with Image.open(tmp_path / name) as image:
            for i in range(image.n_frames):
                image.seek(i)
                image.load()
                assert image.info["duration"] >= shortest
    for fps, name in ((50, "a.gif"), (90, "a.webp"), (100, "a.mp4"), (10, "a.gif")):
        assert "slow" not in invoke(*words, fps, "-o", name).ok().err


@pytest.mark.slow
@pytest.mark.parametrize("fps", [0.1, 7.5, 10, 24, 29.97])
def test_mp4(tmp_path: Path, fps: float) -> None:
    """Identical frames stay apart here; odd sides and grey become what H.264 takes."""
    av = pytest.importorskip("av")
    frames = np.stack([A, A, B, C, C])[:, :-1, :-3]  # 11 × 9
    path = tmp_path / "a.mp4"
    save_frames(path, frames, fps)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / fps, rel=1e-3)
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
        pictures = [f.to_ndarray(format="gray") for f in file.decode(stream)]
    assert len(pictures) == 5
    for got, want in zip(pictures, frames[..., 0], strict=True):
        assert got.shape == (12, 10)
        assert abs(int(got[5, 5]) - int(want[5, 5])) < 12  # H.264 loses something
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [*FORMATS, ".mp4", ".png"])
def test_the_same_frames_make_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    frames = np.stack([A, B, C, D])
    for name in "ab":
        save_frames(tmp_path / f"{name}{suffix}", frames, 10)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_folder_holds_every_frame_in_order(tmp_path: Path) -> None:
    frames = np.stack([A, B, B, C] * 3)
    save_frames(tmp_path / "new" / "frames", frames, 10)
    files = sorted((tmp_path / "new" / "frames").iterdir())
    assert [f.name for f in files] == [f"frame-{i:02}.png" for i in range(12)]
    for file, frame in zip(files, frames, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), frame[..., 0])


def test_a_strip_has_the_frames_side_by_side(tmp_path: Path) -> None:
    frames = np.stack([A, B, B, C])
    save_frames(tmp_path / "strip.png", frames, 10)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    gap = 2
    assert strip.shape == (SIDE, 4 * SIDE + 3 * gap)
    for i, frame in enumerate(frames):
        left = i * (SIDE + gap)
        np.testing.assert_array_equal(strip[:, left : left + SIDE], frame[..., 0])
        assert (strip[:, left + SIDE : left + SIDE + gap] == 255).all()


@pytest.mark.parametrize("name", ["a.avi", "a.bmp", "a.gif.gz", "a.pt"])
def test_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no suffix that frames can be written to") as e:
        save_frames(tmp_path / name, np.stack([A, B]), 10)
    assert all(s in e.value.hint for s in (*FORMATS, ".mp4", ".png", "folder"))
    assert list(tmp_path.iterdir()) == []


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    save_frames(tmp_path / "A.GIF", np.stack([A, B]), 10)
    assert count_frames(tmp_path / "A.GIF") == (2, 200)


def test_video_without_its_extra_is_one_line_that_names_it(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "av" else real(name, *a))
    with pytest.raises(UsageError, match="'video'") as e:
        check_target(tmp_path / "a.mp4")
    assert "ddimctl[video]" in e.value.hint
    check_target(tmp_path / "a.gif")
    # Said before any work is done: the latents do not even exist.
    said = invoke("interpolate", "no.pt", "none.pt", "-o", "a.mp4").failed(2)
    assert "'video'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [*FORMATS, ".mp4", ".png"])
def test_nothing_is_left_after_a_failure(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    old = tmp_path / f"a{suffix}"
    old.write_bytes(b"old")
    if suffix == ".mp4":
        pytest.importorskip("av")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DDIMError, match="No space left"):
        save_frames(old, np.stack([A, B]), 10)
    assert [p.name for p in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"


def test_a_frame_that_a_gif_cannot_show_so_long(tmp_path: Path) -> None:
    """A GIF's frame lasts 655 s at most; 70 identical ones of 10 s would be merged into one of 700 s."""
    with pytest.raises(DDIMError, match="too long"):
        save_frames(tmp_path / "a.gif", np.stack([A] * 70), 0.1)
    assert list(tmp_path.iterdir()) == []
    save_frames(tmp_path / "a.apng", np.stack([A] * 70), 0.1)
    assert count_frames(tmp_path / "a.apng") == (70, 700_000)


def test_its_former_name_still_leads_here() -> None:
    from ddimctl import animation as former

    assert former.save_frames is save_frames
    assert former.count_frames is count_frames


def test_all_suffixes_are_tried_here() -> None:
    assert set(animation.ANIMATED) == {*FORMATS, ".mp4"}


def test_a_still_picture_counts_as_one_frame(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(A[..., 0]).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    assert count_frames(tmp_path / "a.png") == (1, 0)
