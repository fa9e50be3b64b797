"""What one caller sees of the live page: the same rules as everywhere else over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cloud_server.api.fidelity import DistortionFigures
from cloud_server.api.held import Held
from cloud_server.frontend.shadowing.pictures import ShadowPictures
from cloud_server.identity.caller import Caller
from cloud_server.page import views
from cloud_server.page.timeline import Device
from cloud_server.page.watch import Watch
from cloud_server.state.directory import LiveDirectory
from protos.errors import MissingError

MOST_ROWS = 2000
"""Devices in one view of the fleet; those that need attention come first."""
_ORDER = {"doubted": 0, "unknown": 1, "none": 2, "picture": 3, "believed": 4}


class Sight:
    """Makes the views for callers.

    Args:
        watch: what is remembered.
        held: the scenes held.
        live: the directory of devices; None without one.
        attends: whether a device, by its id, takes orders now.
        pictures: shadowed pictures that viewers may see.
        silent_s: a device that was not heard for so long counts as silent.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        watch: Watch,
        held: Held,
        live: LiveDirectory | None,
        attends: Callable[[str], bool],
        pictures: ShadowPictures,
        silent_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.watch, self._held, self._live = watch, held, live
        self._pictures = pictures
        self._attends, self._silent_s, self._clock = attends, silent_s, clock

    @property
    def directory(self) -> object:
        """The directory as it is now; another object once it has changed."""
        return None if self._live is None else self._live.now

    def tenants(self, caller: Caller) -> list[str]:
        """The tenants that a caller may see, by name."""
        if self._live is None or not caller.of_service or caller.kind == "anyone":
            return [caller.tenant]
        return [one.name for one in self._live.now.tenants()]

    def fleet(self, caller: Caller, tenant: str | None, begins: str = "") -> views.FleetView:
        """The fleet.

        Args:
            caller: who looks.
            tenant: of this tenant; None for all that the caller may see.
            begins: only devices whose names begin so.

        Raises:
            ForbiddenError: its key may not read.
        """
        caller.require("read")
        tenants = [tenant] if tenant is not None else self.tenants(caller)
        rows = [
            self._row((of, name), enabled)
            for of in tenants
            for name, enabled in self._known(of).items()
            if name.startswith(begins) and caller.sees(of, name)
        ]
        left_out = max(0, len(rows) - MOST_ROWS)
        if left_out:
            rows.sort(key=lambda row: (_ORDER[row.belief], row.tenant, row.device))
            rows = rows[:MOST_ROWS]
        rows.sort(key=lambda row: (row.tenant, row.device))
        return views.FleetView(
            now=self._clock(), silent_s=self._silent_s, whole=True, rows=rows, left_out=left_out
        )

    def changed(
        self, caller: Caller, tenant: str | None, devices: Iterable[Device]
    ) -> views.FleetView:
        """The rows of some devices, those that the caller may see."""
        rows = []
        for of, name in devices:
            if (tenant is None or of == tenant) and caller.sees(of, name):
                enabled = self._enabled(of, name)
                if enabled is not None:
                    rows.append(self._row((of, name), enabled))
        return views.FleetView(
            now=self._clock(), silent_s=self._silent_s, whole=False, rows=rows, left_out=0
        )

    def device(
        self, caller: Caller, tenant: str | None, name: str, whole: bool = True
    ) -> views.DeviceDetail:
        """One device.

        Args:
            caller: who looks.
            tenant: the device's; None for the caller's own.
            name: the device.
            whole: with its whole timeline, else with the newest two slots alone.

        Raises:
            ForbiddenError: its key may not read.
            MissingError: there is none, or the caller may not see it.
        """
        device = self._require(caller, tenant, name)
        enabled = self._enabled(*device)
        scene = self._held.latest(*device)
        timelines = self.watch.timelines
        slots = timelines.of(device, self._clock()) if whole else timelines.newest(device)
        return views.DeviceDetail(
            now=self._clock(),
            silent_s=self._silent_s,
            whole=whole,
            row=self._row(device, bool(enabled)),
            grid=views.grid_of(scene),
            distortion=None if scene is None else DistortionFigures.of(scene.distortion),
            timeline=views.TimelineColumns.of(slots),
            requests=[views.RequestSummary.of(one) for one in self.watch.requests.of(device)],
        )

    def request(
        self, caller: Caller, tenant: str | None, name: str, id: str
    ) -> views.RequestDetail:
        """One request about a device's scene.

        Raises:
            ForbiddenError: its key may not read.
            MissingError: it is not kept, or the caller may not see its device.
        """
        device = self._require(caller, tenant, name)
        seen = self.watch.requests.find(device, id)
        if seen is None:
            raise MissingError(f"no request '{id}' of device '{name}' is kept")
        heard = self.watch.heard(device)
        pictures = heard.picture_bytes if heard is not None and heard.pictures else None
        slots = self.watch.timelines.of(device, self._clock())
        shadowed = self._pictures.of_scene(*seen.name) is not None
        return views.request_of(seen, pictures, slots, shadowed)

    def picture(self, caller: Caller, tenant: str | None, name: str, id: str) -> bytes:
        """The shadowed picture of a request's scene: a PNG, JPEG or WebP file.

        Raises:
            ForbiddenError: its key may not read.
            MissingError: as `request`, or no picture is kept for viewers.
        """
        device = self._require(caller, tenant, name)
        seen = self.watch.requests.find(device, id)
        found = None if seen is None else self._pictures.of_scene(*seen.name)
        if found is None or (found.tenant, found.device) != device:
            raise MissingError(f"no picture of request '{id}' of device '{name}' is kept")
        return found.file

    def change_of(self, caller: Caller, tenant: str | None, name: str) -> int:
        """Number of a device's last change; 0 before the first.

        Raises:
            ForbiddenError, MissingError: as `device`.
        """
        heard = self.watch.heard(self._require(caller, tenant, name))
        return 0 if heard is None else heard.change

    def _require(self, caller: Caller, tenant: str | None, name: str) -> Device:
        caller.require("read")
        of = tenant or caller.tenant
        if not caller.sees(of, name) or self._enabled(of, name) is None:
            raise MissingError(f"there is no device '{name}'")
        return of, name

    def _known(self, tenant: str) -> dict[str, bool]:
        """A tenant's devices by name, and whether each is enabled."""
        if self._live is None:
            return dict.fromkeys(self.watch.devices(tenant), True)
        return {device.name: not device.disabled for device in self._live.now.devices(tenant)}

    def _enabled(self, tenant: str, name: str) -> bool | None:
        """Whether a device is enabled; None if there is none."""
        if self._live is None:
            return None if self.watch.heard((tenant, name)) is None else True
        found = self._live.now.device(tenant, name)
        return None if found is None else not found.disabled

    def _row(self, device: Device, enabled: bool) -> views.FleetRow:
        heard, scene = self.watch.heard(device), self._held.latest(*device)
        return views.row_of(*device, enabled, self._is_there(device), heard, scene)

    def _is_there(self, device: Device) -> bool:
        """Whether it takes orders now."""
        found = None if self._live is None else self._live.now.device(*device)
        return found is not None and self._attends(found.id)
