"""The messages between the agent and a camera's process: one JSON object a packet.

Agent to camera, first: the job (`Job`). Then `{"free": slot}` for each slot given back.
Camera to agent: `{"frame": {…}}` (`Frame`), `{"beat": {…}}` at least twice a second while it
decodes, and at the end `{"ended": true}` or `{"failed": state, "cause": text}`.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent.cameras.ring import SLOTS, fits
from edge_agent.sources.address import Address

_LONGEST = 1 << 16


@dataclass(frozen=True)
class Job:
    """What a camera's process has to do.

    Attributes:
        address: the camera's.
        masks: regions that may never be seen, as the setting `masks` has them.
        open_s: longest wait for the camera's answer, seconds.
        stall_s: longest wait for data, seconds.
        max_fps: most pictures a second that are handed over; 0: all.
        live: false for a file that is read as fast as it is taken, nothing left out.
    """

    address: Address
    masks: tuple[str, ...]
    open_s: float
    stall_s: float
    max_fps: float
    live: bool

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Job:
        """Read the first message."""
        fields = dict(message)
        fields["address"] = Address(**fields["address"])
        fields["masks"] = tuple(fields["masks"])
        return cls(**fields)


@dataclass(frozen=True)
class Beat:
    """How far a camera's process is.

    Attributes:
        decoded: pictures decoded since its start.
        dropped: pictures that were not handed over since its start, by cause.
        alike_s: how long the picture has been the same, seconds.
    """

    decoded: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    alike_s: float = 0.0


@dataclass(frozen=True)
class Handover:
    """A picture that lies in a slot.

    Attributes:
        slot: number of the slot.
        number: counts the pictures handed over by this process, from 1.
        width: pixels.
        height: pixels.
        at: seconds since the Unix epoch at which it was decoded.
        monotonic_s: the same on the machine's monotonic clock.
        media_s: place in the stream, seconds; None if the stream does not say.
        motion: share of the picture that moved, 0 to 1.
        motion_us: time that finding it took, microseconds.
    """

    slot: int
    number: int
    width: int
    height: int
    at: float
    monotonic_s: float
    media_s: float | None
    motion: float
    motion_us: float

    def __post_init__(self) -> None:
        if not (0 <= self.slot < SLOTS and fits(self.width, self.height)):
            raise ValueError(f"no such slot or size: {self}")


def send(to: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone.
    """
    to.send(json.dumps(message, default=dataclasses.asdict).encode())


def receive(of: socket.socket) -> dict[str, Any] | None:
    """Receive one message; None once the other side is gone.

    Raises:
        BlockingIOError: the socket does not block, and there is none.
        OSError, ValueError: it is broken.
    """
    packet = of.recv(_LONGEST)
    return json.loads(packet) if packet else None
