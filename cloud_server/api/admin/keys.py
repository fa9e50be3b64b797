"""`/v1/admin/keys`: bearer keys of applications and operators."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cloud_server.api.admin import named
from cloud_server.api.admin.attempt import Attempted
from cloud_server.api.admin.management import Change, Management, OfTenant
from cloud_server.api.paging import NAME
from cloud_server.identity.caller import SERVICE_TENANT
from cloud_server.state import keys
from cloud_server.state.directory import Key
from cloud_server.state.store import Transaction
from protos.errors import ConflictError

Scope = Literal["ask", "read", "manage"]
_SCOPES: tuple[Scope, ...] = ("ask", "read", "manage")


class KeyEntry(BaseModel):
    """A key, without its text."""

    id: str
    name: str
    tenant: str
    kind: Literal["application", "operator"]
    scopes: list[Scope]
    devices: list[str] | None = Field(description="devices that it is limited to; null for all")
    enabled: bool
    created_s: float = Field(description="seconds since 1970")
    not_after_s: float | None = Field(description="when it expires; null if never")


class FreshKey(KeyEntry):
    """A new key."""

    key: str = Field(description="its text, shown only now")


class NewKey(Change):
    """A key to make."""

    name: str = Field(pattern=NAME)
    kind: Literal["application", "operator"] = "application"
    scopes: list[Scope] = Field(["ask", "read"], min_length=1, max_length=3)
    devices: list[Annotated[str, Field(pattern=NAME)]] | None = Field(
        None, min_length=1, max_length=1000, description="names; null for every device"
    )
    days: float | None = Field(
        None, ge=1e-3, le=36500, description="days until it expires; null for never"
    )


def router(management: Management) -> APIRouter:
    """The routes."""
    made = named.router(
        management,
        named.Kind(
            "key",
            KeyEntry,
            _entry,
            KeyEntry,
            keys.every,
            lambda session, tenant, name: _entry(keys.show(session, tenant, name)),
            keys.enable,
            keys.disable,
            keys.remove,
        ),
    )

    @made.post("", status_code=201)
    def add_key(attempt: Attempted, body: NewKey, tenant: OfTenant = None) -> FreshKey:
        """Make a key; only this answer shows its text."""

        def act(tx: Transaction, of: str) -> FreshKey:
            if of == SERVICE_TENANT and body.kind != "operator":
                raise ConflictError(
                    f"keys of tenant '{of}' are for operators: name the tenant that the key is for"
                )
            key, text = keys.add(
                tx,
                of,
                body.name,
                kind=body.kind,
                scopes=body.scopes,
                devices=body.devices,
                not_after_s=None if body.days is None else tx.now_s + body.days * 86400.0,
            )
            return FreshKey(**_entry(key).model_dump(), key=text)

        return management.change_of(attempt, tenant, FreshKey, act)

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
