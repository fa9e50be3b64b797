"""The requests that the live page can show: the newest of each device, bounded in bytes.

Frames without a question come far more often than questions, so each device keeps few of them.
"""

from __future__ import annotations

from msgspec import Struct

from cloud_server.crowd import Crowd
from cloud_server.engine.store import Name
from cloud_server.page.belief import Losses
from cloud_server.page.timeline import Device

MOST_QUESTIONS, MOST_FRAMES = 64, 8
"""Requests of one device that are kept: with a question, and without one."""
_LONGEST_ANSWER = 4096
_ENTRY_BYTES = 1536
"""Memory of a request beside its texts."""


class Seen(Struct, frozen=True, eq=False):
    """A request that has ended; times are seconds since 1970, or milliseconds where named so.

    Attributes:
        id: the request's, hex.
        device: tenant and device whose scene it is about.
        asked_by: the device itself, or `key:` and a key's name.
        scene: id of the scene; empty if it is not held any more.
        name: the scene's name in engines: session and frame number.
        at_s: when it arrived.
        question: empty for a frame without one.
        answer: its beginning; empty without one.
        stages_ms: time of each stage, in order.
        total_ms: from its last byte received to its answer.
        risk: None if unknown.
        risk_limit: above it, calibration advises the picture; None without a guard.
        lost: distortion: quantize, dropped attention, latent residual, unfamiliarity; None for a
            picture.
        limits: for each of them, the value at which the risk would reach its limit, or None.
        refused: name of the error that ended it; empty if it was answered.
        why: the error's text.
    """

    id: str
    device: Device
    asked_by: str
    scene: str
    name: Name
    at_s: float
    point: str
    payload_bytes: int
    delta: bool
    question: str
    answer: str
    tokens: int
    stages_ms: dict[str, float]
    first_token_ms: float | None
    total_ms: float
    risk: float | None
    risk_limit: float | None
    risk_unknown: str
    lost: Losses | None
    limits: tuple[float | None, ...]
    fallback: str
    warnings: tuple[str, ...]
    refused: str = ""
    why: str = ""

    @property
    def cost(self) -> int:
        """Its memory, bytes."""
        texts = (self.question, self.answer, self.why, *self.warnings)
        return _ENTRY_BYTES + 2 * sum(map(len, texts))


def beginning(text: str) -> str:
    """As much of an answer as is kept."""
    return text if len(text) <= _LONGEST_ANSWER else f"{text[:_LONGEST_ANSWER]}…"


class Requests:
    """The newest requests of every device.

    Args:
        most_bytes: bound on their memory together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._of: dict[Device, dict[str, Seen]] = {}  # oldest first
        self._crowd: Crowd[tuple[Device, str]] = Crowd()

    @property
    def bytes(self) -> int:
        """Approximate memory, bytes."""
        return self._crowd.cost

    def add(self, seen: Seen) -> None:
        """Remember a request; another one of the same id is replaced."""
        self._drop(seen.device, seen.id)
        mine = self._of.setdefault(seen.device, {})
        mine[seen.id] = seen
        self._crowd.add(seen.device, (seen.device, seen.id), seen.cost)
        alike = [one.id for one in mine.values() if bool(one.question) == bool(seen.question)]
        for old in alike[: -(MOST_QUESTIONS if seen.question else MOST_FRAMES)]:
            self._drop(seen.device, old)
        while self._crowd.cost > self._most_bytes and len(self._crowd) > 1:
            self._drop(*self._crowd.next_to_go())

    def of(self, device: Device) -> list[Seen]:
        """A device's requests, the newest first."""
        return list(self._of.get(device, {}).values())[::-1]

    def find(self, device: Device, id: str) -> Seen | None:
        """One of a device's requests."""
        return self._of.get(device, {}).get(id)

    def forget(self, device: Device) -> None:
        """Drop a device's requests."""
        for id in list(self._of.get(device, ())):
            self._drop(device, id)

    def _drop(self, device: Device, id: str) -> None:
        mine = self._of.get(device)
        if mine is None or mine.pop(id, None) is None:
            return
        self._crowd.remove((device, id))
        if not mine:
            del self._of[device]
