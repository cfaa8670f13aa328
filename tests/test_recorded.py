"""The command line is the one that was recorded: options, exit codes, lines of stdout, errors, and the files made.

`python tests/record_cli.py` records it anew, where a change is meant.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import record_cli

from ddimctl.families import bundled


def test_the_options_are_those_recorded() -> None:
    assert not list(record_cli.differences(record_cli.read("options"), record_cli.options()))


def test_the_help_looks_as_recorded() -> None:
    assert not list(record_cli.differences(record_cli.read("help"), record_cli.helps()))


@pytest.mark.slow
@pytest.mark.parametrize(("command", "scenario"), record_cli.SCENARIOS, ids=lambda v: str(v))
def test_a_run_is_as_recorded(command: str, scenario: str, tmp_path: Path) -> None:
    if "bundled" in scenario and "fashion-mnist" not in bundled():
        pytest.skip("models/fashion-mnist is not in this checkout")
    found = record_cli.play(command, scenario, tmp_path / "root")
    wrong = list(record_cli.differences(record_cli.read(command)[scenario], found, loose=command == "bench"))
    assert not wrong, "\n".join([*wrong, "if this is meant: python tests/record_cli.py, and a line in the CHANGELOG"])


def test_every_scenario_is_recorded_and_no_other() -> None:
    for command, scenarios in record_cli.RUNS.items():
        assert record_cli.read(command).keys() == scenarios.keys()
