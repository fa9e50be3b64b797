"""What shadowed frames have shown, by device and bundle: one function for each verb.

The record itself is the front end's (`frontend/shadowing/record.py`), text here. Callers write with
`Store.write(quiet=True)`: directories need not be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from cloud_server.state import devices
from cloud_server.state.directory import Device
from cloud_server.state.store import Transaction
from cloud_server.state.tables import DeviceRow, ShadowRow, TenantRow

MOST_OF_DEVICE = 8
"""Bundles of one device that are remembered; the one heard of longest ago goes first."""


@dataclass(frozen=True)
class KeptShadows:
    """What is kept of a device with one bundle.

    Attributes:
        tenant, device: names.
        digest, bundle_id: of the bundle.
        drifting_s: since when the map no longer fits, seconds since 1970; None if it does.
        record: as the front end wrote it.
    """

    tenant: str
    device: str
    digest: str
    bundle_id: str
    drifting_s: float | None
    record: str


@dataclass(frozen=True)
class ShadowSummary:
    """All devices with one bundle.

    Attributes:
        bundle_id: the bundle's id.
        last_s: when a frame was measured last, seconds since 1970.
        devices: that were measured.
        drifting: for how many of them the map no longer fits.
    """

    bundle_id: str
    last_s: float
    devices: int
    drifting: int


def change(
    tx: Transaction,
    tenant: str,
    name: str,
    digest: str,
    bundle_id: str,
    make: Callable[[str], tuple[str, float, float | None]],
) -> None:
    """Change what is kept of a device with one bundle; several front ends may do so at once.

    Args:
        tx: the transaction.
        tenant: the device's tenant, by name.
        name: the device.
        digest: of the bundle.
        bundle_id: of the bundle.
        make: gets the record so far, empty for none; returns the new one, when it was measured,
            and since when the device drifts.

    Raises:
        MissingError: there is no such tenant or device.
    """
    session = tx.session
    device = devices.find(session, tenant, name)
    # One row of the device at a time: the device's own row is the lock that always exists.
    session.execute(select(DeviceRow.id).where(DeviceRow.id == device.id).with_for_update())
    row = session.get(ShadowRow, (device.id, digest), populate_existing=True)
    record, last_s, drifting_s = make("" if row is None else row.record)
    if row is None:
        row = ShadowRow(device_id=device.id, digest=digest)
        session.add(row)
    row.bundle_id, row.record, row.last_s, row.drifting_s = bundle_id, record, last_s, drifting_s
    session.flush()
    old = session.scalars(
        select(ShadowRow.digest)
        .where(ShadowRow.device_id == device.id)
        .order_by(ShadowRow.last_s.desc(), ShadowRow.digest)
        .offset(MOST_OF_DEVICE)
    ).all()
    if old:
        session.execute(
            delete(ShadowRow).where(ShadowRow.device_id == device.id, ShadowRow.digest.in_(old))
        )


def forget(tx: Transaction, tenant: str, name: str) -> Device:
    """Forget what shadowed frames of a device have shown, as after its camera was moved.

    Raises:
        MissingError: there is no such tenant or device.
    """
    device = devices.show(tx.session, tenant, name)
    tx.session.execute(delete(ShadowRow).where(ShadowRow.device_id == device.id))
    tx.audit("device.refit", tenant, name)
    return device


def of(session: Session, tenant: str, name: str | None = None) -> list[KeptShadows]:
    """What is kept of a tenant's devices, or of one, the newest first.

    Args:
        session: reads.
        tenant: by name.
        name: the device; None for all.
    """
    query = (
        select(ShadowRow, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == ShadowRow.device_id)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .where(TenantRow.name == tenant)
        .order_by(DeviceRow.name, ShadowRow.last_s.desc(), ShadowRow.digest)
    )
    if name is not None:
        query = query.where(DeviceRow.name == name)
    return [
        KeptShadows(tenant, device, row.digest, row.bundle_id, row.drifting_s, row.record)
        for row, device in session.execute(query).tuples()
    ]


def summary(session: Session) -> list[ShadowSummary]:
    """All devices, by bundle. A device counts with the bundle that it was measured with last."""
    newest = (
        select(ShadowRow.device_id, func.max(ShadowRow.last_s).label("last_s"))
        .group_by(ShadowRow.device_id)
        .subquery()
    )
    rows = session.execute(
        select(
            ShadowRow.bundle_id,
            func.max(ShadowRow.last_s),
            func.count(),
            func.count(ShadowRow.drifting_s),
        )
        .join(
            newest,
            (newest.c.device_id == ShadowRow.device_id) & (newest.c.last_s == ShadowRow.last_s),
        )
        .group_by(ShadowRow.bundle_id)
        .order_by(ShadowRow.bundle_id)
    )
    return [ShadowSummary(*row) for row in rows.tuples()]
