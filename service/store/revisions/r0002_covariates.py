"""Static covariates of streams, and covariates of what the log holds."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import Column, Text

revision = "0002"
down_revision = "0001"


def upgrade(op: Operations) -> None:
    """Add a column each."""
    op.add_column("streams", Column("static", Text, nullable=True))
    op.add_column("observations", Column("covariates", Text, nullable=True))
