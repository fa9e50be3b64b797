"""Idempotency: a repeated question with the same `Idempotency-Key` gets the first answer.

While the first request is under way, the second waits for its answer. Keys belong to the caller
that sent them. Memory is bounded: the largest caller of the largest tenant loses its least recently
used key first. Changes of the management have idempotency keys of their own (`admin/attempt.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloud_server.crowd import Crowd
from cloud_server.identity.caller import Caller
from cloud_server.state.idempotency import OTHER_REQUEST
from protos.errors import ConfigError, ConflictError

LONGEST_KEY = 255
_ENTRY_BYTES = 1024
Work = TypeVar("Work")


@dataclass(frozen=True)
class _Entry(Generic[Work]):
    digest: bytes
    work: Work


class Idempotency(Generic[Work]):
    """The idempotency keys that are remembered.

    Args:
        most_bytes: bound on their memory together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: dict[bytes, _Entry[Work]] = {}
        self._crowd: Crowd[bytes] = Crowd()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory_bytes(self) -> int:
        """About how many bytes they use."""
        return self._crowd.cost

    def find(self, caller: Caller, key: str, body: bytes) -> Work | None:
        """The work that was begun for a key; None if the key is new.

        Raises:
            ConfigError: the key is too long.
            ConflictError: the key came with another body before.
        """
        if not 0 < len(key) <= LONGEST_KEY:
            raise ConfigError(f"an Idempotency-Key has 1 to {LONGEST_KEY} characters")
        name = name_of(caller, key)
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.digest != hashlib.sha256(body).digest():
            raise ConflictError(OTHER_REQUEST)
        self._crowd.touch(name)
        return entry.work

    def begin(self, caller: Caller, key: str, body: bytes, work: Work, cost: int) -> None:
        """Remember the work that was begun for a new key.

        Args:
            caller: who sent it.
            key: checked by `find`.
            body: its request's body.
            work: the work whose answer a repeated request gets.
            cost: about how many bytes the answer may use.
        """
        name = name_of(caller, key)
        self._entries[name] = _Entry(hashlib.sha256(body).digest(), work)
        self._crowd.add((caller.tenant, caller.name), name, cost + _ENTRY_BYTES)
        while self._crowd.cost > self._most_bytes and len(self._entries) > 1:
            self._drop(self._crowd.next_to_go())

    def forget(self, caller: Caller, key: str) -> None:
        """Forget a key whose request failed, so that it can be used again."""
        name = name_of(caller, key)
        if name in self._entries:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        del self._entries[name]
        self._crowd.remove(name)


def name_of(caller: Caller, key: str) -> bytes:
    """A key's name: its caller's, so that another caller's same key is another one."""
    parts = (caller.kind, caller.tenant, caller.name, caller.credential, key)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).digest()
