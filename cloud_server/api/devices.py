"""`/v1/devices`: the devices that a caller may see, with the newest scene of each."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from cloud_server.api.fidelity import age_of
from cloud_server.api.fit import DeviceFit, fits_of
from cloud_server.api.held import Held
from cloud_server.api.paging import NAME, Limit, NameCursor, Page, page
from cloud_server.api.scenes import TenantName
from cloud_server.api.visit import caller_of
from cloud_server.frontend.shadowing.ledger import ShadowLedger
from cloud_server.identity.caller import Caller
from cloud_server.state.directory import LiveDirectory
from protos.errors import MissingError, StateError


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
    drifting: bool | None = Field(
        description="whether the map no longer fits what its camera sees; null if nothing is "
        "known: it has sent no pictures to measure, or the database cannot be read"
    )
    fit: DeviceFit | None = Field(
        description="what its shadowed frames have shown, with the newest bundle; null if it has "
        "sent none"
    )


class Devices:
    """The routes of devices.

    Args:
        live: the directory of devices; without one, only devices with a held scene are listed.
        held: their scenes.
        ledger: what their shadowed frames have shown.
    """

    def __init__(self, live: LiveDirectory | None, held: Held, ledger: ShadowLedger) -> None:
        self._live, self._held, self._ledger = live, held, ledger

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
            every = await self._of(caller_of(request), tenant)
            found = [one for one in every if one.id > (cursor or "")]
            return page(found, lambda one: one, lambda one: one.id, limit)

        @router.get("/{device}")
        async def device(
            request: Request,
            device: Annotated[str, Path(pattern=NAME)],
            tenant: TenantName = None,
        ) -> DeviceEntry:
            """One device."""
            for found in await self._of(caller_of(request), tenant):
                if found.id == device:
                    return found
            raise MissingError(f"there is no device '{device}'")

        return router

    async def _of(self, caller: Caller, tenant: str | None) -> list[DeviceEntry]:
        """The devices of a tenant that a caller may see.

        Raises:
            ForbiddenError: its key may not read.
        """
        caller.require("read")
        of = tenant or caller.tenant
        fits: dict[str, list[DeviceFit]] = {}
        with contextlib.suppress(StateError):  # devices are known without the database
            fits = await fits_of(self._ledger, of)
        return [
            self._entry(of, name, enabled, fits.get(name, []))
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

    def _entry(self, tenant: str, name: str, enabled: bool, fits: list[DeviceFit]) -> DeviceEntry:
        scene = self._held.latest(tenant, name)
        latest = None
        if scene is not None:
            latest = LatestScene(
                id=scene.scene_id, accepted_at=scene.accepted_at, age_s=age_of(scene)
            )
        return DeviceEntry(
            id=name,
            tenant=tenant,
            enabled=enabled,
            latest_scene=latest,
            drifting=fits[0].drifting_since_s is not None if fits else None,
            fit=fits[0] if fits else None,
        )
