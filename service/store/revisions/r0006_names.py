"""Names of the covariates that any model at work on the store has known."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import Column, Text

revision = "0006"
down_revision = "0005"


def upgrade(op: Operations) -> None:
    """Add a table, empty until the next model begins to work."""
    op.create_table("covariates", Column("name", Text, primary_key=True))
