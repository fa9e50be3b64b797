"""Outcomes that wait, taken from each owner in turn: who sends most is heard no more often."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from cloud_server.frontend.answers import Owner

Outcome = TypeVar("Outcome")


class Rotation(Generic[Outcome]):
    """A bounded queue for each owner; when all are full, who has more than its share loses one.

    Args:
        most: outcomes kept, of all owners together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: OrderedDict[Owner, deque[Outcome]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[tuple[Owner, Outcome]]:
        """All outcomes with their owners, each owner's in the order in which they came."""
        return ((owner, one) for owner, queue in self._of.items() for one in queue)

    def add(self, owner: Owner, outcome: Outcome) -> None:
        """Add an owner's outcome."""
        self._of.setdefault(owner, deque()).append(outcome)
        self._size += 1
        if self._size > self._most:
            share = self._most // len(self._of)
            own = len(self._of[owner]) > share
            self._drop(owner if own else next(o for o, q in self._of.items() if len(q) > share))

    def take(self) -> Outcome:
        """The oldest outcome of the owner whose turn it is; there is one."""
        owner, queue = next(iter(self._of.items()))
        outcome = queue[0]
        self._drop(owner)
        if owner in self._of:
            self._of.move_to_end(owner)
        return outcome

    def _drop(self, owner: Owner) -> None:
        queue = self._of[owner]
        queue.popleft()
        self._size -= 1
        if not queue:
            del self._of[owner]
