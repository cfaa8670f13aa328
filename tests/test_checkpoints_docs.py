"""docs/checkpoints.md names what the registries hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ddimctl.checkpoints import betas, openai, scheduler
from ddimctl.unet.config import DOWN_BLOCKS

TEXT = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_presets() -> None:
    rows = [line for line in TEXT.partition("| preset |")[2].splitlines() if line.startswith("| `")]
    named = {name: row.rsplit("|", 2)[1].strip() for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named.keys() == openai.PRESETS.keys()
    for name, size in named.items():
        assert openai.PRESETS[name]["image_size"] == int(size if size.isdigit() else name.split("x")[0])


def test_names() -> None:
    for name in (*betas.BETAS, *betas.ALIASES, *scheduler.PREDICTIONS, *scheduler.KNOWN, *DOWN_BLOCKS):
        assert name in TEXT, name


def test_the_example_configuration_is_valid() -> None:
    example = json.loads(re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)[0])
    assert openai.read_flags(example)[0]["rescale_timesteps"] is True
