"""Which request owns a frame number: the one that brought the scene held under it.

If another request took the number meanwhile, it would replace the scene, and questions about it
would be answered from another picture. Once the scene is gone the number is free again, so the
table grows with the scenes held and no further.
"""

from __future__ import annotations

from collections.abc import Callable

from cloud_server.engine.store import Name
from protos.errors import FrameNumberError

_SLACK = 1024


class FrameNumbers:
    """Request ids by the scenes that they brought.

    Args:
        held: tells whether a scene of that name is held.
    """

    def __init__(self, held: Callable[[Name], bool]) -> None:
        self._held = held
        self._owners: dict[Name, str] = {}
        self._now: set[Name] = set()
        self._prune_at = _SLACK

    def __len__(self) -> int:
        return len(self._owners)

    def check(self, name: Name, request_id: str) -> None:
        """Refuse a number that another request owns.

        Raises:
            FrameNumberError: another request's scene is held under that name.
        """
        owner = self._owners.get(name)
        if owner in (None, request_id) or not (name in self._now or self._held(name)):
            return
        raise FrameNumberError(
            f"frame number {name[1]} is taken by request {owner}, whose frame is held under it: "
            "count up, so that each frame of a session has a number of its own"
        )

    def claim(self, name: Name, request_id: str) -> None:
        """Note that a request brings a scene in the present step.

        Raises:
            FrameNumberError: as `check`.
        """
        self.check(name, request_id)
        self._owners[name] = request_id
        self._now.add(name)

    def release(self, name: Name) -> None:
        """The request failed: its claim is over."""
        self._now.discard(name)

    def end_step(self) -> None:
        """End the step: the scenes that it brought are held now."""
        self._now.clear()
        if len(self._owners) > self._prune_at:
            self._owners = {name: id for name, id in self._owners.items() if self._held(name)}
            self._prune_at = 2 * len(self._owners) + _SLACK
