"""Content coding: request bodies unpacked within their limit, large replies packed for those who accept that.

It knows gzip and zstd, and nothing of what is inside. Invariant: unpacking stops as soon as the limit is passed or
there is no more room, so a small body that unpacks to a huge one costs no more memory than an honest one.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

import pyarrow as pa
from fastapi import Response

from service.errors import first_line
from service.negotiation import preferred
from service.problems import Problem

__all__ = ["pack", "unpack"]

_CODINGS = ("gzip", "zstd")
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 5
_PIECE = 2**20  # bytes that are unpacked at a time
_AT_ONCE = 65_536  # bytes whose packing takes about a millisecond; more must not hold up others


async def unpack(body: bytes, coding: str, limit: int, hold: Callable[[int], None]) -> bytes:
    """What a body of this ``Content-Encoding`` says.

    Parameters
    ----------
    body, coding
        What was sent.
    limit
        Bytes it may unpack to.
    hold
        Is told how many bytes more are held, in another thread, and raises if there is no room for them.

    Raises
    ------
    Problem
        415 for another coding, 400 if it is damaged, 413 as soon as it grows beyond `limit`, and what `hold` raises.
    """
    coding = coding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return body
    if coding not in _CODINGS:
        detail = f"the body has Content-Encoding {coding}; expected {' or '.join(_CODINGS)}"
        raise Problem(415, "unsupported-coding", detail, headers={"accept-encoding": ", ".join(_CODINGS)})
    return await asyncio.to_thread(_unpack, body, coding, limit, hold)


def _unpack(body: bytes, coding: str, limit: int, hold: Callable[[int], None]) -> bytes:
    pieces: list[bytes] = []
    left = limit + 1
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), coding) as stream:
            while left > 0 and (piece := stream.read(min(left, _PIECE))):
                hold(len(piece))
                pieces.append(piece)
                left -= len(piece)
    except (OSError, pa.ArrowException) as error:
        raise Problem(400, "malformed-coding", f"the body is not {coding}: {first_line(error)}") from error
    if left <= 0:
        raise Problem(413, "too-large", f"the body unpacks to more than {limit} bytes; send it in parts")
    return b"".join(pieces)


async def pack(response: Response, accepted: str | None) -> None:
    """Pack a reply in place if ``Accept-Encoding`` says so."""
    headers = response.headers
    headers.add_vary_header("Accept-Encoding")
    if not accepted or preferred(accepted, ("gzip",)) is None or "content-encoding" in headers:
        return
    body = bytes(response.body)
    response.body = _pack(body) if len(body) <= _AT_ONCE else await asyncio.to_thread(_pack, body)
    headers["content-encoding"] = "gzip"
    headers["content-length"] = str(len(response.body))


def _pack(body: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()
