"""One request that changes something, and its `Idempotency-Key`.

The answer to a change is kept for a day, so that the same request gets it again, from any front
end. It may show a secret that is shown once, so it is sealed with a key that only its caller has:
a key derived from the caller's bearer key, of which the database has only the hash.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Depends, Header, Request

from cloud_server.api.idempotency import LONGEST_KEY, name_of
from cloud_server.api.visit import Visit, visit_of
from cloud_server.identity.caller import Caller
from cloud_server.identity.identify import AUTHORIZATION, bearer_of

_NONCE = 12


@dataclass(frozen=True)
class Attempt:
    """A request that changes something.

    Attributes:
        visit: its caller, and the headers of its answer.
        name: names caller and idempotency key, 64 hexadecimal digits; empty without a key.
        request_sha256: of method, path, query and body.
        bearer: the caller's bearer key.
    """

    visit: Visit
    name: str
    request_sha256: str
    bearer: str

    @property
    def caller(self) -> Caller:
        """Who makes it."""
        return self.visit.caller

    def seal(self, answer: bytes) -> bytes:
        """Encrypt an answer for its caller: nonce, then ChaCha20-Poly1305."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher().encrypt(nonce, answer, self.name.encode())

    def repeated(self, sealed: bytes) -> bytes:
        """The answer that the same request got; a header says that nothing was changed again."""
        self.visit.headers["idempotent-replayed"] = "true"
        nonce, rest = sealed[:_NONCE], sealed[_NONCE:]
        return self._cipher().decrypt(nonce, rest, self.name.encode())

    def _cipher(self) -> ChaCha20Poly1305:
        derive = HKDF(SHA256(), 32, salt=None, info=b"neural-bridge idempotency")
        return ChaCha20Poly1305(derive.derive(self.bearer.encode("utf-8", "replace")))


async def _attempt(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=LONGEST_KEY,
            description="the same request with the same key gets the same answer for a day",
        ),
    ] = None,
) -> Attempt:
    visit = visit_of(request)
    bearer = bearer_of(request.headers.get(AUTHORIZATION, ""))
    if idempotency_key is None:
        return Attempt(visit, "", "", bearer)
    digest = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    digest.update(await request.body())
    name = name_of(visit.caller, idempotency_key).hex()
    return Attempt(visit, name, digest.hexdigest(), bearer)


Attempted = Annotated[Attempt, Depends(_attempt)]
"""Parameter of a route that changes something."""
