"""Whether a version of a bundle ever served: a start of the service prefers one that did."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; versions that are there already count as served."""
    op.add_column(
        "bundle_versions",
        sa.Column("served", sa.Boolean(), nullable=False, server_default=sa.true()),
    )
