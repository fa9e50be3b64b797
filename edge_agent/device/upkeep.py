"""Looks after a running agent: watchdog, status, log on the disk, crash reports, sensors.

Calls, in order: the constructor, before the log exists; `begin`; `ready` once the work begins;
`beat` on the event loop; `end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.device import status
from edge_agent.device.crash import CrashReports
from edge_agent.device.log_ring import LogRing, newest
from edge_agent.device.notify import Notify
from edge_agent.device.power import Sensors
from edge_agent.device.pulse import DISK, Pulse
from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord
from edge_agent.spool.lock import Lock
from edge_agent.spool.spool_clock import boot_id
from projector.models.running import Running
from protos.errors import BridgeError, SpoolError
from protos.process.console import ReaderGoneError
from protos.process.logs import Logger
from protos.process.settings import installed_version

_MOVE_S = 120.0
"""A step that takes longer counts as stuck, where no watchdog says how long it may take."""
_BEAT_S = 1.0
_SHOWN_ERRORS = 8


class Upkeep:
    """What looks after one agent.

    Args:
        metrics: of the agent.
        settings: without secrets, for reports.
        state: the state directory; None without one: then nothing is kept on the disk.
        log_bytes: of the log on the disk; 0: none.
        environ: names systemd's socket.
        clock: monotonic, seconds.

    Attributes:
        notify: tells systemd.
        pulse: whether frames move.
        sensors: the machine's.
        reports: crash reports; None if another agent has the state directory.
        ring: the log on the disk; None without one.
        updating: the update that is under way; None if none is.
        set_from_afar: how the service's settings stand; None if it set none.
    """

    def __init__(
        self,
        metrics: Metrics,
        settings: Mapping[str, Any],
        state: Path | None,
        log_bytes: int,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics, self._settings, self._state, self._clock = metrics, settings, state, clock
        self.notify, self.pulse, self.sensors = Notify(environ), Pulse(clock), Sensors()
        self.reports: CrashReports | None = None
        self.ring: LogRing | None = None
        self.updating: Callable[[], Mapping[str, Any] | None] = lambda: None
        self.set_from_afar: Callable[[], Mapping[str, Any] | None] = lambda: None
        self._socket: status.StatusSocket | None = None
        self._lock: Lock | None = None
        self._why_not, self._last_lines = "", list[str]()
        self._phase, self._began, self._began_at = "loading", clock(), time.time()
        self._beaten = self._newest = self._withheld = 0.0
        self._stalled: Callable[[], str] = str
        self._model: Running | None = None
        if state is not None:
            self._take(state, log_bytes)

    def begin(self, log: Logger, start_limit_s: float) -> None:
        """Begin, before the model is loaded."""
        self._log = log
        self.metrics.watch(self.sensors.latest)
        self.sensors.start()
        self.notify.starting(start_limit_s)
        self.notify.status("loading the model")
        if self._why_not:
            log.warning("not_looked_after", cause=self._why_not)
        if self.reports is not None:
            facts = {"version": installed_version(), "settings": self._settings}
            if last := self.reports.begin(facts, self._last_lines):
                log.warning("ended_badly", kind=last["kind"], reports=str(self.reports.folder))

    def loaded(self, running: Running) -> None:
        """The model is loaded, and runs there."""
        self._model = running

    def ready(self, stalled: Callable[[], str]) -> None:
        """The work begins.

        Args:
            stalled: what of the source gives no pictures any more and is not coming back; empty
                if nothing is.
        """
        self._stalled, self._phase = stalled, "running"
        self._beaten = self._clock()
        self.notify.ready()

    async def beat(self) -> None:
        """Ping the watchdog as long as frames move, until cancelled. Runs on the agent's loop."""
        every_s = min(_BEAT_S, (self.notify.watchdog_s or 4.0) / 4)
        while True:
            self._beaten = self._clock()
            if stuck := self.stuck():
                if not self._withheld:
                    self._log.error("stuck", what=stuck, watchdog_s=self.notify.watchdog_s)
                self._withheld = self._beaten
            else:
                self._withheld = 0.0
                self.notify.alive()
            if self.notify.heard:
                self.notify.status(self._line(stuck))
            await asyncio.sleep(every_s)

    def stuck(self) -> str:
        """What does not move; empty if everything does."""
        limit_s = self.notify.watchdog_s or _MOVE_S
        if self._phase == "running" and self._clock() - self._beaten > limit_s:
            return "event loop"
        return self.pulse.stuck(limit_s) or self._stalled()

    def telling(self, on_record: Callable[[AnswerRecord], None]) -> Callable[[AnswerRecord], None]:
        """What gets every record, and tells this too."""

        def told(record: AnswerRecord) -> None:
            with self.pulse.step(DISK):
                on_record(record)
            if record.error is None:
                self._newest = self._clock()

        return told

    def stopping(self) -> None:
        """The agent ends once what is in flight has ended."""
        self._phase = "stopping"
        self.notify.stopping()

    def end(self, error: BaseException | None) -> None:
        """The agent has ended.

        Args:
            error: what ended it; None if it ended by itself.
        """
        self.sensors.stop()
        self.notify.stopping()
        if self.reports is not None:
            # A typed error is the user's business; the bare class wraps a failure of the agent.
            if error is not None and (type(error) is BridgeError or _unexpected(error)):
                self.reports.failed(error, self.ring.tail() if self.ring is not None else ())
            self.reports.end()
        if self._socket is not None:
            self._socket.close()
        if self.ring is not None:
            self.ring.close()
        if self._lock is not None:
            self._lock.give_back()

    def snapshot(self) -> dict[str, Any]:
        """How the agent is; for `edge-agent status`."""
        now, readings = self._clock(), self.sensors.latest()
        stuck = self.stuck()
        return {
            "state": "stuck" if stuck else self._phase,
            "stuck": stuck or None,
            "version": installed_version(),
            "pid": os.getpid(),
            "began": self._began_at,
            "uptime_s": now - self._began,
            "newest_scene_age_s": now - self._newest if self._newest else None,
            **status.figures(self.metrics),
            "model": None if self._model is None else dataclasses.asdict(self._model),
            "power": {
                "watts": readings.watts,
                "celsius": readings.celsius,
                "mode": readings.mode or None,
                "throttled": readings.throttled,
            },
            "update": self.updating(),
            "service_settings": self.set_from_afar(),
            "log_lines_dropped": self.ring.dropped if self.ring is not None else None,
            "last_errors": self._last_errors(),
        }

    def _take(self, state: Path, log_bytes: int) -> None:
        """Take the state directory, if no other agent has it."""
        lock = Lock(state / "agent.lock")
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.take()
            self._lock = lock
            self._socket = status.StatusSocket(state, self.snapshot)
        except SpoolError:
            self._why_not = f"another agent uses {state}: give each its own --state-dir"
            return
        except OSError as error:
            self._why_not = f"{state}: {error.strerror or error}"
            return
        self.reports = CrashReports(state / "reports", boot_id())
        if log_bytes:
            self._last_lines = newest(state / "logs")
            self.ring = LogRing(state / "logs", log_bytes)

    def _line(self, stuck: str) -> str:
        """One line for systemd."""
        found = status.figures(self.metrics)
        cameras = ", ".join(f"{name} {one['state']}" for name, one in found["cameras"].items())
        parts = [
            f"STUCK: {stuck} does not move" if stuck else "",
            cameras,
            "connected" if found["connected"] else "no connection",
            f"point {found['point']}" if found["point"] else "",
            f"{found['spool']['frames']:.0f} frames wait on the disk",
        ]
        return "; ".join(part for part in parts if part)

    def _last_errors(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for line in reversed(self.ring.tail() if self.ring is not None else []):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("level") in ("warning", "error", "critical"):
                    found.append(row)
            if len(found) == _SHOWN_ERRORS:
                break
        return found[::-1]


def _unexpected(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, BridgeError | ReaderGoneError)
