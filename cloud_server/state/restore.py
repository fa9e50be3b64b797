"""Restore a backup in one transaction: a reader sees the old state or the new one.

Whatever was disabled, revoked or removed since the backup stays disabled: the journal and, if it
can be read, the replaced database say what. The replaced database also gives the certificates
issued since (else their devices would be locked out) and the lines of the audit log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, delete, func, insert, select
from sqlalchemy.orm import Session

from cloud_server.state import backup
from cloud_server.state.backup import Backup
from cloud_server.state.beginning import is_empty
from cloud_server.state.reapply import PORTION, missing_in_journal, portions, reapply
from cloud_server.state.store import Store, Transaction
from cloud_server.state.tables import (
    AuditRow,
    Base,
    CertificateRow,
    ChangeRow,
    DeviceRow,
    KeyRow,
    TenantRow,
)
from protos.errors import BackupError, ConflictError


@dataclass(frozen=True)
class Restored:
    """Result of a restore.

    Attributes:
        counts: numbers of tenants, devices, keys and certificates now.
        shut_again: what was disabled, revoked or removed since the backup, and is disabled again.
        certificates_kept: certificates issued since the backup that are still valid.
        gone: names of what was added since the backup and is lost.
    """

    counts: Mapping[str, int]
    shut_again: int
    certificates_kept: int
    gone: tuple[str, ...]


def restore(store: Store, taken: Backup, actor: str, *, force: bool = False) -> Restored:
    """Replace a database's content with a backup.

    Args:
        store: the database; a running service uses the new content within seconds.
        taken: the backup, of a state.
        actor: who does it.
        force: replace a database that is not empty.

    Raises:
        ConflictError: the database is not empty.
        BackupError: the backup holds no rows.
        StateError: the database or the journal cannot be used; nothing was changed.
    """
    if taken.rows is None:
        raise BackupError("a backup of an authority holds no database")
    with store.write(actor) as tx:
        if not force and not is_empty(tx.session):
            raise ConflictError(
                f"database {store.named} holds tenants or a history: give --force to replace it"
            )
        events = [] if store.journal is None else store.journal.read()[0]
        unknown = missing_in_journal(tx.session, events, tx.now_s)
        tx.shut += unknown  # into the journal, with this transaction
        named = _names(tx.session)
        since = _rows(tx.session, _table(CertificateRow), CertificateRow.issued_s >= taken.made_s)
        history = _rows(tx.session, _table(AuditRow), AuditRow.at_s >= taken.made_s)
        for table in reversed(Base.metadata.sorted_tables):
            if table.name != ChangeRow.__tablename__:
                tx.session.execute(delete(table))
        for table in backup.tables():
            for portion in taken.rows.execute(select(table)).mappings().partitions(PORTION):
                tx.session.execute(insert(table), [_without_number(dict(row)) for row in portion])
        kept = _keep_certificates(tx, since)
        _add_history(tx, history, taken.made_s)
        shut = reapply(tx.session, [*events, *unknown], tx.now_s)
        counts = {
            table.__tablename__: tx.session.scalar(select(func.count()).select_from(table)) or 0
            for table in (TenantRow, DeviceRow, KeyRow, CertificateRow)
        }
        now = _names(tx.session)
        gone = tuple(sorted(name for id, name in named.items() if id not in now))
        tx.shut += missing_in_journal(tx.session, [*events, *unknown], tx.now_s)
        tx.audit(
            "state.restore",
            "",
            "database",
            made_s=taken.made_s,
            shut_again=len(shut),
            certificates_kept=kept,
        )
    return Restored(counts, len(shut), kept, gone)


def _names(session: Session) -> dict[str, str]:
    """Devices and keys with their tenants, by id."""
    return {
        id: f"{what} {tenant}/{name}"
        for what, table in (("device", DeviceRow), ("key", KeyRow))
        for id, name, tenant in session.execute(
            select(table.id, table.name, TenantRow.name).join(
                TenantRow, TenantRow.id == table.tenant_id
            )
        ).tuples()
    }


def _table(row: type[Base]) -> Table:
    return Base.metadata.tables[row.__tablename__]


def _rows(session: Session, table: Table, condition: Any) -> list[dict[str, Any]]:
    found = session.execute(select(table).where(condition).order_by(*table.primary_key.columns))
    return [dict(row) for row in found.mappings()]


def _without_number(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its id: the database assigns it, so that PostgreSQL's sequence counts it."""
    return {name: value for name, value in row.items() if name != "id" or "action" not in row}


def _keep_certificates(tx: Transaction, since: list[dict[str, Any]]) -> int:
    """Add certificates that the backup's devices were issued since; returns how many."""
    devices = set(tx.session.scalars(select(DeviceRow.id)))
    known = set(tx.session.scalars(select(CertificateRow.serial)))
    kept = [row for row in since if row["device_id"] in devices and row["serial"] not in known]
    for portion in portions(kept):
        tx.session.execute(insert(CertificateRow), portion)
    return len(kept)


def _add_history(tx: Transaction, history: list[dict[str, Any]], made_s: float) -> None:
    """Add the audit log's lines since the backup."""
    known = {
        tuple(_without_number(row).values())
        for row in _rows(tx.session, _table(AuditRow), AuditRow.at_s >= made_s)
    }
    since = [_without_number(row) for row in history]
    for portion in portions([row for row in since if tuple(row.values()) not in known]):
        tx.session.execute(insert(AuditRow), portion)
