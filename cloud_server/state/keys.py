"""Bearer keys of applications and operators: one function for each verb. Only hashes are stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.identity.caller import SCOPES, SERVICE_TENANT, checked_name
from cloud_server.state import devices as devices_of
from cloud_server.state import tenants
from cloud_server.state.directory import Key, keys_of
from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceRow, KeyDeviceRow, KeyRow, TenantRow
from protos.errors import ConfigError, ConflictError, MissingError
from protos.identity import NAME

PREFIX = "nbk_"
"""Prefix of every key, so that scanners for leaked secrets find it."""
_SECRET_BYTES = 32


def add(
    tx: Transaction,
    tenant: str,
    name: str,
    *,
    kind: Literal["application", "operator"] = "application",
    scopes: Collection[str] = ("ask", "read"),
    devices: Collection[str] | None = None,
    not_after_s: float | None = None,
) -> tuple[Key, str]:
    """Make a key.

    Args:
        tx: the transaction.
        tenant: its tenant, by name.
        name: its name within the tenant.
        kind: `application` for a program, `operator` for a person who manages the tenant.
        scopes: a subset of `SCOPES`.
        devices: names of the devices that it is limited to; None for all, also later ones.
        not_after_s: when it expires, seconds since 1970; None if never.

    Returns:
        The key, and its text, which is shown only this once.

    Raises:
        ConfigError: the name breaks the rule for names, a scope is unknown, or the key would
        never be valid.
        MissingError: there is no such tenant or device.
        ConflictError: the name is taken.
    """
    checked_name(name, "key")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ConfigError(f"scopes {', '.join(unknown) or 'missing'}: of {', '.join(SCOPES)}")
    if devices is not None and not devices:
        raise ConfigError("the list of devices is empty: name some, or leave it out for all")
    if tenant == SERVICE_TENANT and kind != "operator":
        raise ConfigError(f"keys of tenant '{SERVICE_TENANT}' are for operators")
    if not_after_s is not None and not_after_s <= tx.now_s:
        raise ConfigError("the key would have expired already")
    of = tenants.find(tx.session, tenant)
    if _row(tx.session, of.id, name) is not None:
        raise ConflictError(f"tenant '{tenant}' has a key '{name}' already")
    token = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = KeyRow(
        id=secrets.token_hex(8),
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        tenant_id=of.id,
        name=name,
        kind=kind,
        scopes=" ".join(scope for scope in SCOPES if scope in scopes),
        every_device=devices is None,
        created_s=tx.now_s,
        not_after_s=not_after_s,
        disabled=False,
    )
    tx.session.add(row)
    tx.session.flush()  # before rows that refer to it
    for device in sorted(set(devices or ())):
        found = devices_of.find(tx.session, tenant, device)
        tx.session.add(KeyDeviceRow(key_id=row.id, device_id=found.id))
    tx.audit(
        "key.add",
        tenant,
        name,
        kind=kind,
        scopes=row.scopes,
        devices=None if devices is None else sorted(set(devices)),
        not_after_s=not_after_s,
    )
    tx.session.flush()
    return show(tx.session, tenant, name), token


def every(session: Session, tenant: str | None = None) -> list[Key]:
    """Every key, of one tenant or of all, by tenant and name.

    Raises:
        MissingError: there is no such tenant.
    """
    if tenant is None:
        named = dict(session.execute(select(TenantRow.id, TenantRow.name)).tuples().all())
    else:
        named = {tenants.find(session, tenant).id: tenant}
    owned = dict(session.execute(select(DeviceRow.id, DeviceRow.name)).tuples().all())
    return sorted(
        (key for _, key in keys_of(session, named, owned)), key=lambda key: (key.tenant, key.name)
    )


def show(session: Session, tenant: str, name: str) -> Key:
    """A key.

    Raises:
        MissingError: there is no such tenant or key.
    """
    row = _find(session, tenant, name)
    return next(key for key in every(session, tenant) if key.id == row.id)


def disable(tx: Transaction, tenant: str, name: str) -> Key:
    """Disable a key.

    Raises:
        MissingError: there is no such tenant or key.
    """
    row = _find(tx.session, tenant, name)
    row.disabled = True
    tx.journal("shut", "key", row.id, name)
    tx.audit("key.disable", tenant, name, id=row.id)
    return show(tx.session, tenant, name)


def enable(tx: Transaction, tenant: str, name: str) -> Key:
    """Enable a key again.

    Raises:
        MissingError: there is no such tenant or key.
    """
    row = _find(tx.session, tenant, name)
    row.disabled = False
    tx.journal("opened", "key", row.id, name)
    tx.audit("key.enable", tenant, name, id=row.id)
    return show(tx.session, tenant, name)


def remove(tx: Transaction, tenant: str, name: str) -> None:
    """Remove a key for good.

    Raises:
        MissingError: there is no such tenant or key.
    """
    row = _find(tx.session, tenant, name)
    tx.journal("removed", "key", row.id, name)
    tx.session.delete(row)
    tx.audit("key.remove", tenant, name, id=row.id)


def _row(session: Session, tenant_id: str, name: str) -> KeyRow | None:
    if not NAME.fullmatch(name):
        return None
    return session.scalar(select(KeyRow).where(KeyRow.tenant_id == tenant_id, KeyRow.name == name))


def _find(session: Session, tenant: str, name: str) -> KeyRow:
    of = tenants.find(session, tenant).id
    row = _row(session, of, name)
    if row is None:
        near = hint(name, session.scalars(select(KeyRow.name).where(KeyRow.tenant_id == of)))
        raise MissingError(
            f"tenant '{tenant}' has no key '{name[:80]}'{near} (cloud-server keys list)"
        )
    return row
