"""Turns a failed gRPC call into its typed error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameTooLargeError,
    OfflineError,
    OverloadedError,
)
from protos.refusals import error_in

_ABOVE_CAP = re.compile(r"larger than max \(\d+ vs\. (\d+)\)")
"""gRPC's own words (C++ and Go) when it ends a call because of a message above its cap."""
_LOOKS, _LOOK_S = 20, 0.01

Reply = TypeVar("Reply")


def error_of(error: grpc.aio.AioRpcError) -> BridgeError:
    """Turn a failed call into its typed error.

    The trailer `nb-error-code` decides; without it (another program answered) the status does.
    The failed call is let go: whoever keeps the error would keep the call by its traceback, and
    with it a closed channel, which goes on connecting to the server by itself.
    """
    error.__traceback__ = None
    text = error.details() or error.code().name
    trailer = error.trailing_metadata()
    typed = error_in(trailer if trailer is not None else (), text)
    if typed is not None:
        return typed
    status = error.code()
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return OfflineError(f"the server cannot be reached: {text}")
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return FrameTooLargeError(text) if _ABOVE_CAP.search(text) else OverloadedError(text)
    if status in (
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
    ):
        return EngineUnavailableError(f"the call broke ({status.name}): {text}")
    return BridgeError(f"the server refused the call ({status.name}): {text}")


def cap_in(error: FrameTooLargeError) -> int | None:
    """The cap in bytes that gRPC named when it ended a call; None if the error names none."""
    named = _ABOVE_CAP.search(error.message)
    return None if named is None else int(named[1])


async def unhidden(call: Any, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """The stream's real status when a late write masked it with INTERNAL."""
    for _ in range(_LOOKS):
        if error.code() != grpc.StatusCode.INTERNAL:
            break
        await asyncio.sleep(_LOOK_S)
        error = grpc.aio.AioRpcError(
            await call.code(),
            grpc.aio.Metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
    return error


async def unless_closed(reply: Awaitable[Reply]) -> Reply:
    """Await a call's reply, or its next message, in a channel that others may close.

    `grpc.aio` cancels the calls of a channel that is closed here; the task that awaits one would
    look cancelled.

    Raises:
        EngineUnavailableError: the channel was closed.
        grpc.aio.AioRpcError: the call failed.
    """
    waiting = asyncio.ensure_future(reply)
    try:
        await asyncio.wait({waiting})
    finally:
        waiting.cancel()  # if this task was cancelled
    if waiting.cancelled():
        raise EngineUnavailableError("the connection was closed")
    return waiting.result()
