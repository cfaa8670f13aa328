"""examples/emoji.py, and what demo.sh refuses; `make demo` runs it, features.py is run by tests/test_features.py."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
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


def test_captions_are_made_of_hand_tone_colour_kind_and_words_that_recur(emoji_text: ModuleType) -> None:
    red = np.full((32, 32, 3), 255, np.uint8)
    red[8:24, 8:24] = (220, 45, 45)
    make, kept = emoji_text.Emoji, {"heart", "woman", "worker", "smiling"}
    for one, expected in (
        (make("A", "", ("red", "heart"), ("heart",), ""), "red heart"),
        (make("C", "", ("woman", "factory", "worker"), ("person",), "dark skin"), "dark skin woman worker"),
        (make("D", "", ("mage",), ("person",), "light skin"), "light skin person"),
        (make("E", "", ("smiling", "imp"), ("face",), ""), "red face smiling"),
        (make("F", "", ("woman", "heart", "man"), ("family",), ""), "family woman heart"),
    ):
        assert emoji_text.caption("noto", one, red, kept).removeprefix("noto ") == expected
    said = [emoji_text.caption("noto", make(str(i), "", (), ("face",), ""), red, kept) for i in range(300)]
    assert 0.6 < sum(text.startswith("noto ") for text in said) / 300 < 0.73


def test_names_are_those_of_the_packages(emoji_text: ModuleType) -> None:
    for label, slug in (
        ("woman cook: medium-light skin tone", "woman-cook-medium-light-skin-tone"),
        ("flag: France", "flag-for-france"), ("woman’s hat", "womans-hat"),
    ):  # fmt: skip
        assert emoji_text.slug(label) == slug


def test_glyphs_of_two_hands_are_written_with_captions(
    emoji_text: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skins = [{"label": f"cook: tone {t}", "hexcode": f"C-{t}", "tone": t} for t in (1, 5)]
    both = {"label": "cooks: two tones", "hexcode": "C-15", "tone": [1, 5]}
    table = [
        {"label": "red heart", "hexcode": "H", "subgroup": 14},
        {"label": "cook", "hexcode": "C", "subgroup": 25, "skins": [*skins, both]},
        {"label": "regional indicator", "hexcode": "R"},
    ]
    files = {
        "emojibase-data": {
            "en/data.json": table,
            "meta/groups.json": {"subgroups": {"14": "heart", "25": "person-role"}},
        },
        "noto": {"icons.json": {"prefix": "noto", "icons": {}}},
        "twemoji": {"icons.json": {"prefix": "twemoji", "icons": {}}},
    }
    for name, inside in files.items():
        with tarfile.open(tmp_path / f"{name}.tgz", "w:gz") as package:
            for inner, value in inside.items():
                data = json.dumps(value).encode()
                about = tarfile.TarInfo(f"package/{inner}")
                about.size = len(data)
                package.addfile(about, io.BytesIO(data))
    shades: dict[str, int] = {}

    def drawn(package: dict[str, str], name: str, side: int) -> np.ndarray:
        shade = shades.setdefault(package["prefix"] + name, 10 + 20 * len(shades))
        return np.full((side, side, 3), shade, np.uint8)

    monkeypatch.setattr(emoji_text, "drawn", drawn)
    packages = [str(path) for path in sorted(tmp_path.glob("*.tgz"))]
    monkeypatch.setattr(sys, "argv", ["emoji_text.py", *packages, "-o", str(tmp_path / "out"), "--size", "8"])
    emoji_text.main()
    found: dict[str, set[str]] = {}
    for part in ("train", "held-out"):
        lines = (tmp_path / "out" / part / "metadata.jsonl").read_text().splitlines()
        for row in map(json.loads, lines):
            assert (tmp_path / "out" / part / row["file_name"]).is_file()
            found.setdefault(row["file_name"].split("-", 2)[2], set()).add(part)
            assert "skin" in row["text"] or "cook" not in row["text"] or "-c.png" in row["file_name"]
    assert set(found) == {"h.png", "c.png", "c-1.png", "c-5.png"}  # neither two tones nor what is of no kind
    assert all(len(parts) == 1 for parts in found.values())  # held out by both hands, or by none


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
