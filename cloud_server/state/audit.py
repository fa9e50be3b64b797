"""The audit log: who changed what, and when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.state.tables import AuditRow

_MOST = 1 << 62


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log.

    Attributes:
        id: increases from line to line; a cursor.
        at_s: seconds since 1970.
        actor: who, such as `cli:anna`.
        action: what, such as `device.disable`.
        tenant: name of the tenant that it concerns.
        subject: name of the thing.
        detail: further fields.
    """

    id: int
    at_s: float
    actor: str
    action: str
    tenant: str
    subject: str
    detail: dict[str, Any]


def entries(
    session: Session,
    *,
    tenant: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since_s: float | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[AuditEntry]:
    """Lines of the log, the newest first.

    Args:
        session: reads.
        tenant: only lines about this tenant.
        actor: only lines of this actor.
        action: only this action, or a prefix that ends in `.`, such as `device.`.
        since_s: only from this time on, seconds since 1970.
        before: only lines older than the one with this id.
        limit: how many at most.
    """
    if any(text is not None and not text.isprintable() for text in (tenant, actor, action)):
        return []  # no line has that, and a database may refuse the text
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(AuditRow.tenant == tenant)
    if actor is not None:
        query = query.where(AuditRow.actor == actor)
    if action is not None and action.endswith("."):
        query = query.where(AuditRow.action.startswith(action, autoescape=True))
    elif action is not None:
        query = query.where(AuditRow.action == action)
    if since_s is not None:
        query = query.where(AuditRow.at_s >= since_s)
    if before is not None:
        query = query.where(AuditRow.id < min(before, _MOST))
    return [
        AuditEntry(
            row.id,
            row.at_s,
            row.actor,
            row.action,
            row.tenant,
            row.subject,
            json.loads(row.detail),
        )
        for row in session.scalars(query)
    ]
