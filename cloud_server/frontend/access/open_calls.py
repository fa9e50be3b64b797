"""Open calls: each call is authenticated, and ended when its caller's credential becomes invalid.

gRPC checks a certificate only when a connection begins. Here each call is checked when it begins,
and open calls again whenever the directory changes or a certificate or key expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from cloud_server.frontend.refuse import Refusals
from cloud_server.identity.caller import Caller
from cloud_server.identity.identify import Credential, Identities, credential_of
from protos.errors import (
    BridgeError,
    FrameMalformedError,
    OverloadedError,
    UnauthenticatedError,
)
from protos.process.logs import Logger

_EVERY_S = 1.0
_ABORT_S = 2.0
_AGAIN_S = 1.0
_ENDED = UnauthenticatedError("the certificate or key of this call was revoked or has expired")


@dataclass(eq=False)
class _Call:
    """One open call; an HTTP request has no context."""

    context: Any
    task: asyncio.Task[Any]
    credential: Credential
    caller: Caller
    late_s: float = 0.0
    ended: bool = False

    @property
    def whose(self) -> tuple[str, str, str]:
        """Whose bound it counts for."""
        return self.caller.tenant, self.caller.kind, self.caller.name


async def only_message(requests: AsyncIterator[Any], most_s: float) -> Any:
    """Read the one message of a call that brings one.

    Args:
        requests: the call's messages.
        most_s: longest wait, seconds.

    Raises:
        FrameMalformedError: the call brought none, or not in time.
    """
    try:
        return await asyncio.wait_for(anext(requests), most_s)
    except StopAsyncIteration:
        raise FrameMalformedError("the call brought no message, expected one") from None
    except asyncio.TimeoutError:
        raise FrameMalformedError(f"the call brought no message within {most_s:g} s") from None


class OpenCalls:
    """Checks every call, and ends calls whose caller may no longer call.

    Args:
        identities: identifies callers.
        refusals: counts refusals.
        log: a bound logger.
        most: calls that one `device`, and one `key`, may have open at once; 0 for no bound.
        message_s: longest wait for the message of a call that brings one, seconds.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        identities: Identities,
        refusals: Refusals,
        log: Logger,
        most: Mapping[str, int],
        message_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identities, self._refusals, self._log = identities, refusals, log
        self._most, self._message_s, self._clock = most, message_s, clock
        self._of: Counter[tuple[str, str, str]] = Counter()
        self._open: set[_Call] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """Check every open call soon, because the directory changed. Call it on the event loop."""
        self._changed.set()

    async def run(self) -> None:
        """Check open calls until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _EVERY_S)
            everything = self._changed.is_set()
            self._changed.clear()
            await self._check(everything)

    def guarded(
        self,
        handler: grpc.RpcMethodHandler,
        name: str,
        may: Callable[[Caller], None] = lambda _: None,
        late_s: float = 0.0,
    ) -> grpc.RpcMethodHandler:
        """Wrap a handler so that it answers only identified callers.

        Args:
            handler: one of `grpc.aio`.
            name: the call's name, for the log.
            may: raises an error if the caller may not use this call.
            late_s: seconds that a device's certificate may have expired ago.
        """
        unary = not handler.request_streaming
        kind = "stream" if handler.response_streaming else "unary"
        inner = getattr(handler, f"{'unary' if unary else 'stream'}_{kind}")

        async def one(requests: AsyncIterator[Any], context: Any) -> Any:
            caller = await self._enter(context, name, may, late_s)
            with self._held(context, caller, late_s):
                request = await self._only(requests, context, name) if unary else requests
                return await inner(request, context)

        async def many(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            caller = await self._enter(context, name, may, late_s)
            with self._held(context, caller, late_s):
                request = await self._only(requests, context, name) if unary else requests
                async for event in inner(request, context):
                    yield event

        # gRPC reads a unary request before its handler runs: megabytes of any stranger. The two
        # kinds are the same on the wire, so the handler takes a stream and reads one message.
        make = getattr(grpc, f"stream_{kind}_rpc_method_handler")
        made: grpc.RpcMethodHandler = make(
            many if inspect.isasyncgenfunction(inner) else one,
            handler.request_deserializer,
            handler.response_serializer,
        )
        return made

    async def _only(self, requests: AsyncIterator[Any], context: Any, name: str) -> Any:
        try:
            return await only_message(requests, self._message_s)
        except BridgeError as error:
            await self._refusals.abort(context, error, name)

    @contextmanager
    def held(self, credential: Credential, caller: Caller) -> Iterator[None]:
        """An HTTP request is open while the block runs.

        Args:
            credential: the caller's bearer key or cookie.
            caller: the caller.

        Raises:
            UnauthenticatedError: the credential became invalid meanwhile; the block was cancelled.
            OverloadedError: its caller has too many open already.
        """
        self._require_room(caller)
        with self._held(None, (credential, caller)) as call:
            try:
                yield
            except asyncio.CancelledError:
                if not call.ended:
                    raise
                getattr(call.task, "uncancel", int)()  # from Python 3.11 on
                raise _ENDED from None

    async def _enter(
        self, context: Any, name: str, may: Callable[[Caller], None], late_s: float
    ) -> tuple[Credential, Caller]:
        try:
            credential = credential_of(context)
            caller = self._identities.of(credential, late_s)
            may(caller)
            self._require_room(caller)
        except BridgeError as error:
            await self._refusals.abort(context, error, name)
        return credential, caller

    @contextmanager
    def _held(
        self, context: Any, known: tuple[Credential, Caller], late_s: float = 0.0
    ) -> Iterator[_Call]:
        task = asyncio.current_task()
        assert task is not None
        call = _Call(context, task, *known, late_s)
        self._open.add(call)
        self._of[call.whose] += 1
        try:
            yield call
        finally:
            self._open.discard(call)
            self._of[call.whose] -= 1
            if not self._of[call.whose]:
                del self._of[call.whose]

    def _require_room(self, caller: Caller) -> None:
        most = self._most["device" if caller.kind == "device" else "key"]
        if most and self._of[caller.tenant, caller.kind, caller.name] >= most:
            raise OverloadedError(
                f"this {caller.kind} has {most} calls open, more may not be: end one first",
                retry_after_s=_AGAIN_S,
                cause="open_calls",
            )

    async def _check(self, everything: bool) -> None:
        now_s = self._clock()
        ending = [
            call
            for call in self._open
            if (everything or call.caller.not_after_s + call.late_s <= now_s)
            and not self._still(call)
        ]
        self._open.difference_update(ending)
        await asyncio.gather(*map(self._end, ending))

    def _still(self, call: _Call) -> bool:
        """Whether the call would still be accepted, with the same rights."""
        try:
            return self._identities.of(call.credential, call.late_s) == call.caller
        except UnauthenticatedError:
            return False

    async def _end(self, call: _Call) -> None:
        """End a call with a status from outside its handler; after a cancel clients would wait."""
        call.ended = True
        if call.context is None:
            call.task.cancel()
            return
        abort = self._refusals.abort(call.context, _ENDED, "open call")
        try:
            await asyncio.wait_for(abort, _ABORT_S)
        except grpc.aio.AbortError:  # `abort` always raises it
            pass
        except Exception as error:  # the call ended meanwhile, or its client does not read
            self._log.info("open call cut", tenant=call.caller.tenant, cause=repr(error))
        finally:
            call.task.cancel()
