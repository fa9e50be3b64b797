"""The uplink's delay and rate, estimated from what was sent and when it ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

_WINDOW = 24
"""Requests that the estimate uses, the latest ones: 2.5 s at ten frames a second."""
_APART_BYTES = 32.0
"""Two requests closer in size than this say nothing about the rate."""
_PAIRS = 4
"""Pairs of requests of different size needed before a rate is trusted."""
_FORGET = 0.997
"""Factor per request by which an unconfirmed rate fades, so that a link gets another try."""
_JITTER_QUANTILE = 0.9
_MEMORY_S = 30.0
"""Time constant with which a slow spell is forgotten; until then a climb allows for it."""


@dataclass(frozen=True)
class _Waiting:
    at: float
    size: int
    queued: int


class Link:
    """The uplink's delay and rate, from what was sent and when it ended.

    A request's time on the link, without the server's own, is modelled as `rtt + queued / rate`,
    `queued` being its bytes and those sent before it that had not left. The rate is the median
    over pairs of recent requests (Theil 1950, Sen 1968), the round trip the median of the rest:
    one outage moves neither for long. Not thread safe; `PointController` holds the lock.

    Attributes:
        overdue_s: duration of the request that ended last, seconds, if it was longer than
            expected; else 0.
    """

    def __init__(self) -> None:
        self.overdue_s = 0.0
        self._waiting: dict[Hashable, _Waiting] = {}
        self._seen: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # queued bytes, seconds
        self._server: deque[float] = deque(maxlen=_WINDOW)
        self._intervals: deque[float] = deque(maxlen=_WINDOW)
        self._sent_at: float | None = None
        self._server_s = 0.0
        self._interval_s = float("inf")
        self._seconds_per_byte = 0.0
        self._slowest = 0.0
        self._slowest_at = 0.0
        self._rest = np.zeros(0)
        self._rtt_s = 0.0
        self._jitter_s = 0.0

    @property
    def rtt_s(self) -> float:
        """Seconds there and back for a request of no bytes; 0 before the first has ended."""
        return self._rtt_s

    @property
    def bytes_per_s(self) -> float:
        """The rate; infinite until a request was large enough to tell."""
        return 1.0 / self._seconds_per_byte if self._seconds_per_byte > 0 else float("inf")

    def sent(self, key: Hashable, size: int, at: float) -> None:
        """A request of `size` bytes leaves at `at` (seconds)."""
        if self._sent_at is not None:
            self._intervals.append(at - self._sent_at)
            self._interval_s = float(np.mean(self._intervals))
        self._sent_at = at
        self._waiting[key] = _Waiting(at, size, size + self._queued(at))

    def lost(self, key: Hashable, at: float) -> None:
        """A request will not end: its stream broke, or its sender gave up at `at`.

        If it was overdue by then, the time it took counts as measured.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            return
        if self._overdue(waiting, at):
            self.ended(key, at, self._server_s)
        else:
            del self._waiting[key]

    def ended(self, key: Hashable, at: float, server_s: float) -> None:
        """A request's terminal event came at `at`; the server had worked `server_s` on it."""
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return
        if server_s > 0 and server_s >= at - waiting.at:
            return  # an earlier sending was answered: this one's time on the link is unknown
        self.overdue_s = at - waiting.at if self._overdue(waiting, at) else 0.0
        self._server.append(max(0.0, server_s))
        self._server_s = float(np.median(self._server))
        self._seen.append((float(waiting.queued), max(0.0, at - waiting.at - max(0.0, server_s))))
        self._fit()
        self._slowest, self._slowest_at = self._pace(at, cautious=True), at

    @property
    def known(self) -> bool:
        """Whether any request has ended."""
        return bool(self._seen)

    @property
    def unloaded_s(self) -> float:
        """Seconds that most requests would take if their bytes took no time."""
        return self._rtt_s + self._server_s

    def queue_s(self, size: float, at: float, cautious: bool = False) -> float:
        """Seconds that `size` bytes, sent at `at`, and those before them would take to leave."""
        return (size + self._queued(at)) * self._pace(at, cautious)

    def queued_bytes(self, at: float) -> int:
        """Bytes that have not reached the server by `at`, as far as is known."""
        return self._queued(at)

    def delay(self, size: float, at: float) -> float:
        """Seconds until a request of `size` bytes, sent at `at`, would end (the median)."""
        return self.unloaded_s + self.queue_s(size, at)

    def silent(self, at: float) -> bool:
        """Whether the oldest request on its way should have ended by `at`.

        A slow link and one that is down look alike then: nothing is known of the rate.
        """
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and self._overdue(oldest, at)

    def in_time(self, size: float, at: float, objective_s: float, cautious: bool = False) -> float:
        """Share of requests of `size` bytes, sent at `at`, that would end in time.

        Estimated from recent requests, with the time of their bytes replaced by that of `size`. On
        a link that comes and goes the share falls for every size, on a narrow link for large sizes.

        Args:
            size: bytes.
            at: seconds.
            objective_s: seconds from sending that still count as in time.
            cautious: use the slowest recent rate instead of the present one.
        """
        left_s = objective_s - self.queue_s(size, at, cautious) - self._server_s
        within = int(np.searchsorted(self._rest, left_s, side="right"))
        return (within + 1) / (len(self._rest) + 1)

    def load(self, size: float, at: float, cautious: bool = False) -> float:
        """Share of the rate that requests of `size` bytes would take, if sent as often as now."""
        return size * self._pace(at, cautious) / max(self._interval_s, 1e-3)

    def _pace(self, at: float, cautious: bool) -> float:
        """Seconds per byte."""
        if not cautious:
            return self._seconds_per_byte
        faded = self._slowest * math.exp(min(0.0, self._slowest_at - at) / _MEMORY_S)
        return max(self._seconds_per_byte, faded)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._waiting

    def _overdue(self, waiting: _Waiting, at: float) -> bool:
        expected = self._rtt_s + self._jitter_s + waiting.queued * self._seconds_per_byte
        return at - waiting.at > expected + self._server_s

    def _queued(self, at: float) -> int:
        """Bytes that have not left by `at`, without requests that the server works on."""
        return sum(w.size for w in self._waiting.values() if not self._at_server(w, at))

    def _at_server(self, waiting: _Waiting, at: float) -> bool:
        arrived = self._rtt_s + self._jitter_s + waiting.queued * self._seconds_per_byte
        return arrived < at - waiting.at <= arrived + self._server_s

    def _fit(self) -> None:
        seen = np.array(self._seen)
        queued, seconds = seen[:, 0], seen[:, 1]
        across = queued[:, None] - queued
        apart = across > _APART_BYTES
        if int(apart.sum()) >= _PAIRS:
            slope = float(np.median((seconds[:, None] - seconds)[apart] / across[apart]))
        else:
            slope = self._seconds_per_byte * _FORGET
        # No request can have been faster than its bytes alone would take.
        self._seconds_per_byte = min(max(0.0, slope), float((seconds / queued).min()))
        rest = self._rest = np.sort(seconds - self._seconds_per_byte * queued)
        self._rtt_s = float(np.median(rest))
        self._jitter_s = max(0.0, float(np.quantile(rest, _JITTER_QUANTILE)) - self._rtt_s)
