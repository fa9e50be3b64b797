"""Keeps the engine running: starts it, watches its heartbeats, restarts it (full-jitter back-off).

When the engine is gone, `FrontLink.lose` ends the requests under way, and the edge resends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cloud_server.engine.jobs import Broken, Message, Offer, Ready, Shutdown, Status
from cloud_server.engine.link import FrontLink
from cloud_server.engine.spawn import EngineProcess, Spawn
from cloud_server.settings import Settings
from protos.errors import BridgeError, EngineUnavailableError, from_code
from protos.process.children import is_stopped
from protos.process.logs import Logger
from protos.process.memory import oom_kills

_FIRST_STARTS = 3
_HEALTHY_S = 60.0
_GRACE_S = 5.0
_FROM_OUTSIDE = tuple(
    -number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
)
_LEAK, _SLACK_BYTES = 1.5, 256 << 20


class Supervisor:
    """Keeps one engine running.

    `ended_from_outside`: whether the last engine was killed or stopped from outside, and not by its
    own work.

    Args:
        settings: time limits and back-off.
        spawn: starts the process.
        lent: a context in which descriptors held in reserve are free, to start a process with.
        on_ready: called with the bundles that a freshly started engine offers.
        on_lost: called when the engine is gone.
        on_status: called with each of the engine's heartbeats.
        log: a bound logger.
    """

    def __init__(
        self,
        settings: Settings,
        spawn: Spawn,
        lent: Callable[[], AbstractContextManager[None]],
        on_ready: Callable[[list[Offer]], None],
        on_lost: Callable[[], None],
        on_status: Callable[[Status], None],
        log: Logger,
    ) -> None:
        self._settings, self._spawn, self._lent, self._log = settings, spawn, lent, log
        self._on_ready, self._on_lost, self._on_status = on_ready, on_lost, on_status
        self._offers: list[Offer] = []
        self._status: Status | None = None
        self._broken: BridgeError | None = None
        self._most_bytes = 0  # 0 while unknown
        self._oom_kills = 0
        self._stopping = False
        self._pause = asyncio.Event()
        self._process: EngineProcess | None = None
        self.ready = False
        self.restarts = 0
        self.ended_from_outside = False

    @property
    def pid(self) -> int:
        """The engine's process id; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def notice(self, message: Message) -> None:
        """Take the engine's messages about itself (see `FrontLink`)."""
        if isinstance(message, Status):
            self._status = message
            if self.ready and not self._most_bytes:  # memory before any work
                most = int((message.resident_bytes + message.cap_bytes) * _LEAK) + _SLACK_BYTES
                self._most_bytes = self._settings.engine_memory_bytes or most
            self._on_status(message)
        elif isinstance(message, Offer):
            self._offers.append(message)
        elif isinstance(message, Ready):
            self.ready = True
            self._log.info(
                "engine ready", pid=self.pid, model=message.model, load_s=round(message.load_s, 3)
            )
            self._on_ready(list(self._offers))
        elif isinstance(message, Broken):
            self._broken = from_code(message.code, message.message)

    async def run(self, link: FrontLink) -> None:
        """Keep the engine running until `stop`.

        Raises:
            BridgeError: the very first engine says that it cannot start, with its reason;
                EngineUnavailableError if it dies silently several times in a row.
        """
        settings = self._settings
        was_ready, failures = False, 0
        while not self._stopping:
            identity = f"engine-{self.restarts}-{secrets.token_hex(4)}"
            self.ended_from_outside, self._oom_kills = False, oom_kills()
            self._offers, self._status, self._broken, self._most_bytes = [], None, None, 0
            link.expect(identity)
            started = time.monotonic()
            reason = await self._live(identity, link, started)
            if not reason:
                return
            came_up, self.ready = self.ready, False
            was_ready = was_ready or came_up
            link.lose(reason)
            self._on_lost()
            if self._stopping:
                return
            self._log.error("engine lost", reason=reason)
            if not came_up:
                await self._spawn.close()  # the spare itself may be at fault
            lived = time.monotonic() - started > _HEALTHY_S
            healthy = came_up and (lived or link.answered_at > started)
            failures = 1 if healthy else failures + 1
            if not was_ready and self._broken is not None:
                raise self._broken
            if not was_ready and failures >= _FIRST_STARTS:
                raise EngineUnavailableError(
                    f"the engine ended {failures} times before it was ready: {reason}"
                )
            self.restarts += 1
            ceiling = settings.restart_backoff_s * 2.0 ** min(failures - 1, 20)
            pause = random.uniform(0.0, min(ceiling, settings.restart_backoff_max_s))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._pause.wait(), pause)

    async def _live(self, identity: str, link: FrontLink, started: float) -> str:
        """One engine's life, from its start; returns why it ended, or nothing if it was stopped."""
        try:
            with self._lent():
                process = await self._spawn(identity)
        except (OSError, RuntimeError) as error:
            # No descriptors, memory, processes or threads left: there may be some later.
            return f"the engine process cannot be started ({error})"
        self._process = process
        self._log.info("engine started", pid=process.pid, restarts=self.restarts)
        try:
            return "" if self._stopping else await self._watch(process, link, started)
        finally:
            await self._end(process)
            self._process = None

    async def stop(self, link: FrontLink) -> None:
        """Ask the engine to leave; end it if it does not."""
        self._stopping = True
        self._pause.set()
        link.tell(Shutdown())
        process = self._process
        if process is not None:
            if self.ready:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(process.wait(), _GRACE_S)
            await self._end(process)
        await self._spawn.close()

    async def _end(self, process: EngineProcess) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), _GRACE_S)
        if process.returncode is None:  # a spare that hangs reports no end
            await self._spawn.close()
            await process.wait()

    async def _watch(self, process: EngineProcess, link: FrontLink, started: float) -> str:
        """Watch until the process ended or must be ended; returns why."""
        settings = self._settings
        while True:
            asked = time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), settings.heartbeat_s)
                killed = process.returncode in _FROM_OUTSIDE
                self.ended_from_outside = killed and oom_kills() == self._oom_kills
                return f"the engine process ended ({_how(process.returncode)})"
            if time.monotonic() - asked > 2 * settings.heartbeat_s + 1.0:
                continue  # this process itself was held up: what the engine said is still unread
            now = time.monotonic()
            if self._broken is not None:
                return f"the engine cannot go on: {self._broken.message}"
            if not self.ready and now - started > settings.engine_start_s:
                return f"the engine took more than {settings.engine_start_s:g} s to start"
            if self._status is not None:
                if now - link.last_heard > settings.heartbeat_timeout_s:
                    self.ended_from_outside = is_stopped(process.pid)
                    return f"the engine was silent for {settings.heartbeat_timeout_s:g} s"
                if self.ready and self._status.step_s > settings.engine_stall_s:
                    return f"the engine hung for {settings.engine_stall_s:g} s in one step"
                if self._most_bytes and self._status.resident_bytes > self._most_bytes:
                    return (
                        f"the engine holds {self._status.resident_bytes} bytes, it may hold "
                        f"{self._most_bytes}"
                    )


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-returncode).name
    return f"exit code {returncode}"
