"""A device's identity: its private key, its certificate, and the roots that it trusts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from edge_agent.identity.roots import certificates, device_in, issued_by
from protos.errors import CertificateError

_RENEW_AT = 2 / 3  # of a certificate's life


@dataclass(frozen=True)
class Identity:
    """A device's stored identity.

    Attributes:
        tenant: name of the tenant that the device belongs to.
        device: its name there.
        service: the address where it enrolled.
        key_pem: its private key (PKCS #8). It was made on this device and never leaves it.
        chain_pem: its certificate, then the intermediate ones.
        roots_pem: roots of the service's authority that this device trusts.
        issued_s: when the certificate was issued, by the service's clock, seconds since 1970. The
            certificate itself is valid from 1970 on, for devices without a clock.
        not_after_s: when it expires, by the service's clock, seconds since 1970.
        server: the address for frames, unless the settings name another; empty: not told.
    """

    tenant: str
    device: str
    service: str
    key_pem: str
    chain_pem: str
    roots_pem: str
    issued_s: int
    not_after_s: int
    server: str = ""

    @classmethod
    def from_json(cls, text: str, named: object) -> Identity:
        """Read a stored identity and check that its parts belong together.

        Args:
            text: from `to_json`.
            named: the source, for messages.

        Raises:
            CertificateError: it is damaged.
        """
        try:
            made = cls(**json.loads(text))
            kinds = {"str": str, "int": int}
            if any(type(getattr(made, f.name)) is not kinds[str(f.type)] for f in fields(cls)):
                raise ValueError("a value of the wrong type")
            made.check()
        except (ValueError, TypeError) as error:
            raise CertificateError(
                f"{named} is damaged ({error}): enrol this device again (edge-agent enrol --force)"
            ) from error
        return made

    def to_json(self) -> str:
        """The stored form, with the private key."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def check(self) -> None:
        """Check that key, certificate, name and roots belong together.

        Raises:
            ValueError: they do not.
        """
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(self.key_pem.encode(), None)
        chain = certificates(self.chain_pem.encode())
        if not chain or key.public_key() != chain[0].public_key():
            raise ValueError("the certificate is not of this key")
        if device_in(chain[0]) != (self.tenant, self.device):
            raise ValueError(f"the certificate is not of device {self.tenant}/{self.device}")
        roots = certificates(self.roots_pem.encode())
        if not any(issued_by(chain, root) for root in roots):
            raise ValueError("the certificate is not of the authority that comes with it")

    @property
    def renew_at_s(self) -> float:
        """When to renew the certificate, by the service's clock, seconds since 1970."""
        return self.issued_s + _RENEW_AT * (self.not_after_s - self.issued_s)

    @cached_property
    def serial(self) -> str:
        """Serial number of the certificate in hex, as in the service's records."""
        return f"{certificates(self.chain_pem.encode())[0].serial_number:032x}"
