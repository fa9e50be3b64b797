"""`/v1/admin/bundles`: versions of bundles, for operators of the whole service.

A version is added on the service's machine (`cloud-server bundles add`), not over HTTP, so that no
caller can name a path.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from cloud_server.api.admin.attempt import Attempt, Attempted
from cloud_server.api.admin.management import Change, Management
from cloud_server.api.visit import caller_of
from cloud_server.state import bundles
from cloud_server.state.bundles import Said
from cloud_server.state.store import Transaction
from cloud_server.state.tables import BundleVersion

VersionName = Annotated[
    str,
    Path(max_length=128, description="ID@VERSION, or the first digits of the digest"),
]


class VersionStanding(BaseModel):
    """A front end's state of a version."""

    front_end: str
    state: str = Field(description="loading, judging, refused, serving, retiring or gone")
    sessions: int
    memory_bytes: int
    why: str
    figures: dict[str, Any] | None
    reported_s: float = Field(description="seconds since 1970")


class BundleEntry(BaseModel):
    """A version."""

    digest: str
    id: str
    version: int
    wanted: str = Field(
        description="wanted state: added, offered, active, replaced, rolled_back or retired"
    )
    share: float = Field(description="share of devices, 0..1")
    note: str
    changed_s: float = Field(description="seconds since 1970")
    changed_by: str
    front_ends: list[VersionStanding]


class BundleList(BaseModel):
    """Every version."""

    data: list[BundleEntry]


class Activation(Change):
    """The devices that a version is offered to."""

    share: float = Field(1.0, gt=0.0, le=1.0, description="share of devices; 1 for all")
    unjudged: bool = Field(False, description="serve it without a canary set")


class Rollback(Change):
    """Why a version is rolled back."""

    why: str = Field("", max_length=200)


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/admin/bundles", tags=["management"])

    def changed(attempt: Attempt, act: Callable[[Transaction], BundleVersion]) -> BundleEntry:
        management.require_service(attempt.caller)
        return management.change(
            attempt, BundleEntry, lambda tx: _entry(act(tx), _said(tx.session))
        )

    @made.get("")
    def list_bundles(request: Request) -> BundleList:
        """List the versions, with each front end's state of them."""
        management.require_service(caller_of(request))
        with management.read() as session:
            said = _said(session)
            return BundleList(data=[_entry(row, said) for row in bundles.every(session)])

    @made.post("/{name}/activate")
    def activate_bundle(attempt: Attempted, name: VersionName, body: Activation) -> BundleEntry:
        """Have front ends load and judge a version, then offer it to a share of devices."""
        return changed(
            attempt, lambda tx: bundles.activate(tx, name, body.share, unjudged=body.unjudged)
        )

    @made.post("/{name}/rollback")
    def roll_bundle_back(attempt: Attempted, name: VersionName, body: Rollback) -> BundleEntry:
        """Roll a version back; the version that it replaced serves again."""
        return changed(attempt, lambda tx: bundles.rollback(tx, name, body.why)[0])

    @made.post("/{name}/retire")
    def retire_bundle(attempt: Attempted, name: VersionName) -> BundleEntry:
        """Retire a version; it is unloaded when nothing uses it any more."""
        return changed(attempt, lambda tx: bundles.retire(tx, name))

    return made


def _said(session: Session) -> dict[str, list[Said]]:
    """Front ends' reports, by digest."""
    found: dict[str, list[Said]] = defaultdict(list)
    for one in bundles.said(session, time.time()):
        found[one.digest].append(one)
    return found


def _entry(row: BundleVersion, said: dict[str, list[Said]]) -> BundleEntry:
    return BundleEntry(
        digest=row.digest,
        id=row.bundle_id,
        version=row.version,
        wanted=row.wanted,
        share=row.share,
        note=row.note,
        changed_s=row.changed_at,
        changed_by=row.changed_by,
        front_ends=_standing(said[row.digest]),
    )


def _standing(said: Sequence[Said]) -> list[VersionStanding]:
    return [
        VersionStanding(
            front_end=one.front_end,
            state=one.state,
            sessions=one.sessions,
            memory_bytes=one.memory_bytes,
            why=one.why,
            figures=None if one.figures is None else dict(one.figures),
            reported_s=one.reported_s,
        )
        for one in said
    ]
