"""Long memory: facts told once, answered later by a frozen large model. The members, by name."""

from __future__ import annotations

from projector.memory.base import (
    MEMBERS,
    Fact,
    Key,
    Memory,
    Recalled,
    Remembered,
    Replaced,
    Written,
    make,
    new_id,
)
from projector.memory.basis import MemoryBasis
from projector.memory.slots import Slots

__all__ = [
    "MEMBERS",
    "Fact",
    "Key",
    "Memory",
    "MemoryBasis",
    "Remembered",
    "Recalled",
    "Replaced",
    "Slots",
    "Written",
    "make",
    "new_id",
]
