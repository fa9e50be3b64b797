"""The read model: tenants, devices, keys and quotas in memory, for hot paths.

A `Directory` is an immutable snapshot of the database. `LiveDirectory` replaces it when the
database's token changes. While the database cannot be read, the last snapshot stays.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud_server.identity.caller import Kind
from cloud_server.state.quota import QUOTA_FIELDS, UNBOUNDED, Quota
from cloud_server.state.store import Store
from cloud_server.state.tables import (
    CertificateRow,
    ChangeRow,
    DeviceRow,
    KeyDeviceRow,
    KeyRow,
    QuotaRow,
    TenantRow,
)
from protos.errors import BridgeError

_POLL_S = 1.0


@dataclass(frozen=True)
class Tenant:
    """A tenant; times are seconds since 1970."""

    id: str
    name: str
    created_s: float
    disabled: bool


@dataclass(frozen=True)
class Device:
    """A device of a tenant, both by name; times are seconds since 1970."""

    id: str
    tenant: str
    name: str
    created_s: float
    disabled: bool


@dataclass(frozen=True)
class Certificate:
    """A certificate that a device was issued.

    Attributes:
        serial: 32 hexadecimal digits, lower case.
        tenant: name of the device's tenant.
        device: the device's name.
        fingerprint: SHA-256 of the certificate's DER, in hexadecimal digits.
        issued_s: when it was issued, seconds since 1970.
        not_after_s: when it expires; the caller compares it with the clock.
        revoked_s: when it was revoked.
    """

    serial: str
    tenant: str
    device: str
    fingerprint: str
    issued_s: float
    not_after_s: float
    revoked_s: float | None = None


@dataclass(frozen=True)
class Key:
    """A bearer key.

    Attributes:
        id: never used again, unlike the name.
        tenant: name of its tenant.
        name: its name within the tenant.
        kind: `application` or `operator`.
        scopes: what it may do.
        devices: names of the devices that it is limited to; None for all of the tenant's.
        created_s: seconds since 1970.
        not_after_s: when it expires, infinite if never; the caller compares it with the clock.
        disabled: whether it is disabled.
    """

    id: str
    tenant: str
    name: str
    kind: Kind
    scopes: frozenset[str]
    devices: frozenset[str] | None
    created_s: float
    not_after_s: float
    disabled: bool


class Directory:
    """An immutable snapshot of the database; every look-up is a dictionary look-up.

    Args:
        token: the database's token at that moment.
        tenants: every tenant, by name.
        devices: every device, by tenant and name.
        certificates: by serial number; only certificates that are not revoked, of enabled devices
        of enabled tenants.
        keys: by the SHA-256 of their text; only enabled keys of enabled tenants.
        quotas: values that differ from the defaults, by tenant, then by `None` (whole tenant), `*`
        (each device) or a device's name.
        each_device: default bounds of a device.
        each_tenant: default bounds of a tenant's devices together.
    """

    def __init__(
        self,
        token: str,
        tenants: Mapping[str, Tenant],
        devices: Mapping[tuple[str, str], Device],
        certificates: Mapping[str, Certificate],
        keys: Mapping[str, Key],
        quotas: Mapping[tuple[str, str | None], Mapping[str, float | None]],
        each_device: Quota,
        each_tenant: Quota,
    ) -> None:
        self.token = token
        self._tenants, self._devices = tenants, devices
        self._certificates, self._keys = certificates, keys
        self._keys_by_id = {key.id: (digest, key) for digest, key in keys.items()}
        self._of_tenant: dict[str, list[Device]] = defaultdict(list)
        for device in devices.values():
            self._of_tenant[device.tenant].append(device)
        self._each_device = {
            tenant: each_device.changed(values)
            for (tenant, of), values in quotas.items()
            if of == "*"
        }
        self._quotas: dict[tuple[str, str | None], Quota] = {}
        for (tenant, of), values in quotas.items():
            if of != "*":
                usual = each_tenant if of is None else self._each_device.get(tenant, each_device)
                self._quotas[tenant, of] = usual.changed(values)
        self._default_device, self._default_tenant = each_device, each_tenant

    @classmethod
    def load(cls, session: Session, each_device: Quota, each_tenant: Quota) -> Directory:
        """Read the database in a session with a consistent snapshot."""
        token = session.scalar(select(ChangeRow.token)) or ""
        tenants = {row.id: row for row in session.scalars(select(TenantRow))}
        names = {id: row.name for id, row in tenants.items()}
        shut = {id for id, row in tenants.items() if row.disabled}
        devices = {
            id: (Device(id, names[tenant], name, created_s, disabled), tenant in shut or disabled)
            for id, tenant, name, created_s, disabled in session.execute(
                select(
                    DeviceRow.id,
                    DeviceRow.tenant_id,
                    DeviceRow.name,
                    DeviceRow.created_s,
                    DeviceRow.disabled,
                ).order_by(DeviceRow.name)
            ).tuples()
        }
        certificates = {}
        for serial, of, fingerprint, issued_s, not_after_s in session.execute(
            select(
                CertificateRow.serial,
                CertificateRow.device_id,
                CertificateRow.fingerprint,
                CertificateRow.issued_s,
                CertificateRow.not_after_s,
            ).where(CertificateRow.revoked_s.is_(None))
        ).tuples():
            device, out = devices[of]
            if not out:
                certificates[serial] = Certificate(
                    serial, device.tenant, device.name, fingerprint, issued_s, not_after_s
                )
        keys = keys_of(session, names, {id: device.name for id, (device, _) in devices.items()})
        quotas: dict[tuple[str, str | None], Mapping[str, float | None]] = {}
        for row in session.scalars(select(QuotaRow)):
            whose = "*" if row.of == "each_device" else None
            if row.device_id is not None:
                whose = devices[row.device_id][0].name
            values = {name: getattr(row, name) for name in QUOTA_FIELDS}
            quotas[names[row.tenant_id], whose] = values
        return cls(
            token,
            {
                row.name: Tenant(row.id, row.name, row.created_s, row.disabled)
                for row in tenants.values()
            },
            {(device.tenant, device.name): device for device, _ in devices.values()},
            certificates,
            {
                row.token_sha256: key
                for row, key in keys
                if not key.disabled and row.tenant_id not in shut
            },
            quotas,
            each_device,
            each_tenant,
        )

    def tenant(self, name: str) -> Tenant | None:
        """A tenant, enabled or not."""
        return self._tenants.get(name)

    def tenants(self) -> list[Tenant]:
        """Every tenant, by name."""
        return [self._tenants[name] for name in sorted(self._tenants)]

    def device(self, tenant: str, name: str) -> Device | None:
        """A device, enabled or not."""
        return self._devices.get((tenant, name))

    def lost(self, before: Directory, tenant: str, name: str) -> bool:
        """Whether a device was removed since an earlier directory; its name may be used again."""
        old, new = before.device(tenant, name), self.device(tenant, name)
        return old is not None and (new is None or new.id != old.id)

    def devices(self, tenant: str) -> list[Device]:
        """A tenant's devices, by name."""
        return list(self._of_tenant.get(tenant, ()))

    def certificate(self, serial: str) -> Certificate | None:
        """A certificate that is not revoked and whose device and tenant are enabled."""
        return self._certificates.get(serial)

    def key(self, sha256: str) -> Key | None:
        """An enabled key of an enabled tenant, by the SHA-256 of its text."""
        return self._keys.get(sha256)

    def key_by_id(self, id: str) -> tuple[str, Key] | None:
        """An enabled key of an enabled tenant, by its id; also the SHA-256 of its text."""
        return self._keys_by_id.get(id)

    def quota(self, tenant: str, device: str | None = None) -> Quota:
        """Quota of one device; without a device, of the whole tenant."""
        found = self._quotas.get((tenant, device))
        if found is not None:
            return found
        if device is None:
            return self._default_tenant
        return self._each_device.get(tenant, self._default_device)


