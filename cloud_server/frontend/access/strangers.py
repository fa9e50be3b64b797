"""Calls that need no credential, enrolment and health: bounded in number and in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from cloud_server.frontend.access.open_calls import only_message
from cloud_server.frontend.peers import address_of
from cloud_server.frontend.refuse import Refusals
from protos.errors import BridgeError, EngineUnavailableError, FrameMalformedError, OverloadedError

_MOST = 64
_OF_ONE = 8
"""Calls of one address that wait for their message."""
_WATCHES = 1024
_WATCH_S = 3600.0
"""Longest health watch; its client begins another one."""
_LONGEST_MESSAGE = 1024
_AGAIN_S = 1.0


class Strangers:
    """Bounds the calls of callers that nobody knows.

    Args:
        refusals: counts refusals.
        message_s: longest wait for a call's message, seconds.
    """

    def __init__(self, refusals: Refusals, message_s: float) -> None:
        self._refusals, self._message_s = refusals, message_s
        self._waiting: Counter[str] = Counter()
        self._watches = 0

    async def message(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Read a call's one message.

        Raises:
            OverloadedError: too many calls, or too many of this address, wait for theirs.
            FrameMalformedError: none came in time.
        """
        with self._place(address_of(context.peer())):
            return await only_message(requests, self._message_s)

    def health(self, checks: Any) -> grpc.GenericRpcHandler:
        """GRPC's health service.

        Args:
            checks: answers; `grpc_health.v1.health.aio.HealthServicer`.
        """

        async def check(requests: AsyncIterator[bytes], context: Any) -> Any:
            return await checks.Check(await self._asked(requests, context), context)

        async def watch(requests: AsyncIterator[bytes], context: Any) -> None:
            request = await self._asked(requests, context)
            try:
                with self._watching():
                    await asyncio.wait_for(checks.Watch(request, context), _WATCH_S)
            except asyncio.TimeoutError:
                error = EngineUnavailableError(f"a watch lasts {_WATCH_S:.0f} s: watch again")
                await self._refusals.abort(context, error, "Watch")
            except OverloadedError as error:
                await self._refusals.abort(context, error, "Watch")

        reply = health_pb2.HealthCheckResponse.SerializeToString
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=reply),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=reply),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    async def _asked(self, requests: AsyncIterator[bytes], context: Any) -> Any:
        """The message of a health call."""
        try:
            raw = await self.message(requests, context)
            if len(raw) > _LONGEST_MESSAGE:
                raise FrameMalformedError(f"the request has more than {_LONGEST_MESSAGE} bytes")
            try:
                return health_pb2.HealthCheckRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not a HealthCheckRequest: {error}") from error
        except BridgeError as error:
            await self._refusals.abort(context, error, "health")

    @contextmanager
    def _place(self, address: str) -> Iterator[None]:
        if sum(self._waiting.values()) >= _MOST or self._waiting[address] >= _OF_ONE:
            raise _too_many()
        self._waiting[address] += 1
        try:
            yield
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    @contextmanager
    def _watching(self) -> Iterator[None]:
        if self._watches >= _WATCHES:
            raise _too_many()
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1


def _too_many() -> OverloadedError:
    return OverloadedError(
        "too many calls without a credential are open: try again",
        retry_after_s=_AGAIN_S,
        cause="open_calls",
    )
