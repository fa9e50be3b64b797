"""One open Infer stream, its events, and the requests that wait for one."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import grpc

from edge_agent.uplink.call_errors import error_of, unhidden
from edge_agent.uplink.dial import Dial
from edge_agent.uplink.session import Session
from protos.calls import (
    ACCEPTED_WAIT_KEY,
    CROP_KEY,
    EVENTS_APART,
    SESSION_METADATA_KEY,
    WHOLE_ANSWERS,
)
from protos.errors import BridgeError, EngineUnavailableError, OfflineError
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.parcel import Course
from protos.process.trace import TRACEPARENT, Context, uplink_context


@dataclass(frozen=True)
class Expected:
    """A request that waits for its terminal event.

    Attributes:
        future: gets the event, or the error that ended the stream.
        ends: names of the events that end this request.
    """

    future: asyncio.Future[bridge_pb2.InferEvent]
    ends: tuple[str, ...]


class Stream:
    """One open Infer stream and the requests that wait on it.

    Args:
        session: in which it was opened.
        channels: the first carries frames and questions, the second, if any, the events.
        call: the Infer call.
        events: where events come from: the Events call, or the Infer call itself.
        credential: serial number of the certificate it was opened with; empty without one.
        dial: made its channels.

    Attributes:
        waiting: requests that have no terminal event yet, by id.
        broken: why it takes no more requests; None while it does.
        heard_at: when something came down last.
        opened_at: when it was opened.
        asked_at: when the first request went up since then; None if none did.
        reader: the task that reads the events.
        writing: held while a message is written.
        course: of its parcels.
    """

    def __init__(
        self,
        session: Session,
        channels: list[grpc.aio.Channel],
        call: Any,
        events: Any,
        credential: str = "",
        dial: Dial | None = None,
    ) -> None:
        self.session = session
        self.dial = dial
        self.credential = credential
        self.channels = channels
        self.channel = channels[0]
        self.call = call
        self.events = events
        self.waiting: dict[bytes, Expected] = {}
        self.broken: BridgeError | None = None
        self.heard_at = float("-inf")
        self.opened_at = float("-inf")
        self.asked_at: float | None = None
        self.reader: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()
        self.course = Course()

    def expect(self, request_id: bytes, *ends: str) -> asyncio.Future[bridge_pb2.InferEvent]:
        """Wait for one of these events under this id; whoever waits removes it from `waiting`."""
        future: asyncio.Future[bridge_pb2.InferEvent] = asyncio.get_running_loop().create_future()
        self.waiting[request_id] = Expected(future, ends)
        return future

    def asked(self, now: float) -> None:
        """A request went up."""
        if self.asked_at is None:
            self.asked_at = now

    @property
    def idle_s(self) -> float:
        """How long nothing had come down before the request that still has no event, seconds."""
        heard_at = max(self.heard_at, self.opened_at)
        return 0.0 if self.asked_at is None else self.asked_at - heard_at

    def heard(self, now: float) -> None:
        """Something came down."""
        self.heard_at, self.asked_at = now, None

    def fail(self, error: BridgeError) -> None:
        """Take no more requests, and end the attempts of all who wait."""
        self.broken = self.broken or error
        self.end_all(error)

    def end_all(self, error: BridgeError) -> None:
        """End the attempts of all who wait; the stream itself may go on."""
        if not error.retryable and len(self.waiting) > 1:
            # All are sent again. `check_message` then refuses a request above the cap. No other
            # culprit can be named: it is sent until it is alone or its retries end.
            error = EngineUnavailableError(f"the stream broke: {error}")
        for waiting in self.waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self.waiting.clear()

    async def read_out(self) -> None:
        """The call has ended: wait until the reader knows why and has told all who wait."""
        if self.reader is not None:
            await asyncio.wait({self.reader}, timeout=1.0)
            self.call.cancel()
            await asyncio.wait({self.reader})

    async def ending(self) -> BridgeError:
        """Why it ended by itself: the status of its Infer call, or else of its events."""
        for call in (self.call, self.events):
            if call.done() and not call.cancelled() and await call.code() != grpc.StatusCode.OK:
                ended = grpc.aio.AioRpcError(
                    await call.code(),
                    grpc.aio.Metadata(),
                    await call.trailing_metadata(),
                    await call.details(),
                )
                return error_of(await unhidden(call, ended))
        return EngineUnavailableError("the server ended the stream")

    async def emptied(self, timeout_s: float) -> None:
        """Wait until no request waits on it, at most so many seconds."""

        async def wait() -> None:
            while self.waiting:
                futures = {one.future for one in self.waiting.values()}
                await asyncio.wait(futures)
                await asyncio.sleep(0)  # whoever waits removes it

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wait(), timeout_s)

    async def drop(self, error: BridgeError) -> None:
        """End the calls, fail who still waits, close the channels."""
        self.broken = self.broken or error
        self.call.cancel()
        self.events.cancel()
        if self.reader is not None:
            await asyncio.wait({self.reader})
        self.fail(self.broken)
        for channel in self.channels:
            await channel.close()


def call_metadata(
    session: Session, apart: bool, accepted_wait: str, crop_bytes: int, context: Context | None
) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata of an Infer call.

    Args:
        session: in which it is opened.
        apart: whether its events come by a call of their own.
        accepted_wait: see `Connection`.
        crop_bytes: longest crop that is sent; 0 for none.
        context: of the traces of this run; None if there are none.
    """
    metadata: tuple[tuple[str, str | bytes], ...] = (
        (SESSION_METADATA_KEY, session.session_id),
        WHOLE_ANSWERS,
    )
    if apart:
        metadata += (EVENTS_APART,)
    if accepted_wait:
        metadata += ((ACCEPTED_WAIT_KEY, accepted_wait),)
    if crop_bytes:
        metadata += ((CROP_KEY, str(crop_bytes)),)
    if context is not None:
        metadata += ((TRACEPARENT, context.header),)
    return metadata


def call_context(context: Context, request_id: bytes) -> tuple[tuple[str, str], ...]:
    """Metadata of a call for one question, in the trace of that question."""
    return ((TRACEPARENT, uplink_context(context, request_id).header),)


async def open_events(channel: grpc.aio.Channel, session: Session, timeout_s: float) -> Any:
    """Call Events, for an Infer call on another connection, and wait until the server is ready.

    Raises:
        grpc.aio.AioRpcError: the server refused.
        OfflineError: it said nothing in time.
    """
    request = bridge_pb2.EventsRequest(session_id=session.session_id)
    call = bridge_pb2_grpc.BridgeStub(channel).Events(request)
    try:
        await asyncio.wait_for(call.initial_metadata(), timeout_s)
    except asyncio.TimeoutError as error:
        call.cancel()
        raise OfflineError(f"no word from the server within {timeout_s:g} s") from error
    if call.done():
        await call.read()  # raises the status it ended with
        raise OfflineError("the server ended the call of events at once")
    return call
