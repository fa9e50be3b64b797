"""Signing in to the live page: a key becomes a cookie, which scripts cannot read."""

from __future__ import annotations

import math
import time

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from cloud_server.api.visit import caller_of
from cloud_server.frontend.access.access import Access
from cloud_server.identity.caller import Caller
from cloud_server.identity.cookies import NAME
from cloud_server.identity.identify import Identities
from cloud_server.page.files import PATH
from cloud_server.page.sight import Sight

SIGN_IN, SIGN_OUT = f"{PATH}/sign-in", f"{PATH}/sign-out"
_COOKIE = "Path=/; Secure; HttpOnly; SameSite=Strict"


class ShownKey(BaseModel):
    """A key that a person types in."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=256)


class PageSession(BaseModel):
    """Who is signed in."""

    kind: str = Field(description="application, operator; anyone on a service without identities")
    tenant: str
    name: str
    may_ask: bool
    tenants: list[str] = Field(description="tenants whose devices it may see")
    expires_at: float | None = Field(description="seconds since 1970; null if it never does")
    now: float = Field(description="the service's clock")


def router(access: Access, sight: Sight, session_h: float) -> APIRouter:
    """The routes.

    Args:
        access: identifies callers.
        sight: says what they may see.
        session_h: how long a session lasts, hours.
    """
    made = APIRouter(tags=["live page"])

    def session_of(caller: Caller) -> PageSession:
        caller.require("read")
        end_s = caller.not_after_s
        return PageSession(
            kind=caller.kind,
            tenant=caller.tenant,
            name=caller.name,
            may_ask="ask" in caller.scopes,
            tenants=sight.tenants(caller),
            expires_at=end_s if math.isfinite(end_s) else None,
            now=time.time(),
        )

    @made.post(SIGN_IN, openapi_extra={"security": []})
    async def sign_in(body: ShownKey, response: Response) -> PageSession:
        """Sign in: the key is checked, and a cookie stands for it from now on."""
        identities = access.identities
        if not isinstance(identities, Identities):
            return session_of(identities.bearer(body.key))
        cookie, caller = identities.sign_in(body.key.strip(), session_h * 3600)
        session = session_of(caller)
        life_s = max(0, int(caller.not_after_s - time.time()))
        response.headers["set-cookie"] = f"{NAME}={cookie.text}; Max-Age={life_s}; {_COOKIE}"
        response.headers["cache-control"] = "no-store"
        return session

    @made.post(SIGN_OUT, status_code=204, openapi_extra={"security": []})
    async def sign_out() -> Response:
        """Sign out: the browser forgets the cookie."""
        gone = {"set-cookie": f"{NAME}=; Max-Age=0; {_COOKIE}", "cache-control": "no-store"}
        return Response(status_code=204, headers=gone)

    @made.get(f"{PATH}/session")
    async def session(request: Request, response: Response) -> PageSession:
        """Who is signed in, or whose key this is."""
        response.headers["cache-control"] = "no-store"
        return session_of(caller_of(request))

    return made