def keys_of(
    session: Session, tenants: Mapping[str, str], devices: Mapping[str, str]
) -> list[tuple[KeyRow, Key]]:
    """Every key of some tenants, by name.

    Args:
        session: reads.
        tenants: names by id.
        devices: names by id.
    """
    allowed: dict[str, set[str]] = defaultdict(set)
    for key_id, device_id in session.execute(
        select(KeyDeviceRow.key_id, KeyDeviceRow.device_id)
    ).tuples():
        if device_id in devices:
            allowed[key_id].add(devices[device_id])
    rows = session.scalars(select(KeyRow).order_by(KeyRow.name))
    return [
        (
            row,
            Key(
                row.id,
                tenants[row.tenant_id],
                row.name,
                "operator" if row.kind == "operator" else "application",
                frozenset(row.scopes.split()),
                None if row.every_device else frozenset(allowed[row.id]),
                row.created_s,
                float("inf") if row.not_after_s is None else row.not_after_s,
                row.disabled,
            ),
        )
        for row in rows
        if row.tenant_id in tenants
    ]


class LiveDirectory:
    """The newest directory; while `run` runs, a thread keeps it up to date.

    Args:
        store: the database.
        each_device: default bounds of a device.
        each_tenant: default bounds of a tenant's devices together.

    Attributes:
        now: replaced as a whole, never changed.

    Raises:
        StateError: the database cannot be read at the start.
    """

    def __init__(
        self, store: Store, each_device: Quota = UNBOUNDED, each_tenant: Quota = UNBOUNDED
    ) -> None:
        self._store, self._each_device, self._each_tenant = store, each_device, each_tenant
        self._callbacks: list[Callable[[], None]] = []
        self._log = structlog.get_logger(component="directory")
        self._failing, self._stale = "", False
        self._wake, self._stop = threading.Event(), threading.Event()
        self.now = self._load()

    def changed(self, callback: Callable[[], None]) -> None:
        """Call a function in the event loop whenever `now` was replaced."""
        self._callbacks.append(callback)

    def on_removal(self, forget: Callable[[Callable[[str, str], bool]], None]) -> None:
        """Call a function whenever `now` was replaced, with a test of what was removed.

        Args:
            forget: given a function that says of a tenant and a device's name whether that device
                was removed since the last call; its name may be in use again.
        """
        before = self.now

        def removed() -> None:
            nonlocal before
            earlier, before = before, self.now
            forget(functools.partial(before.lost, earlier))

        self.changed(removed)

    def change_defaults(self, each_device: Quota, each_tenant: Quota) -> None:
        """Change the default bounds; the next look at the database uses them."""
        if (each_device, each_tenant) != (self._each_device, self._each_tenant):
            self._each_device, self._each_tenant = each_device, each_tenant
            self._stale = True
            self.wake()

    def wake(self) -> None:
        """Check the database now instead of within a second; any thread may call it."""
        self._wake.set()

    def stale_seconds(self) -> float:
        """Age of `now`: seconds since it was last compared with the database."""
        return max(0.0, time.monotonic() - self._checked_s)

    async def run(self) -> None:
        """Follow the database until cancelled; no error of the database ends this."""
        loop = asyncio.get_running_loop()

        def follow() -> None:
            # A daemon thread: a database that never answers must not keep the process from ending.
            while not self._stop.is_set():
                before = self.now
                self._look()
                if self.now is not before:
                    with suppress(RuntimeError):  # the loop is closed
                        for callback in self._callbacks:
                            loop.call_soon_threadsafe(callback)
                self._wake.wait(_POLL_S)
                self._wake.clear()

        self._stop.clear()
        threading.Thread(target=follow, name="directory", daemon=True).start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stop.set()
            self._wake.set()

    def _look(self) -> None:
        """Reload the directory if the token changed."""
        try:
            asked_s = time.monotonic()
            if self._store.token() == self.now.token and not self._stale:
                self._checked_s = asked_s
            else:
                self.now = self._load()
                self._store.settle_journal()
        except Exception as error:  # whatever it is, the thread must go on looking
            cause = error.message if isinstance(error, BridgeError) else repr(error)
            if cause != self._failing:
                self._log.error(
                    "the database cannot be read; the last known state is used", cause=cause
                )
            self._failing = cause
            return
        if self._failing:
            self._failing = ""
            self._log.info("the database can be read again")

    def _load(self) -> Directory:
        began_s = time.monotonic()
        self._stale = False
        with self._store.read() as session:
            loaded = Directory.load(session, self._each_device, self._each_tenant)
        self._checked_s = began_s
        self._log.info(
            "directory loaded", seconds=round(time.monotonic() - began_s, 3), token=loaded.token[:8]
        )
        return loaded
