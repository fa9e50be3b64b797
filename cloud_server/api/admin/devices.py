"""`/v1/admin/devices`: devices, and one-time codes for enrolment."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from cloud_server.api.admin.management import (
    Change,
    Enabled,
    Management,
    Named,
    OfTenant,
    Removed,
)
from cloud_server.api.paging import NAME, Limit, NameCursor, Page, page
from cloud_server.api.visit import caller_of
from cloud_server.state import certificates, codes, devices
from cloud_server.state.directory import Certificate, Device
from cloud_server.state.store import Transaction


class CertificateEntry(BaseModel):
    """A certificate that a device was issued."""

    serial: str
    issued_s: float = Field(description="seconds since 1970, like the other times")
    not_after_s: float
    revoked_s: float | None

    @classmethod
    def of(cls, one: Certificate) -> CertificateEntry:
        """From the database's."""
        return cls(
            serial=one.serial,
            issued_s=one.issued_s,
            not_after_s=one.not_after_s,
            revoked_s=one.revoked_s,
        )


class ManagedDevice(BaseModel):
    """A device."""

    name: str
    tenant: str
    enabled: bool
    created_s: float = Field(description="seconds since 1970")


class DeviceWithCertificates(ManagedDevice):
    """A device and its certificates."""

    certificates: list[CertificateEntry] = Field(description="the newest first")


class DeviceWithCode(ManagedDevice):
    """A device and its one-time code for enrolment."""

    code: str = Field(description="one-time code, shown only now: edge-agent enrol --code CODE")
    code_expires_s: float = Field(description="seconds since 1970")


class Revocation(Change):
    """Which certificates of a device to revoke."""

    serial: str | None = Field(
        None,
        min_length=1,
        max_length=40,
        description="serial number of one certificate, or its first digits; null for all",
    )


class Revoked(BaseModel):
    """The certificates that were revoked."""

    revoked: list[CertificateEntry]


class NewDevice(Change):
    """A device to add."""

    name: str = Field(pattern=NAME)


def router(management: Management, root_der: Callable[[], bytes]) -> APIRouter:
    """The routes.

    Args:
        management: the database.
        root_der: the root certificate; codes carry its fingerprint.
    """
    made = APIRouter(prefix="/v1/admin/devices", tags=["management"])

    @made.get("")
    def list_devices(
        request: Request, tenant: OfTenant = None, cursor: NameCursor = None, limit: Limit = 20
    ) -> Page[ManagedDevice]:
        """List a tenant's devices, by name."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            found = [one for one in devices.every(session, of) if one.name > (cursor or "")]
        return page(found, _entry, lambda one: one.name, limit)

    @made.post("", status_code=201)
    def add_device(request: Request, body: NewDevice, tenant: OfTenant = None) -> DeviceWithCode:
        """Add a device; the answer has its one-time code for enrolment."""
        with management.changing(caller_of(request), tenant) as (tx, of):
            return _with_code(tx, devices.add(tx, of, body.name), root_der())

    @made.get("/{name}")
    def show_device(
        request: Request, name: Named, tenant: OfTenant = None
    ) -> DeviceWithCertificates:
        """One device and its certificates."""
        with management.seeing(caller_of(request), tenant) as (session, of):
            found = devices.show(session, of, name)
            held = certificates.of(session, of, name)
        return DeviceWithCertificates(
            **_entry(found).model_dump(),
            certificates=[CertificateEntry.of(one) for one in held],
        )

    @made.post("/{name}/code")
    def new_code(request: Request, name: Named, tenant: OfTenant = None) -> DeviceWithCode:
        """Make a new one-time code; earlier codes become invalid."""
        with management.changing(caller_of(request), tenant) as (tx, of):
            return _with_code(tx, devices.show(tx.session, of, name), root_der())

    @made.post("/{name}/revoke")
    def revoke_certificates(
        request: Request, name: Named, body: Revocation, tenant: OfTenant = None
    ) -> Revoked:
        """Revoke a device's certificates; it stays enabled and can enrol with a new code."""
        with management.changing(caller_of(request), tenant) as (tx, of):
            revoked = devices.revoke(tx, of, name, body.serial)
        return Revoked(revoked=[CertificateEntry.of(one) for one in revoked])

    @made.patch("/{name}")
    def change_device(
        request: Request, name: Named, body: Enabled, tenant: OfTenant = None
    ) -> ManagedDevice:
        """Disable a device and revoke its certificates, or allow it to enrol again."""
        with management.changing(caller_of(request), tenant) as (tx, of):
            verb = devices.enable if body.enabled else devices.disable
            return _entry(verb(tx, of, name))

    @made.delete("/{name}")
    def remove_device(request: Request, name: Named, tenant: OfTenant = None) -> Removed:
        """Remove a device for good."""
        with management.changing(caller_of(request), tenant) as (tx, of):
            devices.remove(tx, of, name)
        return Removed(removed=name)

    return made


def _entry(device: Device) -> ManagedDevice:
    return ManagedDevice(
        name=device.name,
        tenant=device.tenant,
        enabled=not device.disabled,
        created_s=device.created_s,
    )


def _with_code(tx: Transaction, device: Device, root_der: bytes) -> DeviceWithCode:
    code, expires_s = codes.fresh(tx, device, root_der)
    return DeviceWithCode(**_entry(device).model_dump(), code=code, code_expires_s=expires_s)
