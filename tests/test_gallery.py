"""docs/gallery.md is what its script says, and every picture in it was made here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gallery  # noqa: E402

Invoke = Callable[..., Result]


def test_the_page_is_the_scripts() -> None:
    assert (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8") == gallery.page()


@pytest.mark.parametrize("shown", gallery.SHOWN, ids=lambda s: s.file)
def test_every_picture_is_there_and_its_command_is_one(shown: gallery.Shown, invoke: Invoke) -> None:
    with Image.open(ROOT / "docs" / shown.file) as picture:
        assert picture.info["ddimctl"] if "info" not in shown.command else picture.width > 500
        assert max(picture.size) <= 1500
    program, command, *words = shlex.split(shown.command)
    assert program == "ddimctl"
    assert f"docs/{shown.file}" in words
    help_text = invoke(command, "--help").ok().out
    assert all(w in help_text for w in words if w.startswith("--"))
