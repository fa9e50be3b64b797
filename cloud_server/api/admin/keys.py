"""`/v1/admin/keys`: bearer keys of applications and operators."""

from __future__ import annotations

import math
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.management import (
    Asked,
    Enabled,
    Management,
    Named,
    OfTenant,
    Removed,
)
from cloud_server.api.paging import Cursor, Limit, Page, page
from cloud_server.api.scenes import NAME
from cloud_server.api.visit import caller_of
from cloud_server.state import keys
from cloud_server.state.directory import Key

Scope = Literal["ask", "read", "manage"]
_SCOPES: tuple[Scope, ...] = ("ask", "read", "manage")


class KeyEntry(BaseModel):
    """A key, without its text."""

    id: str
    name: str
    tenant: str
    kind: Literal["application", "operator"]
    scopes: list[Scope]
    devices: list[str] | None = Field(description="the devices that it is for; null for all")
    enabled: bool
    created_s: float = Field(description="seconds since 1970")
    not_after_s: float | None = Field(description="when it ends; null if it does not")


class FreshKey(KeyEntry):
    """A key that was just made."""

    key: str = Field(description="its text, shown only now")


class NewKey(Asked):
    """A key to make."""

    name: str = Field(pattern=NAME)
    kind: Literal["application", "operator"] = "application"
    scopes: list[Scope] = Field(["ask", "read"], min_length=1, max_length=3)
    devices: list[str] | None = Field(
        None, min_length=1, max_length=1000, description="names; null for every device"
    )
    not_after_s: float | None = Field(
        None, ge=0, le=1e11, description="when it ends, seconds since 1970; null if it does not"
    )


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/admin/keys", tags=["management"])

    @made.get("")
    def list_keys(
        request: Request, tenant: OfTenant = None, cursor: Cursor = None, limit: Limit = 20
    ) -> Page[KeyEntry]:
        """List a tenant's keys, by name."""
        of = management.tenant(caller_of(request), tenant)
        with management.read() as session:
            found = keys.every(session, of)
        return page(found, lambda one: (one.name,), _entry, cursor, limit)

    @made.post("", status_code=201)
    def add_key(request: Request, body: NewKey, tenant: OfTenant = None) -> FreshKey:
        """Make a key; the answer shows its text, this once."""
        caller = caller_of(request)
        of = management.tenant(caller, tenant)
        with management.write(caller) as tx:
            key, text = keys.add(
                tx,
                of,
                body.name,
                kind=body.kind,
                scopes=body.scopes,
                devices=body.devices,
                not_after_s=body.not_after_s,
            )
        return FreshKey(**_entry(key).model_dump(), key=text)

    @made.get("/{key}")
    def show_key(request: Request, key: Named, tenant: OfTenant = None) -> KeyEntry:
        """One key."""
        of = management.tenant(caller_of(request), tenant)
        with management.read() as session:
            return _entry(keys.show(session, of, key))

    @made.patch("/{key}")
    def change_key(
        request: Request, key: Named, body: Enabled, tenant: OfTenant = None
    ) -> KeyEntry:
        """Shut a key out, or let it in again."""
        caller = caller_of(request)
        of = management.tenant(caller, tenant)
        with management.write(caller) as tx:
            verb = keys.enable if body.enabled else keys.disable
            return _entry(verb(tx, of, key))

    @made.delete("/{key}")
    def remove_key(request: Request, key: Named, tenant: OfTenant = None) -> Removed:
        """Remove a key for good."""
        caller = caller_of(request)
        of = management.tenant(caller, tenant)
        with management.write(caller) as tx:
            keys.remove(tx, of, key)
        return Removed(removed=key)

    return made


def _entry(key: Key) -> KeyEntry:
    return KeyEntry(
        id=key.id,
        name=key.name,
        tenant=key.tenant,
        kind="operator" if key.kind == "operator" else "application",
        scopes=[scope for scope in _SCOPES if scope in key.scopes],
        devices=None if key.devices is None else sorted(key.devices),
        enabled=not key.disabled,
        created_s=key.created_s,
        not_after_s=None if math.isinf(key.not_after_s) else key.not_after_s,
    )
