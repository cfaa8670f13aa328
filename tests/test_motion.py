"""Where frames stand: exact answers on curves whose lengths are known, and films of the command line."""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.errors import UsageError
from ddimctl.images.animation import count_frames
from ddimctl.motion import BUDGET, EVEN, ROUNDS, Place, counts, even, order, places, rms, weights

Invoke = Callable[..., Result]


def on_a_line(speed: Callable[[float], float]) -> Callable[[Sequence[Place]], list[Any]]:
    """Frames of one value, that grows by `speed` of the weight on every leg."""
    return lambda wanted: [np.array([leg + speed(w)]) for leg, w in wanted]


def apart(frames: Sequence[Any]) -> list[float]:
    return [rms(a, b) for a, b in pairwise(frames)]


SPEEDS: dict[str, Callable[[float], float]] = {
    "even": lambda w: w,
    "late": lambda w: w**6,
    "early": lambda w: 1 - (1 - w) ** 4,
    "a steep step": lambda w: (math.tanh(60 * (w - 0.3)) + math.tanh(18)) / (math.tanh(42) + math.tanh(18)),
    "rest in the middle": lambda w: 0.5 + 4 * (w - 0.5) ** 3,
}


@pytest.mark.parametrize("frames", [3, 10, 31])
@pytest.mark.parametrize("name", SPEEDS)
def test_frames_on_a_line_stand_where_its_inverse_is(name: str, frames: int) -> None:
    speed = SPEEDS[name]
    found = even(on_a_line(speed), frames, 1)
    assert found[0] == (0, 0.0)
    assert found[-1] == (0, 1.0)
    reached = [speed(w) for _, w in found]
    assert reached == pytest.approx(np.linspace(0, 1, frames), abs=0.03 / (frames - 1))


@pytest.mark.parametrize("name", SPEEDS)
def test_a_bend_is_measured_across(name: str) -> None:
    """On a spiral equal arcs are not equal distances; the distances are what is seen."""
    speed = SPEEDS[name]

    def spiral(wanted: Sequence[Place]) -> list[Any]:
        turns = [(9 * speed(w), 0.2 + speed(w)) for _, w in wanted]
        return [r * np.array([math.cos(t), math.sin(t)]) for t, r in turns]

    distances = apart(spiral(even(spiral, 12, 1)))
    assert max(distances) / (sum(distances) / len(distances)) <= EVEN


def test_legs_get_frames_by_their_length() -> None:
    """The first leg is three times as long: 15 of 20 steps are its own, and every latent is met."""
    found = even(lambda wanted: [np.array([3 * w if leg == 0 else 3 + w]) for leg, w in wanted], 21, 2)
    assert [leg for leg, _ in found].count(0) == 15
    assert (1, 0.0) in found
    frames = [3 * w if leg == 0 else 3 + w for leg, w in found]
    assert frames == pytest.approx(np.linspace(0, 4, 21), abs=0.01)
    shared = even(on_a_line(SPEEDS["late"]), 21, 2, shares=[1, 4])
    assert [leg for leg, _ in shared].count(0) == 4


def test_a_closed_path_comes_back() -> None:
    corners = [np.array(p, float) for p in ((0, 0), (4, 0), (4, 3))]

    def triangle(wanted: Sequence[Place]) -> list[Any]:
        return [corners[i] + (w**3) * (corners[(i + 1) % 3] - corners[i]) for i, w in wanted]

    found = even(triangle, 12, 3, loop=True)
    assert len(found) == 12
    assert [leg for leg, _ in found] == [0] * 4 + [1] * 3 + [2] * 5
    assert apart([*triangle(found), corners[0]]) == pytest.approx([math.sqrt(0.5) / 2] * 12, rel=0.03)


@pytest.mark.parametrize("frames", [2, 5, 40])
def test_what_jumps_or_stands_still_costs_a_bounded_number_of_looks(frames: int) -> None:
    looks = 0

    def counted(speed: Callable[[float], float]) -> Callable[[Sequence[Place]], list[Any]]:
        def at(wanted: Sequence[Place]) -> list[Any]:
            nonlocal looks
            looks += len(wanted)
            return on_a_line(speed)(wanted)

        return at

    for speed in (lambda w: float(w > 1 / 3), lambda w: 0.0):
        looks = 0
        found = even(counted(speed), frames, 1)
        assert looks <= (1 + BUDGET + ROUNDS) * frames + 2
        assert len(found) == frames
        assert all(a < b for a, b in pairwise(found))
    with pytest.raises(UsageError, match="2 frames cannot show 3 latents"):
        even(on_a_line(SPEEDS["even"]), 2, 2)


@given(st.integers(1, 6), st.integers(0, 40), st.booleans(), st.lists(st.floats(0, 9), min_size=6, max_size=6))
def test_counts_are_whole_and_as_asked(legs: int, more: int, loop: bool, shares: list[float]) -> None:
    frames = legs + (not loop) + more
    for asked in ((), shares[:legs]):
        found = counts(frames, legs, loop=loop, shares=asked)
        assert len(found) == legs
        assert min(found) >= 1
        assert len(places(found, loop=loop)) == frames
    assert max(counts(frames, legs, loop=loop)) - min(counts(frames, legs, loop=loop)) <= 1


def test_places() -> None:
    assert places([2, 1]) == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 1.0)]
    assert places([2, 1], loop=True) == [(0, 0.0), (0, 0.5), (1, 0.0)]
    assert [w for _, w in places([4], ease=True)] == weights(5, ease=True)


