"""The glyphs of `emoji.py` with captions: what `models/emoji-text` was trained on.

    python examples/emoji.py -o emoji-glyphs
    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz package/emoji.json
    python examples/emoji_text.py emoji-glyphs package/emoji.json -o emoji-text
    ddimctl train emoji-text/train --held-out emoji-text/held-out -o emoji-text-model --captions --start emoji

`emoji.json` (of the package emoji-datasource, MIT) says what each glyph is called and of which kind it is. A caption is
made of words that recur, in this order: the tone of the skin; for what is no person, the colour that most of it has, and
a second one that a quarter has; the kind; and of the name the words that five names have. Glyphs that show two tones of
skin have none. Held out is what `ddimctl train emoji-glyphs`, the training of `models/emoji`, holds out: so a network that
starts from `emoji` has not seen it either.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image

from ddimctl.training import data

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # where Debian puts it
TONES = {
    "1F3FB": "light skin", "1F3FC": "medium light skin", "1F3FD": "medium skin", "1F3FE": "medium dark skin",
    "1F3FF": "dark skin",
}  # fmt: skip
# The kind of what a subcategory holds; a name with a dash at its end stands for all that begin so.
KINDS = {
    "face-": "face", "cat-face": "cat face", "monkey-face": "monkey face", "hand-": "hand", "hands": "hand",
    "body-parts": "body", "person-": "person", "person": "person", "family": "family", "animal-bird": "bird animal",
    "animal-bug": "insect animal", "animal-marine": "fish animal", "animal-": "animal", "food-": "food", "drink": "drink",
    "dishware": "dish", "plant-flower": "flower", "plant-": "plant", "place-building": "building",
    "place-religious": "building", "place-": "landscape", "hotel": "object", "transport-ground": "vehicle",
    "transport-water": "boat", "transport-air": "aircraft", "transport-sign": "button", "time": "clock",
    "sky & weather": "weather", "sport": "sport", "game": "game", "clothing": "clothing", "sound": "sound",
    "musical-instrument": "instrument", "music": "music", "phone": "phone", "computer": "computer",
    "light & video": "light", "book-paper": "paper", "money": "money", "mail": "mail", "writing": "pen",
    "office": "paper", "lock": "lock", "tool": "tool", "science": "tool", "medical": "medicine", "household": "object",
    "arrow": "arrow button", "av-symbol": "arrow button", "zodiac": "button", "keycap": "button keycap",
    "geometric": "shape", "country-flag": "flag", "subdivision-flag": "flag", "flag": "flag", "alphanum": "button",
    "warning": "warning sign", "religion": "button", "heart": "heart", "emotion": "emotion", "award-medal": "medal",
    "event": "party", "arts & crafts": "object", "other-object": "object", "other-symbol": "symbol",
    "punctuation": "mark", "currency": "symbol", "math": "mark", "gender": "symbol", "skin-tone": "",
}  # fmt: skip
COLOURS = {
    "red": (220, 45, 45), "orange": (250, 150, 30), "yellow": (255, 205, 40), "green": (70, 160, 60),
    "blue": (45, 110, 200), "sky": (100, 190, 245), "purple": (150, 70, 190), "pink": (250, 150, 190),
    "brown": (125, 80, 55), "black": (40, 40, 45), "grey": (150, 160, 165),
}  # fmt: skip
# Words of names that do not tell what is seen, or that the caption says in its own way.
SILENT = {
    "symbol", "sign", "of", "and", "with", "the", "a", "in", "for", "ornament", "squared", "s", "st", "right",
    "left", "facing", "heavy", "large", "small", "black", "white", "red", "orange", "yellow", "green", "blue",
    "purple", "pink", "brown", "grey", "medium", "light", "dark", "skin", "mark", "ideograph", "letter", "capital",
    "latin", "cjk", "unified", "person", "no", "one", "two", "negative", "up", "down", "index", "input", "on",
    "open", "closed", "island", "islands", "style",
}  # fmt: skip
OFTEN = 5  # how many names have a word that is kept
PEOPLE = ("person", "hand", "family")
NAMED = {"man", "woman", "boy", "girl", "baby", "men", "women"}  # a person of whom the name says more than that


@dataclass(frozen=True)
class Glyph:
    """One glyph of the font that emoji.json names."""

    file: str  # without its suffix
    words: tuple[str, ...]  # of the name
    kind: tuple[str, ...]
    tone: str


def glyphs(table: list[dict[str, Any]], font: TTFont) -> list[Glyph]:
    """Those with one tone of skin, or none."""
    cmap, ligatures = font.getBestCmap(), ligatures_of(font)
    found: dict[str, Glyph] = {}
    for entry in table:
        kind = tuple(kind_of(entry["subcategory"]).split())
        words = tuple(re.findall(r"[a-z0-9]+", (entry["name"] or entry["short_name"]).lower()))
        tones = {"": entry} | entry.get("skin_variations", {})
        for code, variant in tones.items():
            file = glyph_of(variant["unified"], cmap, ligatures)
            if file and kind and len(set(code.split("-"))) == 1 and file not in found:
                found[file] = Glyph(file, words, kind, TONES.get(code.split("-")[0], ""))
    return list(found.values())


def kind_of(subcategory: str) -> str:
    if subcategory in KINDS:
        return KINDS[subcategory]
    return next(kind for start, kind in KINDS.items() if start.endswith("-") and subcategory.startswith(start))


def ligatures_of(font: TTFont) -> dict[tuple[str, ...], str]:
    """Which glyphs in a row are drawn as which one."""
    out: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = table.ExtSubTable if table.LookupType == 7 else table
            if table.LookupType == 4:
                for first, rules in table.ligatures.items():
                    out |= {(first, *rule.Component): rule.LigGlyph for rule in rules}
    return out


def glyph_of(sequence: str, cmap: dict[int, str], ligatures: dict[tuple[str, ...], str]) -> str | None:
    """The glyph of a sequence of code points, with the mark for colour (FE0F) or without it."""
    for codes in (sequence.split("-"), [c for c in sequence.split("-") if c != "FE0F"]):
        row = [cmap.get(int(code, 16)) for code in codes]
        if len(row) == 1 and row[0]:
            return row[0]
        if tuple(row) in ligatures:
            return ligatures[tuple(row)]  # type: ignore[index]
    return None


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB of 8 bits → CIE L*a*b*, in which distances are as seen."""
    linear = rgb / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    xyz /= np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def colours(pixels: np.ndarray) -> list[str]:
    """The colour that most of what is not the white ground has, and a second one that a quarter has."""
    seen, known = lab(pixels.reshape(-1, 3).astype(float)), lab(np.array(list(COLOURS.values()), float))
    ink = seen[~((seen[:, 0] > 93) & (np.abs(seen[:, 1:]).max(1) < 8))]
    if len(ink) < 20:
        return []
    nearest = np.linalg.norm(ink[:, None] - known[None], axis=-1).argmin(1)
    part = np.bincount(nearest, minlength=len(COLOURS)) / len(ink)
    order = part.argsort()[::-1]
    return [list(COLOURS)[i] for n, i in enumerate(order[:2]) if n == 0 or part[i] > 0.25]


