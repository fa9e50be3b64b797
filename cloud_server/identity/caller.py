"""A caller of the service, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protos.errors import ConfigError, ForbiddenError
from protos.identity import NAME, NAME_RULE

Kind = Literal["device", "application", "operator", "anyone"]
SCOPES = ("ask", "read", "manage")
"""What a key may do: ask questions; read devices, scenes and figures; change things."""
SERVICE_TENANT = "service"
"""The tenant of the people who run the service: its operators see and manage every tenant."""
NO_TENANT = "local"
"""The tenant of every caller of a service without identities."""


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        kind: `anyone` on a service without identities.
        tenant: name of its tenant.
        name: the device's or the key's name.
        scopes: a subset of `SCOPES`; empty for a device, which may only do what devices do.
        devices: names of the devices that the key is limited to; None for all of the tenant's.
        credential: the certificate's serial number (hex) or the key's id; for revocation.
        not_after_s: when the credential expires, seconds since 1970; infinite if never.
    """

    kind: Kind
    tenant: str
    name: str
    scopes: frozenset[str] = frozenset()
    devices: frozenset[str] | None = None
    credential: str = ""
    not_after_s: float = float("inf")

    @property
    def of_service(self) -> bool:
        """Whether it is an operator of the whole service, or the service has no identities."""
        return self.kind == "anyone" or (self.kind == "operator" and self.tenant == SERVICE_TENANT)

    def require(self, scope: str) -> None:
        """Check that it may do what a scope allows.

        Raises:
            ForbiddenError: it may not.
        """
        if scope not in self.scopes:
            raise ForbiddenError(
                f"{self.kind} '{self.name}' lacks the scope '{scope}': ask the operator for a key "
                "that has it"
            )

    def sees(self, tenant: str, device: str) -> bool:
        """Whether it may see a device."""
        if self.kind == "device":
            return (tenant, device) == (self.tenant, self.name)
        if self.of_service:
            return True
        return tenant == self.tenant and (self.devices is None or device in self.devices)


ANYONE = Caller("anyone", NO_TENANT, "anyone", frozenset(SCOPES))
"""Every caller of a service without identities."""


def checked_name(name: str, what: str) -> str:
    """Check the name of a tenant, device or key.

    Args:
        name: as given.
        what: what it names, for the message.

    Raises:
        ConfigError: the name breaks the rule.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{what} {name[:80]!r}: {NAME_RULE}")
    return name
