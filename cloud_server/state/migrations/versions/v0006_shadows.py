"""What shadowed frames have shown, by device and bundle."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "shadow_records",
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("bundle_id", sa.Text(), nullable=False),
        sa.Column("last_s", sa.Double(), nullable=False),
        sa.Column("drifting_s", sa.Double(), nullable=True),
        sa.Column("record", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
            name="fk_shadow_records_device_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", "digest", name="pk_shadow_records"),
    )