def test_the_order_of_frames() -> None:
    assert order(4, [0, 3]) == [0, 1, 2, 3]
    assert order(4, [0, 3], pingpong=True) == [0, 1, 2, 3, 2, 1]
    assert order(3, [0, 2], hold=2) == [0, 0, 0, 1, 2, 2, 2]
    assert order(5, [0, 2, 4], pingpong=True, hold=1) == [0, 0, 1, 2, 2, 3, 4, 4, 3, 2, 2, 1]
    assert order(1, [0], pingpong=True) == [0]


# The command line


@pytest.fixture
def pictures(model_folder: Path) -> list[Path]:
    return sorted((model_folder / "held-out").glob("*.png"))[:3]


@pytest.fixture
def film(invoke: Invoke, model_folder: Path) -> Invoke:
    return lambda *args: invoke("interpolate", *args, "-m", model_folder, "--steps", 3, "--force")


def distances_of(done: Result) -> list[float]:
    found: list[float] = json.loads(done.ok().out)["distances"]
    return found


def test_even_motion_of_a_model(film: Invoke, pictures: list[Path]) -> None:
    words = (*pictures[:2], "--frames", 12, "--json")
    plain, evenly = distances_of(film(*words)), distances_of(film(*words, "--even"))

    def unevenness(distances: list[float]) -> float:
        return max(distances) / (sum(distances) / len(distances))

    assert unevenness(plain) > 1.05
    assert unevenness(evenly) < EVEN + 0.01
    assert len(evenly) == 11
    assert "choose one" in film(*words, "--even", "--ease").err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *((("--grid", *option), f"{option[0]} is about motion") for option in (
            ("--frames", 10), ("--fps", 5), ("--durations", "1"), ("--hold", 1), ("--even",), ("--pingpong",), ("--loop",),
            ("--ease",),
        )),
        (("--size", "8x8"), "--size is that of a grid"),
        (("--frames", 5, "--durations", "1"), "--durations says how many"),
        (("--pingpong", "--loop"), "ends where it began"),
        (("--lerp", "--renorm"), "two ways between"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(
    options: tuple[object, ...], said: str, film: Invoke, pictures: list[Path], tmp_path: Path
) -> None:
    assert said in film(*pictures[:2], *options).failed(2)
    assert not list(tmp_path.iterdir())


def test_a_default_of_a_file_stands_back(film: Invoke, pictures: list[Path], tmp_path: Path) -> None:
    """Nobody asked for motion here: what is the default for films does not forbid a grid."""
    (tmp_path / "ddimctl.toml").write_text("[interpolate]\nframes = 5\nfps = 5\nsize = '2x2'\n")
    film(*pictures[:2], *pictures[:2], "--grid", "-o", "g.png").ok()
    film(*pictures[:2], "-o", "f.gif").ok()


def test_pingpong_and_hold(film: Invoke, pictures: list[Path], tmp_path: Path) -> None:
    film(*pictures, "--frames", 5, "-o", "a.apng", "--pingpong", "--hold", 0.2).ok()
    assert count_frames(tmp_path / "a.apng")[0] == 8 + 2 * 4  # each latent two frames more, those within both ways
    done = film(*pictures, "--frames", 5, "-o", "a.gif", "--pingpong", "--hold", 0.2).ok()
    assert count_frames(tmp_path / "a.gif") == (8, 1600)
    assert "equal neighbours" not in done.err  # which were asked for
    with Image.open(tmp_path / "a.gif") as image:
        times = []
        for i in range(8):
            image.seek(i)
            times.append(image.info["duration"])
    assert times == [300, 100, 300, 100, 300, 100, 300, 100]
    assert "leave --loop away" in film(*pictures, "--pingpong", "--loop").err


def test_durations_of_legs(film: Invoke, pictures: list[Path], tmp_path: Path) -> None:
    for even_too in ((), ("--even",)):
        film(*pictures, "--durations", "0.5,1.5", "-o", "a.apng", *even_too).ok()
        assert count_frames(tmp_path / "a.apng") == (21, 2100)
        with Image.open(tmp_path / "a.apng") as image:
            image.seek(5)
            fifth = np.asarray(image.convert("L"))
        film(pictures[1], pictures[2], "--frames", 2, "-o", "b.apng").ok()
        with Image.open(tmp_path / "b.apng") as image:
            assert (np.asarray(image.convert("L")) == fifth).all()  # the second latent, after half a second
    assert "3 durations do not fit 2 ways" in film(*pictures, "--durations", "1,1,1").failed(2)
    for wrong in ("0", "a", "1,-1", "nan"):
        assert "--durations takes seconds" in film(*pictures, "--durations", wrong).failed(2)


def test_sound(film: Invoke, pictures: list[Path], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.zeros(80_000, "<i2").tobytes())
    (tmp_path / "s.wav").write_bytes(out.getvalue())
    film(*pictures, "--frames", 6, "-o", "a.mp4", "--audio", "s.wav").ok()
    with av.open(str(tmp_path / "a.mp4")) as container:
        lengths = {s.type: float(s.duration * s.time_base) for s in container.streams}
    assert lengths == {"video": pytest.approx(0.6), "audio": pytest.approx(0.6, abs=0.05)}
    assert "cannot hold sound" in film(*pictures, "-o", "a.gif", "--audio", "s.wav").failed(2)
    assert "there is no file none.wav" in film(*pictures, "-o", "a.mp4", "--audio", "none.wav").failed(2)
    assert "no sound" in film(*pictures, "-o", "b.mp4", "--audio", pictures[0]).failed(3)
    assert not (tmp_path / "b.mp4").exists()
