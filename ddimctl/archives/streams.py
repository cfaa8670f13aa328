"""What an Arrow stream unpacks to, by what it says itself: before anything of it is unpacked.

A stream's messages are a header, a FlatBuffers table whose fields are found through a table of their places, and a body.
Of one that is compressed each buffer begins with its size unpacked (Message.fbs of Arrow).
"""

from __future__ import annotations

import struct
from typing import Any

HEADER = 2  # fields of a message
BUFFERS, COMPRESSION = 2, 3  # of a batch of rows
DATA = 1  # of a batch of a dictionary's values: a batch of rows
PLAIN = -1  # the size of a buffer that is not packed after all


def unpacked(arrow: Any, path: str) -> int:
    """Bytes that the packed batches of a stream say they unpack to; 0 of one that is as it lies in its file."""
    total = 0
    with arrow.memory_map(path) as f:
        for message in arrow.ipc.MessageReader.open_stream(f):
            if message.type in ("record batch", "dictionary"):
                total += _batch(memoryview(message.metadata), message.body, dictionary=message.type == "dictionary")
    return total


def _batch(data: memoryview, body: Any, *, dictionary: bool) -> int:
    batch = _table(data, _field(data, _table(data, 0), HEADER))
    if dictionary:
        batch = _table(data, _field(data, batch, DATA))
    at = _field(data, batch, BUFFERS)
    if not at or not _field(data, batch, COMPRESSION):
        return 0
    whole, total = memoryview(body), 0
    vector = _table(data, at)
    (n,) = struct.unpack_from("<I", data, vector)
    for i in range(n):
        offset, length = struct.unpack_from("<qq", data, vector + 4 + 16 * i)
        if length:
            (size,) = struct.unpack_from("<q", whole[offset:], 0)
            total += length if size == PLAIN else size
            if size < PLAIN:
                raise ValueError(f"a buffer of {size} bytes")
    return total


def _table(data: memoryview, at: int) -> int:
    """Where the table, or the vector, is that is pointed to from `at`."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: memoryview, table: int, i: int) -> int:
    """Where a table's field i is; 0 where it has none."""
    places = table - int(struct.unpack_from("<i", data, table)[0])
    (size,) = struct.unpack_from("<H", data, places)
    at = 4 + 2 * i
    (offset,) = struct.unpack_from("<H", data, places + at) if at < size else (0,)
    return table + offset if offset else 0
