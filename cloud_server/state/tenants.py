"""Tenants: one function for each verb. A change needs a transaction and writes the audit log."""

from __future__ import annotations

import secrets

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud_server.identity.caller import SERVICE_TENANT, checked_name
from cloud_server.state.directory import Tenant
from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceRow, KeyRow, TenantRow
from protos.errors import ConflictError, MissingError
from protos.identity import NAME


def add(tx: Transaction, name: str) -> Tenant:
    """Add a tenant.

    Raises:
        ConfigError: the name breaks the rule for names.
        ConflictError: the name is taken.
    """
    checked_name(name, "tenant")
    if _row(tx.session, name) is not None:
        raise ConflictError(f"there is a tenant '{name}' already")
    row = TenantRow(id=secrets.token_hex(16), name=name, created_s=tx.now_s, disabled=False)
    tx.session.add(row)
    tx.audit("tenant.add", name, name)
    return _tenant(row)


def every(session: Session) -> list[Tenant]:
    """Every tenant, by name."""
    return [_tenant(row) for row in session.scalars(select(TenantRow).order_by(TenantRow.name))]


def find(session: Session, name: str) -> TenantRow:
    """A tenant's row.

    Raises:
        MissingError: there is no such tenant.
    """
    row = _row(session, name)
    if row is None:
        near = hint(name, session.scalars(select(TenantRow.name)))
        raise MissingError(f"there is no tenant '{name[:80]}'{near} (cloud-server tenants list)")
    return row


def show(session: Session, name: str) -> Tenant:
    """A tenant.

    Raises:
        MissingError: there is no such tenant.
    """
    return _tenant(find(session, name))


def counts(session: Session, name: str) -> dict[str, int]:
    """How many devices and keys a tenant has.

    Raises:
        MissingError: there is no such tenant.
    """
    id = find(session, name).id
    devices = select(func.count()).select_from(DeviceRow).where(DeviceRow.tenant_id == id)
    keys = select(func.count()).select_from(KeyRow).where(KeyRow.tenant_id == id)
    return {"devices": session.scalar(devices) or 0, "keys": session.scalar(keys) or 0}


def disable(tx: Transaction, name: str) -> Tenant:
    """Disable a tenant: its devices and keys are refused until it is enabled again.

    Raises:
        MissingError: there is no such tenant.
        ConflictError: it is the service's own.
    """
    row = _not_the_service(find(tx.session, name), "disabled")
    row.disabled = True
    tx.journal("shut", "tenant", row.id, name)
    tx.audit("tenant.disable", name, name)
    return _tenant(row)


def enable(tx: Transaction, name: str) -> Tenant:
    """Enable a tenant; devices and keys that were disabled one by one stay disabled.

    Raises:
        MissingError: there is no such tenant.
    """
    row = find(tx.session, name)
    row.disabled = False
    tx.journal("opened", "tenant", row.id, name)
    tx.audit("tenant.enable", name, name)
    return _tenant(row)


def remove(tx: Transaction, name: str, *, everything: bool = False) -> None:
    """Remove a tenant for good.

    Args:
        tx: the transaction.
        name: the tenant's.
        everything: remove its devices and keys too.

    Raises:
        MissingError: there is no such tenant.
        ConflictError: it is the service's own, or still has devices or keys.
    """
    row = _not_the_service(find(tx.session, name), "removed")
    held = counts(tx.session, name)
    if any(held.values()) and not everything:
        raise ConflictError(
            f"tenant '{name}' has {held['devices']} devices and {held['keys']} keys: remove them "
            "first, or give --force"
        )
    tx.journal("removed", "tenant", row.id, name)
    tx.session.delete(row)
    tx.audit("tenant.remove", name, name, id=row.id, **held)


def _row(session: Session, name: str) -> TenantRow | None:
    if not NAME.fullmatch(name):  # a stranger's text; a database may refuse it
        return None
    return session.scalar(select(TenantRow).where(TenantRow.name == name))


def _not_the_service(row: TenantRow, what: str) -> TenantRow:
    if row.name == SERVICE_TENANT:
        raise ConflictError(
            f"tenant '{SERVICE_TENANT}' is the service's own operators' and cannot be {what}"
        )
    return row


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(row.id, row.name, row.created_s, row.disabled)
