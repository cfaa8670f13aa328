"""Runs the commands of docs/paper.md and puts what they print back into the page: python benchmarks/paper.py [ONLY].

A block of the page that starts with ```console holds commands, each on a line after "$ ", and below each what it printed
when this ran last. The pictures are those that the commands write. ONLY is a word: other commands are left alone.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "paper.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    """What follows "$ " in the page's console blocks."""
    return [line[2:] for block in BLOCK.findall(page) for line in block.splitlines() if line.startswith("$ ")]


def run(command: str) -> str:
    print(command, flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def again(block: re.Match[str], only: str) -> str:
    parts = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
    out = ""
    for part in parts:
        command, _, before = part.partition("\n")
        out += f"$ {command}\n{run(command) if only in command else before}"
    return f"```console\n{out}```"


def main(only: str) -> None:
    PAGE.write_text(BLOCK.sub(lambda block: again(block, only), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
