"""Quotas that differ from the defaults: for a tenant, for each of its devices, for one device."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.state import devices, tenants
from cloud_server.state.quota import QUOTA_FIELDS
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceRow, QuotaRow
from protos.errors import ConfigError

EACH_DEVICE = "*"
"""Stands for each device of a tenant."""
MOST = 1e12
_WHOLE = ("concurrent", "scenes")


@dataclass(frozen=True)
class SetQuota:
    """Values that were set for a tenant, for each of its devices, or for one device.

    Attributes:
        tenant: by name.
        device: None for the tenant's devices together, `*` for each, or a device's name.
        values: by the field's name in `Quota`.
    """

    tenant: str
    device: str | None
    values: Mapping[str, float]


def change(
    tx: Transaction,
    tenant: str,
    device: str | None,
    values: Mapping[str, float],
    unset: Collection[str] = (),
) -> SetQuota:
    """Set some bounds; the service uses them within seconds.

    Args:
        tx: the transaction.
        tenant: by name.
        device: None for the tenant's devices together, `*` for each, or a device's name.
        values: by the field's name in `Quota`.
        unset: fields that go back to their defaults.

    Raises:
        ConfigError: a field is unknown, or a value is not allowed.
        MissingError: there is no such tenant or device.
    """
    for name in (*values, *unset):
        if name not in QUOTA_FIELDS:
            raise ConfigError(f"quota '{name[:80]}': of {', '.join(QUOTA_FIELDS)}")
    for name, value in values.items():
        _check(name, value)
    of = tenants.find(tx.session, tenant)
    row = _row(tx.session, tenant, device)
    if row is None:
        row = QuotaRow(id=secrets.token_hex(8), tenant_id=of.id, of=_of(device))
        if row.of == "device":
            row.device_id = devices.find(tx.session, tenant, str(device)).id
        tx.session.add(row)
    for name in unset:
        setattr(row, name, None)
    for name, value in values.items():
        setattr(row, name, int(value) if name in _WHOLE else float(value))
    tx.audit("quota.set", tenant, device or tenant, of=row.of, unset=sorted(unset), **dict(values))
    tx.session.flush()
    return SetQuota(tenant, device, _values(row))


def every(session: Session, tenant: str) -> list[SetQuota]:
    """Values that were set for a tenant: for all, for each device, then by device.

    Raises:
        MissingError: there is no such tenant.
    """
    id = tenants.find(session, tenant).id
    rows = session.execute(
        select(QuotaRow, DeviceRow.name)
        .outerjoin(DeviceRow, DeviceRow.id == QuotaRow.device_id)
        .where(QuotaRow.tenant_id == id)
    ).tuples()
    found = [
        SetQuota(tenant, EACH_DEVICE if row.of == "each_device" else name, _values(row))
        for row, name in rows
    ]
    return sorted(found, key=lambda one: (one.device is not None, one.device or ""))


def _check(name: str, value: float) -> None:
    whole, expected = name in _WHOLE, "a number from 0 (no bound)"
    good = math.isfinite(value) and 0 <= value <= MOST and (not whole or value == int(value))
    if whole:
        expected = "a whole number from 0 (no bound)"
    elif name == "weight":
        good, expected = good and 0.01 <= value <= 100, "a number from 0.01 to 100"
    if not good:
        raise ConfigError(f"quota {name} = {value}: expected {expected}")


def _of(device: str | None) -> str:
    return {None: "tenant", EACH_DEVICE: "each_device"}.get(device, "device")


def _row(session: Session, tenant: str, device: str | None) -> QuotaRow | None:
    query = select(QuotaRow).where(
        QuotaRow.tenant_id == tenants.find(session, tenant).id, QuotaRow.of == _of(device)
    )
    if _of(device) == "device":
        query = query.where(QuotaRow.device_id == devices.find(session, tenant, str(device)).id)
    return session.scalar(query)


def _values(row: QuotaRow) -> dict[str, float]:
    return {
        name: getattr(row, name) for name in QUOTA_FIELDS if getattr(row, name, None) is not None
    }
