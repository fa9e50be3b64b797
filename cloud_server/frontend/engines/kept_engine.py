"""One engine of the front end: its process, the link to it, and its canary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from cloud_server.engine.jobs import Message, Offer, Status
from cloud_server.engine.link import FrontLink
from cloud_server.engine.spawn import Spawn
from cloud_server.engine.supervisor import Supervisor
from cloud_server.frontend.canary import Canary
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.process.logs import Logger
from protos.process.memory import MemoryWatch


class KeptEngine:
    """An engine that is kept running.

    Args:
        index: its number, from 0.
        settings: this engine's settings, with its device and threads.
        address: address of its link.
        spawn: how its process is started.
        lent: a context in which the reserve of file descriptors is free.
        on_ready: called with the engine and its bundles when it can take jobs.
        on_lost: called with the engine when it has ended.
        changed: called when `why_not` may have changed.
        notice: called with messages that belong to no job.
        metrics: the service's metrics.
        log: a bound logger.

    Attributes:
        link: the link to it.
        caught_up: set when it has loaded the bundles that the others have.
        status: its last heartbeat; empty while it is down.
    """

    def __init__(
        self,
        index: int,
        settings: Settings,
        address: str,
        spawn: Spawn,
        lent: Callable[[], AbstractContextManager[None]],
        on_ready: Callable[[KeptEngine, list[Offer]], None],
        on_lost: Callable[[KeptEngine], None],
        changed: Callable[[], None],
        notice: Callable[[KeptEngine, Message], None],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self.index, self._metrics, self._name = index, metrics, str(index)
        self._on_ready, self._on_lost, self._notice_too = on_ready, on_lost, notice
        self._spawn = spawn
        self._memory = MemoryWatch("engine", log)
        self._log_lines_dropped = 0
        self.status = Status()
        self.caught_up = False
        self.link = FrontLink(address, settings.heartbeat_s, self._notice)
        self._supervisor = Supervisor(
            settings, spawn, lent, self._ready, self._lost, self._heard_status, log
        )
        self._canary = Canary(settings, self.link, metrics, log, changed)
        metrics.engine_ready.labels(self._name).set_function(lambda: float(self.ready))
        self._asking: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it has loaded the bundles that it started with."""
        return self._supervisor.ready

    @property
    def ready(self) -> bool:
        """Whether it can take jobs: it runs, and has loaded the bundles that the others have."""
        return self.running and self.caught_up

    @property
    def ended_from_outside(self) -> bool:
        """Whether its last process was killed or stopped from outside."""
        return self._supervisor.ended_from_outside

    @property
    def pid(self) -> int:
        """The engine's process id; 0 while there is none."""
        return self._supervisor.pid

    @property
    def spare_pid(self) -> int:
        """The process id of its spare; 0 without one."""
        return self._spawn.spare_pid

    def why_not(self) -> str:
        """Why it does not answer; empty if it does."""
        return self._canary.failing if self.ready else "the engine is not up"

    async def start(self) -> asyncio.Task[None]:
        """Start it and keep it running; the task ends with the error if it is given up."""
        await self.link.start()
        self._asking = asyncio.create_task(self._canary.run())
        self._running = asyncio.create_task(self._supervisor.run(self.link))
        return self._running

    async def close(self) -> None:
        """Stop it; its open jobs are refused."""
        if self._asking is None:
            return
        self._asking.cancel()
        await self._supervisor.stop(self.link)
        if self._running is not None:
            await asyncio.wait({self._running})
        await self.link.stop()

    def _notice(self, message: Message) -> None:
        self._supervisor.notice(message)
        self._notice_too(self, message)

    def _ready(self, offers: list[Offer]) -> None:
        self._memory.restart()
        self._canary.engine_up(offers)
        self._on_ready(self, offers)

    def _lost(self) -> None:
        self._canary.engine_down()
        self.status, self.caught_up = Status(), False
        self._on_lost(self)

    def _heard_status(self, status: Status) -> None:
        metrics, self.status = self._metrics, status
        fresh = status.log_lines_dropped - self._log_lines_dropped
        metrics.log_lines_dropped.labels("engine").inc(max(0, fresh))
        self._log_lines_dropped = status.log_lines_dropped
        metrics.engine_running.labels(self._name).set(status.running)
        metrics.engine_resident.labels(self._name).set(status.resident_bytes)
        if self.ready:
            self._memory.see(status.resident_bytes, status.cap_bytes)
