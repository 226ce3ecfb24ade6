"""Replies to requests with an `Idempotency-Key`."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, LargeBinary, String

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations) -> None:
    """Create their table, and an index by age."""
    op.create_table(
        "replies",
        Column("unique_id", String(255), primary_key=True),
        Column("idempotency_key", String(255), primary_key=True),
        Column("digest", LargeBinary, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("stored_at", BigInteger, nullable=False),
    )
    op.create_index("replies_by_age", "replies", ["stored_at"])
