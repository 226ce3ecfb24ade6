"""Streams, their observation log, snapshots of their states, facts about the store: the first schema."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, LargeBinary, String

revision = "0001"
down_revision = None


def upgrade(op: Operations) -> None:
    """Create the four tables."""
    # SQLite gives an alias of its row id only to a plain INTEGER primary key.
    big = BigInteger().with_variant(Integer, "sqlite")
    op.create_table(
        "facts",
        Column("name", String(64), primary_key=True),
        Column("value", String(255), nullable=False),
    )
    op.create_table(
        "streams",
        Column("id", big, primary_key=True, autoincrement=True),
        Column("unique_id", String(255), nullable=False, unique=True),
        Column("first_step", BigInteger, nullable=False),
        Column("last_step", BigInteger, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("observations", BigInteger, nullable=False),
        Column("missing", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "observations",
        Column("stream_id", big, ForeignKey("streams.id"), primary_key=True),
        Column("step", BigInteger, primary_key=True),
        Column("y", Double, nullable=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "snapshots",
        Column("stream_id", big, ForeignKey("streams.id"), primary_key=True),
        Column("model_key", String(64), primary_key=True),
        Column("step", BigInteger, primary_key=True),
        Column("state", LargeBinary, nullable=False),
    )
