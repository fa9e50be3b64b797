"""The scenes held for questions: a store bounded in bytes, the longest unused goes first.

Knows names and sizes; knows nothing of what a scene is made of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from protos.errors import UnknownSceneError

Scene = TypeVar("Scene")
Name = tuple[str, int]
"""Session (hex) and frame number."""


class SceneStore(Generic[Scene]):
    """Scenes by name.

    Args:
        max_bytes: of all scenes together. The newest is held even if it alone is larger.
        dropped: called with each scene that is no longer held.
    """

    def __init__(self, max_bytes: int, dropped: Callable[[Scene], None]) -> None:
        self._max_bytes, self._dropped = max_bytes, dropped
        self._held: OrderedDict[Name, tuple[Scene, int]] = OrderedDict()
        self._sessions: dict[str, set[int]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def put(self, name: Name, scene: Scene, size_bytes: int) -> None:
        """Hold a scene; one of the same name is replaced."""
        self.make_room(name, size_bytes)
        self._held[name] = (scene, size_bytes)
        self._sessions.setdefault(name[0], set()).add(name[1])
        self.bytes += size_bytes

    def make_room(self, name: Name, size_bytes: int) -> None:
        """Drop what `put` would drop, so that its memory can be used for the new scene."""
        self._drop(name)
        while self._held and self.bytes + size_bytes > self._max_bytes:
            self._drop(next(iter(self._held)))

    def get(self, name: Name) -> Scene:
        """The scene of that name, which counts as a use of it.

        Raises:
            UnknownSceneError: it is not held (any more).
        """
        if name not in self._held:
            raise UnknownSceneError(
                f"frame {name[1]} of this session is not held (any more): send it again"
            )
        self._held.move_to_end(name)
        return self._held[name][0]

    def forget(self, session: str) -> None:
        """Let go of every scene of a session."""
        for number in list(self._sessions.get(session, ())):
            self._drop((session, number))

    def _drop(self, name: Name) -> None:
        if name not in self._held:
            return
        scene, size_bytes = self._held.pop(name)
        self.bytes -= size_bytes
        self._dropped(scene)
        numbers = self._sessions[name[0]]
        numbers.discard(name[1])
        if not numbers:
            del self._sessions[name[0]]
