"""Apply the journal of revocations to a database, and find what the journal lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from cloud_server.state.journal import KEEP_EXPIRED_S, Kind, Shut, last
from cloud_server.state.tables import AuditRow, CertificateRow, DeviceRow, KeyRow, TenantRow

_TABLES: dict[Kind, type[TenantRow] | type[DeviceRow] | type[KeyRow]] = {
    "tenant": TenantRow,
    "device": DeviceRow,
    "key": KeyRow,
}
Row = TypeVar("Row")
PORTION = 500
"""Ids or rows in one statement: databases limit the number of parameters."""


def reapply(
    session: Session, events: Sequence[Shut], now_s: float, *, only_look: bool = False
) -> list[Shut]:
    """Disable what the journal says is disabled, revoked or removed, where the database differs.

    An older copy still has what was removed since. It is disabled, not removed, so that a removal
    by mistake can be undone: restore a backup, then enable.

    Args:
        session: of a transaction that writes, unless `only_look`.
        events: the journal, in order.
        now_s: time of revocation for certificates, seconds since 1970.
        only_look: change nothing.

    Returns:
        The events that the database did not have.
    """
    latest = last(events)
    undone: list[Shut] = []
    for kind, table in _TABLES.items():
        out = {id: one for (of, id), one in latest.items() if of == kind and one.event != "opened"}
        for portion in portions(list(out)):
            found = session.scalars(
                select(table.id).where(table.id.in_(portion), table.disabled.is_(False))
            ).all()
            undone += [out[id] for id in found]
            if found and not only_look:
                session.execute(update(table).where(table.id.in_(found)).values(disabled=True))
    serials = {id: one for (of, id), one in latest.items() if of == "certificate"}
    for portion in portions(list(serials)):
        found = session.scalars(
            select(CertificateRow.serial).where(
                CertificateRow.serial.in_(portion), CertificateRow.revoked_s.is_(None)
            )
        ).all()
        undone += [serials[serial] for serial in found]
        if found and not only_look:
            session.execute(
                update(CertificateRow)
                .where(CertificateRow.serial.in_(found))
                .values(revoked_s=now_s)
            )
    return undone


def missing_in_journal(session: Session, events: Sequence[Shut], now_s: float) -> list[Shut]:
    """What is disabled, revoked or (by the audit log) removed, but not in the journal.

    Args:
        session: reads.
        events: the journal, in order.
        now_s: now, seconds since 1970; certificates that expired too long ago to be renewed are
            left out.
    """
    latest = last(events)

    def known(kind: Kind, id: str) -> bool:
        one = latest.get((kind, id))
        return one is not None and one.event != "opened"

    missing = [
        Shut("shut", kind, id, name, now_s)
        for kind, table in _TABLES.items()
        for id, name in session.execute(
            select(table.id, table.name).where(table.disabled.is_(True))
        ).tuples()
        if not known(kind, id)
    ]
    revoked = session.execute(
        select(CertificateRow.serial, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == CertificateRow.device_id)
        .where(
            CertificateRow.revoked_s.is_not(None),
            CertificateRow.not_after_s > now_s - KEEP_EXPIRED_S,
        )
    ).tuples()
    missing += [
        Shut("shut", "certificate", serial, name, now_s)
        for serial, name in revoked
        if not known("certificate", serial)
    ]
    removed = session.execute(
        select(AuditRow.action, AuditRow.subject, AuditRow.detail, AuditRow.at_s).where(
            AuditRow.action.in_([f"{kind}.remove" for kind in _TABLES])
        )
    ).tuples()
    for action, name, detail, at_s in removed:
        id = json.loads(detail).get("id", "")
        of = next(kind for kind in _TABLES if action.startswith(kind))
        one = latest.get((of, id))
        if id and (one is None or (one.event == "opened" and one.at_s < at_s)):
            missing.append(Shut("removed", of, id, name, at_s))
    return missing


def portions(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """So many of them that one statement can hold them."""
    return [rows[start : start + PORTION] for start in range(0, len(rows), PORTION)]
