"""Where the versions of new streams begin: above every version that a deleted one had.

A stream that is deleted and created again must not come by versions that clients were told of the one before, or what
they ask of it (`If-Match`) would hold by chance. One fact of the store tells, whatever the number of deleted streams.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, Table, cast, insert, select, update

__all__ = ["note_deleted", "version_before_new"]

_NAME = "deleted_version"


def note_deleted(connection: Connection, facts: Table, version: int) -> None:
    """Let new streams begin above this version."""
    own = facts.c.name == _NAME
    if connection.execute(select(facts.c.value).where(own)).scalar() is None:
        connection.execute(insert(facts).values(name=_NAME, value=str(version)))
    else:
        lower = cast(facts.c.value, BigInteger) < version
        connection.execute(update(facts).where(own, lower).values(value=str(version)))


def version_before_new(connection: Connection, facts: Table) -> int:
    """The highest version of deleted streams, 0 if there were none.

    Ask when the new stream's name is taken: until then another process may be deleting the one before it.
    """
    found = connection.execute(select(facts.c.value).where(facts.c.name == _NAME)).scalar()
    return int(found or 0)
