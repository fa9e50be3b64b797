"""Session cookies of the live page: signed, so that every front end can read them.

A cookie stands for the key that it was made from, until it expires or the key is no longer valid.
It is never stored, and holds no part of the key. Its signature comes from the authority's own
private key, which all front ends share, and from the hash of the bearer key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from cloud_server.identity.certificates import Signer
from protos.errors import UnauthenticatedError

NAME = "__Host-neural-bridge"
"""The browser accepts it over TLS alone, and sends it to this host alone."""
LONGEST = 256
_FORM = re.compile(r"1\.([A-Za-z0-9-]{1,64})\.([0-9]{1,12})\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}")
_PURPOSE = b"neural bridge live page 1"


@dataclass(frozen=True)
class Cookie:
    """A cookie's text, as a credential."""

    text: str


@dataclass(frozen=True)
class Claim:
    """What a cookie says, before its signature is checked.

    Attributes:
        key_id: id of the key that it stands for.
        not_after_s: when it expires, seconds since 1970.
    """

    key_id: str
    not_after_s: float


class Cookies:
    """Makes cookies and checks them.

    Args:
        signer: the authority's intermediate, as last read.
        clock: seconds since 1970.
    """

    def __init__(
        self, signer: Callable[[], Signer], clock: Callable[[], float] = time.time
    ) -> None:
        self._signer, self._clock = signer, clock
        self._of: tuple[Signer, bytes] | None = None

    def make(self, key_id: str, key_sha256: str, not_after_s: float) -> Cookie:
        """A cookie for a key.

        Args:
            key_id: the key's id.
            key_sha256: the hash of its text, hex.
            not_after_s: when the cookie expires, seconds since 1970.
        """
        head = f"1.{key_id}.{int(not_after_s)}.{secrets.token_urlsafe(16)}"
        return Cookie(f"{head}.{self._sign(head, key_sha256)}")

    def claim(self, cookie: Cookie) -> Claim:
        """What a cookie says; nothing of it may be believed before `check`.

        Raises:
            UnauthenticatedError: it is no cookie, or has expired.
        """
        found = _FORM.fullmatch(cookie.text[: LONGEST + 1])
        if found is None or int(found[2]) <= self._clock():
            raise UnauthenticatedError(EXPIRED)
        return Claim(found[1], float(found[2]))

    def check(self, cookie: Cookie, key_sha256: str) -> None:
        """Check a cookie's signature.

        Args:
            cookie: as `claim` accepted it.
            key_sha256: the hash of its key's text, hex.

        Raises:
            UnauthenticatedError: it was not made here for this key.
        """
        head, _, mark = cookie.text.rpartition(".")
        if not hmac.compare_digest(self._sign(head, key_sha256), mark):
            raise UnauthenticatedError(EXPIRED)

    def _sign(self, head: str, key_sha256: str) -> str:
        said = f"{head}.{key_sha256}".encode()
        mark = hmac.new(self._secret(), said, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mark).decode().rstrip("=")

    def _secret(self) -> bytes:
        signer = self._signer()
        if self._of is None or self._of[0] is not signer:
            private = signer.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            made = HKDF(SHA256(), 32, None, _PURPOSE).derive(private)
            self._of = signer, made
        return self._of[1]


EXPIRED = "you are not signed in any more: the session has expired, or its key was taken away"