def caption(glyph: Glyph, pixels: np.ndarray, kept: set[str]) -> str:
    kind = [] if glyph.kind == ("person",) and NAMED & {*glyph.words} else [*glyph.kind]
    said = kind + [w for w in glyph.words if w in kept and w not in kind]
    if glyph.kind[0] in PEOPLE:
        return " ".join([*glyph.tone.split(), *said])
    return " ".join([*(c for c in colours(pixels)), *said])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write captions for the glyphs that emoji.py made.")
    parser.add_argument("glyphs", type=Path, help="the folder that emoji.py made")
    parser.add_argument("table", type=Path, help="emoji.json of the package emoji-datasource")
    parser.add_argument("font", nargs="?", type=Path, default=FONT, help="the font they are from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    arguments = parser.parse_args()
    files = sorted(arguments.glyphs.glob("*.png"))
    numbers = torch.arange(len(files)).view(-1, 1, 1, 1)
    held_out = set(data.split(numbers, 0.05, seed=0).held_out.flatten().tolist())
    found = {g.file: g for g in glyphs(json.loads(arguments.table.read_text()), TTFont(arguments.font))}
    here = {path.stem for path in files}
    names = [g for g in found.values() if g.file in here and not g.tone]
    often = Counter(w for g in names for w in {*g.words} - SILENT)
    kept = {w for w, n in often.items() if n >= OFTEN}
    lines: dict[str, list[str]] = {"train": [], "held-out": []}
    for part in lines:
        (arguments.output / part).mkdir(parents=True)
    for i, path in enumerate(files):
        if path.stem not in found:
            continue
        with Image.open(path) as picture:
            text = caption(found[path.stem], np.asarray(picture.convert("RGB")), kept)
        if text:
            part = "held-out" if i in held_out else "train"
            lines[part].append(json.dumps({"file_name": path.name, "text": text}))
            shutil.copyfile(path, arguments.output / part / path.name)
    for part, rows in lines.items():
        (arguments.output / part / "metadata.jsonl").write_text("".join(f"{row}\n" for row in rows))
        print(f"{arguments.output / part}: {len(rows):,} images with captions")


if __name__ == "__main__":
    main()
