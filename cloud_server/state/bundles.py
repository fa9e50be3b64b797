"""Versions of bundles: the state that the operator wants for each, and front ends' reports.

A version is `added`, then `offered` to a share of devices or `active` for all. The version that was
active before becomes `replaced`; a rollback activates it again. `rolled_back` and `retired`
versions serve nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from cloud_server.state.near import hint
from cloud_server.state.store import Transaction
from cloud_server.state.tables import BundleReport, BundleVersion
from protos.errors import ConflictError, MissingError

SERVED = ("offered", "active")
"""Wanted states in which a version serves devices."""
_SHORTEST = 4
"""Shortest prefix of a digest that names a version."""
_STALE_S = 60.0


@dataclass(frozen=True)
class Said:
    """One front end's report on a version.

    Attributes:
        front_end: its name.
        digest: the version.
        state: loading, judging, refused, serving, retiring or gone.
        sessions: sessions open on it.
        memory_bytes: its memory in the engine.
        why: why it was refused.
        figures: figures of its canary set and of the comparison.
        reported_s: seconds since 1970.
    """

    front_end: str
    digest: str
    state: str
    sessions: int = 0
    memory_bytes: int = 0
    why: str = ""
    figures: Mapping[str, Any] | None = None
    reported_s: float = 0.0


def add(
    tx: Transaction, *, digest: str, bundle_id: str, version: int, source: str, path: str
) -> BundleVersion:
    """Add a version; it serves nobody yet.

    Args:
        tx: the transaction.
        digest: the bundle's digest.
        bundle_id: its id.
        version: its number.
        source: fingerprint of the edge model's layout.
        path: its folder, absolute.

    Raises:
        ConflictError: it is there already.
    """
    require_new(tx.session, digest)
    row = BundleVersion(
        digest=digest,
        bundle_id=bundle_id,
        version=version,
        source=source,
        path=path,
        wanted="added",
        share=0.0,
        unjudged=False,
        served=False,
        order_no=_next(tx.session),
        note="",
        changed_at=tx.now_s,
        changed_by=tx.actor,
    )
    tx.session.add(row)
    tx.session.flush()
    tx.audit("bundle.add", "", digest, id=bundle_id, version=version, path=path)
    return row


def require_new(session: Session, digest: str) -> None:
    """Refuse a version that is there already.

    Raises:
        ConflictError: it is.
    """
    if session.get(BundleVersion, digest) is not None:
        raise ConflictError(f"bundle {digest[:12]}… was added before (cloud-server bundles list)")


def every(session: Session) -> list[BundleVersion]:
    """Every version, ordered by edge model, then the last change first."""
    query = select(BundleVersion).order_by(BundleVersion.source, BundleVersion.order_no.desc())
    return list(session.scalars(query))


def find(session: Session, name: str) -> BundleVersion:
    """A version by its digest, a prefix of the digest, or `ID@VERSION`.

    Raises:
        MissingError: there is none.
        ConflictError: there are several.
    """
    rows = every(session)
    found = [row for row in rows if f"{row.bundle_id}@{row.version}" == name]
    if not found and len(name) >= _SHORTEST:
        found = [row for row in rows if row.digest.startswith(name.lower())]
    if not found:
        near = hint(name, (f"{row.bundle_id}@{row.version}" for row in rows))
        raise MissingError(
            f"no bundle is called '{name[:80]}'{near}: give ID@VERSION or at least {_SHORTEST} "
            "digits of its digest (cloud-server bundles list)"
        )
    if len(found) > 1:
        several = " or ".join(row.digest[:12] for row in found)
        raise ConflictError(f"'{name[:80]}' may be {several}: give more digits")
    return found[0]


def activate(
    tx: Transaction, name: str, share: float = 1.0, *, unjudged: bool = False
) -> BundleVersion:
    """Offer a version to a share of devices, or activate it for all.

    Args:
        tx: the transaction.
        name: as in `find`.
        share: above 0, at most 1.
        unjudged: serve it without a canary set.

    Raises:
        MissingError: as `find`.
        ConflictError: as `find`, or a share below 1 while no version serves all devices.
    """
    row = find(tx.session, name)
    active = _of(tx.session, row.source, "active")
    if share < 1.0 and (active is None or active is row):
        raise ConflictError(
            f"'{row.bundle_id}' has no other version that serves all devices: activate it without "
            "--share"
        )
    for other in every(tx.session):
        if other.source != row.source or other is row:
            continue
        if other.wanted == "offered":
            _want(tx, other, "retired", note=f"{_named(row)} was offered in its place")
        elif other.wanted == "active" and share >= 1.0:
            _want(tx, other, "replaced", note=f"by {_named(row)}")
    row.served = row.served and row.wanted in SERVED
    _want(tx, row, "active" if share >= 1.0 else "offered", share=min(share, 1.0))
    row.unjudged = unjudged
    tx.audit("bundle.activate", "", row.digest, of=_named(row), share=share, unjudged=unjudged)
    return row


def rollback(
    tx: Transaction, name: str, why: str = "", *, alone: bool = False
) -> tuple[BundleVersion, BundleVersion | None]:
    """Roll a version back; the version that it replaced serves again.

    Args:
        tx: the transaction.
        name: as in `find`; a version that is offered or active.
        why: the reason.
        alone: roll it back even if it replaced nothing; then no version serves.

    Returns:
        The version that was rolled back, and the one that serves instead.

    Raises:
        MissingError: as `find`.
        ConflictError: it serves nobody, or it replaced nothing.
    """
    row = find(tx.session, name)
    if row.wanted not in SERVED:
        raise ConflictError(f"{_named(row)} serves nobody (it is {row.wanted})")
    before = _of(tx.session, row.source, "active" if row.wanted == "offered" else "replaced")
    if before is None and not alone:
        raise ConflictError(f"no version served before {_named(row)}: activate another one")
    _want(tx, row, "rolled_back", note=why or "by the operator")
    if before is not None and before.wanted != "active":
        _want(tx, before, "active", share=1.0)
    to = "" if before is None else _named(before)
    tx.audit("bundle.rollback", "", row.digest, of=_named(row), to=to, why=why)
    return row, before


def retire(tx: Transaction, name: str) -> BundleVersion:
    """Retire a version; it is unloaded when nothing uses it any more.

    Raises:
        MissingError: as `find`.
        ConflictError: it serves all devices.
    """
    row = find(tx.session, name)
    if row.wanted == "active":
        raise ConflictError(
            f"{_named(row)} serves all devices: activate another version, or roll it back"
        )
    _want(tx, row, "retired", note="by the operator")
    tx.audit("bundle.retire", "", row.digest, of=_named(row))
    return row


# ---------------------------------------------------------------------- reports of front ends


def report(tx: Transaction, said: Said) -> None:
    """Store a front end's report on a version; it replaces the previous one."""
    tx.session.merge(
        BundleReport(
            front_end=said.front_end,
            digest=said.digest,
            state=said.state,
            sessions=said.sessions,
            memory_bytes=said.memory_bytes,
            why=said.why,
            figures=json.dumps(said.figures or {}),
            reported_at=tx.now_s,
        )
    )


