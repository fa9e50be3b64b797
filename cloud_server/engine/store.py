"""A store of entries by scene, bounded in bytes.

When it is full, the largest owner loses its least recently used entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cloud_server.crowd import Crowd
from protos.errors import UnknownSceneError

Entry = TypeVar("Entry")
Name = tuple[str, int]
"""Session (hex) and frame number."""


class SceneStore(Generic[Entry]):
    """Entries by the name of their scene.

    Args:
        max_bytes: bound for all entries together. The newest is held even if it alone is larger.
        dropped: called with each entry that is no longer held.
    """

    def __init__(self, max_bytes: int, dropped: Callable[[Entry], None]) -> None:
        self._max_bytes, self._dropped = max_bytes, dropped
        self._held: dict[Name, Entry] = {}
        self._order: Crowd[Name] = Crowd()
        self._sessions: dict[str, set[int]] = {}

    @property
    def bytes(self) -> int:
        """Memory of all entries."""
        return self._order.cost

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def put(self, name: Name, entry: Entry, size_bytes: int, owner: str = "") -> None:
        """Store an entry; it replaces one of the same name.

        Args:
            name: its scene's name.
            entry: anything.
            size_bytes: its memory.
            owner: as `Job.owner`.
        """
        self.make_room(name, size_bytes)
        self._held[name] = entry
        self._sessions.setdefault(name[0], set()).add(name[1])
        tenant, _, device = owner.partition("/")
        self._order.add((tenant, device), name, size_bytes)

    def make_room(self, name: Name, size_bytes: int) -> None:
        """Drop what `put` would drop, so that its memory can be used for the new entry."""
        self.drop(name)
        while self._held and self.bytes + size_bytes > self._max_bytes:
            self.drop(self._order.next_to_go())

    def get(self, name: Name) -> Entry:
        """The entry of that name; this counts as a use.

        Raises:
            UnknownSceneError: it is not held (any more).
        """
        if name not in self._held:
            raise UnknownSceneError(
                f"frame {name[1]} of this session is not held (any more): send it again"
            )
        self._order.touch(name)
        return self._held[name]

    def forget(self, session: str) -> None:
        """Let go of every entry of a session."""
        for number in list(self._sessions.get(session, ())):
            self.drop((session, number))

    def drop(self, name: Name) -> None:
        """Let go of an entry, if it is held."""
        if name not in self._held:
            return
        entry = self._held.pop(name)
        self._order.remove(name)
        self._dropped(entry)
        numbers = self._sessions[name[0]]
        numbers.discard(name[1])
        if not numbers:
            del self._sessions[name[0]]
