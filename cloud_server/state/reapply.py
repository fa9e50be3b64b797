"""Do to a database what the journal of revocations says was done, and find what it lacks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from cloud_server.state.journal import Kind, Shut, last
from cloud_server.state.tables import CertificateRow, DeviceRow, KeyRow, TenantRow

_TABLES: dict[Kind, type[TenantRow] | type[DeviceRow] | type[KeyRow]] = {
    "tenant": TenantRow,
    "device": DeviceRow,
    "key": KeyRow,
}
_PORTION = 500
"""Ids in one statement: databases bound the number of parameters."""


def reapply(
    session: Session, events: Sequence[Shut], now_s: float, *, only_look: bool = False
) -> list[Shut]:
    """Shut out and remove what the journal says, where the database does not have it so.

    Args:
        session: of a transaction that writes, unless it only looks.
        events: the journal, in order.
        now_s: when, for certificates.
        only_look: change nothing.

    Returns:
        The events that the database did not have.
    """
    latest = last(events)
    undone: list[Shut] = []
    for kind, table in _TABLES.items():
        wanted = {id: one for (of, id), one in latest.items() if of == kind}
        shut = [id for id, one in wanted.items() if one.event == "shut"]
        gone = [id for id, one in wanted.items() if one.event == "removed"]
        for portion in _portions(shut):
            found = session.scalars(
                select(table.id).where(table.id.in_(portion), table.disabled.is_(False))
            ).all()
            undone += [wanted[id] for id in found]
            if found and not only_look:
                session.execute(update(table).where(table.id.in_(found)).values(disabled=True))
        for portion in _portions(gone):
            found = session.scalars(select(table.id).where(table.id.in_(portion))).all()
            undone += [wanted[id] for id in found]
            if found and not only_look:
                session.execute(delete(table).where(table.id.in_(found)))
    serials = {id: one for (of, id), one in latest.items() if of == "certificate"}
    for portion in _portions([id for id, one in serials.items() if one.event != "opened"]):
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
    """What the database has shut out and the journal does not know as such."""
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
        .where(CertificateRow.revoked_s.is_not(None), CertificateRow.not_after_s > now_s)
    ).tuples()
    return missing + [
        Shut("shut", "certificate", serial, name, now_s)
        for serial, name in revoked
        if not known("certificate", serial)
    ]


def _portions(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _PORTION] for start in range(0, len(ids), _PORTION)]
