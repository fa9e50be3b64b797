"""Identities as both halves write them: names, a device's URI, the one-time code of an enrolment.

Of certificates this module knows only bytes (DER), so it needs no cryptography library.
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
"""Bytes of a code's secret: it is valid for an hour, and guesses are rate-limited."""
FINGERPRINT_BYTES = 20
"""Leading bytes of the root certificate's SHA-256 that a code carries."""

_URI = re.compile(rf"spiffe://neuralbridge/tenant/({NAME.pattern})/device/({NAME.pattern})")
_CODE = re.compile(
    f"NB1-([A-Z2-7]{{{SECRET_BYTES * 8 // 5}}})-([A-Z2-7]{{{FINGERPRINT_BYTES * 8 // 5}}})",
    re.ASCII | re.IGNORECASE,
)


def device_uri(tenant: str, device: str) -> str:
    """The URI in a device's certificate (subject alternative name), in the form of SPIFFE."""
    return f"spiffe://neuralbridge/tenant/{tenant}/device/{device}"


def device_of(uri: str) -> tuple[str, str] | None:
    """The tenant and the device that a URI names; None if it is not a device's."""
    found = _URI.fullmatch(uri)
    return None if found is None else (found[1], found[2])


def name_from(text: str) -> str:
    """Make a valid name of any text, such as a host's: `Gate 3.local` becomes `gate-3.local`."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:63]
    return plain or "device"


def root_fingerprint(root_der: bytes) -> bytes:
    """What a code carries of a root certificate: the first bytes of the SHA-256 of its DER."""
    return hashlib.sha256(root_der).digest()[:FINGERPRINT_BYTES]


@dataclass(frozen=True)
class OneTimeCode:
    """What an operator gives to a device once: `NB1-SECRET-FINGERPRINT`, both in base32.

    Attributes:
        secret: 16 characters; the service keeps only their hash.
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

    @classmethod
    def parse(cls, text: str) -> OneTimeCode:
        """Read a code as a person typed it: in any case, with blanks around it.

        Raises:
            EnrolmentError: it has not the form of a code; the message does not repeat it.
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
