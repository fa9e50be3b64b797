"""Has engines load bundles beside those that they have, and waits until each has done it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from cloud_server.engine.jobs import Load, Loaded, Message, NotLoaded, Offer, Unload
from cloud_server.engine.link import FrontLink
from protos.errors import BridgeError, EngineUnavailableError, from_code


class LoadingEngine(Protocol):
    """One engine, as far as loading needs it."""

    @property
    def running(self) -> bool:
        """Whether it has loaded what it began with."""

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""

    @property
    def link(self) -> FrontLink:
        """The way to it."""


class Loader:
    """Loads and unloads bundles.

    Args:
        timeout_s: for one bundle in one engine.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._offers: dict[tuple[LoadingEngine, str], Offer] = {}
        self._waiting: dict[tuple[LoadingEngine, str], asyncio.Future[Loaded]] = {}

    def hear(self, engine: LoadingEngine, message: Message) -> None:
        """Take what an engine says about bundles."""
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
        """An engine is gone: it loads nothing."""
        for (of, _), waiting in self._waiting.items():
            if of is engine and not waiting.done():
                waiting.set_exception(EngineUnavailableError("the engine is gone"))

    async def load(self, engine: LoadingEngine, asked: Load) -> tuple[Offer, Loaded]:
        """Have an engine load a bundle.

        Raises:
            EngineUnavailableError: the engine is gone, or did not do it in time.
            BridgeError: it cannot load it, with its reason.
        """
        key = (engine, asked.digest)
        self._offers.pop(key, None)
        waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await engine.link.tell(asked)
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
        """Have every engine load a bundle at once.

        Returns:
            The offer, and the memory that it takes in all of them, in bytes.

        Raises:
            BridgeError: as `load`, of the first engine that fails.
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

    async def unload_all(self, engines: Iterable[LoadingEngine], digest: str) -> None:
        """Have every engine let go of a bundle."""
        for engine in engines:
            await engine.link.tell(Unload(digest))


def is_passing(error: BridgeError) -> bool:
    """Whether the next attempt to load may go better."""
    return isinstance(error, EngineUnavailableError)
