"""Makes docs/gallery.md and its pictures, by running the command that stands under each: `make gallery`, some minutes.

    python benchmarks/gallery.py [ONLY]

ONLY is a word: pictures of other commands are left alone.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from film import FILMS, make

ROOT = Path(__file__).parent.parent
HELD_OUT = "models/emoji/held-out"
CLOTHES = "models/fashion-mnist/held-out"


REPORT = "report.html"
WINDOW = {"width": 1000, "height": 1320}  # pixels of the browser's: the divider is whole


@dataclass(frozen=True)
class Shown:
    """A picture: what it shows, its command, and what has to be run before.

    Where the command writes a page (`REPORT`), the picture is of that, as a browser shows it, `light` or `dark`.
    """

    title: str
    words: str
    file: str
    command: str
    before: str = ""
    likes: str = "light"

    @property
    def is_of_page(self) -> bool:
        return f"--html {REPORT}" in self.command


SHOWN = (
    Shown(
        "Between four images, in grey",
        "The corners are real and new to the model; everything between them is decoded from slerps of their latents.",
        "interpolation.png",
        f"ddimctl interpolate {CLOTHES}/000.png {CLOTHES}/001.png {CLOTHES}/006.png {CLOTHES}/018.png --grid --size 4x10"
        " --zoom 3 -o docs/interpolation.png",
    ),
    Shown(
        "There and back",
        "Real images that the model never saw, encoded and decoded by two solvers in 10 and 20 steps, with what is lost.",
        "gallery-round-trip.png",
        "ddimctl reconstruct -m emoji --steps 10,20 --solver ab2,ddim --limit 4 -o docs/gallery-round-trip.png",
    ),
    Shown(
        "Between four images, in colour",
        "The same with the model that knows emoji.",
        "gallery-grid.png",
        f"ddimctl interpolate {HELD_OUT}/000.png {HELD_OUT}/033.png {HELD_OUT}/019.png {HELD_OUT}/031.png -m emoji --grid"
        " --size 5x7 --zoom 3 --steps 20 -o docs/gallery-grid.png",
    ),
    Shown(
        "From words",
        "Pictures of a prompt by `emoji-text`, not selected: what they are is what was asked for, the details are its own.",
        "prompt-woman.png",
        'ddimctl sample -m emoji-text --prompt "woman red hair" --guidance 3 -n 8 -o docs/prompt-woman.png',
    ),
    Shown(
        "From other words",
        "The same noise, another prompt.",
        "prompt-cat.png",
        'ddimctl sample -m emoji-text --prompt "cat face" --guidance 3 -n 8 -o docs/prompt-cat.png',
    ),
    Shown(
        "Evenly from one to the other",
        "Frames at even distances of what is seen.",
        "gallery-strip.png",
        f"ddimctl interpolate {HELD_OUT}/000.png {HELD_OUT}/033.png -m emoji --even --frames 9 --zoom 3"
        " -o docs/gallery-strip.png",
    ),
    Shown(
        "The same noise in more steps",
        "Each column is one x_T, decoded in 5, 10, 20 and 50 steps: DDIM is consistent.",
        "gallery-consistency.png",
        "ddimctl sample -m emoji -n 8 --steps 5,10,20,50 -o docs/gallery-consistency.png",
    ),
    Shown(
        "A latent",
        "The channels of x_T, its values beside N(0, 1), its spectrum beside noise's, and the verdict.",
        "gallery-latent.png",
        "ddimctl info shoe.pt -o docs/gallery-latent.png",
        "ddimctl encode models/fashion-mnist/held-out/000.png -o shoe.pt",
    ),
    Shown(
        "The same on dark paper",
        "Every plot, too, with `--dark`.",
        "gallery-latent-dark.png",
        "ddimctl info shoe.pt -o docs/gallery-latent-dark.png --dark",
        "ddimctl encode models/fashion-mnist/held-out/000.png -o shoe.pt",
    ),
    Shown(
        "A page of a run",
        "One file that opens from disk: a divider to drag between original and reconstruction, and below it more.",
        "gallery-page.png",
        f"ddimctl reconstruct -m emoji --steps 10,20 --solver ab2,ddim --limit 4 --html {REPORT}",
    ),
    Shown(
        "The same page in the dark",
        "As the reader's system is.",
        "gallery-page-dark.png",
        f"ddimctl reconstruct -m emoji --steps 10,20 --solver ab2,ddim --limit 4 --html {REPORT}",
        likes="dark",
    ),
)


def page(shown: tuple[Shown, ...] = SHOWN) -> str:
    """docs/gallery.md."""
    parts = [
        "# Gallery",
        "Every film and picture, with the commands that made it (`make gallery` makes them all again). The films are of real"
        " runs; waits are cut to a second.",
    ]
    for f in FILMS:
        lines = "\n".join(f.commands)
        parts.append(f"## {f.title}\n\n{f.words}\n\n![A terminal: {f.title}]({f.file})\n\n```sh\n{lines}\n```")
    for s in shown:
        lines = "\n".join(filter(None, [s.before, s.command]))
        parts.append(f"## {s.title}\n\n{s.words}\n\n![{s.title}: {s.words}]({s.file})\n\n```sh\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


def photograph(page: Path, picture: Path, likes: str) -> None:
    """A page as Chromium shows it, from its top."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("pictures of pages need Chromium")
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab: Any = started.new_page(viewport=WINDOW, color_scheme=likes)
        tab.goto(page.as_uri())
        tab.screenshot(path=picture)
        started.close()


def main(only: str = "") -> None:
    for f in FILMS:
        if only in " ".join([f.file, *f.commands]):
            make(f)
    for s in SHOWN:
        if only in s.command:
            for command in filter(None, [s.before, f"{s.command} -q"]):
                words = shlex.split(command)[1:]
                subprocess.run([sys.executable, "-m", "ddimctl", *words, "--force"], cwd=ROOT, check=True)
            if s.is_of_page:
                photograph(ROOT / REPORT, ROOT / "docs" / s.file, s.likes)
    for made in ("shoe.pt", REPORT):
        (ROOT / made).unlink(missing_ok=True)
    (ROOT / "docs" / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
