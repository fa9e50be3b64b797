"""`/v1/admin/quotas`: quotas of tenants and devices."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.attempt import Attempted
from cloud_server.api.admin.management import Change, Management, OfTenant
from cloud_server.api.visit import caller_of
from cloud_server.api.whole import WHOLE
from cloud_server.state import quotas
from cloud_server.state.quotas import SetQuota
from protos.identity import NAME

Rate = Annotated[float | None, Field(ge=0, le=quotas.MOST)]
Count = Annotated[int, Field(ge=0, le=10**12), WHOLE] | None


class Bounds(Change):
    """Bounds; 0 means no bound, null means the service's default."""

    requests_per_s: Rate = None
    request_burst: Rate = None
    bytes_per_s: Rate = None
    byte_burst: Rate = None
    concurrent: Count = None
    scenes: Count = None
    weight: Annotated[float | None, Field(ge=0.01, le=100)] = None


class QuotaEntry(BaseModel):
    """A quota that was set."""

    device: str | None = Field(
        description="null for a tenant's devices together, `*` for each, or a device's name"
    )
    bounds: Bounds


class QuotaList(BaseModel):
    """Quotas that were set for a tenant."""

    object: Literal["list"] = "list"
    data: list[QuotaEntry]


class QuotaChange(Change):
    """Bounds to set; the others stay as they are."""

    device: str | None = Field(
        None,
        pattern=rf"^(\*|{NAME.pattern})$",
        description="null for a tenant's devices together, `*` for each, or a device's name",
    )
    bounds: Bounds


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/admin/quotas", tags=["management"])

    @made.get("")
    def list_quotas(request: Request, tenant: OfTenant = None) -> QuotaList:
        """List the quotas that were set for a tenant and its devices."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            return QuotaList(data=[_entry(one) for one in quotas.every(session, of)])

    @made.patch("")
    def change_quota(attempt: Attempted, body: QuotaChange, tenant: OfTenant = None) -> QuotaEntry:
        """Set a quota; for operators of the whole service. It takes effect at once."""
        management.require_service(attempt.caller)
        given = body.bounds.model_dump(exclude_unset=True)
        values = {name: value for name, value in given.items() if value is not None}
        return management.change_of(
            attempt,
            tenant,
            QuotaEntry,
            lambda tx, of: _entry(
                quotas.change(tx, of, body.device, values, given.keys() - values.keys())
            ),
        )

    return made


def _entry(one: SetQuota) -> QuotaEntry:
    return QuotaEntry(device=one.device, bounds=Bounds.model_validate(one.values))
