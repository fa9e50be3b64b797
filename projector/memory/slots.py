"""`slots`: each fact keeps its keys and its value; the oldest go when the limit is reached.

Read as pseudo-parameters, dW = A diag(softmax(beta K x)) B^T: x is the question's key, K the keys,
A and B lead to the directions of the values' tokens. This is the second formula of the literature
(low-rank hyper-projection) with a softmax over similarities in place of an MLP.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np

from projector.codec.arrays import Floats
from projector.memory.base import (
    ID_BYTES,
    LINKS,
    STATE_BYTES,
    VALUE_BYTES,
    Fact,
    FactId,
    Key,
    Memory,
    Recalled,
    Remembered,
    Replaced,
    State,
    Written,
    check_key,
    member,
)
from projector.memory.basis import MemoryBasis
from protos.errors import ConfigError, FactError, MemoryCorruptError, MemoryForeignError

FORMAT = 1
_HEAD = struct.Struct("<8sB32sHH")
"""Name, format, the basis's digest, r, facts."""
_SLOT = struct.Struct(f"<{ID_BYTES}sIBB")
"""Id, time, keys, bytes of the value; then the value and the keys."""
_MAGIC = b"NBSLOTS\0"
_SEAL = hashlib.sha256().digest_size
_LEAST_WEIGHT = 0.02
"""Values below this share of the answer are not told and not added."""


