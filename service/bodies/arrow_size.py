"""How large an Arrow IPC stream becomes when its buffers are unpacked, read off before anything is.

The format lets every buffer be compressed by itself and begin with its true size (Arrow columnar format,
BodyCompression), so a few bytes can ask for any amount of memory. This reads only what it needs of the FlatBuffers in
between: a table begins with the distance to its vtable, which holds the place of each field. What it cannot follow is
refused.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from service.problems import Problem

__all__ = ["check_arrow_size", "unpacked_size"]

_DICTIONARY, _BATCH = 2, 3  # MessageHeader


def check_arrow_size(body: bytes, limit: int) -> None:
    """Refuse a stream that unpacks to more than the limit.

    Raises
    ------
    Problem
        413 if it does, 400 if it is no Arrow IPC stream.
    """
    try:
        size = unpacked_size(body)
    except (pa.ArrowException, OSError) as error:
        first = (str(error).splitlines() or ["empty"])[0]
        raise Problem(400, "malformed-arrow", f"the body is not an Arrow IPC stream: {first}") from error
    if size > limit:
        raise Problem(413, "too-large", f"the body unpacks to {size} bytes, more than {limit}; send it in parts")


def unpacked_size(body: bytes) -> int:
    """Bytes of all buffers that are compressed, once they are not.

    Raises
    ------
    pyarrow.ArrowException, OSError
        It is no Arrow IPC stream.
    """
    total = 0
    reader = pa.MessageReader.open_stream(pa.BufferReader(body))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return total
        if message.body is None:
            continue
        metadata, buffers = message.metadata.to_pybytes(), memoryview(message.body)
        try:
            total += sum(_sizes(metadata, buffers))
        except (struct.error, IndexError) as error:
            raise pa.ArrowInvalid("the layout of a message cannot be followed") from error


def _sizes(metadata: bytes, body: memoryview) -> list[int]:
    message = _indirect(metadata, 0)
    kind = _field(metadata, message, 1)
    header = _field(metadata, message, 2)
    if kind is None or header is None or metadata[kind] not in (_DICTIONARY, _BATCH):
        return []
    batch = _indirect(metadata, header)
    if metadata[kind] == _DICTIONARY:
        data = _field(metadata, batch, 1)
        if data is None:
            return []
        batch = _indirect(metadata, data)
    listed = _field(metadata, batch, 2)
    if listed is None or _field(metadata, batch, 3) is None:
        return []  # not compressed
    vector = _indirect(metadata, listed)
    (count,) = struct.unpack_from("<I", metadata, vector)
    sizes = []
    for number in range(count):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
        if length >= 8 and offset >= 0:
            (size,) = struct.unpack_from("<q", body, offset)
            sizes.append(max(size, 0))  # -1: this one is as it is
    return sizes


def _indirect(data: bytes, place: int) -> int:
    (distance,) = struct.unpack_from("<I", data, place)
    return place + int(distance)


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a table lies; None if it has its default."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if vtable < 0:
        raise struct.error("no vtable")
    (length,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number + 2 > length:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + offset if offset else None
