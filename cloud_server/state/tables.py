"""Every table of the service's database.

Ids are random and never reused, not even after a restore, so a revocation cannot hit or miss by a
reused id. Times are seconds since 1970. A change here needs a migration (`migrations/versions`).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAME = String(63).with_variant(String(63, collation="C"), "postgresql")
"""Collation of names: every database sorts them by their bytes."""
_NUMBER = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of every table; constraints get predictable names, for migrations."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ChangeRow(Base):
    """One row. Its random token is replaced by each change that directories must see."""

    __tablename__ = "changes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(String(32))


class TenantRow(Base):
    """A tenant."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    created_s: Mapped[float] = mapped_column(Double)
    disabled: Mapped[bool]


class DeviceRow(Base):
    """A device of a tenant."""

    __tablename__ = "devices"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(NAME)
    created_s: Mapped[float] = mapped_column(Double)
    disabled: Mapped[bool]


class CertificateRow(Base):
    """A certificate issued to a device; the serial number is its identity."""

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), index=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    issued_s: Mapped[float] = mapped_column(Double)
    not_after_s: Mapped[float] = mapped_column(Double)
    revoked_s: Mapped[float | None] = mapped_column(Double)


class CodeRow(Base):
    """A one-time code; only the SHA-256 of its secret is stored."""

    __tablename__ = "codes"
    secret_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"), index=True)
    created_s: Mapped[float] = mapped_column(Double)
    expires_s: Mapped[float] = mapped_column(Double)
    used_s: Mapped[float | None] = mapped_column(Double)


class KeyRow(Base):
    """A bearer key of an application or an operator; only its SHA-256 is stored."""

    __tablename__ = "keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(NAME)
    kind: Mapped[str] = mapped_column(String(16))
    scopes: Mapped[str] = mapped_column(String(64))
    every_device: Mapped[bool]
    created_s: Mapped[float] = mapped_column(Double)
    not_after_s: Mapped[float | None] = mapped_column(Double)
    disabled: Mapped[bool]


class KeyDeviceRow(Base):
    """One of the devices that a key is limited to; a key for every device has no such row."""

    __tablename__ = "key_devices"
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"), primary_key=True)
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class QuotaRow(Base):
    """Bounds of a tenant, of each of its devices, or of one device; NULL leaves the default."""

    __tablename__ = "quotas"
    __table_args__ = (UniqueConstraint("tenant_id", "device_id", "of"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    device_id: Mapped[str | None] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), index=True
    )
    of: Mapped[str] = mapped_column(String(16))
    requests_per_s: Mapped[float | None] = mapped_column(Double)
    request_burst: Mapped[float | None] = mapped_column(Double)
    bytes_per_s: Mapped[float | None] = mapped_column(Double)
    byte_burst: Mapped[float | None] = mapped_column(Double)
    concurrent: Mapped[int | None] = mapped_column(_NUMBER)
    scenes: Mapped[int | None] = mapped_column(_NUMBER)
    weight: Mapped[float | None] = mapped_column(Double)


class AuditRow(Base):
    """A line of the audit log; names as they were then. `detail` is JSON."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_tenant_id", "tenant", "id"), {"sqlite_autoincrement": True})
    id: Mapped[int] = mapped_column(_NUMBER, primary_key=True)
    at_s: Mapped[float] = mapped_column(Double, index=True)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text, index=True)
    tenant: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)


class IdempotencyRow(Base):
    """The answer to a change that came with an idempotency key, sealed with its caller's key."""

    __tablename__ = "idempotency"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    answer: Mapped[bytes] = mapped_column(LargeBinary)
    made_s: Mapped[float] = mapped_column(Double, index=True)


class BundleVersion(Base):
    """A version of a bundle, and the state that the operator wants for it."""

    __tablename__ = "bundle_versions"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bundle_id: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(_NUMBER)
    source: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(Text)
    wanted: Mapped[str] = mapped_column(String(16))
    share: Mapped[float] = mapped_column(Double)
    unjudged: Mapped[bool]
    served: Mapped[bool] = mapped_column(server_default=true())
    order_no: Mapped[int] = mapped_column(_NUMBER)
    note: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[float] = mapped_column(Double)
    changed_by: Mapped[str] = mapped_column(Text)


class BundleReport(Base):
    """One front end's report on one version of a bundle; `figures` is JSON."""

    __tablename__ = "bundle_reports"
    front_end: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    sessions: Mapped[int] = mapped_column(_NUMBER)
    memory_bytes: Mapped[int] = mapped_column(_NUMBER)
    why: Mapped[str] = mapped_column(Text)
    figures: Mapped[str] = mapped_column(Text)
    reported_at: Mapped[float] = mapped_column(Double)


