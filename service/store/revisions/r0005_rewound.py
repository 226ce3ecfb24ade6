"""The version at which a stream's log last changed before its end."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column

revision = "0005"
down_revision = "0004"


def upgrade(op: Operations) -> None:
    """Add a column, NULL for a log that has only grown."""
    op.add_column("streams", Column("rewound_version", BigInteger, nullable=True))
