"""The newest schema: streams, their log, snapshots of states, kept replies, names of covariates, facts about the store.

It is where `revisions` lead, and knows only column types that SQLite and PostgreSQL share. Invariant: a step between a
stream's first and last one without a row was never observed ("filled"); a row whose y is NULL was reported as missing.
Of a trimmed log, rows before `retained_step` are gone or about to go, and count for nothing.
After `rewound_version` a log has only grown; a copy of it begins without.
Static and other covariates are JSON objects, NULL where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

__all__ = ["Tables", "build_tables"]


@dataclass(frozen=True)
class Tables:
    """The tables of one `MetaData`."""

    metadata: MetaData
    facts: Table
    streams: Table
    observations: Table
    snapshots: Table
    replies: Table
    covariates: Table


def build_tables() -> Tables:
    """A fresh description of the schema."""
    metadata = MetaData()
    # SQLite gives an alias of its row id only to a plain INTEGER primary key.
    big = BigInteger().with_variant(Integer, "sqlite")
    facts = Table(
        "facts",
        metadata,
        Column("name", String(64), primary_key=True),
        Column("value", String(255), nullable=False),
    )
    streams = Table(
        "streams",
        metadata,
        Column("id", big, primary_key=True, autoincrement=True),
        Column("unique_id", String(255), nullable=False, unique=True),
        Column("first_step", BigInteger, nullable=False),
        Column("last_step", BigInteger, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("observations", BigInteger, nullable=False),
        Column("missing", BigInteger, nullable=False),
        Column("static", Text, nullable=True),
        Column("retained_step", BigInteger, nullable=True),
        Column("rewound_version", BigInteger, nullable=True),
        # Ids are never given out twice, or a snapshot of a deleted stream could meet its successor.
        sqlite_autoincrement=True,
    )
    observations = Table(
        "observations",
        metadata,
        Column("stream_id", big, ForeignKey("streams.id"), primary_key=True),
        Column("step", BigInteger, primary_key=True),
        Column("y", Double, nullable=True),
        Column("covariates", Text, nullable=True),
        sqlite_with_rowid=False,
    )
    snapshots = Table(
        "snapshots",
        metadata,
        Column("stream_id", big, ForeignKey("streams.id"), primary_key=True),
        Column("model_key", String(64), primary_key=True),
        Column("step", BigInteger, primary_key=True),
        Column("state", LargeBinary, nullable=False),
    )
    replies = Table(
        "replies",
        metadata,
        Column("unique_id", String(255), primary_key=True),
        Column("idempotency_key", String(255), primary_key=True),
        Column("digest", LargeBinary, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("stored_at", BigInteger, nullable=False),
        Index("replies_by_age", "stored_at"),
    )
    covariates = Table("covariates", metadata, Column("name", Text, primary_key=True))
    return Tables(metadata, facts, streams, observations, snapshots, replies, covariates)
