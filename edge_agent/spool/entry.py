"""Rows of the spool as the agent sees them: to be sent, or to be dropped."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.spool.stored_frame import StoredFrame
from protos.errors import DroppedError


@dataclass(frozen=True)
class Bounds:
    """How much may wait, and how long.

    Attributes:
        most_bytes: bytes of all frames that wait, on the disk.
        age_s: oldest frame, seconds that the device was on.
        when_full: a name of `when_full.CHOICES`.
    """

    most_bytes: int = 256 << 20
    age_s: float = 7 * 86400.0
    when_full: str = "drop_oldest"


@dataclass(frozen=True)
class Entry:
    """A row.

    Attributes:
        id: grows with time.
        rank: place of its priority, 0 for alarms.
        frame: what is kept of it.
        size: its bytes.
        accepted_s: when it was accepted, by the spool's clock.
    """

    id: int
    rank: int
    frame: StoredFrame
    size: int = 0
    accepted_s: float = 0.0


@dataclass(frozen=True)
class Drop:
    """A row that is to be dropped, and why.

    Attributes:
        id: the row's.
        cause: full, thinned, age or damaged.
        frame: what was kept; None if it cannot be read.
        request_id: of the request.
        size: its bytes.
    """

    id: int
    cause: str
    frame: StoredFrame | None
    request_id: bytes
    size: int = 0

    @property
    def error(self) -> DroppedError:
        """What the frame's record says."""
        return DroppedError(CAUSES[self.cause])


CAUSES = {
    "full": "the spool was full, and this was the oldest frame of the lowest priority: give "
    "--spool-bytes more, or --when-full thin_out",
    "thinned": "the spool was full, and every second frame went: give --spool-bytes more",
    "age": "the frame waited longer than --spool-age-s",
    "damaged": "the frame's row in the spool was damaged on the disk",
}
