"""Answers to changes over HTTP that came with an `Idempotency-Key`."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "idempotency",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("made_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_made_s", "idempotency", ["made_s"], unique=False)
