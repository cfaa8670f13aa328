"""Emoji of three hands with captions: what `models/emoji-text` was trained on.

    npm pack emojibase-data @iconify-json/noto @iconify-json/twemoji @iconify-json/fluent-emoji-flat
    pip install resvg-py
    python examples/emoji_text.py *.tgz -o glyphs
    ddimctl train glyphs/train --held-out glyphs/held-out -o way --autoencoder --size 64
    ddimctl train glyphs/train --held-out glyphs/held-out -o emoji-text --captions --latent way --size 64

docs/training.md has every option of these two.

The pictures are Noto Emoji (Apache 2.0, Google), Twemoji (CC BY 4.0, Twitter and contributors) and Fluent Emoji, flat (MIT,
Microsoft), drawn on white; emojibase-data (MIT) says what each is called and of which kind it is. A caption is made of
words that recur, in this order: whose hand; the tone of the skin; for what is no person, the colour that most of it has,
and a second one that a quarter has; the kind; and of the name the words that three pictures to train on share. What shows
two tones of skin is left out. One emoji in twenty is held out, by all three hands.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HANDS = {"noto": "noto", "twemoji": "twemoji", "fluent-emoji-flat": "fluent"}  # of the packages; as captions say it
TONES = ("", "light skin", "medium light skin", "medium skin", "medium dark skin", "dark skin")
# The kind of what a subgroup holds; a name with a dash at its end stands for all that begin so.
KINDS = {
    "face-": "face", "cat-face": "cat face", "monkey-face": "monkey face", "hand-": "hand", "hands": "hand",
    "body-parts": "body", "person-": "person", "person": "person", "family": "family", "animal-bird": "bird animal",
    "animal-bug": "insect animal", "animal-marine": "fish animal", "animal-": "animal", "food-": "food", "drink": "drink",
    "dishware": "dish", "plant-flower": "flower", "plant-": "plant", "place-building": "building",
    "place-religious": "building", "place-": "landscape", "hotel": "object", "transport-ground": "vehicle",
    "transport-water": "boat", "transport-air": "aircraft", "transport-sign": "button", "time": "clock",
    "sky-weather": "weather", "sport": "sport", "game": "game", "clothing": "clothing", "sound": "sound",
    "musical-instrument": "instrument", "music": "music", "phone": "phone", "computer": "computer",
    "light-video": "light", "book-paper": "paper", "money": "money", "mail": "mail", "writing": "pen",
    "office": "paper", "lock": "lock", "tool": "tool", "science": "tool", "medical": "medicine", "household": "object",
    "arrow": "arrow button", "av-symbol": "arrow button", "zodiac": "button", "keycap": "button keycap",
    "geometric": "shape", "country-flag": "flag", "subdivision-flag": "flag", "flag": "flag", "alphanum": "button",
    "warning": "warning sign", "religion": "button", "heart": "heart", "emotion": "emotion", "award-medal": "medal",
    "event": "party", "arts-crafts": "object", "other-object": "object", "other-symbol": "symbol",
    "punctuation": "mark", "currency": "symbol", "math": "mark", "gender": "symbol",
}  # fmt: skip
COLOURS = {
    "red": (220, 45, 45), "orange": (250, 150, 30), "yellow": (255, 205, 40), "green": (70, 160, 60),
    "blue": (45, 110, 200), "sky": (100, 190, 245), "purple": (150, 70, 190), "pink": (250, 150, 190),
    "brown": (125, 80, 55), "black": (40, 40, 45), "grey": (150, 160, 165),
}  # fmt: skip
# Words of names that do not tell what is seen, or that the caption says in its own way.
SILENT = {
    "symbol", "sign", "of", "and", "with", "the", "a", "in", "for", "s", "st", "right", "left", "facing", "black", "white",
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "grey", "light", "dark", "skin", "mark", "on",
    "person", "no", "up", "down", "open", "closed", "button", "medium", "flag",
}  # fmt: skip
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
OFTEN = 3  # how many pictures to train on have a word that is kept
PEOPLE = ("person", "hand", "family", "body")
NAMED = {"man", "woman", "boy", "girl", "baby", "men", "women"}  # a person of whom the name says more than that
SILENT_KINDS = ("country-flag", "subdivision-flag")  # their names are of places


@dataclass(frozen=True)
class Emoji:
    """One emoji, whoever drew it."""

    code: str  # code points
    slug: str  # its name with dashes
    words: tuple[str, ...]  # of the name
    kind: tuple[str, ...]
    tone: str

    @property
    def held_out(self) -> bool:
        return int(digest(self.code), 16) % 20 == 0


def emoji(table: list[dict[str, Any]], subgroups: dict[str, str]) -> Iterator[Emoji]:
    """Those with one tone of skin, or none."""
    for entry in table:
        group = subgroups.get(str(entry.get("subgroup")), "")
        kind = kind_of(group)
        if not kind:
            continue
        words = () if group in SILENT_KINDS else tuple(re.findall(r"[a-z0-9]+", entry["label"].lower()))
        for variant in (entry, *entry.get("skins", ())):
            tone = variant.get("tone", 0)
            if isinstance(tone, int):
                yield Emoji(variant["hexcode"], slug(variant["label"]), words, tuple(kind.split()), TONES[tone])


def kind_of(subgroup: str) -> str:
    if subgroup in KINDS:
        return KINDS[subgroup]
    return next((kind for start, kind in KINDS.items() if start.endswith("-") and subgroup.startswith(start)), "")


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def slug(label: str) -> str:
    """As the packages name their pictures."""
    label = re.sub(r"^flag: ", "flag for ", label.lower())
    return "-".join(re.findall(r"[a-z0-9]+", label.replace("’", "").replace("'", "")))


def drawn(package: dict[str, Any], name: str, side: int) -> np.ndarray | None:
    """The picture of a name on white, as 8-bit RGB; without the words "skin tone", where the package has none."""
    import resvg_py

    for key in (name, name.removesuffix("-skin-tone")):
        icon = package["icons"].get(key) or package["icons"].get(package.get("aliases", {}).get(key, {}).get("parent"))
        if icon:
            w, h = (icon.get(k, package.get(k, 16)) for k in ("width", "height"))
            frame = f'{NAMESPACES} viewBox="0 0 {w} {h}"'
            svg = f"<svg {frame}>{icon['body']}</svg>"
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * side, height=4 * side))
            with Image.open(io.BytesIO(png)) as picture:
                square = Image.new("RGBA", picture.size, "white")
                square.alpha_composite(picture.convert("RGBA"))
            return np.asarray(square.convert("RGB").resize((side, side), Image.Resampling.BOX))
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


def caption(hand: str, one: Emoji, pixels: np.ndarray, kept: set[str]) -> str:
    """A third does not say whose hand it is, so that prompts need not."""
    said_by = [] if int(digest(hand + one.code), 16) % 3 == 0 else [hand]
    kind = [] if one.kind == ("person",) and NAMED & {*one.words} else [*one.kind]
    said = kind + [w for w in dict.fromkeys(one.words) if w in kept and w not in kind]
    how = one.tone.split() if one.kind[0] in PEOPLE else colours(pixels)
    return " ".join([*said_by, *how, *said])


def read(path: Path, inner: str) -> Any:
    """A JSON file in a package."""
    with tarfile.open(path) as package:
        file = package.extractfile(f"package/{inner}")
        assert file is not None
        return json.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw emoji, with captions.")
    parser.add_argument("packages", nargs="+", type=Path, help="emojibase-data and the packages of pictures, as .tgz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--size", type=int, default=64, help="width and height of the images")
    arguments = parser.parse_args()
    names = next(p for p in arguments.packages if p.name.startswith("emojibase-data"))
    subgroups = read(names, "meta/groups.json")["subgroups"]
    known = list({e.slug: e for e in emoji(read(names, "en/data.json"), subgroups)}.values())
    pictures: list[tuple[str, Emoji, np.ndarray]] = []
    seen: set[bytes] = set()
    for path in sorted(set(arguments.packages) - {names}):
        package = read(path, "icons.json")
        for one in known:
            pixels = drawn(package, one.slug, arguments.size)
            if pixels is not None and pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                pictures.append((package["prefix"], one, pixels))
    often = Counter(w for _, one, _ in pictures if not one.held_out for w in {*one.words} - SILENT)
    kept = {w for w, n in often.items() if n >= OFTEN}
    lines: dict[str, list[str]] = {"train": [], "held-out": []}
    for part in lines:
        (arguments.output / part).mkdir(parents=True)
    for prefix, one, pixels in pictures:
        part = "held-out" if one.held_out else "train"
        name = (
            f"{digest(prefix + one.code)[:4]}-{HANDS[prefix]}-{one.code.lower()}.png"  # so the first are of all kinds
        )
        Image.fromarray(pixels).save(arguments.output / part / name)
        lines[part].append(json.dumps({"file_name": name, "text": caption(HANDS[prefix], one, pixels, kept)}))
    for part, rows in lines.items():
        (arguments.output / part / "metadata.jsonl").write_text("".join(f"{row}\n" for row in rows))
        print(f"{arguments.output / part}: {len(rows):,} images with captions")


if __name__ == "__main__":
    main()
