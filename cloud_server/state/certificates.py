"""Certificates of devices: issued and revoked."""

from __future__ import annotations

import re

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from cloud_server.state import tenants
from cloud_server.state.directory import Certificate
from cloud_server.state.journal import KEEP_EXPIRED_S
from cloud_server.state.store import Transaction
from cloud_server.state.tables import CertificateRow, DeviceRow, TenantRow
from protos.errors import EnrolmentError, MissingError

MOST = 8
"""Certificates that a device may have, valid or late; the next one revokes the oldest."""
_SERIAL = re.compile(r"[0-9a-z-]{1,40}")
_DAY_S = 86400.0
_KEEP_REVOKED_S = 30 * _DAY_S


def record(
    tx: Transaction, tenant: str, device: str, serial: str, fingerprint: str, not_after_s: float
) -> None:
    """Record a certificate before it is sent to the device.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        device: the device, by name.
        serial: 32 hexadecimal digits, lower case.
        fingerprint: SHA-256 of its DER, in hexadecimal digits.
        not_after_s: when it expires, seconds since 1970.

    Raises:
        EnrolmentError: device or tenant is gone or disabled.
    """
    row = tx.session.scalar(
        select(DeviceRow)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .where(
            TenantRow.name == tenant,
            DeviceRow.name == device,
            TenantRow.disabled.is_(False),
            DeviceRow.disabled.is_(False),
        )
    )
    if row is None:
        raise EnrolmentError("this device gets no certificate: ask the operator")
    tx.session.execute(
        delete(CertificateRow).where(
            CertificateRow.device_id == row.id,
            or_(
                CertificateRow.not_after_s < tx.now_s - KEEP_EXPIRED_S,
                CertificateRow.revoked_s.is_not(None)
                & (CertificateRow.not_after_s < tx.now_s - _KEEP_REVOKED_S),
            ),
        )
    )
    for old in _usable(tx.session, row, tx.now_s)[MOST - 1 :]:
        _revoke(tx, old, device)
    tx.session.add(
        CertificateRow(
            serial=serial,
            device_id=row.id,
            fingerprint=fingerprint,
            issued_s=tx.now_s,
            not_after_s=not_after_s,
            revoked_s=None,
        )
    )
    tx.audit("certificate.issue", tenant, device, serial=serial, not_after_s=not_after_s)


def of(session: Session, tenant: str, device: str) -> list[Certificate]:
    """A device's certificates, the newest first.

    Raises:
        MissingError: there is no such tenant.
    """
    rows = session.scalars(
        select(CertificateRow)
        .join(DeviceRow, DeviceRow.id == CertificateRow.device_id)
        .where(
            DeviceRow.tenant_id == tenants.find(session, tenant).id,
            DeviceRow.name == device,
        )
        .order_by(CertificateRow.issued_s.desc(), CertificateRow.serial)
    )
    return [_certificate(row, tenant, device) for row in rows]


def newest(session: Session) -> dict[str, Certificate]:
    """Each device's newest certificate, by the device's id."""
    found: dict[str, Certificate] = {}
    for row, device, tenant in session.execute(
        select(CertificateRow, DeviceRow.name, TenantRow.name)
        .join(DeviceRow, DeviceRow.id == CertificateRow.device_id)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .order_by(CertificateRow.issued_s)
    ).tuples():
        found[row.device_id] = _certificate(row, tenant, device)
    return found


def revoke(tx: Transaction, tenant: str, serial: str) -> Certificate:
    """Revoke one certificate of a tenant's device; the device stays enabled.

    Raises:
        MissingError: there is no such tenant or certificate.
    """
    if not _SERIAL.fullmatch(serial):
        raise MissingError(f"{serial[:80]!r} is no serial number of a certificate")
    found = tx.session.execute(
        select(CertificateRow, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == CertificateRow.device_id)
        .where(
            CertificateRow.serial == serial,
            DeviceRow.tenant_id == tenants.find(tx.session, tenant).id,
        )
    ).one_or_none()
    if found is None:
        raise MissingError(f"tenant '{tenant}' has no certificate {serial[:80]}")
    row, device = found
    _revoke(tx, row, device)
    tx.audit("certificate.revoke", tenant, device, serial=serial)
    return _certificate(row, tenant, device)


def revoke_all(tx: Transaction, device: DeviceRow) -> int:
    """Revoke a device's valid certificates; returns how many."""
    rows = _usable(tx.session, device, tx.now_s)
    for row in rows:
        _revoke(tx, row, device.name)
    return len(rows)


def _certificate(row: CertificateRow, tenant: str, device: str) -> Certificate:
    return Certificate(
        row.serial,
        tenant,
        device,
        row.fingerprint,
        row.issued_s,
        row.not_after_s,
        row.revoked_s,
    )


def _usable(session: Session, device: DeviceRow, now_s: float) -> list[CertificateRow]:
    """Those not revoked: valid ones, and expired ones that may still be renewed."""
    return list(
        session.scalars(
            select(CertificateRow)
            .where(
                CertificateRow.device_id == device.id,
                CertificateRow.revoked_s.is_(None),
                CertificateRow.not_after_s > now_s - KEEP_EXPIRED_S,
            )
            .order_by(CertificateRow.issued_s.desc(), CertificateRow.serial)
        )
    )


def _revoke(tx: Transaction, row: CertificateRow, device: str) -> None:
    row.revoked_s = tx.now_s
    tx.journal("shut", "certificate", row.serial, device)
