"""The engines of the front end: keeps them running, and tells who listens when one comes or goes.

`FrontLink` talks to the engine, `Supervisor` starts it again, `Canary` asks it questions of our
own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from cloud_server.engine.jobs import Message, Offer, Status
from cloud_server.engine.link import FrontLink
from cloud_server.engine.spawn import Spawn
from cloud_server.engine.supervisor import Supervisor
from cloud_server.frontend import descriptors
from cloud_server.frontend.canary import Canary
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.process.logs import Logger
from protos.process.memory import MemoryWatch, resident_bytes


class Listener(Protocol):
    """Is told when engines come and go."""

    def engine_up(self, offers: list[Offer]) -> None:
        """A (re)started engine takes jobs."""

    def engine_down(self) -> None:
        """There is no engine; its jobs have been ended by the link."""


class Engines:
    """The engine process and what keeps it (see `Part`).

    Args:
        settings: time limits and sizes.
        address: where the link listens.
        spawn: given the settings and the link's address, returns how engine processes are started.
        metrics: what is counted.
        log: a bound logger.
        changed: called when `why_not` may have changed.

    Attributes:
        link: the way to the engine.
        listeners: told in this order; add to it before `start`.
        ended: done when no engine is kept running any more, with the error if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        address: str,
        spawn: Callable[[Settings, str], Spawn],
        metrics: Metrics,
        log: Logger,
        changed: Callable[[], None],
    ) -> None:
        self._metrics, self._log, self._changed = metrics, log, changed
        self.link = FrontLink(address, settings.heartbeat_s, self._notice)
        self._memory = MemoryWatch("engine", log)
        self._spawn = spawn(settings, address)
        self._reserve: descriptors.Reserve
        self._supervisor = Supervisor(
            settings,
            self._spawn,
            lambda: self._reserve.lent(),
            self._on_ready,
            self._on_lost,
            self._on_status,
            log,
        )
        self._canary = Canary(settings, self.link, metrics, log, changed)
        self._asking: asyncio.Task[None] | None = None
        self._engine_dropped = 0
        self._leaving = False
        self.listeners: list[Listener] = [self._canary]
        self.ended: asyncio.Task[None]

    async def start(self) -> None:
        """See `Part`."""
        await self.link.start()
        self._reserve = descriptors.Reserve()
        self._asking = asyncio.create_task(self._canary.run())
        self.ended = asyncio.create_task(self._supervisor.run(self.link))

    async def drain(self) -> None:
        """See `Part`; the engine goes on until `close`."""
        self._leaving = True

    async def close(self) -> None:
        """See `Part`: the engine leaves, and what it still had to answer is refused."""
        self._leaving = True
        if self._asking is None:
            return
        self._asking.cancel()
        await self._supervisor.stop(self.link)
        await asyncio.wait({self.ended})
        self._reserve.close()
        await self.link.stop()

    def why_not(self) -> str:
        """Why no engine answers; empty if one does."""
        return self._canary.failing if self._supervisor.ready else "the engine is not up"

    # ------------------------------------------------------------------ what the engine says

    def _notice(self, message: Message) -> None:
        self._supervisor.notice(message)

    def _on_ready(self, offers: list[Offer]) -> None:
        self._memory.restart()
        for listener in self.listeners:
            listener.engine_up(offers)
        self._changed()

    def _on_lost(self) -> None:
        for listener in self.listeners:
            listener.engine_down()
        self._metrics.engine_restarts.inc(0 if self._leaving else 1)
        self._changed()

    def _on_status(self, status: Status) -> None:
        metrics = self._metrics
        metrics.running.set(status.running)
        metrics.scenes.set(status.scenes)
        metrics.scene_bytes.set(status.scene_bytes)
        fresh = status.log_lines_dropped - self._engine_dropped
        metrics.log_lines_dropped.labels("engine").inc(max(0, fresh))
        self._engine_dropped = status.log_lines_dropped
        metrics.pool_bytes.set(status.pool_bytes)
        metrics.resident_bytes.labels("engine").set(status.resident_bytes)
        metrics.resident_bytes.labels("front_end").set(resident_bytes())
        spare = self._spawn.spare_pid
        metrics.resident_bytes.labels("spare").set(resident_bytes(spare) if spare else 0)
        if self._supervisor.ready:
            self._memory.see(status.resident_bytes, status.cap_bytes)
