"""`/v1/admin/audit`: who changed what, and when."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.management import Management, OfTenant
from cloud_server.api.paging import Limit, LineCursor, Page, page
from cloud_server.api.visit import caller_of
from cloud_server.state import audit


class AuditLine(BaseModel):
    """One change."""

    id: int
    at_s: float = Field(description="seconds since 1970")
    actor: str = Field(description="who, such as `cli:anna` or `key:acme/dashboard`")
    action: str = Field(description="what, such as `device.disable`")
    tenant: str
    subject: str = Field(description="name of the thing")
    detail: dict[str, Any]


def router(management: Management) -> APIRouter:
    """The route."""
    made = APIRouter(prefix="/v1/admin/audit", tags=["management"])

    @made.get("")
    def read_audit(
        request: Request,
        tenant: OfTenant = None,
        actor: Annotated[str | None, Query(max_length=128)] = None,
        action: Annotated[
            str | None,
            Query(max_length=64, description="such as `device.add`, or a prefix such as `device.`"),
        ] = None,
        since_s: Annotated[
            float | None, Query(ge=0, le=1e11, description="seconds since 1970")
        ] = None,
        cursor: LineCursor = None,
        limit: Limit = 20,
    ) -> Page[AuditLine]:
        """Read the audit log, newest first; operators of the service read every tenant's."""
        caller = caller_of(request)
        own = management.tenant(caller, tenant)
        with management.read() as session:
            found = audit.entries(
                session,
                tenant=None if caller.of_service and tenant is None else own,
                actor=actor,
                action=action,
                since_s=since_s,
                before=None if cursor is None else int(cursor),
                limit=limit + 1,
            )
        return page(found, lambda one: AuditLine(**vars(one)), lambda one: str(one.id), limit)

    return made
