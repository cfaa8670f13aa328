"""How the script that times ddimctl beside diffusers chooses what it times."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import versus_diffusers


def test_leading_with_few_steps_does_not_encode() -> None:
    """It ends at label (S − 1)·⌊T/S⌋: with one step where it began, and comes back to what it never left."""
    assert [versus_diffusers.encodes(s, "leading") for s in (1, 2, 5, 9, 10, 20, 100)] == [False] * 4 + [True] * 3
    assert all(versus_diffusers.encodes(s, "trailing") for s in (1, 2, 5))


@pytest.mark.parametrize("least", [1, 11, 37, 73, 100])
def test_the_fewest_steps_of_the_peer_are_found(least: int) -> None:
    asked: list[str] = []

    def is_enough(wanted: str) -> bool:
        asked.append(wanted)
        steps, spacing = wanted.split(":")
        return spacing == "leading" and int(steps) >= least

    found = versus_diffusers.theirs_at_best(100, is_enough)
    assert found == f"{max(least, 10)}:leading"  # with fewer it does not encode
    assert len(asked) <= 2 * 10 + 4
    assert len(set(asked)) == len(asked)


def test_a_peer_that_is_nowhere_good_enough_is_taken_as_it_is() -> None:
    assert versus_diffusers.theirs_at_best(50, lambda wanted: False) == "50"
    assert versus_diffusers.theirs_at_best(50, lambda wanted: wanted.endswith("trailing")) == "1:trailing"
