"""How a picture was made, in the picture itself: one JSON object, where its format keeps remarks.

PNG and APNG have a text chunk for it, GIF, JPEG and MP4 a comment, WebP and TIFF the image description of EXIF; BMP and
PPM keep none. A picture may come from anybody: what is read back was bounded in size before it was parsed, is a JSON
object that a program called ddimctl wrote or says so, and is to be shown as any other text of a stranger.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ddimctl.errors import FileError
from ddimctl.files import read_bytes
from ddimctl.images import plugins
from ddimctl.images.reading import MAX_BYTES, decoding

KEY = "ddimctl"  # the object's first field, the version that wrote it; and what PNG calls the text
DESCRIPTION = 0x010E  # the EXIF tag
MAX_TEXT = 60_000  # bytes: a JPEG's comment ends at 65,533
MP4_COMMENT = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data")  # boxes in boxes


def text(made: Mapping[str, Any]) -> str:
    """The object as one line of ASCII; empty where it is too long for any picture, or there is none."""
    try:
        line = json.dumps(made, separators=(",", ":"), allow_nan=False) if made else ""
    except ValueError:  # NaN, which is no JSON
        return ""
    return line if len(line) <= MAX_TEXT else ""


def options(format_: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """What Pillow's `save` takes to write it into a file of that format."""
    line = text(made)
    if not line:
        return {}
    if format_ == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, line)
        return {"pnginfo": info}
    if format_ in ("JPEG", "GIF"):
        return {"comment": line.encode()}
    if format_ == "WEBP":
        exif = Image.Exif()
        exif[DESCRIPTION] = line
        return {"exif": exif.tobytes()}
    return {"description": line} if format_ == "TIFF" else {}


def find(path: Path) -> dict[str, Any] | None:
    """What a picture or film says about how ddimctl made it; None if it says nothing. No pixel is decoded.

    Raises `UsageError` if there is no such file, `FileError` if it is none that is known.
    """
    return find_in(read_bytes(path, MAX_BYTES), str(path))


def find_in(data: bytes, name: str) -> dict[str, Any] | None:
    """As `find`, in a picture's content; `name` is for messages."""
    if plugins.brands(data) and not (plugins.begins_avif(data) or plugins.begins_heic(data)):
        return parse(_mp4_comment(data))
    with (
        decoding(name),
        Image.open(io.BytesIO(data), formats=plugins.formats_for(data, name, 1 << 62)) as image,
    ):
        found = image.info.get(KEY) or image.info.get("comment")
        if not found and image.format in ("WEBP", "TIFF"):
            found = image.getexif().get(DESCRIPTION)
        return parse(found)


def parse(found: object) -> dict[str, Any] | None:
    """The object in a text or bytes of any origin; None if there is none."""
    if isinstance(found, bytes):
        found = found.decode("ascii", "replace")
    if not isinstance(found, str) or len(found) > MAX_TEXT:
        return None
    try:
        made = json.loads(found.rstrip("\0"))
    except (ValueError, RecursionError):
        return None
    return made if isinstance(made, dict) and isinstance(made.get(KEY), str) else None


def _mp4_comment(data: bytes) -> bytes:
    """The comment that an MP4 keeps as iTunes does; empty if there is none."""
    start, end = 0, len(data)
    for wanted in MP4_COMMENT:
        for kind, begin, stop in _boxes(data, start, end):
            if kind == wanted:
                start, end = begin, stop
                break
        else:
            return b""
        start += {b"meta": 4, b"data": 8}.get(wanted, 0)  # version and flags; type and language
    return data[start : min(end, start + MAX_TEXT + 1)]


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of what is in each box between two places in a file."""
    while start + 8 <= end:
        size, kind, header = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = start + size if size else end
        if stop < start + header or stop > end:
            raise FileError("the film is damaged: a box leads out of it")
        yield kind, start + header, stop
        start = stop
