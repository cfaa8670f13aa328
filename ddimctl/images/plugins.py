"""Formats that not every Pillow reads: AVIF where it was built so, HEIC and JPEG XL by plugins (extras `heic`, `jxl`).

A plugin is imported when the first file comes that begins as its files do, and never else: each is more code for a
hostile file to reach. One that cannot be imported counts as not installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ddimctl.errors import FileError
from ddimctl.images.formats import FORMATS, READ_ONLY, SUFFIXES

HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"  # how a JPEG XL begins
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width : height, that its header knows by number


@dataclass(frozen=True)
class Plugin:
    """A format by Pillow's name, and whether a file that begins with `data` is one."""

    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]
    module: str | None  # None: Pillow's own
    extra: str = ""


def brands(data: bytes) -> set[bytes]:
    """What an ISO base media file (AVIF, HEIC, MP4) says that it is, in its first box; empty for other files."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    if data[4:8] != b"ftyp":
        return set()
    return {data[8:12], *(data[i : i + 4] for i in range(16, size, 4))}


def begins_avif(data: bytes) -> bool:
    return bool(brands(data) & {b"avif", b"avis"})


def begins_heic(data: bytes) -> bool:
    return bool(brands(data) & HEIC) or (bool(brands(data) & {b"mif1", b"msf1"}) and not begins_avif(data))


def begins_jxl(data: bytes) -> bool:
    return data.startswith((CODESTREAM, CONTAINER))


@functools.cache
def available(name: str) -> bool:
    """Whether that format can be read here. A plugin is looked for, not imported."""
    plugin = PLUGINS[name]
    if plugin.module is None:
        from PIL import features

        return bool(features.check(name.lower()))
    return importlib.util.find_spec(plugin.module) is not None


def readable() -> dict[str, str]:
    """Every suffix that an image which can be read here may have, and its format."""
    more = {s: name for name, plugin in PLUGINS.items() if available(name) for s in plugin.suffixes}
    return {**SUFFIXES, **READ_ONLY, **more}


def known() -> str:
    """The formats that can be read here, for messages."""
    return ", ".join((*FORMATS, *filter(available, PLUGINS)))


def left_out(found: Mapping[str, int]) -> str:
    """Says how many files of which suffixes were left out."""
    n = sum(found.values())
    return f"{'1 file' if n == 1 else f'{n} files'} left out ({' '.join(sorted(found))})"


def extras(suffixes: set[str]) -> str:
    """How to have files with such suffixes read, as a hint; empty if nothing here would."""
    wanted = {p.extra for name, p in PLUGINS.items() if p.extra and not available(name) and suffixes & {*p.suffixes}}
    return f"pip install 'ddimctl[{','.join(sorted(wanted))}]' adds what reads them" if wanted else ""


def formats_for(data: bytes, name: str, max_pixels: int) -> tuple[str, ...]:
    """What Pillow may open a file with that content as, once the plugin that it needs is there.

    Raises `FileError` where it is not, and for a JPEG XL of more pixels: its plugin unpacks all of it to open it.
    """
    if brands(data) and not (begins_avif(data) or begins_heic(data)):
        raise FileError(
            f"{name} is a film, not an image", hint=f"known formats: {known()}; encode --all-frames takes films"
        )
    for format_, plugin in PLUGINS.items():
        if plugin.begins(data):
            if not (available(format_) and _register(format_)):
                hint = f"; pip install 'ddimctl[{plugin.extra}]' adds {format_}" if plugin.extra else ""
                raise FileError(f"{name} is {format_}, which is not read here", hint=f"known formats: {known()}{hint}")
            if format_ == "JXL" and math.prod(jxl_size(data)) > max_pixels:
                raise FileError(f"{name} has too many pixels", hint="--max-pixels allows more")
            return (format_,)
    return FORMATS


@functools.cache
def _register(name: str) -> bool:
    """Imports a plugin and has Pillow know it. Whether that went well: a broken one may raise anything."""
    try:
        if (module := PLUGINS[name].module) is not None:
            found = importlib.import_module(module)
            if name == "HEIF":
                found.register_heif_opener(thumbnails=False)
    except Exception:
        return False
    return True


def jxl_size(data: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG XL announces (ISO/IEC 18181-1). Raises `ValueError` if it does not."""
    start = _jxl_start(data)
    if not start.startswith(CODESTREAM):
        raise ValueError("no JPEG XL codestream")
    bits = _Bits(int.from_bytes(start[2:], "little"))
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    return (RATIOS[ratio - 1][0] * height // RATIOS[ratio - 1][1] if ratio else side()), height


def _jxl_start(data: bytes, n: int = 16) -> bytes:
    """The first bytes of the codestream, which a container may hold in parts."""
    if not data.startswith(CONTAINER):
        return data[:n]
    start, at = b"", 0
    while len(start) < n and at + 8 <= len(data):
        size, kind, header = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + size if size else len(data)
        if kind in (b"jxlc", b"jxlp"):
            begin = at + header + (4 if kind == b"jxlp" else 0)
            start += data[begin : min(end, begin + n)]
        at = max(end, at + 8)
    return start[:n]


@dataclass
class _Bits:
    """Bits as JPEG XL packs them: the lowest first."""

    value: int

    def take(self, n: int) -> int:
        low = self.value & ((1 << n) - 1)
        self.value >>= n
        return low


PLUGINS = {
    "AVIF": Plugin((".avif", ".avifs"), begins_avif, None),
    "HEIF": Plugin((".heic", ".heif", ".hif"), begins_heic, "pillow_heif", "heic"),
    "JXL": Plugin((".jxl",), begins_jxl, "pillow_jxl", "jxl"),
}
