"""The controller: chooses the operating point of the next frame.

It weighs the link as measured (`link`) against the points as calibrated. Calls, in order, for every
frame: `may_send` until it is true → `admit` → `choose` → `sent` → `ended` or `lost`; `settle` when
a frame gives its place in flight back. The clock is passed in, so that a simulation runs the same
code as a device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from edge_agent.uplink.link import Link


@dataclass(frozen=True)
class Rung:
    """One operating point, as calibration measured it.

    Attributes:
        name: of the operating point.
        wire_bytes: uplink bytes of one frame, mean.
        accuracy: share of questions answered right, 0..1.
        distortion: root of the sum of squares of two figures: the relative error of the latents
            that travel, and the share of attention that does not.
    """

    name: str
    wire_bytes: float
    accuracy: float
    distortion: float


def climbable(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs worth choosing, by rising bytes and accuracy; skips those that another one beats.

    A rung is skipped if a cheaper one is as accurate, or if it lies below the rung with the most
    right answers per byte: even if the link carries only some frames, that rung gives more.
    """
    front: list[Rung] = []
    for rung in sorted(rungs, key=lambda r: (r.wire_bytes, -r.accuracy)):
        if not front or rung.accuracy > front[-1].accuracy:
            front.append(rung)
    worth = [rung.accuracy / max(rung.wire_bytes, 1.0) for rung in front]
    return tuple(front[max(range(len(front)), key=lambda i: (worth[i], i)) :] if front else ())


@dataclass
class _Hold:
    """A rung that was too much: not tried again before `until`; the next hold is longer."""

    until: float
    length_s: float