class UpdateRow(Base):
    """A signed update of devices' software; its file lies in the service's directory."""

    __tablename__ = "updates"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(_NUMBER)
    version: Mapped[str] = mapped_column(String(64))
    machine: Mapped[str] = mapped_column(String(64))
    python: Mapped[str] = mapped_column(String(64))
    jetpack: Mapped[str] = mapped_column(String(64))
    kinds: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(_NUMBER)
    signer: Mapped[str] = mapped_column(Text)
    added_s: Mapped[float] = mapped_column(Double)
    added_by: Mapped[str] = mapped_column(Text)
    retired: Mapped[bool]


class OfferRow(Base):
    """An update offered to a tenant's devices, stage by stage; `stages` is JSON."""

    __tablename__ = "update_offers"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(ForeignKey("updates.digest", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(String(16))
    stages: Mapped[str] = mapped_column(Text)
    stage: Mapped[int] = mapped_column(_NUMBER)
    stage_since_s: Mapped[float] = mapped_column(Double)
    excused: Mapped[int] = mapped_column(_NUMBER)
    older: Mapped[bool]
    note: Mapped[str] = mapped_column(Text)
    changed_s: Mapped[float] = mapped_column(Double)
    changed_by: Mapped[str] = mapped_column(Text)


class OfferDeviceRow(Base):
    """A device that an update was offered to, and how it went."""

    __tablename__ = "update_offer_devices"
    offer_id: Mapped[str] = mapped_column(
        ForeignKey("update_offers.id", ondelete="CASCADE"), primary_key=True
    )
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    stage: Mapped[int] = mapped_column(_NUMBER)
    state: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str] = mapped_column(Text)
    failures: Mapped[int] = mapped_column(_NUMBER)
    excused: Mapped[int] = mapped_column(_NUMBER)
    changed_s: Mapped[float] = mapped_column(Double)


class SoftwareRow(Base):
    """What a device said that it runs, and which updates it takes."""

    __tablename__ = "device_software"
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
    )
    machine: Mapped[str] = mapped_column(String(64))
    python: Mapped[str] = mapped_column(String(64))
    jetpack: Mapped[str] = mapped_column(String(64))
    number: Mapped[int] = mapped_column(_NUMBER)
    digest: Mapped[str] = mapped_column(String(64))
    takes: Mapped[bool]
    takes_older: Mapped[bool]
    seen_s: Mapped[float] = mapped_column(Double)


class OrderRow(Base):
    """An order for a device: `body` is the message that it is sent, `shown` the same for people."""

    __tablename__ = "orders"
    __table_args__ = (Index("ix_orders_device_id", "device_id", "ended_s"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    shown: Mapped[str] = mapped_column(Text)
    given_s: Mapped[float] = mapped_column(Double)
    given_by: Mapped[str] = mapped_column(Text)
    expires_s: Mapped[float] = mapped_column(Double)
    sent_s: Mapped[float | None] = mapped_column(Double)
    ended_s: Mapped[float | None] = mapped_column(Double)
    outcome: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str] = mapped_column(Text)


class OrderChangeRow(Base):
    """One row; a restore may remove it. Its token is replaced by each order that is given."""

    __tablename__ = "order_changes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str] = mapped_column(String(32))


class DeviceReportRow(Base):
    """A report of a device: a crash, or a piece of its log; `body` as it came."""

    __tablename__ = "device_reports"
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    order_id: Mapped[str] = mapped_column(String(32))
    received_s: Mapped[float] = mapped_column(Double)
    size: Mapped[int] = mapped_column(_NUMBER)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class DeviceSettingsRow(Base):
    """The settings that a device is to have from the service; `settings` is JSON."""

    __tablename__ = "device_settings"
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
    )
    revision: Mapped[int] = mapped_column(_NUMBER)
    settings: Mapped[str] = mapped_column(Text)
    changed_s: Mapped[float] = mapped_column(Double)
    changed_by: Mapped[str] = mapped_column(Text)


class DeviceStandingRow(Base):
    """What a device said of itself when it last began to take orders; `running` etc. are JSON."""

    __tablename__ = "device_standings"
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
    )
    attended_s: Mapped[float] = mapped_column(Double)
    left_s: Mapped[float | None] = mapped_column(Double)
    front_end: Mapped[str] = mapped_column(String(128))
    agent_version: Mapped[str] = mapped_column(Text)
    running: Mapped[str] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(_NUMBER)
    tried: Mapped[int] = mapped_column(_NUMBER)
    refused: Mapped[str] = mapped_column(Text)


class ShadowRow(Base):
    """What shadowed frames of a device with one bundle have shown; `record` is JSON."""

    __tablename__ = "shadow_records"
    device_id: Mapped[str] = mapped_column(
        ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bundle_id: Mapped[str] = mapped_column(Text)
    last_s: Mapped[float] = mapped_column(Double)
    drifting_s: Mapped[float | None] = mapped_column(Double)
    record: Mapped[str] = mapped_column(Text)
