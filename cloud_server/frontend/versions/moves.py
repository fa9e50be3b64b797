"""Asks sessions on other versions to move, a few at a time."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.sessions import Session


class Moves:
    """Ends the streams of sessions, after their requests, so that devices negotiate again.

    Args:
        bridge: handles devices' calls.
        turn_s: time between two calls of `some`.
    """

    def __init__(self, bridge: Bridge, turn_s: float) -> None:
        self._bridge, self._turn_s = bridge, turn_s
        self._left: list[Session] = []
        self._until = 0.0
        self.running: set[asyncio.Task[None]] = set()

    @property
    def settled(self) -> bool:
        """Whether every session was asked."""
        return asyncio.get_running_loop().time() >= self._until + self._turn_s

    def begin(self, sessions: Sequence[Session], within_s: float) -> None:
        """Move these sessions, spread over a time."""
        self._left = list(sessions)
        random.shuffle(self._left)
        self._until = asyncio.get_running_loop().time() + within_s

    def some(self) -> None:
        """Move the sessions that are due now."""
        if not self._left:
            return
        left_s = self._until - asyncio.get_running_loop().time()
        for _ in range(math.ceil(len(self._left) / max(1.0, left_s / self._turn_s))):
            task = asyncio.create_task(self._bridge.move(self._left.pop()))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
