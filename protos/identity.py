"""Identities, for device and service: names, a device's URI, one-time codes.

Certificates are only bytes (DER) here, so this module needs no cryptography library.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from protos.errors import EnrolmentError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""The name of a tenant, a device or a key."""
NAME_RULE = (
    "a name has 1 to 63 lower case letters, digits, '.', '_' or '-', and begins with a letter or "
    "digit"
)
SECRET_BYTES = 10
"""Bytes of a code's secret. Enough, as a code is valid for an hour and guesses are limited."""
FINGERPRINT_BYTES = 20
"""Bytes of the root's fingerprint in a code."""

_URI = re.compile(rf"spiffe://neuralbridge/tenant/({NAME.pattern})/device/({NAME.pattern})")
_CODE = re.compile(
    f"NB1-([A-Z2-7]{{{SECRET_BYTES * 8 // 5}}})-([A-Z2-7]{{{FINGERPRINT_BYTES * 8 // 5}}})",
    re.ASCII | re.IGNORECASE,
)


def device_uri(tenant: str, device: str) -> str:
    """The URI in a device's certificate (subject alternative name), in SPIFFE's form."""
    return f"spiffe://neuralbridge/tenant/{tenant}/device/{device}"


def device_of(uri: str) -> tuple[str, str] | None:
    """Tenant and device in a URI; None if it is not a device's."""
    found = _URI.fullmatch(uri)
    return None if found is None else (found[1], found[2])


def name_from(text: str) -> str:
    """Turn any text into a valid name: `Gate 3.local` becomes `gate-3.local`."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:63]
    return plain or "device"


def root_fingerprint(root_der: bytes) -> bytes:
    """The root's fingerprint in a code: the first bytes of the SHA-256 of its DER."""
    return hashlib.sha256(root_der).digest()[:FINGERPRINT_BYTES]


@dataclass(frozen=True)
class OneTimeCode:
    """A one-time code for enrolment: `NB1-SECRET-FINGERPRINT`, both in base32.

    Attributes:
        secret: 16 characters; the service stores only their hash.
        root: fingerprint of the service's root certificate, see `root_fingerprint`. The device
            checks it before it sends the code.
    """

    secret: str
    root: bytes

    @classmethod
    def fresh(cls, root_der: bytes) -> OneTimeCode:
        """A code with a new random secret, for the service with that root certificate (DER)."""
        secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
        return cls(secret, root_fingerprint(root_der))

    @property
    def secret_sha256(self) -> str:
        """What the service keeps of it, in hexadecimal digits."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    @classmethod
    def parse(cls, text: str) -> OneTimeCode:
        """Parse a typed code; case and blanks around it do not matter.

        Raises:
            EnrolmentError: the text is not a code; the message does not repeat it.
        """
        found = _CODE.fullmatch(text.strip())
        if found is None:
            raise EnrolmentError(
                f"this is no one-time code ({len(text.strip())} characters): expected "
                "NB1-SECRET-FINGERPRINT, 53 characters, as 'cloud-server devices add' printed it"
            )
        return cls(found[1].upper(), base64.b32decode(found[2].upper()))

    def __str__(self) -> str:
        return f"NB1-{self.secret}-{base64.b32encode(self.root).decode()}"

    def __repr__(self) -> str:
        return "OneTimeCode(…)"  # a secret that must not reach a log