class PointController:
    """Picks the rung that brings the most right answers in time, within the distortion limit.

    A rung's worth is its accuracy times the share of its frames that the link as measured would
    carry in time. The controller steps down at once, to the rung that is worth most. It climbs by
    one rung after `dwell_s`, and only if the next one is worth as much within `headroom` of the
    objective and of the rate. A rung that was too much is tried again after a pause that doubles
    each time, up to `hold_max_s`. While the link is silent it steps down to the advised rung and no
    further: no rung gets through a link that is down, and the frames that wait should be few bytes
    when it is back.

    Args:
        latency_s: objective from sending a frame to its answer, seconds; None: no objective.
        distortion: largest `Rung.distortion` that may be chosen; None: no limit.
        clock: seconds, monotonic.
        dwell_s: least time between a change and a climb.
        headroom: share of the objective, and of the rate, that the next rung may take.
        margin: a frame is sent only if it should end within this share of the objective.
        hold_s: first pause before a rung that was too much is tried again.
        hold_max_s: longest such pause.
        on_switch: called with the names of the rung left (empty at first) and the one chosen.

    Attributes:
        rungs_down: how many rungs below the chosen one a frame is sent, for other reasons than the
            link (`Restraint.rungs`).
    """

    def __init__(
        self,
        latency_s: float | None = None,
        distortion: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        dwell_s: float = 1.0,
        headroom: float = 0.5,
        margin: float = 0.8,
        hold_s: float = 10.0,
        hold_max_s: float = 160.0,
        on_switch: Callable[[str, str], None] = lambda before, after: None,
    ) -> None:
        self.latency_s = latency_s
        self.distortion = distortion
        self.switches = 0
        self.rungs_down: Callable[[], int] = lambda: 0
        self._clock = clock
        self._dwell_s = dwell_s
        self._headroom = headroom
        self._margin = margin
        self._hold_s = hold_s
        self._hold_max_s = hold_max_s
        self._on_switch = on_switch
        self._link = Link()
        self._lock = threading.Lock()
        self._admitted = 0
        self._current = ""
        self._changed_at = float("-inf")
        self._holds: dict[str, _Hold] = {}

    @property
    def current(self) -> str:
        """Name of the rung chosen last; empty before the first choice."""
        return self._current

    @property
    def link(self) -> tuple[float, float]:
        """The estimate: round trip in seconds, rate in bytes per second."""
        with self._lock:
            return self._link.rtt_s, self._link.bytes_per_s

    @property
    def queued_bytes(self) -> int:
        """Bytes on their way to the server now, as far as is known."""
        with self._lock:
            return self._link.queued_bytes(self._clock())

    def sent(self, key: Hashable, size: int) -> None:
        """See `Link.sent`; now."""
        with self._lock:
            self._admitted = max(0, self._admitted - 1)
            self._link.sent(key, size, self._clock())

    def ended(self, key: Hashable, server_s: float) -> None:
        """See `Link.ended`; now."""
        with self._lock:
            self._link.ended(key, self._clock(), server_s)

    def lost(self, key: Hashable) -> None:
        """See `Link.lost`."""
        with self._lock:
            self._link.lost(key, self._clock())

    def may_send(self, rungs: Sequence[Rung]) -> bool:
        """Whether the cheapest of `rungs`, sent now, would not wait long behind others.

        False only while something is admitted or on its way, because its end asks again. A frame
        that waits in the uplink's queue makes others late; one that waits at the source does not.
        A link that is slow to answer holds nothing back: waiting would not help. Nor does a silent
        one: it may be back the next moment, and then the last frames sent are in time. Before
        anything is known of the link, frames go one by one.
        """
        if self.latency_s is None or not rungs:
            return True
        limit = self._limit
        allowed = [r for r in rungs if r.distortion <= limit] or rungs
        size = min(r.wire_bytes for r in allowed)
        with self._lock:
            link, now = self._link, self._clock()
            if link.idle and not self._admitted:
                return True
            if not link.known:
                return False
            room_s = self._margin * self.latency_s - link.unloaded_s
            room_s = max(room_s, (1 - self._margin) * self.latency_s)
            return link.queue_s((1 + self._admitted) * size, now) <= room_s

    def admit(self) -> None:
        """Let a frame go: it counts as on its way even before it is `sent`."""
        with self._lock:
            self._admitted += 1

    def settle(self, admitted: int) -> None:
        """Correct the count of admitted frames: one was given up unsent."""
        with self._lock:
            self._admitted = min(self._admitted, admitted)

    def choose(self, rungs: Sequence[Rung], highest: str, start: str = "") -> str:
        """The rung for the frame that is sent next.

        Args:
            rungs: as the server offers them, in any order.
            highest: name of the most expensive one that may be chosen.
            start: name of the one to begin on, if it can be chosen; else begin on the highest.

        Returns:
            The rung's name: `highest` if that was not measured, or without objective and limit. If
            no rung up to `highest` is within the distortion limit: the cheapest dearer rung that
            is, or else the rung with the least distortion.
        """
        top = next((r for r in rungs if r.name == highest), None)
        with self._lock:
            down = self.rungs_down()
            if top is not None and down:
                ladder = [rung.name for rung in self._eligible(rungs, top)]
            else:
                ladder = []
            if top is None or (self.latency_s is None and self.distortion is None):
                self._stand_on(highest)
            else:
                known = next((r.wire_bytes for r in rungs if r.name == start), 0.0)
                self._move(self._eligible(rungs, top), start, known)
            if self._current in ladder:
                return ladder[max(0, ladder.index(self._current) - down)]
            return self._current

    def unmet(self, rungs: Sequence[Rung], highest: str) -> str:
        """Why these rungs cannot keep to the objective or the limit; empty if they can.

        Args:
            rungs: as for `choose`.
            highest: as for `choose`.
        """
        if self.latency_s is None and self.distortion is None:
            return ""
        if not rungs:
            return f"no operating point was measured, so auto always takes {highest}"
        if all(rung.name != highest for rung in rungs):
            return f"{highest} was not measured, so auto always takes {highest}"
        limit = self._limit
        least = min(rungs, key=lambda r: r.distortion)
        if least.distortion > limit:
            return (
                f"no operating point is within the distortion limit of {limit:g}: {least.name} is "
                f"sent, at {least.distortion:.3g}"
            )
        top = next(rung for rung in rungs if rung.name == highest)
        if not any(r.distortion <= limit and r.wire_bytes <= top.wire_bytes for r in rungs):
            return f"no operating point up to {highest} is within the distortion limit of {limit:g}"
        return ""

    @property
    def _limit(self) -> float:
        return float("inf") if self.distortion is None else self.distortion

    def _eligible(self, rungs: Sequence[Rung], top: Rung) -> tuple[Rung, ...]:
        limit = self._limit
        within = sorted((r for r in rungs if r.distortion <= limit), key=lambda r: r.wire_bytes)
        return climbable([r for r in within if r.wire_bytes <= top.wire_bytes]) or (
            within[0] if within else min(rungs, key=lambda r: r.distortion),
        )

    def _move(self, ladder: Sequence[Rung], start: str, known: float) -> None:
        names = [rung.name for rung in ladder]
        if self.latency_s is None:
            self._stand_on(names[-1])
            return
        if self._current not in names:
            self._stand_on(start if start in names else names[-1])
            return
        at, now = names.index(self._current), self._clock()
        if self._link.silent(now) or self._link.overdue_s > self.latency_s:
            below = sum(rung.wire_bytes <= known for rung in ladder)
            self._stand_on(names[min(at, max(0, below - 1))])
            return
        worth = [self._worth(rung, now) for rung in ladder[: at + 1]]
        best = max(range(at + 1), key=lambda i: (worth[i], i))
        if best < at:
            self._put_on_hold(ladder[best + 1 : at + 1], now)
            self._stand_on(names[best])
        elif at + 1 < len(ladder) and self._may_climb(ladder[at], ladder[at + 1], now):
            self._stand_on(names[at + 1])

    def _worth(self, rung: Rung, now: float, cautious: bool = False, share: float = 1.0) -> float:
        """Right answers in time, per frame, within that share of the objective and of the rate."""
        size, objective_s = rung.wire_bytes, share * (self.latency_s or 0.0)
        load = self._link.load(size, now, cautious) / share
        in_time = self._link.in_time(size, now, objective_s, cautious)
        return rung.accuracy * in_time * min(1.0, 1.0 / max(load, 1e-9))

    def _may_climb(self, rung: Rung, higher: Rung, now: float) -> bool:
        hold = self._holds.get(higher.name)
        return (
            now - self._changed_at >= self._dwell_s
            and (hold is None or now >= hold.until)
            and self._worth(higher, now, cautious=True, share=self._headroom)
            >= self._worth(rung, now, cautious=True, share=self._headroom)
        )

    def _stand_on(self, name: str) -> None:
        before, self._current = self._current, name
        if name != before:
            self._changed_at = self._clock()
            self.switches += bool(before)
            self._on_switch(before, name)

    def _put_on_hold(self, rungs: Sequence[Rung], now: float) -> None:
        for rung in rungs:
            held, length_s = self._holds.get(rung.name), self._hold_s
            if held is not None and now - held.until < 2 * held.length_s:
                length_s = min(2 * held.length_s, self._hold_max_s)
            self._holds[rung.name] = _Hold(now + length_s, length_s)
