"""A page that holds everything a run came to: one file, which opens from disk and without a network.

Its style and script stand inside, and a policy inside allows those two and pictures in data, and nothing else: whatever a
file is called, no other script runs, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ddimctl import origin
from ddimctl.errors import UsageError
from ddimctl.files import write_bytes
from ddimctl.report.html import LEAST_WIDE, Section, safe
from ddimctl.version import __version__

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class Page:
    """What a page says; `made` is of `origin.of`, `record` is what --json gives."""

    title: str
    summary: str
    sections: Sequence[Section]
    made: Mapping[str, Any]
    command: str
    record: Mapping[str, Any] | Sequence[Any]
    side: int = LEAST_WIDE  # pixels: how wide its pictures are


def check_target(path: Path) -> None:
    """Raises `UsageError` unless `path` is a name for a page."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} has no suffix of a page", hint=f"use {' or '.join(SUFFIXES)}")


def write(path: Path, page: Page) -> None:
    """Writes the page, whole or not at all."""
    write_bytes(path, render(page).encode())


def render(page: Page) -> str:
    """The page as HTML."""
    style = _part("page.css") + f":root {{ --side: {max(1, page.side)}px; --zoom: {scale_for(page.side)} }}"
    script = _part("page.js")
    sections = [f"<section><h2>{safe(s.title)}</h2>{s.html()}</section>" for s in page.sections]
    lines = [(k, f"ddimctl {v}" if k == "made by" else v) for k, v in origin.lines(page.made)]
    made = [f"<dt>{safe(key)}</dt><dd>{safe(value)}</dd>" for key, value in lines]
    return Template(_part("page.html")).substitute(
        title=safe(page.title),
        summary=safe(page.summary),
        sections="\n".join(sections),
        made="\n".join(made),
        command=safe(page.command),
        record=in_script(page.record),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        version=__version__,
    )


def scale_for(side: int) -> int:
    """How many times pictures that wide are enlarged at first: to about 84 pixels."""
    return min(10, max(1, 84 // max(1, side)))


def in_script(record: Mapping[str, Any] | Sequence[Any]) -> str:
    """A record as JSON that ends no script, whatever its texts are; null for what is not finite."""
    line = json.dumps(json.loads(json.dumps(record), parse_constant=lambda _: None))
    return line.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
