"""Devices: one function for each verb. A change needs a transaction and writes the audit log."""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.identity.caller import SERVICE_TENANT, checked_name
from cloud_server.state import certificates, tenants
from cloud_server.state.directory import Certificate, Device
from cloud_server.state.journal import KEEP_EXPIRED_S
from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceRow, TenantRow
from protos.errors import ConflictError, MissingError
from protos.identity import NAME


def add(tx: Transaction, tenant: str, name: str) -> Device:
    """Add a device; it enrols with a one-time code (`codes.issue`).

    Raises:
        ConfigError: the name breaks the rule for names.
        MissingError: there is no such tenant.
        ConflictError: the name is taken, or the tenant is the service's own.
    """
    checked_name(name, "device")
    if tenant == SERVICE_TENANT:
        raise ConflictError(f"tenant '{SERVICE_TENANT}' has operators only: name another tenant")
    of = tenants.find(tx.session, tenant)
    if _row(tx.session, of.id, name) is not None:
        raise ConflictError(
            f"tenant '{tenant}' has a device '{name}' already (for another code: cloud-server "
            f"devices code {name})"
        )
    row = DeviceRow(
        id=secrets.token_hex(16), tenant_id=of.id, name=name, created_s=tx.now_s, disabled=False
    )
    tx.session.add(row)
    tx.session.flush()  # before rows that refer to it
    tx.audit("device.add", tenant, name)
    return _device(row, tenant)


def every(session: Session, tenant: str | None = None) -> list[Device]:
    """Every device, of one tenant or of all, by tenant and name.

    Raises:
        MissingError: there is no such tenant.
    """
    query = (
        select(DeviceRow, TenantRow.name)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .order_by(TenantRow.name, DeviceRow.name)
    )
    if tenant is not None:
        query = query.where(TenantRow.id == tenants.find(session, tenant).id)
    return [_device(row, of) for row, of in session.execute(query).tuples()]


def find(session: Session, tenant: str, name: str) -> DeviceRow:
    """A device's row.

    Raises:
        MissingError: there is no such tenant or device.
    """
    of = tenants.find(session, tenant).id
    row = _row(session, of, name)
    if row is None:
        near = hint(name, session.scalars(select(DeviceRow.name).where(DeviceRow.tenant_id == of)))
        raise MissingError(
            f"tenant '{tenant}' has no device '{name[:80]}'{near} (cloud-server devices list)"
        )
    return row


def show(session: Session, tenant: str, name: str) -> Device:
    """A device.

    Raises:
        MissingError: there is no such tenant or device.
    """
    return _device(find(session, tenant, name), tenant)


def disable(tx: Transaction, tenant: str, name: str) -> Device:
    """Disable a device and revoke its certificates: its private key may be stolen.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = find(tx.session, tenant, name)
    row.disabled = True
    revoked = certificates.revoke_all(tx, row)
    tx.journal("shut", "device", row.id, name)
    tx.audit("device.disable", tenant, name, certificates_revoked=revoked)
    return _device(row, tenant)


def enable(tx: Transaction, tenant: str, name: str) -> Device:
    """Allow a device to enrol again; it needs a new one-time code.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = find(tx.session, tenant, name)
    row.disabled = False
    tx.journal("opened", "device", row.id, name)
    tx.audit("device.enable", tenant, name)
    return _device(row, tenant)


def revoke(tx: Transaction, tenant: str, name: str, serial: str | None = None) -> list[Certificate]:
    """Revoke a device's certificates, or one; it stays enabled and can enrol again.

    Expired ones are revoked too while they may still be renewed.

    Args:
        tx: the transaction.
        tenant: its tenant, by name.
        name: the device.
        serial: serial number of one certificate, or its first digits; None for all.

    Returns:
        Those revoked; empty if it has no valid one.

    Raises:
        MissingError: there is no such tenant, device or valid certificate.
        ConflictError: several certificates begin with these digits.
    """
    find(tx.session, tenant, name)
    found = [
        one
        for one in certificates.of(tx.session, tenant, name)
        if one.revoked_s is None and one.not_after_s > tx.now_s - KEEP_EXPIRED_S
    ]
    if serial is not None:
        found = [one for one in found if serial and one.serial.startswith(serial.lower())]
        if not found:
            raise MissingError(
                f"device '{name}' has no valid certificate {serial[:80]!r} (cloud-server devices "
                f"show {name})"
            )
        if len(found) > 1:
            raise ConflictError(
                f"{len(found)} certificates of device '{name}' begin with {serial[:80]!r}: give "
                "more digits"
            )
    return [certificates.revoke(tx, tenant, one.serial) for one in found]


def remove(tx: Transaction, tenant: str, name: str) -> None:
    """Remove a device for good; its certificates stay invalid if the name is used again.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = find(tx.session, tenant, name)
    revoked = certificates.revoke_all(tx, row)
    tx.journal("removed", "device", row.id, name)
    tx.session.delete(row)
    tx.audit("device.remove", tenant, name, id=row.id, certificates_revoked=revoked)


def _row(session: Session, tenant_id: str, name: str) -> DeviceRow | None:
    if not NAME.fullmatch(name):
        return None
    return session.scalar(
        select(DeviceRow).where(DeviceRow.tenant_id == tenant_id, DeviceRow.name == name)
    )


def _device(row: DeviceRow, tenant: str) -> Device:
    return Device(row.id, tenant, row.name, row.created_s, row.disabled)
