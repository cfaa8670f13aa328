"""Films of the terminal, docs/film-*.gif: real runs in a terminal of their own, drawn as it shows them (`make gallery`).

Each command is typed and run; whatever it writes goes through a terminal emulator (pyte), and each state of the screen is a
frame. Waits are cut to a second. Pictures are shown as half blocks, as they are without the extra `show`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyte
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COLUMNS, ROWS = 92, 25
CELL, SIZE, MARGIN = (8, 17), 13, 12  # pixels: of a letter's place, its size, and around all
PAPER, INK = "1b1e24", "e6e6e6"
COLOURS = {"black": "1b1e24", "red": "f07178", "green": "8ccf7e", "brown": "e5c76b", "blue": "70b2f5", "magenta": "e296e2",
           "cyan": "56d4d6", "white": "c8ccd4"}  # fmt: skip
LONGEST, KEY, END = 1.0, 0.045, 4.0  # seconds: of a wait, to type a letter, before it begins anew
EVERY = 0.09  # seconds from a frame to the next, at least
RUN = (
    "import sys; sys.modules['textual_image'] = None; from ddimctl.cli.app import main; sys.argv[0] = 'ddimctl'; main()"
)


@dataclass(frozen=True)
class Film:
    """What is shown, its commands, and the files in the folder where they run."""

    name: str
    title: str
    words: str
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()  # its name there, where it comes from in models/

    @property
    def file(self) -> str:
        return f"film-{self.name}.gif"


FILMS = (
    Film(
        "round-trip",
        "An image into its latent, and back",
        "Encoded, decoded, and what is lost: the original, what came back, and the difference, amplified.",
        (
            "ddimctl encode img.png -o latent.pt",
            "ddimctl decode latent.pt -o back.png",
            "ddimctl reconstruct img.png --steps 20 --report mse --show",
        ),
        (("img.png", "fashion-mnist/held-out/000.png"),),
    ),
    Film(
        "between",
        "Between two images",
        "What lies in the middle between two images; a film of it; and who says how it was made.",
        (
            "ddimctl interpolate a.png b.png --frames 3 -o strip.png --show",
            "ddimctl interpolate a.png b.png --frames 24 -o film.gif",
            "ddimctl info film.gif",
        ),
        (("a.png", "fashion-mnist/held-out/004.png"), ("b.png", "fashion-mnist/held-out/001.png")),
    ),
)


# What a run writes, and when


def recorded(film: Film) -> Iterator[tuple[float, bytes]]:
    """(seconds since the one before, what appears) of a whole film."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for here, there in film.files:
            shutil.copy(ROOT / "models" / there, folder / here)
        for command in film.commands:
            yield LONGEST, b"\x1b[32m$\x1b[0m "
            yield from ((KEY, letter.encode()) for letter in command)
            yield 0.4, b"\r\n"
            yield from run(command, folder)
    yield 0.0, b"\x1b[32m$\x1b[0m "


def run(command: str, folder: Path) -> Iterator[tuple[float, bytes]]:
    """What a command writes to its terminal. Raises `CalledProcessError` if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DDIMCTL_", "NO_COLOR"))}
    words = [sys.executable, "-c", RUN, *shlex.split(command)[1:]]
    process = subprocess.Popen(
        words,
        cwd=folder,
        env={**env, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    last = time.monotonic()
    while True:
        ready, _, _ = select.select([ours], [], [], 0.05)
        if ready:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux says so where the other end is closed
                break
            now = time.monotonic()
            yield min(now - last, LONGEST), data
            last = now
        elif process.poll() is not None:
            break
    os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)


# What a terminal shows of it


def frames(events: Iterator[tuple[float, bytes]]) -> Iterator[tuple[Image.Image, float]]:
    """(picture, seconds that it stays) of each state of the screen."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    draw = Drawing()
    stays = 0.0
    for wait, data in events:
        stays += wait
        if stays >= EVERY:
            yield draw(screen), stays
            stays = 0.0
        stream.feed(data)
    yield draw(screen), END


class Drawing:
    """Draws a screen: letters in a monospaced font, half blocks exactly."""

    def __init__(self) -> None:
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.plain = ImageFont.truetype(fonts / "DejaVuSansMono.ttf", SIZE)
        self.bold = ImageFont.truetype(fonts / "DejaVuSansMono-Bold.ttf", SIZE)

    def __call__(self, screen: Any) -> Image.Image:
        (wide, high) = CELL
        size = (wide * screen.columns + 2 * MARGIN, high * screen.lines + 2 * MARGIN)
        picture = Image.new("RGB", size, f"#{PAPER}")
        pen = ImageDraw.Draw(picture)
        for row in range(screen.lines):
            for column in range(screen.columns):
                cell = screen.buffer[row][column]
                x, y = MARGIN + column * wide, MARGIN + row * high
                ink, paper = (f"#{COLOURS.get(c, c)}" for c in (cell.fg, cell.bg))
                ink, paper = ink.replace("default", INK), paper.replace("default", PAPER)
                if cell.reverse:
                    ink, paper = paper, ink
                if paper != f"#{PAPER}":
                    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=paper)
                if cell.data == "▀":
                    pen.rectangle((x, y, x + wide - 1, y + high // 2), fill=ink)
                elif cell.data.strip():
                    pen.text((x, y + 1), cell.data, fill=ink, font=self.bold if cell.bold else self.plain)
        x, y = MARGIN + screen.cursor.x * wide, MARGIN + screen.cursor.y * high
        if not screen.cursor.hidden:
            pen.rectangle((x, y + 1, x + wide - 1, y + high - 2), fill=f"#{COLOURS['white']}")
        return picture


def save(path: Path, shown: list[tuple[Image.Image, float]]) -> None:
    """Writes the frames as a GIF with one palette; those that look the same are one."""
    kept: list[tuple[Image.Image, float]] = []
    for picture, seconds in shown:
        if kept and kept[-1][0].tobytes() == picture.tobytes():
            kept[-1] = (picture, kept[-1][1] + seconds)
        else:
            kept.append((picture, seconds))
    richest = max((p for p, _ in kept), key=lambda p: len(np.unique(np.asarray(p).reshape(-1, 3), axis=0)))
    both = np.concatenate([np.asarray(richest), np.asarray(kept[len(kept) // 2][0])])
    palette = Image.fromarray(both).quantize(192, dither=Image.Dither.NONE)
    drawn = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p, _ in kept]
    times = [max(20, 10 * round(100 * s)) for _, s in kept]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False)


def make(film: Film) -> None:
    save(DOCS / film.file, list(frames(recorded(film))))
