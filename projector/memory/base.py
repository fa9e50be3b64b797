"""The base of all memories: facts are written at run time and read by a frozen large model.

A memory maps a *key*, the small model's reading of a fact or a question, to a *value*, what the
large model is to say. Members differ in what they keep. The base uses NumPy alone, so that a
device without torch can hold a memory.
"""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from projector.codec.arrays import Floats
from projector.memory.basis import MemoryBasis
from protos.errors import ConfigError, FactError

Key = npt.NDArray[np.int8]
"""A key, [r]: its direction counts, not its length."""
FactId: TypeAlias = bytes
State: TypeAlias = bytes
"""Names for what `Memory.bytes` would hide within the classes."""
ID_BYTES = 8
VALUE_BYTES = 64
"""Longest value, bytes of UTF-8."""
LINKS = 4
"""Most keys of one fact."""
STATE_BYTES = 128 << 10
"""Most bytes of a memory's state unless its owner asks for another limit."""


def new_id() -> bytes:
    """A random id for a new fact, 8 bytes."""
    return secrets.token_bytes(ID_BYTES)


@dataclass(frozen=True, eq=False)
class Fact:
    """One fact, without its text.

    Attributes:
        keys: Its linked keys, int8 [k, r], 1 <= k <= 4: the statement's, then questions'.
        value: What the large model is to say.
        when: When it was told, seconds since 1970. The newest fact about a thing counts.
        id: 8 bytes; the same id again is the same fact.
    """

    keys: npt.NDArray[np.int8]
    value: str
    when: int
    id: bytes = field(default_factory=new_id)

    def check(self, basis: MemoryBasis) -> None:
        """Require usable keys of a memory's basis, a value, an id and a time.

        Raises:
            FactError: which of them is not usable, and what was expected.
        """
        rank = basis.rank
        if self.keys.dtype != np.int8 or self.keys.ndim != 2 or self.keys.shape[1] != rank:
            raise FactError(
                f"the fact's keys are {self.keys.dtype} {list(self.keys.shape)}; this memory takes "
                f"int8 [k, {rank}]: compute them with the basis of this memory's bundle"
            )
        if not 1 <= len(self.keys) <= LINKS:
            raise FactError(f"the fact has {len(self.keys)} keys, 1 to {LINKS} can be linked")
        if not basis.usable(self.keys):
            raise FactError("a key of the fact is zero everywhere: its text says nothing")
        size = len(self.value.encode())
        if not self.value.strip():
            raise FactError("the fact's value is empty: say what is to be answered")
        if size > VALUE_BYTES:
            raise FactError(f"the fact's value has {size} bytes, at most {VALUE_BYTES} are kept")
        if not self.value.isprintable():
            raise FactError("the fact's value holds characters that cannot be printed")
        if len(self.id) != ID_BYTES:
            raise FactError(f"the fact's id has {len(self.id)} bytes, it must have {ID_BYTES}")
        if not 0 <= self.when < 1 << 32:
            raise FactError(f"the fact's time, {self.when}, is not in seconds from 1970 to 2106")


@dataclass(frozen=True)
class Replaced:
    """A fact that a newer one about the same thing took the place of."""

    id: bytes
    value: str
    similarity: float


@dataclass(frozen=True)
class Written:
    """What one write did.

    Attributes:
        stored: Whether the memory changed.
        replaced: The fact about the same thing that it took the place of.
        contradicts: Whether that fact said something else.
        evicted: Ids of facts that had to go to make room, the first to go first.
        cause: Why nothing changed: `known`, `older` or `unsurprising`; empty if something did.
    """

    stored: bool
    replaced: Replaced | None = None
    contradicts: bool = False
    evicted: tuple[bytes, ...] = ()
    cause: str = ""


@dataclass(frozen=True)
class Recalled:
    """One fact that was read: its weight in the answer, 0 to 1, and how like the question it is."""

    id: bytes
    value: str
    weight: float
    similarity: float


@dataclass(frozen=True)
class Remembered:
    """What a memory says to a question.

    Attributes:
        open: Whether the gate opened. With it shut the large model is exactly the frozen one.
        similarity: Cosine between the question's key and the nearest one, -1 to 1; -1 if empty.
        recalled: The facts that were read, the heaviest first; empty with the gate shut.
        direction: For members that keep no values apart: what is added to the large model's last
            state, float32 [d]; None for the others.
    """

    open: bool
    similarity: float
    recalled: tuple[Recalled, ...] = ()
    direction: Floats | None = field(default=None, compare=False)


class Memory(ABC):
    """Base of the family. `NAME` is the member's name in settings, files and reports.

    The state depends on the basis and on the sequence of writes and forgets alone, so the same
    events give the same bytes on a device and in the service.

    Args:
        basis: What was fitted offline for this pair of models.
        limit_bytes: Most bytes of the state.
    """

    name: ClassVar[str]

    def __init__(self, basis: MemoryBasis, limit_bytes: int = STATE_BYTES) -> None:
        self.basis = basis
        self.limit_bytes = limit_bytes

    @abstractmethod
    def write(self, fact: Fact) -> Written:
        """Take a fact; the newest about the same thing counts.

        Raises:
            FactError: the fact is not usable.
        """

    @abstractmethod
    def read(self, key: Key) -> Remembered:
        """What the memory says to a question with this key.

        Raises:
            FactError: the key has another size, or is zero everywhere.
        """

    @abstractmethod
    def gate(self, key: Key) -> float:
        """The figure that opens the gate at or above `basis.threshold`.

        Raises:
            FactError: as `read`.
        """

    @abstractmethod
    def forget(self, fact_id: FactId) -> bool:
        """Forget a fact; returns whether it was held."""

    @abstractmethod
    def state(self) -> State:
        """Everything that was written, as bytes; the same facts in the same order give the same."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Replace everything by a state of the same member and basis.

        Raises:
            MemoryCorruptError: altered, truncated, or of another format.
            MemoryForeignError: of another member or basis.
        """

    @property
    def bytes(self) -> int:
        """The size of the state."""
        return len(self.state())

    @property
    def digest(self) -> State:
        """SHA-256 of the state."""
        return hashlib.sha256(self.state()).digest()


MEMBERS: dict[str, type[Memory]] = {}
"""Every member by its name."""


def member(name: str) -> Callable[[type[Memory]], type[Memory]]:
    """Register a member under a name."""

    def register(cls: type[Memory]) -> type[Memory]:
        cls.name = name
        MEMBERS[name] = cls
        return cls

    return register


def make(name: str, basis: MemoryBasis, limit_bytes: int = STATE_BYTES) -> Memory:
    """An empty memory.

    Raises:
        ConfigError: there is no such member, or the limit is too small for one fact.
    """
    cls = MEMBERS.get(name)
    if cls is None:
        raise ConfigError(f"there is no memory {name!r}, there are: {', '.join(sorted(MEMBERS))}")
    return cls(basis, limit_bytes)


def check_key(key: Key, basis: MemoryBasis) -> None:
    """Require a key of this basis that points somewhere.

    Raises:
        FactError: it does not.
    """
    if key.dtype != np.int8 or key.shape != (basis.rank,):
        raise FactError(
            f"the key is {key.dtype} {list(key.shape)}; this memory reads int8 [{basis.rank}]: "
            "compute it with the basis of this memory's bundle"
        )
    if not basis.usable(key[None]):
        raise FactError("the key is zero everywhere: its text says nothing")
