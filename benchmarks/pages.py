"""What the measuring scripts share: tables, and the parts of pages that they rewrite, whole and at once.

A page is read again just before it is written, so what else changed in it while a script measured is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddimctl.files import write_bytes

END = "<!-- measured: end -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(r) + " |" for r in [header, ["---"] * len(header), *rows])


def put(page: Path, script: str, body: str) -> None:
    """Replaces what stands between the markers of `script` in a page."""
    begin = f"<!-- measured by benchmarks/{Path(script).name}: begin -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    write(page, f"{before}{begin}\n\n{body}\n\n{END}{rest.split(END, 1)[1]}")


def write(page: Path, text: str) -> None:
    write_bytes(page, text.encode())
