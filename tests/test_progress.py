"""Progress: what a meter counts, what it says, and that commands move it with the steps of the integration."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from ddimctl.cli import progress
from ddimctl.cli.console import Console
from ddimctl.cli.progress import Meter, duration


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_the_estimate_is_from_the_average(clock: Clock) -> None:
    """500 items of 20 steps; the first batch of 64 takes 20 s. It was "4 s left" for what takes 136."""
    with Meter(500 * 20, "encoded", tell=lambda _: None) as meter:
        for _ in range(10):
            clock.now += 1
            meter.partly(64)
        assert meter.left() == pytest.approx(10 / 640 * (10_000 - 640))
        for _ in range(10):
            clock.now += 1
            meter.partly(64)
        before = meter.share, meter.left()
        for _ in range(64):  # the outcomes come at once, and change nothing
            meter.add(20)
        assert (meter.share, meter.left()) == pytest.approx(before)
        assert meter.left() == pytest.approx(20 / 64 * 436)


def test_what_was_there_already_says_nothing_of_the_speed(clock: Clock) -> None:
    with Meter(100, "encoded", tell=lambda _: None) as meter:
        clock.now += 5
        meter.add(90, free=True)
        assert meter.left() is None
        clock.now += 5
        meter.add(1)
        assert meter.share == pytest.approx(0.91)
        assert meter.left() == pytest.approx(10 * 9)


def test_without_a_terminal_there_is_a_line_a_minute(clock: Clock) -> None:
    said: list[str] = []
    with Meter(40, "reconstructing", tell=said.append, more=lambda: "so it goes") as meter:
        for _ in meter.over(range(40)):
            clock.now += 10  # 400 s in all
    assert len(said) == 6
    assert said[0] == "reconstructing: 15 %  so it goes  5 min 40 s left"
    assert said[-1].startswith("reconstructing: 90 %")


def test_quiet_is_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True).bar(3, "decoding") as bar:
        for _ in bar(range(3)):
            clock.now += 100
    assert capsys.readouterr() == ("", "")


def test_more_work_than_was_told_of_is_never_more_than_all(clock: Clock) -> None:
    """`--lossless` may try several tolerances."""
    with Meter(10, "encoded", tell=lambda _: None) as meter:
        clock.now += 2
        meter.partly(50)
        assert (meter.share, meter.left()) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (60, "1 min 0 s"), (140, "2 min 20 s"), (1000, "17 min"), (11_100, "3 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("command", "label", "lines"),
    [
        (
            "encode {photos} -o out --steps 5 --batch-size 2",
            "encoded",
            5 * 2 + 4,
        ),  # each step of two batches, each file
        ("encode {photos} -o all.pt --steps 5 --batch-size 2", "encoded", 5 * 2 + 4),
        ("reconstruct {photos} --steps 5 --report mse --batch-size 2", "reconstructing", 2 * 5 * 2),
        ("decode latents -o back --batch-size 2", "decoded", 5 * 2 + 4),
    ],
)
def test_commands_say_how_far_they_are(
    command: str,
    label: str,
    lines: int,
    invoke: Callable[..., Result],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a pipe, with a minute that has no length: a line for each step."""
    common = ("--engine", "torch", "--device", "cpu")
    photos = model_folder / "held-out"
    if command.startswith("decode"):
        invoke("encode", photos, "-o", "latents", "-m", model_folder, "--steps", "5", *common).ok()
    monkeypatch.setattr(progress, "EVERY", 0.0)
    model = () if command.startswith("decode") else ("-m", model_folder)
    words = [word.format(photos=photos) for word in command.split()]
    said = invoke(*words, *model, *common).ok().err.splitlines()
    shares = [int(m[1]) for line in said if (m := re.match(rf"{label}: (\d+) %", line))]
    assert len(shares) == lines
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert len(set(shares)) >= 8
    assert not invoke(*words, *model, *common, "--force", "-q").ok().err
