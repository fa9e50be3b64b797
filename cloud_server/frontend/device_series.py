"""Series of each device in /metrics, if an operator asks for them: bounded in number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from cloud_server.metrics import Metrics
from protos.process.metric_kinds import OTHER

Device: TypeAlias = tuple[str, str]
"""Tenant and device."""
_SILENT_S = 3600.0
"""A device that is silent for so long makes room for another one, seconds."""
_LOOK_S = 1.0
"""Pause between two searches for such a device, seconds."""


class _Shown:
    """What is counted of one device.

    Attributes:
        at: when its newest good frame came, seconds since 1970; 0 before the first one.
        heard: when it was heard of last, seconds since 1970.
    """

    __slots__ = ("answers", "at", "frames", "heard", "payload_bytes", "refusals", "risk")

    def __init__(self) -> None:
        self.frames = self.answers = self.refusals = self.payload_bytes = 0
        self.risk = self.at = self.heard = 0.0


class DeviceSeries:
    """Counts by device.

    Args:
        metrics: shows them.
        most: devices shown; the others count together.
        clock: seconds since 1970.
    """

    def __init__(self, metrics: Metrics, most: int, clock: Callable[[], float] = time.time) -> None:
        self._most, self._clock = most, clock
        self._shown: dict[Device, _Shown] = {}
        self._others, self._looked = _Shown(), 0.0
        metrics.device_frames.read_from(lambda: self._read("frames"))
        metrics.device_answers.read_from(lambda: self._read("answers"))
        metrics.device_refusals.read_from(lambda: self._read("refusals"))
        metrics.device_payload.read_from(lambda: self._read("payload_bytes"))
        metrics.device_risk.read_from(lambda: self._read("risk"))
        metrics.device_newest.read_from(lambda: self._read("at"))

    def received(self, device: Device, payload_bytes: int) -> None:
        """A good frame has come."""
        shown = self._of(device)
        shown.frames += 1
        shown.payload_bytes += payload_bytes
        shown.at = shown.heard

    def answered(self, device: Device, risk: float | None) -> None:
        """A question was answered, with that risk if it is known."""
        shown = self._of(device)
        shown.answers += 1
        shown.risk += risk or 0.0

    def refused(self, device: Device) -> None:
        """A request was refused."""
        self._of(device).refusals += 1

    def _of(self, device: Device) -> _Shown:
        shown, now = self._shown.get(device), self._clock()
        if shown is None:
            if not self._room(now):
                return self._others
            shown = self._shown[device] = _Shown()
        shown.heard = now
        return shown

    def _room(self, now: float) -> bool:
        """Whether one more may be shown; the longest silent one may have to go."""
        if len(self._shown) < self._most:
            return True
        if now < self._looked + _LOOK_S:
            return False
        self._looked = now
        silent = min(self._shown, key=lambda one: self._shown[one].heard)
        if now - self._shown[silent].heard < _SILENT_S:
            return False
        del self._shown[silent]
        return True

    def _read(self, what: str) -> Iterator[tuple[Device, float]]:
        """A count of every device; called in the thread of the metrics port."""
        for device, shown in self._shown.copy().items():
            yield device, getattr(shown, what)
        if self._others.frames or self._others.refusals or self._others.answers:
            yield (OTHER, OTHER), getattr(self._others, what)
