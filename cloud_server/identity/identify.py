"""Authentication: finds the `Caller` of a certificate or bearer key in the current directory.

A device's certificate must be one that the service issued and recorded, so that a thief of the
intermediate's key cannot forge devices. Every bad certificate or key gets the same error.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from cryptography import x509

from cloud_server.identity import certificates as made
from cloud_server.identity.caller import ANYONE, Caller
from cloud_server.identity.cookies import EXPIRED, Cookie, Cookies
from cloud_server.state.directory import Key, LiveDirectory
from protos.errors import UnauthenticatedError

AUTHORIZATION = "authorization"
_SCHEME = "bearer "
_LONGEST_KEY = 256
_TLS = b"TLSv1.3"
_REFUSAL = (
    "no certificate or key that is valid here: devices enrol with a one-time code, applications "
    "and operators send 'authorization: Bearer KEY'"
)

PAGE_SCOPES = frozenset({"ask", "read"})
"""What a session of the live page may do at most, whatever its key may."""

Credential: TypeAlias = "bytes | str | Cookie"
"""A caller's credential: a certificate (PEM), a key, or a cookie; an empty string for none."""


@dataclass(frozen=True)
class _ShownCertificate:
    """The fields of a certificate that are checked."""

    serial: str
    fingerprint: str


class Nobody:
    """A service without identities: every caller is anyone."""

    required = False

    def of_call(self, context: Any, late_s: float = 0.0) -> Caller:
        """The caller: always anyone."""
        return ANYONE

    def bearer(self, token: str) -> Caller:
        """The key's owner: always anyone."""
        return ANYONE

    def of(self, credential: Credential, late_s: float = 0.0) -> Caller:
        """The caller: always anyone."""
        return ANYONE


class Identities:
    """Finds callers in the directory.

    Args:
        live: the directory.
        clock: seconds since 1970; certificates and keys expire by it.
        cookies: makes and checks cookies of the live page; None: none is accepted.
    """

    required = True

    def __init__(
        self,
        live: LiveDirectory,
        clock: Callable[[], float] = time.time,
        cookies: Cookies | None = None,
    ) -> None:
        self._live, self._clock, self._cookies = live, clock, cookies

    def of_call(self, context: Any, late_s: float = 0.0) -> Caller:
        """The caller of a gRPC call.

        Args:
            context: the call's context.
            late_s: seconds that a device's certificate may have expired ago.

        Raises:
            UnauthenticatedError: the credential is missing or not valid.
        """
        return self.of(credential_of(context), late_s)

    def bearer(self, token: str) -> Caller:
        """The owner of a key.

        Args:
            token: the key alone, `nbk_…`.

        Raises:
            UnauthenticatedError: the key is not valid.
        """
        return _owner(self._key(token)[1])

    def sign_in(self, token: str, life_s: float) -> tuple[Cookie, Caller]:
        """A cookie that stands for a key, and its caller.

        Args:
            token: the key alone, `nbk_…`.
            life_s: the cookie's lifetime, seconds; it never exceeds the key's.

        Raises:
            UnauthenticatedError: the key is not valid, or no cookies are made here.
        """
        digest, key = self._key(token)
        if self._cookies is None:
            raise UnauthenticatedError(_REFUSAL)
        not_after_s = min(self._clock() + life_s, key.not_after_s)
        cookie = self._cookies.make(key.id, digest, not_after_s)
        return cookie, self.of(cookie)

    def of(self, credential: Credential, late_s: float = 0.0) -> Caller:
        """The caller that a credential belongs to.

        Args:
            credential: a certificate, key or cookie.
            late_s: seconds that a device's certificate may have expired ago.

        Raises:
            UnauthenticatedError: the credential is missing or not valid.
        """
        if isinstance(credential, str):
            return self.bearer(credential)
        if isinstance(credential, Cookie):
            return self._session(credential)
        return self._device(credential, late_s)

    def _key(self, token: str) -> tuple[str, Key]:
        """A valid key, by its text; also the text's hash."""
        short = token if len(token) <= _LONGEST_KEY else ""
        digest = hashlib.sha256(short.encode("utf-8", "replace")).hexdigest()
        key = self._live.now.key(digest)
        if key is None or key.not_after_s <= self._clock():
            raise UnauthenticatedError(_REFUSAL)
        return digest, key

    def _session(self, cookie: Cookie) -> Caller:
        if self._cookies is None:
            raise UnauthenticatedError(_REFUSAL)
        claim = self._cookies.claim(cookie)
        found = self._live.now.key_by_id(claim.key_id)
        if found is None or found[1].not_after_s <= self._clock():
            raise UnauthenticatedError(EXPIRED)
        self._cookies.check(cookie, found[0])
        owner = _owner(found[1])
        end_s = min(claim.not_after_s, owner.not_after_s)
        return replace(owner, scopes=owner.scopes & PAGE_SCOPES, not_after_s=end_s)

    def _device(self, pem: bytes, late_s: float) -> Caller:
        shown = _read(pem)
        given = self._live.now.certificate(shown.serial)
        if (
            given is None
            or not hmac.compare_digest(given.fingerprint, shown.fingerprint)
            or given.not_after_s + late_s <= self._clock()
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
    """The credential of a gRPC call's peer.

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


def _owner(key: Key) -> Caller:
    return Caller(
        kind=key.kind,
        tenant=key.tenant,
        name=key.name,
        scopes=key.scopes,
        devices=key.devices,
        credential=key.id,
        not_after_s=key.not_after_s,
    )


@functools.lru_cache(maxsize=4096)
def _read(pem: bytes) -> _ShownCertificate:
    certificate = x509.load_pem_x509_certificate(pem)
    return _ShownCertificate(made.serial_of(certificate), made.fingerprint_of(certificate))
