"""Loads further bundles into running engines, and waits until each engine has done it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from cloud_server.engine.jobs import Load, Loaded, Message, NotLoaded, Offer, Unload
from cloud_server.engine.link import FrontLink
from protos.errors import BridgeError, EngineUnavailableError, from_code


class LoadingEngine(Protocol):
    """An engine's attributes that loading needs."""

    @property
    def running(self) -> bool:
        """Whether it has loaded the bundles that it started with."""

    @property
    def ready(self) -> bool:
        """Whether it can take jobs."""

    @property
    def link(self) -> FrontLink:
        """The link to it."""


class Loader:
    """Loads and unloads bundles.

    Args:
        timeout_s: longest time for one bundle in one engine.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._offers: dict[tuple[LoadingEngine, str], Offer] = {}
        self._waiting: dict[tuple[LoadingEngine, str], asyncio.Future[Loaded]] = {}

    def hear(self, engine: LoadingEngine, message: Message) -> None:
        """Handle an engine's message about bundles."""
        if isinstance(message, Offer):
            self._offers[engine, message.bundle_digest] = message
        elif isinstance(message, Loaded | NotLoaded):
            waiting = self._waiting.get((engine, message.digest))
            if waiting is None or waiting.done():
                return
            if isinstance(message, Loaded):
                waiting.set_result(message)
            else:
                waiting.set_exception(from_code(message.code, message.message))

    def lost(self, engine: LoadingEngine) -> None:
        """Called when an engine has ended: its loads fail."""
        for (of, _), waiting in self._waiting.items():
            if of is engine and not waiting.done():
                waiting.set_exception(EngineUnavailableError("the engine is gone"))

    async def load(self, engine: LoadingEngine, asked: Load) -> tuple[Offer, Loaded]:
        """Load a bundle into an engine.

        Raises:
            EngineUnavailableError: the engine has ended, or did not load it in time.
            BridgeError: the engine cannot load it; gives the reason.
        """
        key = (engine, asked.digest)
        self._offers.pop(key, None)
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            engine.link.tell(asked)
            done = await asyncio.wait_for(waiting, self._timeout_s)
            offer = self._offers.pop(key, None)
        except asyncio.TimeoutError as error:
            raise EngineUnavailableError(
                f"bundle {asked.digest[:12]}… was not loaded within {self._timeout_s:g} s"
            ) from error
        finally:
            del self._waiting[key]
        if offer is None:
            raise EngineUnavailableError("the engine offered nothing")
        return offer, done

    async def load_all(self, engines: Iterable[LoadingEngine], asked: Load) -> tuple[Offer, int]:
        """Load a bundle into all engines at once.

        Returns:
            The offer, and the bundle's memory in all engines together, in bytes.

        Raises:
            BridgeError: as `load`; the first engine's error.
        """
        results = await asyncio.gather(
            *(self.load(engine, asked) for engine in engines), return_exceptions=True
        )
        made: list[tuple[Offer, Loaded]] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            made.append(result)
        if not made:
            raise EngineUnavailableError("no engine is up")
        return made[0][0], sum(loaded.memory_bytes for _, loaded in made)

    def unload_all(self, engines: Iterable[LoadingEngine], digest: str) -> None:
        """Unload a bundle from all engines."""
        for engine in engines:
            engine.link.tell(Unload(digest))


def is_passing(error: BridgeError) -> bool:
    """Whether another attempt to load may succeed."""
    return isinstance(error, EngineUnavailableError)
