"""Server-sent events of the live page: a view as a whole, then what changed of it.

A feed looks for changes a few times a second and sends the newest state of what changed, so a
viewer who reads slowly skips states and takes up no memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from cloud_server.api.failures import body_of
from cloud_server.identity.caller import Caller
from cloud_server.page.sight import Sight
from protos.errors import BridgeError

EVERY_S = 0.25
"""Pause between two looks for changes."""
BEAT_S = 10.0
"""A feed without changes says so often that the service is there."""
_EVENTS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Feed:
    """Streams views.

    Args:
        sight: makes the views.
        ended: whether feeds end, because the service stops.
    """

    def __init__(self, sight: Sight, ended: Callable[[], bool]) -> None:
        self._sight, self._ended = sight, ended

    def fleet(self, caller: Caller, tenant: str | None) -> StreamingResponse:
        """The fleet.

        Raises:
            ForbiddenError: its key may not read.
        """
        caller.require("read")
        return _streamed(self._fleet(caller, tenant))

    def device(self, caller: Caller, tenant: str | None, name: str) -> StreamingResponse:
        """One device.

        Raises:
            ForbiddenError, MissingError: as `Sight.device`.
        """
        first = self._sight.device(caller, tenant, name)
        return _streamed(self._device(caller, tenant, name, first))

    async def _fleet(self, caller: Caller, tenant: str | None) -> AsyncIterator[bytes]:
        sight, said_s = self._sight, time.monotonic()
        change, directory = sight.watch.change, sight.directory
        yield _event("fleet", sight.fleet(caller, tenant))
        while not self._ended():
            await asyncio.sleep(EVERY_S)
            if sight.directory is not directory:
                change, directory = sight.watch.change, sight.directory
                yield _event("fleet", sight.fleet(caller, tenant))
            elif sight.watch.change > change:
                devices = sight.watch.changed_since(change)
                change = sight.watch.change
                changed = sight.changed(caller, tenant, devices)
                if not changed.rows:
                    continue
                yield _event("fleet", changed)
            elif time.monotonic() - said_s > BEAT_S:
                yield _BEAT
            else:
                continue
            said_s = time.monotonic()

    async def _device(
        self, caller: Caller, tenant: str | None, name: str, first: BaseModel
    ) -> AsyncIterator[bytes]:
        sight, said_s = self._sight, time.monotonic()
        change, directory = sight.change_of(caller, tenant, name), sight.directory
        yield _event("device", first)
        while not self._ended():
            await asyncio.sleep(EVERY_S)
            now = sight.change_of(caller, tenant, name)
            if now > change or sight.directory is not directory:
                change, directory = now, sight.directory
                yield _event("device", sight.device(caller, tenant, name, whole=False))
            elif time.monotonic() - said_s > BEAT_S:
                yield _BEAT
            else:
                continue
            said_s = time.monotonic()


_BEAT = b"event: beat\ndata: {}\n\n"


def _event(name: str, view: BaseModel) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), view.model_dump_json().encode())


def _streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(_told(events), media_type="text/event-stream", headers=_EVENTS)


async def _told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; an error after the first is the last of them."""
    try:
        async for event in events:
            yield event
    except BridgeError as error:
        yield b"data: %s\n\n" % body_of(error).model_dump_json().encode()
