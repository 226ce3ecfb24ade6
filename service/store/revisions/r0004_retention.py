"""Where a stream's retained log begins, once it has been trimmed."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column

revision = "0004"
down_revision = "0003"


def upgrade(op: Operations) -> None:
    """Add a column, NULL for a log that is whole."""
    op.add_column("streams", Column("retained_step", BigInteger, nullable=True))