@member("slots")
class Slots(Memory):
    """Facts one by one, in the order in which they were last written.

    Memory in use is about five times the state: keys are kept as float32 rows too.
    """

    def __init__(self, basis: MemoryBasis, limit_bytes: int = STATE_BYTES) -> None:
        super().__init__(basis, limit_bytes)
        if limit_bytes < self._empty_bytes + self._most_bytes(LINKS):
            raise ConfigError(
                f"a memory of {limit_bytes} bytes cannot hold one fact: give it at least "
                f"{self._empty_bytes + self._most_bytes(LINKS)}"
            )
        self._basis_digest = basis.digest
        self._facts: dict[FactId, Fact] = {}
        self._bytes = self._empty_bytes
        self._rows: Floats | None = None
        self._owners: list[FactId] = []

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What is held, the first to go first."""
        return tuple(self._facts.values())

    def write(self, fact: Fact) -> Written:
        """Take a fact; it replaces the nearest one if that is about the same thing."""
        fact.check(self.basis)
        held = self._facts.get(fact.id)
        if held is not None and _same(held, fact):
            return Written(False, cause="known")
        other = None if held is not None else self._about_the_same(fact)
        before = held if other is None else self._facts[other.id]
        if before is not None and before.when > fact.when:
            return Written(False, other, cause="older")
        if before is not None:
            self._drop(before.id)
        self._facts[fact.id] = replace(fact, keys=fact.keys.copy())
        self._bytes += self._size(fact)
        self._rows = None
        evicted = []
        while self._bytes > self.limit_bytes:
            evicted.append(next(iter(self._facts)))
            self._drop(evicted[-1])
        contradicts = before is not None and before.value != fact.value
        return Written(True, other, contradicts, tuple(evicted))

    def read(self, key: Key) -> Remembered:
        """The values of the nearest facts, each with its softmax weight."""
        near, similarity = self._near(key)
        if near is None or similarity < self.basis.reading.threshold:
            return Remembered(False, similarity)
        raised = np.exp(self.basis.reading.sharpness * (near - similarity))
        weights: dict[FactId, float] = {}
        nearest: dict[FactId, float] = {}
        for owner, weight, each in zip(self._owners, raised / raised.sum(), near, strict=True):
            weights[owner] = weights.get(owner, 0.0) + float(weight)
            nearest[owner] = max(nearest.get(owner, -1.0), float(each))
        told = [
            Recalled(owner, self._facts[owner].value, weight, nearest[owner])
            for owner, weight in sorted(weights.items(), key=lambda one: -one[1])
            if weight >= _LEAST_WEIGHT
        ]
        return Remembered(True, similarity, tuple(told))

    def gate(self, key: Key) -> float:
        """The largest cosine with a key that is held; -1 if there is none."""
        return self._near(key)[1]

    def forget(self, fact_id: FactId) -> bool:
        """Drop a fact; returns whether it was held."""
        if fact_id not in self._facts:
            return False
        self._drop(fact_id)
        return True

    @property
    def bytes(self) -> int:
        """The size of the state, counted without making it."""
        return self._bytes

    def state(self) -> State:
        """Head, facts in the order of their writing, SHA-256."""
        parts = [
            _HEAD.pack(_MAGIC, FORMAT, self._basis_digest, self.basis.rank, len(self._facts)),
            *(_pack(fact) for fact in self._facts.values()),
        ]
        body = b"".join(parts)
        return body + hashlib.sha256(body).digest()

    def restore(self, state: State) -> None:
        """Replace everything by a state; see `Memory.restore`."""
        if not _HEAD.size + _SEAL <= len(state) <= self.limit_bytes:
            raise MemoryCorruptError(
                f"a memory's state of {len(state)} bytes: {_HEAD.size + _SEAL} to "
                f"{self.limit_bytes} are read here"
            )
        body, seal = state[:-_SEAL], state[-_SEAL:]
        if hashlib.sha256(body).digest() != seal:
            raise MemoryCorruptError("the memory's state does not match its own SHA-256")
        magic, version, basis, rank, count = _HEAD.unpack_from(body)
        if magic != _MAGIC or version != FORMAT:
            raise MemoryForeignError(
                f"the state is not that of a `slots` memory of format {FORMAT}"
            )
        if basis != self._basis_digest or rank != self.basis.rank:
            raise MemoryForeignError(
                "the memory was written with another basis of keys: its facts must be told again"
            )
        facts = self._unpack(body, count)
        self._facts = facts
        self._bytes = len(state)
        self._rows = None

    def _unpack(self, body: State, count: int) -> dict[FactId, Fact]:
        facts: dict[FactId, Fact] = {}
        at, rank = _HEAD.size, self.basis.rank
        try:
            for _ in range(count):
                fact_id, when, links, size = _SLOT.unpack_from(body, at)
                at += _SLOT.size
                value = body[at : at + size].decode()
                at += size
                keys = np.frombuffer(body, np.int8, links * rank, at).reshape(links, rank)
                at += links * rank
                facts[fact_id] = Fact(keys.copy(), value, when, fact_id)
                facts[fact_id].check(self.basis)
        except (struct.error, ValueError, FactError) as error:
            raise MemoryCorruptError(f"the memory's state cannot be read: {error}") from error
        if at != len(body) or len(facts) != count:
            raise MemoryCorruptError("the memory's state has facts twice, or bytes after its end")
        return facts

    def _drop(self, fact_id: FactId) -> None:
        self._bytes -= self._size(self._facts.pop(fact_id))
        self._rows = None

    def _near(self, key: Key) -> tuple[Floats | None, float]:
        """Cosines with every key that is held, and the largest; None and -1 if there is none."""
        check_key(key, self.basis)
        rows = self._keys()
        if not len(rows):
            return None, -1.0
        near = self.basis.similarity(rows, self.basis.unit(key[None]))[:, 0]
        return near, float(near.max())

    def _keys(self) -> Floats:
        if self._rows is None:
            self._owners = [one.id for one in self._facts.values() for _ in one.keys]
            held = [one.keys for one in self._facts.values()]
            rank = self.basis.rank
            empty = np.zeros((0, rank), np.float32)
            self._rows = self.basis.unit(np.concatenate(held)) if held else empty
        return self._rows

    def _about_the_same(self, fact: Fact) -> Replaced | None:
        """The nearest fact, if it is near enough to be about the same thing."""
        rows = self._keys()
        if not len(rows):
            return None
        near = self.basis.similarity(rows, self.basis.unit(fact.keys)).max(axis=1)
        at = int(near.argmax())
        if near[at] < self.basis.reading.same:
            return None
        owner = self._owners[at]
        return Replaced(owner, self._facts[owner].value, float(near[at]))

    def _size(self, fact: Fact) -> int:
        return _SLOT.size + len(fact.value.encode()) + fact.keys.size

    @property
    def _empty_bytes(self) -> int:
        return _HEAD.size + _SEAL

    def _most_bytes(self, links: int) -> int:
        return _SLOT.size + VALUE_BYTES + links * self.basis.rank


def _pack(fact: Fact) -> bytes:
    value = fact.value.encode()
    return _SLOT.pack(fact.id, fact.when, len(fact.keys), len(value)) + value + fact.keys.tobytes()


def _same(one: Fact, other: Fact) -> bool:
    return (
        (one.value, one.when) == (other.value, other.when)
        and one.keys.shape == other.keys.shape
        and bool((one.keys == other.keys).all())
    )
