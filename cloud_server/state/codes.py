"""One-time codes for enrolment: each is valid for one hour and one use. Only hashes are stored."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from cloud_server.state import certificates, devices
from cloud_server.state.directory import Device
from cloud_server.state.store import Transaction
from cloud_server.state.tables import CodeRow, DeviceRow, TenantRow
from protos.errors import ConflictError, EnrolmentError
from protos.identity import OneTimeCode

VALID_S = 3600.0


def issue(tx: Transaction, tenant: str, device: str, secret_sha256: str) -> float:
    """Record a device's new one-time code; the device's earlier codes become invalid.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        device: the device, by name.
        secret_sha256: SHA-256 of the code's secret, in hexadecimal digits.

    Returns:
        When it expires, seconds since 1970.

    Raises:
        MissingError: there is no such tenant or device.
        ConflictError: the device is disabled.
    """
    row = devices.find(tx.session, tenant, device)
    if row.disabled:
        raise ConflictError(
            f"device '{device}' is disabled: first cloud-server devices enable {device}"
        )
    expires_s = tx.now_s + VALID_S
    tx.session.execute(delete(CodeRow).where(CodeRow.device_id == row.id))
    tx.session.execute(delete(CodeRow).where(CodeRow.expires_s < tx.now_s))
    tx.session.add(
        CodeRow(
            secret_sha256=secret_sha256,
            device_id=row.id,
            created_s=tx.now_s,
            expires_s=expires_s,
            used_s=None,
        )
    )
    tx.audit("code.issue", tenant, device, expires_s=expires_s)
    return expires_s


def fresh(tx: Transaction, device: Device, root_der: bytes) -> tuple[str, float]:
    """Make and note a device's new one-time code; see `issue`.

    Args:
        tx: the transaction.
        device: the device.
        root_der: the root certificate, whose fingerprint the code carries.

    Returns:
        Its text, which is kept nowhere, and when it ends, seconds since 1970.
    """
    code = OneTimeCode.fresh(root_der)
    return str(code), issue(tx, device.tenant, device.name, code.secret_sha256)


def redeem(tx: Transaction, secret_sha256: str) -> Device:
    """Redeem a code; earlier certificates of its device are revoked.

    Args:
        tx: the transaction; the certificate is recorded in the same one.
        secret_sha256: SHA-256 of the code's secret, in hexadecimal digits.

    Raises:
        EnrolmentError: it is wrong, used or expired, or its device or tenant is disabled; the
            message does not say which.
    """
    used = tx.session.execute(
        update(CodeRow)
        .where(
            CodeRow.secret_sha256 == secret_sha256,
            CodeRow.used_s.is_(None),
            CodeRow.expires_s > tx.now_s,
        )
        .values(used_s=tx.now_s)
        .returning(CodeRow.device_id)
    ).scalar_one_or_none()
    found = tx.session.execute(
        select(DeviceRow, TenantRow.name)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .where(
            DeviceRow.id == (used or ""),
            DeviceRow.disabled.is_(False),
            TenantRow.disabled.is_(False),
        )
    ).one_or_none()
    if found is None:
        raise EnrolmentError(
            "the one-time code is wrong, used or expired: ask the operator for another one"
        )
    row, tenant = found
    revoked = certificates.revoke_all(tx, row)
    tx.audit("code.redeem", tenant, row.name, certificates_revoked=revoked)
    return Device(row.id, tenant, row.name, row.created_s, row.disabled)
