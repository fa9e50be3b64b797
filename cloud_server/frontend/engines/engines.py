"""The engines of the front end: keeps them running, and tells listeners when they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from cloud_server.engine.jobs import Message, Offer, Status
from cloud_server.engine.socket_directory import SocketDirectory
from cloud_server.engine.spawn import Spawn
from cloud_server.frontend import descriptors
from cloud_server.frontend.engines.dispatch import Dispatch
from cloud_server.frontend.engines.kept_engine import KeptEngine
from cloud_server.frontend.engines.quarantine import Quarantine
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.process import threads
from protos.process.logs import Logger
from protos.process.memory import resident_bytes


class Listener(Protocol):
    """Told when engines come and go."""

    def engine_up(self, offers: list[Offer]) -> None:
        """Called when a (re)started engine can take jobs."""

    def engine_down(self) -> None:
        """Called when no engine is left; all jobs have been ended."""


class Engines:
    """The engine processes and their supervision (see `Part`).

    Args:
        settings: number of engines, time limits and sizes.
        directory: folder of their links' sockets.
        spawn: given the settings and a link's address, returns how engine processes are started.
        scenes: the frames from which scenes can be rebuilt.
        metrics: the service's metrics.
        log: a bound logger.
        changed: called when `why_not` may have changed.

    Attributes:
        kept: the engines.
        dispatch: sends jobs to them.
        listeners: told in this order; add to it before `start`.
        heard: called with engines' messages that belong to no job; add to it before `start`.
        catching_up: awaited with a (re)started engine and its bundles before it gets jobs; add to
        it before `start`.
        lost: called with an engine that has ended; add to it before `start`.
        ended: done when an engine is given up, with the error if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        directory: SocketDirectory,
        spawn: Callable[[Settings, str], Spawn],
        scenes: HeldScenes,
        metrics: Metrics,
        log: Logger,
        changed: Callable[[], None],
    ) -> None:
        self._metrics, self._changed = metrics, changed
        self._leaving = False
        self._reserve: descriptors.Reserve
        self.kept = [
            KeptEngine(
                index,
                own,
                directory.address_of(index),
                spawn(own, directory.address_of(index)),
                lambda: self._reserve.lent(),
                self._up,
                self._lost,
                changed,
                self._notice,
                metrics,
                log,
            )
            for index, own in enumerate(settings_of_each(settings))
        ]
        quarantine = Quarantine(settings.quarantine_dir, log)
        self.dispatch = Dispatch(self.kept, scenes, quarantine, metrics)
        self.listeners: list[Listener] = []
        self.heard: list[Callable[[KeptEngine, Message], None]] = []
        self.catching_up: list[Callable[[KeptEngine, list[Offer]], Awaitable[None]]] = []
        self.lost: list[Callable[[KeptEngine], None]] = []
        self._coming_up: dict[KeptEngine, asyncio.Task[None]] = {}
        self.ended: asyncio.Future[list[None]]

    async def start(self) -> None:
        """See `Part`."""
        self._reserve = descriptors.Reserve()
        self.ended = asyncio.gather(*[await kept.start() for kept in self.kept])

    async def drain(self) -> None:
        """See `Part`; the engines go on until `close`."""
        self._leaving = True

    async def close(self) -> None:
        """See `Part`: stop the engines; their open jobs are refused."""
        self._leaving = True
        self.dispatch.close()
        await asyncio.gather(*(kept.close() for kept in self.kept))
        await asyncio.wait({self.ended})
        self._reserve.close()

    def why_not(self) -> str:
        """Why no engine answers; empty if one does."""
        reasons = [kept.why_not() for kept in self.kept]
        return "" if "" in reasons else reasons[0]

    # ------------------------------------------------------------------ from the engines

    def _up(self, engine: KeptEngine, offers: list[Offer]) -> None:
        self._coming_up[engine] = asyncio.create_task(self._bring_up(engine, offers))

    async def _bring_up(self, engine: KeptEngine, offers: list[Offer]) -> None:
        """Let an engine load the bundles that the others have, then send it jobs."""
        for catch_up in self.catching_up:
            await catch_up(engine, offers)
        if not engine.running:
            return
        engine.caught_up = True
        for listener in self.listeners:
            listener.engine_up(offers)
        self.dispatch.up(engine)
        self._changed()

    def _lost(self, engine: KeptEngine) -> None:
        if engine in self._coming_up:
            self._coming_up.pop(engine).cancel()
        for lost in self.lost:
            lost(engine)
        self.dispatch.lost(engine)
        if not any(kept.ready for kept in self.kept):
            for listener in self.listeners:
                listener.engine_down()
        self._metrics.engine_restarts.inc(0 if self._leaving else 1)
        self._changed()

    def _notice(self, engine: KeptEngine, message: Message) -> None:
        if isinstance(message, Status):
            self._observe()
        for heard in self.heard:
            heard(engine, message)

    def _observe(self) -> None:
        metrics, told = self._metrics, [kept.status for kept in self.kept]
        metrics.running.set(sum(status.running for status in told))
        metrics.scenes.set(sum(status.scenes for status in told))
        metrics.scene_bytes.set(sum(status.scene_bytes for status in told))
        metrics.pool_bytes.set(sum(status.pool_bytes for status in told))
        resident = metrics.resident_bytes
        resident.labels("engine").set(sum(status.resident_bytes for status in told))
        resident.labels("front_end").set(resident_bytes())
        spares = [kept.spare_pid for kept in self.kept if kept.spare_pid]
        resident.labels("spare").set(sum(map(resident_bytes, spares)))


def settings_of_each(settings: Settings) -> list[Settings]:
    """The settings of each engine: one device each on GPUs, a share of the threads on a CPU."""
    count = settings.engines
    if count == 1:
        return [settings]
    share = settings.threads or max(1, threads.choose().count // count)
    each = []
    for index in range(count):
        own: dict[str, object] = {"threads": share}
        for name in ("device", "backend_device"):
            if getattr(settings, name) == "cuda":
                own[name] = f"cuda:{index}"
        each.append(settings.model_copy(update=own))
    return each
