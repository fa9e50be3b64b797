"""`/v1/admin/tenants`: for operators of the whole service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from cloud_server.api.admin.attempt import Attempt, Attempted
from cloud_server.api.admin.management import Change, Enabled, Management, Named, Removed
from cloud_server.api.paging import NAME, Limit, NameCursor, Page, page
from cloud_server.api.visit import caller_of
from cloud_server.state import tenants
from cloud_server.state.directory import Tenant
from cloud_server.state.store import Transaction


class TenantEntry(BaseModel):
    """A tenant."""

    name: str
    enabled: bool
    created_s: float = Field(description="seconds since 1970")
    devices: int
    keys: int


class NewTenant(Change):
    """A tenant to add."""

    name: str = Field(pattern=NAME)


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/admin/tenants", tags=["management"])

    def changed(attempt: Attempt, act: Callable[[Transaction], Tenant]) -> TenantEntry:
        management.require_service(attempt.caller)
        return management.change(attempt, TenantEntry, lambda tx: _entry(tx.session, act(tx)))

    @made.get("")
    def list_tenants(
        request: Request, cursor: NameCursor = None, limit: Limit = 20
    ) -> Page[TenantEntry]:
        """List the tenants, by name."""
        management.require_service(caller_of(request))
        with management.read() as session:
            found = [one for one in tenants.every(session) if one.name > (cursor or "")]
            return page(found, lambda one: _entry(session, one), lambda one: one.name, limit)

    @made.post("", status_code=201)
    def add_tenant(attempt: Attempted, body: NewTenant) -> TenantEntry:
        """Add a tenant."""
        return changed(attempt, lambda tx: tenants.add(tx, body.name))

    @made.get("/{name}")
    def show_tenant(request: Request, name: Named) -> TenantEntry:
        """One tenant."""
        management.require_service(caller_of(request))
        with management.read() as session:
            return _entry(session, tenants.show(session, name))

    @made.patch("/{name}")
    def change_tenant(attempt: Attempted, name: Named, body: Enabled) -> TenantEntry:
        """Disable or enable a tenant with its devices and keys."""
        verb = tenants.enable if body.enabled else tenants.disable
        return changed(attempt, lambda tx: verb(tx, name))

    @made.delete("/{name}")
    def remove_tenant(
        attempt: Attempted,
        name: Named,
        everything: Annotated[bool, Query(description="remove its devices and keys too")] = False,
    ) -> Removed:
        """Remove a tenant for good."""
        management.require_service(attempt.caller)

        def act(tx: Transaction) -> Removed:
            tenants.remove(tx, name, everything=everything)
            return Removed(removed=name)

        return management.change(attempt, Removed, act)

    return made


def _entry(session: Session, tenant: Tenant) -> TenantEntry:
    return TenantEntry(
        name=tenant.name,
        enabled=not tenant.disabled,
        created_s=tenant.created_s,
        **tenants.counts(session, tenant.name),
    )
