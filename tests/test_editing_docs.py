"""docs/editing.md: its lines run, in their order, on a tiny model with text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

PAGE = (Path(__file__).parent.parent / "docs" / "editing.md").read_text(encoding="utf-8")


def test_the_lines_of_the_page(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from pipelines import write_stable_diffusion

    write_stable_diffusion(tmp_path / "FOLDER")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "photo.png")
    lines = [shlex.split(line)[1:] for line in re.findall(r"^    (ddimctl .*)$", PAGE, re.M)]
    said = [invoke(*line).ok().err for line in lines]
    assert "returns exactly" in said[1]
    assert "direct inversion" in said[2]
    made = {"k.pt", "same.png", "edited.png", "sheet.png", "between.gif", "middle.png"}
    assert made <= {p.name for p in tmp_path.iterdir()}
