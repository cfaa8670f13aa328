"""Runs the commands of docs/paper.md and puts what they print back into the page: python benchmarks/paper.py [ONLY].

A block of the page that starts with ```console holds commands, each on a line after "$ ", and below each what it printed
when this ran last. The pictures are those that the commands write. ONLY is a word: other commands are left alone.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from pages import write

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "paper.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[str]:
    """What follows "$ " in the page's console blocks."""
    return [line[2:] for block in BLOCK.findall(page) for line in block.splitlines() if line.startswith("$ ")]


def run(command: str) -> str:
    print(command, flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("DDIMCTL_")}
    return subprocess.run(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def put(page: str, command: str, printed: str) -> str:
    """The page with what that command printed below it, up to the next command or the end of the block."""
    below = re.compile(rf"(?<=^\$ {re.escape(command)}\n).*?(?=^\$ |^```)", re.DOTALL | re.MULTILINE)
    return below.sub(lambda _: printed, page, count=1)


def main(only: str) -> None:
    for command in commands(PAGE.read_text(encoding="utf-8")):
        if only in command:
            printed = run(command)
            write(PAGE, put(PAGE.read_text(encoding="utf-8"), command, printed))  # each as soon as it is there


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
