"""The beginning of a database's use: which directory it was made for, and whether it is empty."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud_server.state.store import Transaction
from cloud_server.state.tables import AuditRow, DeviceRow, TenantRow
from protos.errors import ConflictError

_BEGUN = "service.init"


def begin(tx: Transaction, directory: Path, named: str, *, new_authority: bool) -> None:
    """Note in the audit log that a directory with a new authority uses this database.

    Args:
        tx: the transaction.
        directory: the directory.
        named: the database, for the message.
        new_authority: whether another directory may use the database already.

    Raises:
        ConflictError: another directory does.
    """
    if not new_authority and tx.session.scalar(select(AuditRow.id).limit(1)) is not None:
        tenants, devices = (
            tx.session.scalar(select(func.count()).select_from(table)) or 0
            for table in (TenantRow, DeviceRow)
        )
        raise ConflictError(
            f"database {named}: another directory uses it already ({tenants - 1} tenants, "
            f"{devices} devices), and its devices trust that directory's authority, not a new one. "
            "To add a front end, copy that directory without the root's key, then run "
            "'cloud-server authority server-certificate --directory DIR --name NAME'. "
            "If its authority is lost, give --new-authority: then every device must enrol again"
        )
    tx.audit(_BEGUN, "", directory.name, directory=str(directory))


def is_empty(session: Session) -> bool:
    """Whether a database holds no tenants and no history but its beginning."""
    tenants = session.scalar(select(func.count()).select_from(TenantRow)) or 0
    history = session.scalar(select(AuditRow.id).where(AuditRow.action != _BEGUN).limit(1))
    return tenants <= 1 and history is None
