"""Orders for devices, their reports, and the settings that they are to have."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _of_device(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["device_id"], ["devices.id"], name=f"fk_{table}_device_id", ondelete="CASCADE"
    )


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "orders",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("given_s", sa.Double(), nullable=False),
        sa.Column("given_by", sa.Text(), nullable=False),
        sa.Column("expires_s", sa.Double(), nullable=False),
        sa.Column("sent_s", sa.Double(), nullable=True),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        _of_device("orders"),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
    )
    op.create_index("ix_orders_device_id", "orders", ["device_id", "ended_s"], unique=False)
    op.create_table(
        "order_changes",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_order_changes"),
    )
    op.execute("INSERT INTO order_changes (id, token) VALUES (1, '')")
    op.create_table(
        "device_reports",
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("order_id", sa.String(32), nullable=False),
        sa.Column("received_s", sa.Double(), nullable=False),
        sa.Column("size", NUMBER, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        _of_device("device_reports"),
        sa.PrimaryKeyConstraint("device_id", "digest", name="pk_device_reports"),
    )
    op.create_table(
        "device_settings",
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        _of_device("device_settings"),
        sa.PrimaryKeyConstraint("device_id", name="pk_device_settings"),
    )
    op.create_table(
        "device_standings",
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("attended_s", sa.Double(), nullable=False),
        sa.Column("left_s", sa.Double(), nullable=True),
        sa.Column("front_end", sa.String(128), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("running", sa.Text(), nullable=False),
        sa.Column("revision", NUMBER, nullable=False),
        sa.Column("tried", NUMBER, nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        _of_device("device_standings"),
        sa.PrimaryKeyConstraint("device_id", name="pk_device_standings"),
    )
