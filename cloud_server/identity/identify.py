"""Who calls: from a certificate or a bearer key to a `Caller`, by the directory as it is now.

A device's certificate must be the very one that the service gave out, so that a stolen intermediate
key makes nobody a device. Whatever is wrong with a certificate or key, the error is the same.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from cryptography import x509

from cloud_server.identity import certificates as made
from cloud_server.identity.caller import ANYONE, Caller
from cloud_server.state.directory import LiveDirectory
from protos.errors import UnauthenticatedError

AUTHORIZATION = "authorization"
_SCHEME = "bearer "
_LONGEST_KEY = 256
_TLS = b"TLSv1.3"
_REFUSAL = (
    "no certificate or key that is valid here: devices enrol with a one-time code, applications "
    "and operators send 'authorization: Bearer KEY'"
)

Credential: TypeAlias = "bytes | str"
"""What a caller shows: a certificate (PEM) or a key; an empty string for nothing."""


@dataclass(frozen=True)
class _ShownCertificate:
    """What counts of a certificate."""

    serial: str
    fingerprint: str


class Nobody:
    """A service without identities: every caller is anyone."""

    required = False

    def of_call(self, context: Any) -> Caller:
        """Who makes a call: anyone."""
        return ANYONE

    def bearer(self, token: str) -> Caller:
        """Whose key it is: anyone's."""
        return ANYONE


class Identities:
    """Knows callers by the directory.

    Args:
        live: the directory.
        clock: seconds since 1970; a certificate or key ends by this clock.
    """

    required = True

    def __init__(self, live: LiveDirectory, clock: Callable[[], float] = time.time) -> None:
        self._live, self._clock = live, clock

    def of_call(self, context: Any) -> Caller:
        """Who makes a call.

        Args:
            context: the call's context.

        Raises:
            UnauthenticatedError: nobody that is known.
        """
        return self.of(credential_of(context))

    def bearer(self, token: str) -> Caller:
        """Whose key it is.

        Args:
            token: the key alone, `nbk_…`.

        Raises:
            UnauthenticatedError: nobody's that is known.
        """
        short = token if len(token) <= _LONGEST_KEY else ""
        digest = hashlib.sha256(short.encode("utf-8", "replace")).hexdigest()
        key = self._live.now.key(digest)
        if key is None or key.not_after_s <= self._clock():
            raise UnauthenticatedError(_REFUSAL)
        return Caller(
            kind=key.kind,
            tenant=key.tenant,
            name=key.name,
            scopes=key.scopes,
            devices=key.devices,
            credential=key.id,
            not_after_s=key.not_after_s,
        )

    def of(self, credential: Credential) -> Caller:
        """Who shows a credential.

        Raises:
            UnauthenticatedError: nobody that is known.
        """
        return self.bearer(credential) if isinstance(credential, str) else self._device(credential)

    def _device(self, pem: bytes) -> Caller:
        shown = _read(pem)
        given = self._live.now.certificate(shown.serial)
        if (
            given is None
            or not hmac.compare_digest(given.fingerprint, shown.fingerprint)
            or given.not_after_s <= self._clock()
        ):
            raise UnauthenticatedError(_REFUSAL)
        return Caller(
            "device",
            given.tenant,
            given.device,
            credential=shown.serial,
            not_after_s=given.not_after_s,
        )


def credential_of(context: Any) -> Credential:
    """What the caller of a gRPC call shows.

    Args:
        context: the call's context.

    Raises:
        UnauthenticatedError: the connection is not TLS 1.3.
    """
    about = context.auth_context()
    if about.get("ssl_tls_version") != [_TLS]:
        raise UnauthenticatedError("this service is reached over TLS 1.3 alone")
    if certificate := about.get("x509_pem_cert"):
        return bytes(certificate[0])
    for name, value in context.invocation_metadata() or ():
        if name == AUTHORIZATION and isinstance(value, str):
            return bearer_of(value)
    return ""


def bearer_of(header: str) -> str:
    """The key in an `Authorization` header; empty if there is none."""
    return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else ""


@functools.lru_cache(maxsize=4096)
def _read(pem: bytes) -> _ShownCertificate:
    certificate = x509.load_pem_x509_certificate(pem)
    return _ShownCertificate(made.serial_of(certificate), made.fingerprint_of(certificate))
