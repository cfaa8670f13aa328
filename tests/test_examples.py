"""examples/emoji.py, and what demo.sh refuses; `make demo` runs it, features.py is run by tests/test_features.py."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fontTools")
SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "emoji.py"


@pytest.fixture
def emoji() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emoji_example", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_glyph_lies_in_the_middle_of_a_white_square(emoji: ModuleType) -> None:
    red = Image.new("RGBA", (136, 128), (255, 0, 0, 255))
    red.putpixel((0, 0), (0, 0, 0, 0))
    square = np.asarray(emoji.on_white(red, 136))
    assert square.shape == (136, 136, 3)
    assert (square[:4] == 255).all()
    assert (square[-4:] == 255).all()
    assert (square[4:-4, 1:] == (255, 0, 0)).all()
    assert (square[4, 0] == 255).all()  # what is transparent is white


def test_each_glyph_is_written_once(emoji: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def glyph(colour: str) -> Any:
        out = io.BytesIO()
        Image.new("RGBA", (136, 128), colour).save(out, "PNG")
        return SimpleNamespace(imageData=out.getvalue())

    strike = {"b": glyph("blue"), "a": glyph("red"), "a-again": glyph("red")}
    monkeypatch.setattr(emoji, "TTFont", lambda path: {"CBDT": SimpleNamespace(strikeData=[strike])})
    monkeypatch.setattr(sys, "argv", ["emoji.py", "font.ttf", "-o", str(tmp_path / "glyphs")])
    emoji.main()
    assert sorted(p.name for p in (tmp_path / "glyphs").iterdir()) == ["a.png", "b.png"]
    with Image.open(tmp_path / "glyphs" / "a.png") as picture:
        assert picture.size == (32, 32)
        assert picture.mode == "RGB"
        assert picture.getpixel((16, 16)) == (255, 0, 0)


def test_the_demo_removes_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run(["bash", SCRIPT.with_name("demo.sh"), tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "name another folder" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf").is_file(), reason="the font is not here"
)
def test_the_bundled_held_out_images_are_glyphs_of_the_font(emoji: ModuleType) -> None:
    known = {emoji.on_white(picture, 32).tobytes() for _, picture in emoji.glyphs(emoji.FONT)}
    for path in sorted((SCRIPT.parent.parent / "models" / "emoji" / "held-out").glob("*.png")):
        with Image.open(path) as picture:
            assert picture.convert("RGB").tobytes() in known
