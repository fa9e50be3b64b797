"""`/v1/live/…`: the views of the live page; `cloud-server top` reads them too."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from cloud_server.api.paging import NAME
from cloud_server.api.scenes import TenantName
from cloud_server.api.visit import caller_of
from cloud_server.page.feed import Feed
from cloud_server.page.sight import Sight
from cloud_server.page.views import DeviceDetail, FleetView, RequestDetail

DeviceInPath = Annotated[str, Path(pattern=NAME)]
RequestId = Annotated[str, Path(pattern="^[0-9a-f]{2,64}$", description="id of the request, hex")]

_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp"}
"""Kinds of picture files, by how they begin."""
_BYTES = "application/octet-stream"
_PICTURE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
}


def router(sight: Sight, feed: Feed) -> APIRouter:
    """The routes.

    Args:
        sight: makes the views.
        feed: streams them.
    """
    made = APIRouter(prefix="/v1/live", tags=["live page"])

    @made.get("/fleet")
    async def fleet(
        request: Request,
        tenant: TenantName = None,
        begins: Annotated[
            str, Query(max_length=64, description="only devices whose names begin so")
        ] = "",
    ) -> FleetView:
        """The devices: who is alive, how old its newest scene is, whether it can be believed."""
        return sight.fleet(caller_of(request), tenant, begins)

    @made.get("/devices/{device}")
    async def device(
        request: Request, device: DeviceInPath, tenant: TenantName = None
    ) -> DeviceDetail:
        """One device: its newest scene, its last hours, its newest requests."""
        return sight.device(caller_of(request), tenant, device)

    @made.get("/devices/{device}/requests/{id}")
    async def request(
        request: Request, device: DeviceInPath, id: RequestId, tenant: TenantName = None
    ) -> RequestDetail:
        """One request: where its time went, what each stage lost, how far to believe its answer."""
        return sight.request(caller_of(request), tenant, device, id)

    @made.get(
        "/devices/{device}/requests/{id}/picture",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in _PICTURES.values()}}},
    )
    async def picture(
        request: Request, device: DeviceInPath, id: RequestId, tenant: TenantName = None
    ) -> Response:
        """The picture of a request's scene, if it was shadowed and may be seen."""
        file = sight.picture(caller_of(request), tenant, device, id)
        kind = next((kind for begins, kind in _PICTURES.items() if file.startswith(begins)), "")
        return Response(
            file, headers=_PICTURE_HEADERS, media_type=kind or "application/octet-stream"
        )

    # Endless, so not in the description, whose tests call every route and wait for its end.
    @made.get("/events", include_in_schema=False)
    async def events(
        request: Request,
        device: Annotated[str | None, Query(pattern=NAME)] = None,
        tenant: TenantName = None,
    ) -> Response:
        """The fleet, or one device, as server-sent events."""
        caller = caller_of(request)
        if device is None:
            return feed.fleet(caller, tenant)
        return feed.device(caller, tenant, device)

    return made
