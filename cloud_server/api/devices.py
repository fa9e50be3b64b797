"""`/v1/devices`: the devices that a caller may see, with the newest scene of each."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from cloud_server.api.fidelity import age_of
from cloud_server.api.held import Held
from cloud_server.api.paging import NAME, Limit, NameCursor, Page, page
from cloud_server.api.scenes import TenantName
from cloud_server.api.visit import caller_of
from cloud_server.identity.caller import Caller
from cloud_server.state.directory import LiveDirectory
from protos.errors import MissingError


class LatestScene(BaseModel):
    """A device's newest scene."""

    id: str
    accepted_at: float = Field(description="seconds since 1970")
    age_s: float


class DeviceEntry(BaseModel):
    """A device."""

    id: str = Field(description="its name")
    object: Literal["device"] = "device"
    tenant: str
    enabled: bool
    latest_scene: LatestScene | None = Field(description="null if none of its scenes is held")


class Devices:
    """The routes of devices.

    Args:
        live: the directory of devices; without one, only devices with a held scene are listed.
        held: their scenes.
    """

    def __init__(self, live: LiveDirectory | None, held: Held) -> None:
        self._live, self._held = live, held

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/devices", tags=["devices"])

        @router.get("")
        async def devices(
            request: Request,
            tenant: TenantName = None,
            cursor: NameCursor = None,
            limit: Limit = 20,
        ) -> Page[DeviceEntry]:
            """List the devices, by name."""
            found = [one for one in self._of(caller_of(request), tenant) if one.id > (cursor or "")]
            return page(found, lambda one: one, lambda one: one.id, limit)

        @router.get("/{device}")
        async def device(
            request: Request,
            device: Annotated[str, Path(pattern=NAME)],
            tenant: TenantName = None,
        ) -> DeviceEntry:
            """One device."""
            for found in self._of(caller_of(request), tenant):
                if found.id == device:
                    return found
            raise MissingError(f"there is no device '{device}'")

        return router

    def _of(self, caller: Caller, tenant: str | None) -> list[DeviceEntry]:
        """The devices of a tenant that a caller may see.

        Raises:
            ForbiddenError: its key may not read.
        """
        caller.require("read")
        of = tenant or caller.tenant
        return [
            self._entry(of, name, enabled)
            for name, enabled in self._known(caller, of).items()
            if caller.sees(of, name)
        ]

    def _known(self, caller: Caller, tenant: str) -> dict[str, bool]:
        """A tenant's devices by name, and whether each is enabled."""
        if self._live is None:
            return {
                name: True for name in sorted({s.device for s in self._held.of(caller, tenant)})
            }
        return {device.name: not device.disabled for device in self._live.now.devices(tenant)}

    def _entry(self, tenant: str, name: str, enabled: bool) -> DeviceEntry:
        scene = self._held.latest(tenant, name)
        latest = None
        if scene is not None:
            latest = LatestScene(
                id=scene.scene_id, accepted_at=scene.accepted_at, age_s=age_of(scene)
            )
        return DeviceEntry(id=name, tenant=tenant, enabled=enabled, latest_scene=latest)
