"""The records of devices and bundles: in the database, or in memory on a service without one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cloud_server.engine.jobs import Measured
from cloud_server.frontend.answers import Owner
from cloud_server.frontend.shadowing.record import Fit, ShadowRecord
from cloud_server.identity.caller import NO_TENANT
from cloud_server.state import shadows
from cloud_server.state.shadows import KeptShadows, ShadowSummary
from cloud_server.state.store import Store

_MOST = 4096
"""Records in memory, without a database."""


@dataclass(frozen=True)
class Added:
    """What a frame has changed.

    Attributes:
        fit: of its device with its bundle, now.
        turned: whether an alarm of drift begins or ends with it.
    """

    fit: Fit
    turned: bool


class ShadowLedger:
    """Adds frames to records. Its calls wait for the database: call them in a thread.

    Args:
        store: the database; None keeps records in memory only, as those of devices without an
            identity always are.
        false_alarms: of one device in a year.
    """

    def __init__(self, store: Store | None, false_alarms: float) -> None:
        self._store, self._false_alarms = store, false_alarms
        self._kept: OrderedDict[tuple[Owner, str], tuple[str, ShadowRecord]] = OrderedDict()

    def add(
        self,
        owner: Owner,
        digest: str,
        bundle_id: str,
        measured: Measured,
        limit: float | None,
        now_s: float,
    ) -> Added:
        """Add a frame.

        Args:
            owner: the device.
            digest: of its bundle.
            bundle_id: of its bundle.
            measured: the frame's figures.
            limit: see `ShadowRecord.add`.
            now_s: seconds since 1970.

        Raises:
            MissingError: the device is gone.
            StateError: the database cannot be used.
        """
        turned, record = False, ShadowRecord()

        def make(text: str) -> tuple[str, float, float | None]:
            nonlocal turned, record
            record = ShadowRecord.from_json(text) if text else ShadowRecord()
            turned = record.add(measured, limit, now_s, self._false_alarms)
            return record.to_json(), record.last_s, record.drifting_s

        if self._store is None or owner[0] == NO_TENANT:
            before = self._kept.pop((owner, digest), None)
            make(before[1].to_json() if before else "")
            self._kept[owner, digest] = bundle_id, record
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        else:
            with self._store.write(f"device:{'/'.join(owner)}", quiet=True) as tx:
                shadows.change(tx, *owner, digest, bundle_id, make)
        return Added(Fit.of(bundle_id, digest, record), turned)

    def of(self, tenant: str, device: str | None = None) -> dict[str, list[Fit]]:
        """What is known of a tenant's devices, or of one, by device; the newest bundle first.

        Raises:
            StateError: the database cannot be used.
        """
        found: dict[str, list[Fit]] = {}
        if self._store is not None and tenant != NO_TENANT:
            with self._store.read() as session:
                return fits(shadows.of(session, tenant, device))
        for (owner, digest), (bundle_id, record) in reversed(self._kept.items()):
            if owner[0] == tenant and device in (None, owner[1]):
                found.setdefault(owner[1], []).append(Fit.of(bundle_id, digest, record))
        return found

    def summary(self) -> list[ShadowSummary]:
        """All devices, by bundle.

        Raises:
            StateError: the database cannot be used.
        """
        found: list[ShadowSummary] = []
        if self._store is not None:
            with self._store.read() as session:
                found = shadows.summary(session)
        newest: dict[Owner, Fit] = {}
        for (owner, digest), (bundle_id, record) in list(self._kept.items()):
            newest[owner] = Fit.of(bundle_id, digest, record)
        bundles: dict[str, list[Fit]] = {}
        for fit in newest.values():
            bundles.setdefault(fit.bundle, []).append(fit)
        return found + [
            ShadowSummary(
                bundle,
                max(fit.last_s for fit in of),
                len(of),
                sum(fit.drifting_since_s is not None for fit in of),
            )
            for bundle, of in sorted(bundles.items())
        ]


def fits(kept: Sequence[KeptShadows]) -> dict[str, list[Fit]]:
    """What is kept in the database, by device."""
    found: dict[str, list[Fit]] = {}
    for one in kept:
        record = ShadowRecord.from_json(one.record)
        found.setdefault(one.device, []).append(Fit.of(one.bundle_id, one.digest, record))
    return found
