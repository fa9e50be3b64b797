"""Timelines: risk, distortion, bytes and alarms of each device over the last hours.

Time is cut into slots. A slot is packed into a few bytes; one without frames and alarms takes none.
Memory is bounded: the largest device of the largest tenant loses the older half of its timeline.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import astuple

from cloud_server.crowd import Crowd

SLOT_S = 30
"""Length of a slot, seconds."""
_PACKED = struct.Struct("<I6fIIH")
_MOST_COUNT, _MOST_ALARMS = 0xFFFFFFFF, 0xFFFF
_DEVICE_BYTES = 1024
"""Memory of a device beside its packed slots."""
Device = tuple[str, str]
"""Tenant and device."""


class Slot(Struct):
    """What happened in one slot; a mean is NaN if nothing was measured.

    Attributes:
        number: seconds since 1970, divided by `SLOT_S`.
        risk: mean risk of answers to an average question.
        risk_most: the highest.
        quantize, dropped_attention, latent_residual, unfamiliarity: means of the distortion.
        frames: frames accepted.
        bytes: their payloads together.
        alarms: fallbacks, warnings, refusals, and risks above the limit.
    """

    number: int
    risk: float = math.nan
    risk_most: float = math.nan
    quantize: float = math.nan
    dropped_attention: float = math.nan
    latent_residual: float = math.nan
    unfamiliarity: float = math.nan
    frames: int = 0
    bytes: int = 0
    alarms: int = 0


class _Open(Struct):
    """The slot that is being filled: sums in place of means."""

    number: int
    frames: int = 0
    bytes: int = 0
    alarms: int = 0
    risks: int = 0
    risk: float = 0.0
    risk_most: float = 0.0
    measured: int = 0
    lost: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def slot(self) -> Slot:
        """It as a slot."""
        known, measured = self.risks or math.nan, self.measured or math.nan
        quantize, dropped_attention, latent_residual, unfamiliarity = self.lost
        return Slot(
            self.number,
            self.risk / known,
            self.risk_most if self.risks else math.nan,
            quantize / measured,
            dropped_attention / measured,
            latent_residual / measured,
            unfamiliarity / measured,
            frames=min(self.frames, _MOST_COUNT),
            bytes=min(self.bytes, _MOST_COUNT),
            alarms=min(self.alarms, _MOST_ALARMS),
        )


class _Timeline:
    """One device's: closed slots, packed, the oldest first; and the open one."""

    __slots__ = ("now", "packed")

    def __init__(self, number: int) -> None:
        self.packed, self.now = bytearray(), _Open(number)

    @property
    def cost(self) -> int:
        return len(self.packed) + _DEVICE_BYTES


class Timelines:
    """The timelines of all devices.

    Args:
        hours: how far they reach back.
        most_bytes: bound on their memory together.
    """

    def __init__(self, hours: float, most_bytes: int) -> None:
        self._slots, self._most_bytes = math.ceil(hours * 3600 / SLOT_S), most_bytes
        self._of: dict[Device, _Timeline] = {}
        self._crowd: Crowd[Device] = Crowd()

    def __len__(self) -> int:
        return len(self._of)

    @property
    def bytes(self) -> int:
        """Approximate memory, bytes."""
        return self._crowd.cost

    def frame(
        self,
        device: Device,
        at_s: float,
        size: int,
        risk: float | None,
        lost: tuple[float, float, float, float] | None,
    ) -> None:
        """Add a frame.

        Args:
            device: that sent it.
            at_s: when it was accepted, seconds since 1970.
            size: bytes of its payload.
            risk: None if unknown.
            lost: its distortion, in the order of `Slot`; None for a picture.
        """
        now = self._slot(device, at_s)
        now.frames += 1
        now.bytes += size
        if risk is not None:
            now.risks += 1
            now.risk += risk
            now.risk_most = max(now.risk_most, risk)
        if lost is not None:
            now.measured += 1
            a, b, c, d = now.lost
            now.lost = a + lost[0], b + lost[1], c + lost[2], d + lost[3]

    def alarm(self, device: Device, at_s: float, count: int = 1) -> None:
        """Add alarms."""
        self._slot(device, at_s).alarms += count

    def of(self, device: Device, at_s: float) -> list[Slot]:
        """A device's slots, the oldest first; slots in which nothing happened are left out."""
        found = self._of.get(device)
        if found is None:
            return []
        oldest = int(at_s / SLOT_S) - self._slots
        return [slot for slot in _unpacked(found) if slot.number > oldest]

    def newest(self, device: Device) -> list[Slot]:
        """The slot that is being filled, and the one before it."""
        found = self._of.get(device)
        if found is None:
            return []
        before = bytes(found.packed[-_PACKED.size :])
        return [*(Slot(*values) for values in _PACKED.iter_unpack(before)), found.now.slot()]

    def forget(self, device: Device) -> None:
        """Drop a device's timeline."""
        if self._of.pop(device, None) is not None:
            self._crowd.remove(device)

    def _slot(self, device: Device, at_s: float) -> _Open:
        """The open slot of a device; the one before it is packed."""
        number = int(at_s / SLOT_S)
        found = self._of.get(device)
        if found is None:
            found = self._of[device] = _Timeline(number)
            self._add(device, found)
        elif number > found.now.number:  # a clock that was set back adds to the open slot
            values = found.now.slot()
            found.packed += _PACKED.pack(*astuple(values))
            surplus = len(found.packed) // _PACKED.size - self._slots
            if surplus > 0:
                del found.packed[: surplus * _PACKED.size]
            found.now = _Open(number)
            self._crowd.remove(device)
            self._add(device, found)
        return found.now

    def _add(self, device: Device, timeline: _Timeline) -> None:
        self._crowd.add(device, device, timeline.cost)
        while self._crowd.cost > self._most_bytes and len(self._crowd) > 1:
            going = self._crowd.next_to_go()
            shorter = self._of[going]
            slots = len(shorter.packed) // _PACKED.size
            self._crowd.remove(going)
            if slots < 2:
                del self._of[going]
            else:
                del shorter.packed[: slots // 2 * _PACKED.size]
                self._crowd.add(going, going, shorter.cost)


def _unpacked(timeline: _Timeline) -> Iterator[Slot]:
    for values in _PACKED.iter_unpack(bytes(timeline.packed)):
        yield Slot(*values)
    yield timeline.now.slot()
