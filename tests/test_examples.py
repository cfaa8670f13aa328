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
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def emoji() -> ModuleType:
    return example("emoji")


@pytest.fixture
def emoji_text() -> ModuleType:
    return example("emoji_text")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for its annotations
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


def test_colours_are_named_as_they_are_seen(emoji_text: ModuleType) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    assert emoji_text.colours(white) == []
    for name, rgb in emoji_text.COLOURS.items():
        picture = white.copy()
        picture[8:24, 8:24] = rgb
        assert emoji_text.colours(picture) == [name]
    picture[8:15, 8:24] = emoji_text.COLOURS["red"]
    assert emoji_text.colours(picture) == ["grey", "red"]


def test_captions_are_made_of_tone_colour_kind_and_words_that_recur(emoji_text: ModuleType) -> None:
    red = np.full((32, 32, 3), 255, np.uint8)
    red[8:24, 8:24] = (220, 45, 45)
    make, kept = emoji_text.Glyph, {"heart", "woman", "worker", "smiling"}
    for glyph, expected in (
        (make("a", ("red", "heart"), ("heart",), ""), "red heart"),
        (make("b", ("woman", "factory", "worker"), ("person",), "dark skin"), "dark skin woman worker"),
        (make("c", ("mage",), ("person",), "light skin"), "light skin person"),
        (make("d", ("smiling", "imp"), ("face",), ""), "red face smiling"),
        (make("e", ("woman", "heart", "man"), ("family",), ""), "family woman heart"),
    ):
        assert emoji_text.caption(glyph, red, kept) == expected


def test_a_sequence_is_found_with_the_mark_for_colour_and_without(emoji_text: ModuleType) -> None:
    cmap = {0x1F468: "man", 0x200D: "joiner", 0x2764: "heart", 0x31: "one", 0xFE0F: "mark"}
    ligatures = {("man", "joiner", "heart"): "man_in_love", ("one", "mark"): "one_in_colour"}
    found = [emoji_text.glyph_of(s, cmap, ligatures) for s in ("1F468-200D-2764-FE0F", "0031-FE0F", "2764", "1F469")]
    assert found == ["man_in_love", "one_in_colour", "heart", None]


def test_the_demo_removes_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run(["bash", EXAMPLES / "demo.sh", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "name another folder" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf").is_file(), reason="the font is not here"
)
def test_the_bundled_held_out_images_are_glyphs_of_the_font(emoji: ModuleType) -> None:
    known = {emoji.on_white(picture, 32).tobytes() for _, picture in emoji.glyphs(emoji.FONT)}
    for path in sorted((EXAMPLES.parent / "models" / "emoji" / "held-out").glob("*.png")):
        with Image.open(path) as picture:
            assert picture.convert("RGB").tobytes() in known
