"""`/v1/admin/quotas`: how much tenants and devices may ask for."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.management import Asked, Management, OfTenant
from cloud_server.api.failures import FieldError
from cloud_server.api.scenes import NAME
from cloud_server.api.visit import caller_of
from cloud_server.state import quotas
from cloud_server.state.quotas import SetQuota

Bound = Literal[
    "requests_per_s",
    "request_burst",
    "bytes_per_s",
    "byte_burst",
    "concurrent",
    "scenes",
    "weight",
]
Whose = Literal["tenant", "each_device", "device"]


class QuotaEntry(BaseModel):
    """The bounds that were set; others have the service's defaults."""

    of: Whose = Field(description="of the tenant's devices together, of each, or of one")
    device: str | None = Field(description="its name, of one device")
    values: dict[Bound, float]


class QuotaList(BaseModel):
    """What was set for a tenant."""

    object: Literal["list"] = "list"
    data: list[QuotaEntry]


class QuotaChange(Asked):
    """Bounds to set; 0 is no bound."""

    of: Whose = "tenant"
    device: Annotated[str | None, Field(pattern=NAME, description="of one device: its name")] = None
    values: dict[Bound, Annotated[float, Field(ge=0, le=1e12)]] = {}
    unset: list[Bound] = Field([], description="back to the default", max_length=7)


def router(management: Management) -> APIRouter:
    """The routes."""
    made = APIRouter(prefix="/v1/admin/quotas", tags=["management"])

    @made.get("")
    def list_quotas(request: Request, tenant: OfTenant = None) -> QuotaList:
        """What was set for a tenant and its devices."""
        of = management.tenant(caller_of(request), tenant)
        with management.read() as session:
            return QuotaList(data=[_entry(one) for one in quotas.every(session, of)])

    @made.patch("")
    def change_quota(request: Request, body: QuotaChange, tenant: OfTenant = None) -> QuotaEntry:
        """Set bounds; for operators of the whole service. It takes effect at once."""
        caller = caller_of(request)
        management.require_service(caller)
        of = management.tenant(caller, tenant)
        if (body.of == "device") != (body.device is not None):
            raise FieldError("device", "device is given exactly if `of` is 'device'")
        if not body.values and not body.unset:
            raise FieldError("values", "nothing to set: give `values` or `unset`")
        whose = {"tenant": None, "each_device": quotas.EACH_DEVICE}.get(body.of, body.device)
        with management.write(caller) as tx:
            values = {str(name): value for name, value in body.values.items()}
            return _entry(quotas.change(tx, of, whose, values, body.unset))

    return made


def _entry(one: SetQuota) -> QuotaEntry:
    alone = one.device not in (None, quotas.EACH_DEVICE)
    return QuotaEntry.model_validate(
        {
            "of": "device" if alone else "tenant" if one.device is None else "each_device",
            "device": one.device if alone else None,
            "values": one.values,
        }
    )
