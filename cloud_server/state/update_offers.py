"""Offers: an update reaches a tenant's devices stage by stage, and halts by itself if many fail.

The calls, in order: `offer`; then `check` whenever a device asks, which also tells how its last
update went; `turn` every few seconds, which moves on or halts. All of it is in the database, so
several front ends may do it, and a restart changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.identity.caller import SERVICE_TENANT
from cloud_server.state import tenants, updates
from cloud_server.state.stages import Stages
from cloud_server.state.store import Transaction
from cloud_server.state.tables import (
    DeviceRow,
    OfferDeviceRow,
    OfferRow,
    SoftwareRow,
    TenantRow,
    UpdateRow,
)
from cloud_server.state.update_moves import (
    FAILED,
    FETCHED,
    HALTED,
    KEPT,
    OFFERED,
    PAUSED,
    RUNNING,
    TRIAL,
    WITHDRAWN,
    Software,
    counts_of,
    excuse,
    fill,
    give,
    move,
    set_state,
    verdict_of,
)
from protos.errors import ConflictError, MissingError

_LONGEST_CAUSE = 200


@dataclass(frozen=True)
class Told:
    """What a device says about one update.

    Attributes:
        digest: the update.
        state: fetched, trial, kept, failed, or waiting for the reason in `cause`.
        cause: why it failed or waits.
        failures: how often it failed on this device.
    """

    digest: str
    state: str
    cause: str = ""
    failures: int = 0


@dataclass(frozen=True)
class OfferedUpdate:
    """What a device is to install."""

    digest: str
    number: int
    version: str
    size_bytes: int
    older: bool


@dataclass(frozen=True)
class UpdateOffer:
    """An offer and how it goes.

    Attributes:
        update: the update.
        tenant: name of the tenant.
        stages: its stages.
        stage: the present one.
        state: running, paused, halted or withdrawn.
        older: whether devices with a newer update take it too.
        note: why it halted.
        waits_for: what its next stage waits for; empty in the last one.
        counts: devices by their state.
        causes: failed devices by cause.
        stage_since_s: when the present stage began, seconds since 1970.
        changed_by: who changed it last.
    """

    update: UpdateRow
    tenant: str
    stages: Stages
    stage: int
    state: str
    older: bool
    note: str
    waits_for: str
    counts: dict[str, int]
    causes: dict[str, int] = field(default_factory=dict)
    stage_since_s: float = 0.0
    changed_by: str = ""


# ---------------------------------------------------------------------- the operator's verbs


def offer(
    tx: Transaction,
    name: str,
    tenant: str,
    stages: Stages,
    *,
    older: bool = False,
    again: bool = False,
) -> OfferRow:
    """Offer an update to a tenant's devices; the first stage begins at once.

    An offer that is there already goes on with these stages, at the share that it has reached.

    Args:
        tx: the transaction.
        name: as in `updates.find`.
        tenant: the tenant's name.
        stages: its stages.
        older: also to devices that run a newer one, if their owners allow it.
        again: also to devices on which it failed before.

    Raises:
        MissingError: there is no such update or tenant.
        ConflictError: several updates have that name, or the tenant has no devices of its own.
    """
    update = updates.find(tx.session, name)
    if tenant == SERVICE_TENANT:
        raise ConflictError(f"tenant '{SERVICE_TENANT}' has operators only: name another tenant")
    of = tenants.find(tx.session, tenant)
    query = select(OfferRow).where(OfferRow.tenant_id == of.id, OfferRow.digest == update.digest)
    row = tx.session.scalar(query)
    if row is None:
        row = OfferRow(
            id=secrets.token_hex(16),
            tenant_id=of.id,
            digest=update.digest,
            stages=stages.to_json(),
            stage=0,
            stage_since_s=tx.now_s,
            excused=0,
            note="",
        )
        tx.session.add(row)
    else:
        share = Stages.from_json(row.stages).shares[row.stage]
        row.stages, row.stage, row.stage_since_s = stages.to_json(), stages.after(share), tx.now_s
    row.older = older
    set_state(tx, row, RUNNING)
    tx.session.flush()
    excuse(tx, row, again)
    tx.audit(
        "update.offer", tenant, update.digest, number=update.number, stages=list(stages.shares)
    )
    fill(tx, row)
    return row


def pause(tx: Transaction, name: str, tenant: str) -> OfferRow:
    """Offer an update to no further device, and let none begin that has not begun.

    Raises:
        MissingError, ConflictError: there is no such offer, or several updates have that name.
    """
    row = _find(tx.session, name, tenant)
    if row.state != RUNNING:
        raise ConflictError(f"update '{name}' is not offered to '{tenant}' now: it is {row.state}")
    set_state(tx, row, PAUSED, f"by {tx.actor}")
    tx.audit("update.pause", tenant, row.digest)
    return row


def resume(tx: Transaction, name: str, tenant: str) -> OfferRow:
    """Go on with an offer that is paused or halted; failures so far are not counted again.

    Raises:
        MissingError, ConflictError: there is no such offer, or several updates have that name.
    """
    row = _find(tx.session, name, tenant)
    if row.state not in (PAUSED, HALTED):
        raise ConflictError(f"update '{name}' for '{tenant}' is {row.state}: nothing to resume")
    set_state(tx, row, RUNNING)
    row.stage_since_s = tx.now_s
    excuse(tx, row, again=False)
    tx.audit("update.resume", tenant, row.digest)
    move(tx, row)
    return row


def withdraw(tx: Transaction, name: str, tenant: str) -> OfferRow:
    """End an offer; devices that have the update keep it.

    Raises:
        MissingError, ConflictError: there is no such offer, or several updates have that name.
    """
    row = _find(tx.session, name, tenant)
    set_state(tx, row, WITHDRAWN, f"by {tx.actor}")
    tx.audit("update.withdraw", tenant, row.digest)
    return row


def every(session: Session, now_s: float, tenant: str | None = None) -> list[UpdateOffer]:
    """Every offer and how it goes, the newest update first.

    Args:
        session: reads.
        now_s: seconds since 1970.
        tenant: only this tenant's.
    """
    query = (
        select(OfferRow, UpdateRow, TenantRow.name)
        .join(UpdateRow, UpdateRow.digest == OfferRow.digest)
        .join(TenantRow, TenantRow.id == OfferRow.tenant_id)
        .order_by(UpdateRow.number.desc(), UpdateRow.digest, TenantRow.name)
    )
    if tenant is not None:
        query = query.where(TenantRow.name == tenant)
    found = []
    for row, update, name in session.execute(query).tuples():
        counts, causes = counts_of(session, row, now_s)
        waits = verdict_of(session, row, now_s)[1] if row.state == RUNNING else ""
        found.append(
            UpdateOffer(
                update,
                name,
                Stages.from_json(row.stages),
                row.stage,
                row.state,
                row.older,
                row.note,
                waits,
                counts,
                causes,
                row.stage_since_s,
                row.changed_by,
            )
        )
    return found


def devices_of(session: Session, name: str, tenant: str) -> list[tuple[str, OfferDeviceRow]]:
    """The devices that an update was offered to, by name.

    Raises:
        MissingError, ConflictError: there is no such offer, or several updates have that name.
    """
    row = _find(session, name, tenant)
    query = (
        select(DeviceRow.name, OfferDeviceRow)
        .join(OfferDeviceRow, OfferDeviceRow.device_id == DeviceRow.id)
        .where(OfferDeviceRow.offer_id == row.id)
        .order_by(DeviceRow.name)
    )
    return list(session.execute(query).tuples())


# ---------------------------------------------------------------------- devices


def check(
    tx: Transaction, tenant: str, device: str, software: Software, told: Iterable[Told]
) -> OfferedUpdate | None:
    """Store what a device runs and how its updates went; returns the update that it is to take.

    Raises:
        MissingError: there is no such tenant or device.
    """
    row = _device(tx.session, tenant, device)
    tx.session.merge(SoftwareRow(device_id=row.id, seen_s=tx.now_s, **vars(software)))
    said = {one.digest: one for one in told}
    if software.digest:
        said[software.digest] = Told(software.digest, KEPT)  # whatever happened before
    offers = _locked(tx.session, row)
    for each, update, mine in offers:
        if mine is not None and update.digest in said and _hear(tx, mine, said[update.digest]):
            move(tx, each)
    for each, update, mine in offers:
        if each.state != RUNNING or not software.fits(update, each.older):
            continue
        if mine is None and Stages.from_json(each.stages).shares[each.stage] == 1.0:
            mine = give(tx, each, row.id)  # `turn` fills the stages before
        if mine is not None and mine.state in (OFFERED, FETCHED):
            return OfferedUpdate(
                update.digest, update.number, update.version, update.size_bytes, each.older
            )
    return None


def may_fetch(session: Session, tenant: str, device: str, digest: str) -> bool:
    """Whether a device is offered an update now."""
    query = (
        select(OfferDeviceRow.state)
        .join(OfferRow, OfferRow.id == OfferDeviceRow.offer_id)
        .join(UpdateRow, UpdateRow.digest == OfferRow.digest)
        .join(DeviceRow, DeviceRow.id == OfferDeviceRow.device_id)
        .join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
        .where(
            TenantRow.name == tenant,
            DeviceRow.name == device,
            OfferRow.digest == digest,
            OfferRow.state == RUNNING,
            ~UpdateRow.retired,
            OfferDeviceRow.state.in_((OFFERED, FETCHED)),
        )
    )
    return session.scalar(query) is not None


def any_running(session: Session) -> bool:
    """Whether `turn` has anything to do."""
    query = select(OfferRow.id).where(OfferRow.state == RUNNING).limit(1)
    return session.scalar(query) is not None


def turn(tx: Transaction) -> list[OfferRow]:
    """Move offers on whose stage is over, and halt those of which too many fail.

    Returns:
        Those that halted now.
    """
    query = select(OfferRow).where(OfferRow.state == RUNNING).order_by(OfferRow.id)
    running = tx.session.scalars(query.with_for_update()).all()
    for row in running:
        fill(tx, row)
        move(tx, row)
    return [row for row in running if row.state == HALTED]


# ---------------------------------------------------------------------- within


def _device(session: Session, tenant: str, name: str) -> DeviceRow:
    """A device that calls; its name was in a certificate, so it is there unless it was removed."""
    query = select(DeviceRow).join(TenantRow, TenantRow.id == DeviceRow.tenant_id)
    row = session.scalar(query.where(TenantRow.name == tenant, DeviceRow.name == name))
    if row is None or row.disabled:
        raise MissingError("this device was removed or disabled")
    return row


def _locked(
    session: Session, device: DeviceRow
) -> Sequence[tuple[OfferRow, UpdateRow, OfferDeviceRow | None]]:
    """Offers to a device's tenant that are not withdrawn, the newest update first.

    No other transaction moves them meanwhile. The last of each is how it stands on this device.
    """
    of = (OfferDeviceRow.offer_id == OfferRow.id) & (OfferDeviceRow.device_id == device.id)
    query = (
        select(OfferRow, UpdateRow, OfferDeviceRow)
        .join(UpdateRow, UpdateRow.digest == OfferRow.digest)
        .outerjoin(OfferDeviceRow, of)
        .where(OfferRow.tenant_id == device.tenant_id, OfferRow.state != WITHDRAWN)
        .order_by(UpdateRow.number.desc(), OfferRow.id)
        .with_for_update(of=OfferRow)
    )
    return session.execute(query).tuples().all()


def _find(session: Session, name: str, tenant: str) -> OfferRow:
    update = updates.find(session, name)
    of = tenants.find(session, tenant)
    row = session.scalar(
        select(OfferRow)
        .where(OfferRow.tenant_id == of.id, OfferRow.digest == update.digest)
        .with_for_update()
    )
    if row is None:
        raise MissingError(
            f"update '{name}' was never offered to tenant '{tenant}' (cloud-server updates offer)"
        )
    return row


def _hear(tx: Transaction, mine: OfferDeviceRow, told: Told) -> bool:
    """Take a device's word on an update; returns whether anything is new."""
    state, cause, before = mine.state, told.cause[:_LONGEST_CAUSE], (mine.state, mine.cause)
    if told.state == FAILED:
        mine.failures = max(mine.failures, told.failures)
        if told.failures <= mine.excused:
            return False  # an earlier failure, which does not count
        state = FAILED
    elif told.state == KEPT:
        state, cause = KEPT, ""
    elif told.state in (FETCHED, TRIAL) and state in (OFFERED, FETCHED, TRIAL):
        state = told.state
    elif state not in (OFFERED, FETCHED):
        return False
    if (state, cause) == before:
        return False
    mine.state, mine.cause, mine.changed_s = state, cause, tx.now_s
    tx.session.flush()
    return True
