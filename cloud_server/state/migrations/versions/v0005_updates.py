"""Updates of devices' software: the files, to whom they are offered, and how it goes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "updates",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("machine", sa.String(64), nullable=False),
        sa.Column("python", sa.String(64), nullable=False),
        sa.Column("jetpack", sa.String(64), nullable=False),
        sa.Column("kinds", sa.String(64), nullable=False),
        sa.Column("size_bytes", NUMBER, nullable=False),
        sa.Column("signer", sa.Text(), nullable=False),
        sa.Column("added_s", sa.Double(), nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_updates"),
    )
    op.create_table(
        "update_offers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stages", sa.Text(), nullable=False),
        sa.Column("stage", NUMBER, nullable=False),
        sa.Column("stage_since_s", sa.Double(), nullable=False),
        sa.Column("excused", NUMBER, nullable=False),
        sa.Column("older", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_update_offers_tenant_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["digest"], ["updates.digest"], name="fk_update_offers_digest", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_update_offers"),
        sa.UniqueConstraint("tenant_id", "digest", name="uq_update_offers_tenant_id"),
    )
    op.create_table(
        "update_offer_devices",
        sa.Column("offer_id", sa.String(32), nullable=False),
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("stage", NUMBER, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("failures", NUMBER, nullable=False),
        sa.Column("excused", NUMBER, nullable=False),
        sa.Column("changed_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["offer_id"],
            ["update_offers.id"],
            name="fk_update_offer_devices_offer_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.id"],
            name="fk_update_offer_devices_device_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("offer_id", "device_id", name="pk_update_offer_devices"),
    )
    op.create_index(
        "ix_update_offer_devices_device_id", "update_offer_devices", ["device_id"], unique=False
    )
    op.create_table(
        "device_software",
        sa.Column("device_id", sa.String(32), nullable=False),
        sa.Column("machine", sa.String(64), nullable=False),
        sa.Column("python", sa.String(64), nullable=False),
        sa.Column("jetpack", sa.String(64), nullable=False),
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("takes", sa.Boolean(), nullable=False),
        sa.Column("takes_older", sa.Boolean(), nullable=False),
        sa.Column("seen_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name="fk_device_software_device_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("device_id", name="pk_device_software"),
    )
