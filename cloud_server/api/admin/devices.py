"""`/v1/admin/devices`: devices, and one-time codes for enrolment."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from cloud_server.api.admin import named
from cloud_server.api.admin.attempt import Attempted
from cloud_server.api.admin.management import Change, Management, Named, OfTenant
from cloud_server.api.fit import DeviceFit
from cloud_server.api.paging import NAME
from cloud_server.frontend.shadowing.ledger import fits
from cloud_server.state import certificates, codes, devices, shadows
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
    fits: list[DeviceFit] = Field(
        description="what its shadowed frames have shown, one a bundle, the newest first"
    )


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
    made = named.router(
        management,
        named.Kind(
            "device",
            ManagedDevice,
            _entry,
            DeviceWithCertificates,
            devices.every,
            _show,
            devices.enable,
            devices.disable,
            devices.remove,
        ),
    )

    def with_code(tx: Transaction, device: Device) -> DeviceWithCode:
        code, expires_s = codes.fresh(tx, device, root_der())
        return DeviceWithCode(**_entry(device).model_dump(), code=code, code_expires_s=expires_s)

    @made.post("", status_code=201)
    def add_device(attempt: Attempted, body: NewDevice, tenant: OfTenant = None) -> DeviceWithCode:
        """Add a device; the answer has its one-time code for enrolment."""
        return management.change_of(
            attempt,
            tenant,
            DeviceWithCode,
            lambda tx, of: with_code(tx, devices.add(tx, of, body.name)),
        )

    @made.post("/{name}/code")
    def new_code(attempt: Attempted, name: Named, tenant: OfTenant = None) -> DeviceWithCode:
        """Make a new one-time code; earlier codes become invalid."""
        return management.change_of(
            attempt,
            tenant,
            DeviceWithCode,
            lambda tx, of: with_code(tx, devices.show(tx.session, of, name)),
        )

    @made.post("/{name}/revoke")
    def revoke_certificates(
        attempt: Attempted, name: Named, body: Revocation, tenant: OfTenant = None
    ) -> Revoked:
        """Revoke a device's certificates; it stays enabled and can enrol with a new code."""

        def act(tx: Transaction, of: str) -> Revoked:
            revoked = devices.revoke(tx, of, name, body.serial)
            return Revoked(revoked=[CertificateEntry.of(one) for one in revoked])

        return management.change_of(attempt, tenant, Revoked, act)

    return made


def _show(session: Session, tenant: str, name: str) -> DeviceWithCertificates:
    found = devices.show(session, tenant, name)
    held = certificates.of(session, tenant, name)
    return DeviceWithCertificates(
        **_entry(found).model_dump(),
        certificates=[CertificateEntry.of(one) for one in held],
        fits=[DeviceFit.of(fit) for fit in fits(shadows.of(session, tenant, name)).get(name, [])],
    )


def _entry(device: Device) -> ManagedDevice:
    return ManagedDevice(
        name=device.name,
        tenant=device.tenant,
        enabled=not device.disabled,
        created_s=device.created_s,
    )
