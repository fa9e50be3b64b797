"""The scenes held for questions: a store bounded in bytes, the longest unused goes first.

Knows names and sizes; knows nothing of what a scene is made of.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from protos.errors import UnknownSceneError

Scene = TypeVar("Scene")
Name = tuple[str, int]
"""Session (hex) and frame number."""


class SceneStore(Generic[Scene]):
    """Scenes by name.

    Args:
        max_bytes: of all scenes together. The newest is held even if it alone is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[Name, tuple[Scene, int]] = OrderedDict()
        self._sessions: dict[str, set[int]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, name: Name, scene: Scene, size_bytes: int) -> None:
        """Hold a scene; one of the same name is replaced."""
        self._drop(name)
        self._held[name] = (scene, size_bytes)
        self._sessions.setdefault(name[0], set()).add(name[1])
        self.bytes += size_bytes
        while self.bytes > self._max_bytes and len(self._held) > 1:
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
        self.bytes -= self._held.pop(name)[1]
        numbers = self._sessions[name[0]]
        numbers.discard(name[1])
        if not numbers:
            del self._sessions[name[0]]
