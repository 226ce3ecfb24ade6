"""Replies kept for requests that may come again: who sent an `Idempotency-Key` gets what was answered the first time.

It knows SQL and no HTTP: a reply is bytes, a request its digest. Invariant: a reply is written in the transaction of
what it acknowledges, so there is one exactly where that is durable; after a while it is as if it had never been.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Table, and_, delete, or_, select, text, tuple_

from service.errors import StaleStreams

__all__ = ["IdempotencyKey", "StoredReply", "forget_replies", "read_replies", "write_replies"]

_CHUNK = 400  # pairs of one query


class IdempotencyKey(NamedTuple):
    """What a client names a request by.

    Attributes
    ----------
    text
        Its choice.
    digest
        Of the request: what comes under the same text must be the same.
    """

    text: str
    digest: bytes


class StoredReply(NamedTuple):
    """A reply as it was given.

    Attributes
    ----------
    unique_id, key
        Which stream, and what the request is named by.
    version
        The stream's, afterwards.
    body
        As the client got it.
    stored_at
        Seconds since 1970, of the clock of the process that wrote it.
    """

    unique_id: str
    key: IdempotencyKey
    version: int
    body: bytes
    stored_at: int


def read_replies(
    connection: Connection, table: Table, wanted: Sequence[tuple[str, str]], since: int
) -> dict[tuple[str, str], StoredReply]:
    """Replies by (unique_id, key text), of those that were stored not before `since`."""
    found: dict[tuple[str, str], StoredReply] = {}
    c = table.c
    for start in range(0, len(wanted), _CHUNK):
        pairs = [and_(c.unique_id == name, c.idempotency_key == key) for name, key in wanted[start : start + _CHUNK]]
        query = select(c.unique_id, c.idempotency_key, c.digest, c.version, c.body, c.stored_at)
        for name, key, digest, version, body, stored_at in connection.execute(
            query.where(or_(*pairs), c.stored_at >= since)
        ):
            found[name, key] = StoredReply(name, IdempotencyKey(key, digest), version, body, stored_at)
    return found


_WRITE = text(
    "INSERT INTO replies (unique_id, idempotency_key, digest, version, body, stored_at) "
    "VALUES (:unique_id, :key, :digest, :version, :body, :stored_at) "
    "ON CONFLICT (unique_id, idempotency_key) DO UPDATE SET digest = excluded.digest, version = excluded.version, "
    "body = excluded.body, stored_at = excluded.stored_at WHERE replies.stored_at < :since"
)


def write_replies(connection: Connection, replies: Sequence[StoredReply], since: int) -> None:
    """Store replies, over those from before `since`.

    Raises
    ------
    StaleStreams
        Another process has answered the same request meanwhile.
    """
    for reply in replies:
        values = {
            "unique_id": reply.unique_id,
            "key": reply.key.text,
            "digest": reply.key.digest,
            "version": reply.version,
            "body": reply.body,
            "stored_at": reply.stored_at,
            "since": since,
        }
        if connection.execute(_WRITE, values).rowcount != 1:
            raise StaleStreams([reply.unique_id])


def forget_replies(connection: Connection, table: Table, before: int, limit: int) -> int:
    """Forget up to `limit` of what was stored before a time, the oldest first; returns how many."""
    c = table.c
    oldest = select(c.unique_id, c.idempotency_key).where(c.stored_at < before).order_by(c.stored_at).limit(limit)
    return connection.execute(delete(table).where(tuple_(c.unique_id, c.idempotency_key).in_(oldest))).rowcount
