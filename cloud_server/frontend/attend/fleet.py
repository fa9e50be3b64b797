"""What the devices that take orders here say of themselves: their versions, their newest vitals."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloud_server.metrics import Metrics
from cloud_server.state import device_reports
from cloud_server.state.store import Store
from cloud_server.throttle import Throttle
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.logs import Logger

_COUNT_S = 15.0
"""Pause between two counts of the devices in the database."""


@dataclass
class Present:
    """A device that takes orders here.

    Attributes:
        tenant: its tenant's name.
        name: its own.
        version: of its agent, as it says.
        vitals: its newest; None before the first.
        at_s: when they came, seconds since 1970.
    """

    tenant: str
    name: str
    version: str
    vitals: pb.Vitals | None = None
    at_s: float = 0.0


class Fleet:
    """The devices that take orders at this front end. Call it on the event loop.

    Args:
        store: the database; None on a service without one.
        metrics: shows what they say, the worst or the sum of all.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
        clock: seconds since 1970.

    Attributes:
        changes: called with each device that comes, leaves or says how it is.
    """

    def __init__(
        self,
        store: Store | None,
        metrics: Metrics,
        log: Logger,
        few: Throttle,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._metrics, self._log, self._few = store, metrics, log, few
        self._clock = clock
        self._present: dict[str, Present] = {}
        self.changes: list[Callable[[Present], None]] = []
        metrics.attending.set_function(lambda: len(self._present))
        metrics.known_devices.set(0.0 if store is None else math.nan)
        metrics.agent_devices.read_from(self._versions)
        metrics.reporting_devices.read_from(lambda: self._one(float(len(self._told()))))
        metrics.device_spool_frames.read_from(lambda: self._sum("spool_frames"))
        metrics.device_spool_age.read_from(lambda: self._most(self._spool_age))
        metrics.device_temperature.read_from(lambda: self._most(_temperature))
        metrics.device_power.read_from(self._power)
        metrics.throttled_devices.read_from(lambda: self._sum("throttled"))
        metrics.device_certificate_end.read_from(self._first_end)

    def came(self, device_id: str, tenant: str, name: str, version: str) -> None:
        """A device begins to take orders here, perhaps anew."""
        before = self._present.get(device_id)
        self._present[device_id] = Present(tenant, name, version)
        if before is not None:
            self._present[device_id].vitals = before.vitals
            self._present[device_id].at_s = before.at_s
        self._tell(self._present[device_id])

    def left(self, device_id: str) -> None:
        """A device takes no orders here any more."""
        if left := self._present.pop(device_id, None):
            self._tell(left)

    def said(self, device_id: str, vitals: pb.Vitals) -> None:
        """A device's vitals have come; those of one that takes no orders here are not kept."""
        if present := self._present.get(device_id):
            present.vitals, present.at_s = vitals, self._clock()
            self._tell(present)

    def of(self, device_id: str) -> Present | None:
        """A device that takes orders here."""
        return self._present.get(device_id)

    async def run(self) -> None:
        """Count the devices in the database until cancelled; no error of it ends this."""
        store = self._store
        while store is not None:
            try:
                self._metrics.known_devices.set(await asyncio.to_thread(_known, store))
            except BridgeError as error:
                if self._few.passes("known_devices"):
                    self._log.warning("devices_not_counted", cause=error.message)
            await asyncio.sleep(_COUNT_S)

    def _tell(self, present: Present) -> None:
        for told in self.changes:
            told(present)

    # --------------------------------------------- samples, in the thread of the metrics port

    def _told(self) -> list[tuple[Present, pb.Vitals]]:
        return [
            (one, one.vitals) for one in self._present.copy().values() if one.vitals is not None
        ]

    def _versions(self) -> Iterator[tuple[tuple[str], float]]:
        found: dict[str, int] = {}
        for one in self._present.copy().values():
            found[one.version] = found.get(one.version, 0) + 1
        for version, count in sorted(found.items(), key=lambda item: -item[1]):
            yield (version,), count

    def _one(self, value: float) -> Iterator[tuple[tuple[()], float]]:
        yield (), value

    def _sum(self, field: str) -> Iterator[tuple[tuple[()], float]]:
        return self._one(float(sum(getattr(vitals, field) for _, vitals in self._told())))

    def _power(self) -> Iterator[tuple[tuple[()], float]]:
        watts = [vitals.power_watts for _, vitals in self._told() if vitals.HasField("power_watts")]
        return self._one(sum(watts)) if watts else iter(())

    def _most(
        self, of: Callable[[Present, pb.Vitals], float | None]
    ) -> Iterator[tuple[tuple[()], float]]:
        values = [value for one in self._told() if (value := of(*one)) is not None]
        return self._one(max(values)) if values else iter(())

    def _spool_age(self, present: Present, vitals: pb.Vitals) -> float:
        if not vitals.spool_frames:
            return 0.0
        return float(vitals.spool_oldest_age_s) + max(0.0, self._clock() - present.at_s)

    def _first_end(self) -> Iterator[tuple[tuple[()], float]]:
        ends = [vitals.certificate_end_s for _, vitals in self._told() if vitals.certificate_end_s]
        return self._one(min(ends)) if ends else iter(())


def _temperature(_: Present, vitals: pb.Vitals) -> float | None:
    return float(vitals.temperature_celsius) if vitals.HasField("temperature_celsius") else None


def _known(store: Store) -> int:
    with store.read() as session:
        return device_reports.known(session)
