"""Which frames go when the spool is full: the oldest ones, or every second one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Row(NamedTuple):
    """A row's id (they grow with time) and its bytes."""

    id: int
    size: int


RowsAfter = Callable[[int], Iterator[Row]]
"""The rows of one priority with a larger id, oldest first."""


class WhenFull(ABC):
    """Chooses rows of one priority, for as long as the caller needs room."""

    @abstractmethod
    def choose(self, rank: int, rows_after: RowsAfter) -> Iterator[Row]:
        """The rows that go, the first one first.

        Args:
            rank: the priority's place.
            rows_after: its rows.
        """


@dataclass
class DropOldest(WhenFull):
    """The oldest first: the last hours stay whole."""

    def choose(self, rank: int, rows_after: RowsAfter) -> Iterator[Row]:
        """See `WhenFull`."""
        yield from rows_after(0)


@dataclass
class ThinOut(WhenFull):
    """Every second one, from the oldest to the newest and over again: all days stay covered.

    Attributes:
        last: the row that went last, by rank; the next walk goes on from there.
    """

    last: dict[int, int] = field(default_factory=dict)

    def choose(self, rank: int, rows_after: RowsAfter) -> Iterator[Row]:
        """See `WhenFull`."""
        for start in (self.last.get(rank, 0), 0):
            rows = rows_after(start)
            for _ in rows:  # stays
                row = next(rows, None)
                if row is None:
                    break
                self.last[rank] = row.id
                yield row
        self.last[rank] = 0
        yield from rows_after(0)


CHOICES: dict[str, type[WhenFull]] = {"drop_oldest": DropOldest, "thin_out": ThinOut}
