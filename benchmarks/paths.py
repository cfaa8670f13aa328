"""Puts what the bundled models' own paths came to into docs/inversion.md: python benchmarks/paths.py.

The figures are those of each model's paths.json, which `ddimctl tune` measured on images that had no part in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pages import put, table

from ddimctl.catalogue import DIGESTS
from ddimctl.families import load
from ddimctl.tuned import OWN, Tuned

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"mse": "mse", "median": "median", "worst": "worst image", "xT_error": "x_T error"}


def rows(name: str, path: Tuned) -> list[list[str]]:
    """A line for each spacing, the model's own first; the least of each figure stands out."""
    held = dict(path.about["held_out"])
    held = {OWN: held.pop(OWN), **held}
    least = {what: min(f[what] for f in held.values()) for what in FIGURES}
    out = []
    for spacing, found in held.items():
        of = f"`{name}`, {path.steps}" + (", the default" if path.wins else "") if spacing == OWN else ""
        cells = []
        for what in FIGURES:
            text = f"{found[what]:.2g}" if what == "xT_error" else f"{found[what]:.1e}"
            cells.append(f"**{text}**" if found[what] == least[what] else text)
        solver = path.solver if spacing == OWN else "ab2"
        searched = f"{path.about.get('images', 0):,}, {path.about.get('rounds', 0)}" if spacing == OWN else ""
        out.append([of, f"`{spacing}`, `{solver}`", *cells, searched])
    return out


def body(paths: dict[str, Sequence[Tuned]]) -> str:
    header = ["model, S", "spacing", *FIGURES.values(), "searched on images, rounds"]
    images = ", ".join(f"{own[-1].about['held_out_images']:,} of `{name}`" for name, own in paths.items())
    lines = [line for name, own in paths.items() for path in own for line in rows(name, path)]
    return f"On images that had no part in the search, {images}:\n\n{table(header, lines)}"


def main() -> None:
    found = {name: load(name, "cpu").schedule.paths for name in sorted(DIGESTS, reverse=True)}
    put(ROOT / "docs" / "inversion.md", __file__, body({name: own for name, own in found.items() if own}))


if __name__ == "__main__":
    main()