def served(tx: Transaction, digest: str) -> None:
    """Note that a version was judged and serves: a service may start with it."""
    tx.session.execute(
        update(BundleVersion).where(BundleVersion.digest == digest).values(served=True)
    )


def withdraw(tx: Transaction, front_end: str, digest: str | None = None) -> None:
    """Delete a front end's reports on one version or on all, and all that are not recent."""
    mine = BundleReport.front_end == front_end
    if digest is not None:
        mine &= BundleReport.digest == digest
    tx.session.execute(delete(BundleReport).where(mine | ~_recent(tx.now_s)))


def said(session: Session, now_s: float) -> list[Said]:
    """Reports of front ends that reported recently."""
    query = select(BundleReport).where(_recent(now_s))
    return [
        Said(
            row.front_end,
            row.digest,
            row.state,
            row.sessions,
            row.memory_bytes,
            row.why,
            json.loads(row.figures),
            row.reported_at,
        )
        for row in session.scalars(query.order_by(BundleReport.front_end))
    ]


def _recent(now_s: float) -> ColumnElement[bool]:
    """Reports of the last minute; one from later was made before the clock was set back."""
    return BundleReport.reported_at.between(now_s - _STALE_S, now_s + _STALE_S)


def _want(
    tx: Transaction, row: BundleVersion, wanted: str, *, share: float = 0.0, note: str = ""
) -> None:
    row.wanted, row.share, row.note = wanted, share, note
    row.order_no, row.changed_at, row.changed_by = _next(tx.session), tx.now_s, tx.actor
    tx.session.flush()


def _of(session: Session, source: str, wanted: str) -> BundleVersion | None:
    """The version of an edge model that last got this wanted state."""
    return session.scalar(
        select(BundleVersion)
        .where(BundleVersion.source == source, BundleVersion.wanted == wanted)
        .order_by(BundleVersion.order_no.desc())
        .limit(1)
    )


def _next(session: Session) -> int:
    return (session.scalar(select(func.max(BundleVersion.order_no))) or 0) + 1


def _named(row: BundleVersion) -> str:
    return f"{row.bundle_id}@{row.version}"
