"""The connection to the service: the session, the open Infer stream and its events.

`Connection.open` returns the open stream; if there is none it negotiates (`negotiate`), opens the
events on a connection of their own (`open_events`), then the Infer call. One attempt serves all who
wait, in a task of its own, so that it outlives a request that is given up. The task `_read` hands
each event to the request that expects it; an event for an id that has ended is counted and dropped.
Of several servers (`servers`) the first that agrees carries the stream. `_return` moves to a better
one: it opens the new stream first, and the old one still brings the answers of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from edge_agent.metrics import Metrics
from edge_agent.uplink import portals
from edge_agent.uplink.call_errors import error_of
from edge_agent.uplink.caller_bar import BARRING, CallerBar
from edge_agent.uplink.crops import Crops
from edge_agent.uplink.dial import Dial, explained, keepalive_of
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.negotiate import feedback_decoder, negotiate
from edge_agent.uplink.retry import Refused, RetryPolicy
from edge_agent.uplink.servers import Servers, address_of
from edge_agent.uplink.session import Session
from edge_agent.uplink.stream import Stream, call_metadata, open_events
from projector.codec.feedback import FeedbackDecoder
from protos.errors import (
    BridgeError,
    BundleVersionError,
    ConfigError,
    EngineUnavailableError,
    FrameTooLargeError,
    IncompatibleLayoutError,
    NoFeedbackError,
    OfflineError,
    ProtocolVersionError,
    UnauthenticatedError,
    UnknownSessionError,
)
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.logs import Logger
from protos.process.trace import Context

FATAL = (
    ConfigError,
    IncompatibleLayoutError,
    BundleVersionError,
    ProtocolVersionError,
    NoFeedbackError,
)
"""Errors that every later frame would get too: they end the run."""


async def _nothing() -> None:
    return


class Connection:
    """The session and the open stream.

    Args:
        layout: the small model's cache layout.
        dial: makes a fresh channel to the server; or several servers, in order of preference.
        store: where encoders are kept.
        metrics: what is counted.
        log: structured logger.
        policy: time limits.
        clock: seconds, monotonic.
        on_open: called whenever a stream was opened: the new session may allow more.
        device: this device's name, for a service without identities.
        keep: see `negotiate`.

    Attributes:
        session: the session agreed last; None before, and once the server has forgotten it.
        on_session: called with every session that was agreed.
        stream: the stream opened last; None before.
        crops: answers the service's wish for crops; None allows none.
        accepted_wait: the metadata `nb-accepted-wait` of its streams; empty: none.
        context: of the traces of this run; None: there are none.
    """

    def __init__(
        self,
        layout: KVLayout,
        dial: Dial | Servers,
        store: EncoderStore,
        metrics: Metrics,
        log: Logger,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
        on_open: Callable[[], Awaitable[None]] = _nothing,
        device: str = "",
        keep: str = "",
    ) -> None:
        self.on_session: Callable[[Session], None] = lambda session: None
        self.session: Session | None = None
        self.stream: Stream | None = None
        self.accepted_wait = ""
        self.context: Context | None = None
        self.crops: Crops | None = None
        self._layout = layout
        self._servers = Servers.of(dial)
        self._store = store
        self._metrics = metrics
        self._log = log
        self._policy = policy
        self._clock = clock
        self._on_open = on_open
        self._device = device
        self._keep = keep
        self._keepalive = keepalive_of(self._servers.dials[0])
        self._bar = CallerBar(self._servers.dials[0], clock)
        self._before: Session | None = None
        self._opening: asyncio.Task[Stream] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._opened = 0
        self._apart = True
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self.stream is not None and self.stream.broken is None

    @property
    def answers(self) -> bool:
        """Whether the server answers: a stream is open, or it has just refused this device."""
        return self.connected or self._bar.up

    @property
    def latest(self) -> Session | None:
        """The session agreed last, even if the server has forgotten it."""
        return self.session or self._before

    def resume(self, session: Session) -> None:
        """Go on with the session of an earlier process; if the server lost it, negotiate."""
        self.session = self._before = session

    async def open(self) -> Stream:
        """The open stream; connects if there is none, one attempt for all who wait.

        The attempt goes on if the request that wanted it is given up meanwhile.

        Raises:
            BridgeError, Refused: no stream could be opened.
        """
        closing = Refused(OfflineError("the agent is closing"), retryable=False)
        if self._closed:
            raise closing
        stream = self.stream
        if stream is not None and stream.broken is None:
            if not self._dead(stream):
                return stream
            stream.broken = EngineUnavailableError(
                f"nothing came down for {self._policy.answer_timeout_s:g} s"
            )
        if self._opening is None or self._opening.done():
            if self._bar.up:
                raise self._barred()
            self._opening = asyncio.create_task(self._reopen())
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if not (self._closed and opening.cancelled()):
                raise
            raise closing from None
        except BARRING as error:
            raise self._barred() from error
        except BridgeError as error:
            if self._opened and not error.retryable and not isinstance(error, FATAL):
                # This server agreed to a session before, so its fault may be repaired: try again.
                raise Refused(error, retryable=True) from error
            raise

    async def close(self) -> None:
        """Half-close the stream, wait for the server's end of it, close the channel."""
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._stop_returning()
        for leaving in self._leaving:
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        stream, self.stream = self.stream, None
        if stream is not None:
            await _half_close(stream, OfflineError("the agent is closing"))

    def forget(self, session: Session) -> None:
        """The server does not know this session any more: negotiate before the next request."""
        if self.session is session:
            self.session = None
        stream = self.stream
        if stream is not None and stream.session is session and stream.broken is None:
            stream.broken = UnknownSessionError("the session is negotiated again")

    def failed(self, error: grpc.aio.AioRpcError, session: Session) -> BridgeError:
        """The typed error of a call in a session; forgets a session that the server forgot."""
        stream = self.stream
        typed = _typed(error, stream.dial if stream is not None else None)
        if isinstance(typed, UnknownSessionError):
            self.forget(session)
        if isinstance(typed, BARRING) and self.stream is not None:
            return self._not_let_in(self.stream, typed)
        return typed

    async def feedback_decoder(self, stream: Stream) -> FeedbackDecoder:
        """The decoder for the session's feedback, fetched once; see `negotiate`."""
        return await feedback_decoder(
            stream.channel,
            stream.session,
            self._layout,
            self._store,
            self._metrics,
            self._policy.connect_timeout_s,
        )

    def _dead(self, stream: Stream) -> bool:
        """Whether requests went up and nothing came down for a whole answer timeout."""
        asked = stream.asked_at
        return asked is not None and self._clock() - asked >= self._policy.answer_timeout_s

    async def _reopen(self) -> Stream:
        await self._stop_returning()
        stream, self.stream = self.stream, None
        if stream is not None:
            await stream.drop(OfflineError("the stream is gone"))
        try:
            stream = await self._first_that_agrees()
        except BARRING as error:
            if self._bar.too_early(error):
                raise EngineUnavailableError(
                    f"the certificate is new, and may not be known everywhere yet: {error.message}"
                ) from error
            self._bar.raise_for(error)
            self._log.error("not_let_in", error=error.name, cause=str(error))
            raise
        if self._opened:
            self._metrics.reconnects.inc()
        await self._adopt(stream)
        return stream

    async def _first_that_agrees(self) -> Stream:
        """The stream of the first server that serves this device.

        Raises:
            BridgeError: none does: the first error that may pass, or else the first one.
        """
        failures: list[tuple[Dial, BridgeError]] = []
        for dial in self._servers.order():
            try:
                stream = await self._agree(dial)
            except BridgeError as error:
                failures.append((dial, error))
                if self._keepalive is not None:
                    self._keepalive.not_reached()
                continue
            if self._keepalive is not None:
                self._keepalive.reached(address_of(dial))
            for failed, cause in failures:  # if none serves, the network may be to blame
                self._failed(failed, cause)
            return stream
        errors = [error for _, error in failures]
        raise next((error for error in errors if error.retryable), errors[0])

    async def _agree(self, dial: Dial) -> Stream:
        """Open a stream; a session of another server that this one does not know is left."""
        known = self.session
        try:
            return await self._connect(dial, known)
        except UnknownSessionError:
            if known is None or not self._servers.several:
                raise
            return await self._connect(dial, None)

    def _failed(self, dial: Dial, error: BridgeError) -> None:
        self._servers.failed(dial)
        self._log.warning(
            "server_failed", server=address_of(dial), error=error.name, cause=str(error)
        )

    async def _adopt(self, stream: Stream) -> None:
        """Send on this stream from now on."""
        dial, before = stream.dial or self._servers.dials[0], self._servers.current
        if self.session is not stream.session:
            self.session = self._before = stream.session
        self.stream = stream
        stream.opened_at = self._clock()
        stream.reader = asyncio.create_task(self._read(stream))
        self._opened += 1
        self._bar.lower()
        self._servers.opened(dial)
        rank = self._servers.rank(dial)
        self._metrics.connected.set(1)
        self._metrics.server_rank.set(rank)
        if dial is not before:
            self._metrics.server_switches.inc()
            self._log.info("server", server=address_of(dial), rank=rank)
        if rank:
            self._returning = asyncio.create_task(self._return(stream, dial))
        await self._on_open()

    async def _return(self, stream: Stream, dial: Dial) -> None:
        """Move to a preferred server once it is healthy; until then the present one serves."""
        while True:
            better = await self._servers.better(dial)
            try:
                found = await self._connect(better, None)
            except BridgeError as error:
                self._failed(better, error)
                continue
            if self.stream is not stream or stream.broken is not None:
                await found.drop(OfflineError("the agent reconnects"))
                return
            self._returning = None  # this task: the next one is the new stream's
            await self._adopt(found)
            leaving = asyncio.create_task(self._leave(stream))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            return

    async def _leave(self, stream: Stream) -> None:
        """Close a stream once all that it carries has its answer."""
        try:
            await stream.emptied(self._policy.answer_timeout_s)
        finally:
            await _half_close(stream, EngineUnavailableError("another server carries the stream"))

    async def _stop_returning(self) -> None:
        task, self._returning = self._returning, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _connect(self, dial: Dial, known: Session | None) -> Stream:
        async with contextlib.AsyncExitStack() as opened:  # closes what a failure leaves open
            credential = self._bar.credential
            up = dial()
            opened.push_async_callback(up.close)
            session = known or await self._negotiate(up, dial)
            channels = [up]
            events = None
            if self._apart:
                down = dial()
                opened.push_async_callback(down.close)
                channels.append(down)
                events = await self._events(session, down, dial, known is None)
            cropped = 0 if self.crops is None else self.crops.most_bytes
            metadata = call_metadata(
                session, events is not None, self.accepted_wait, cropped, self.context
            )
            call = bridge_pb2_grpc.BridgeStub(up).Infer(metadata=metadata)
            opened.pop_all()
            session.forget_advice()  # advice belongs to a stream, and that one is gone
            return Stream(session, channels, call, events or call, credential, dial)

    async def _events(
        self, session: Session, channel: grpc.aio.Channel, dial: Dial, fresh: bool
    ) -> Any:
        """The Events call; None if events have to come on the frames' own connection."""
        try:
            return await open_events(channel, session, self._policy.connect_timeout_s)
        except grpc.aio.AioRpcError as error:
            typed = await asyncio.to_thread(portals.cause, dial, error_of(error))
            unknown = isinstance(typed, UnknownSessionError)
            if error.code() != grpc.StatusCode.UNIMPLEMENTED and not (unknown and fresh):
                if unknown:
                    self.forget(session)
                raise typed from error
            # An older server, or a load balancer that sends each connection to another server.
            self._apart = False
            self._log.info("one_connection", cause=str(typed))
            return None

    def _barred(self) -> Refused | BridgeError:
        """The error to raise instead of dialing; a run that never gives up gets one to wait for."""
        error, left_s = self._bar.why
        patient = self._opened and not self._policy.give_up_s
        return Refused(error, retryable=True, pause_s=left_s) if patient else error

    def _not_let_in(self, stream: Stream, error: BridgeError) -> BridgeError:
        """The error if the server no longer accepts this device, or only its old certificate."""
        if stream.credential == self._bar.credential:
            self._bar.raise_for(error)
            self._log.error("not_let_in", error=error.name, cause=str(error))
        stream.broken = stream.broken or error
        return EngineUnavailableError(f"the stream ends: {error}")

    async def _negotiate(self, channel: grpc.aio.Channel, dial: Dial) -> Session:
        try:
            session = await negotiate(
                channel,
                self._layout,
                self._store,
                self._metrics,
                self._policy.connect_timeout_s,
                self._before,
                self._device,
                self._keep,
            )
        except (OfflineError, UnauthenticatedError) as error:
            raise await asyncio.to_thread(portals.cause, dial, error) from error
        if not self.connected:
            self.session = self._before = session
        self.on_session(session)
        self._log.info(
            "session",
            session=session.session_id.hex(),
            bundle=session.bundle_id,
            bundle_version=session.bundle_version,
            default_point=session.default_point,
        )
        if session.doubt:
            self._log.warning("bundle in doubt", bundle=session.bundle_id, doubt=session.doubt)
        return session

    async def _read(self, stream: Stream) -> None:
        ends = asyncio.create_task(self._end_events(stream))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):  # `ending` tells
            async for event in stream.events:
                stream.heard(self._clock())
                for one in event.events or (event,):
                    self._take(stream, one)
        ends.cancel()
        broken = stream.broken or await stream.ending()
        if isinstance(broken, FrameTooLargeError):
            stream.session.learn_cap(broken)
        if isinstance(broken, BARRING):
            broken = self._not_let_in(stream, _explained(broken, stream.dial))
        silent = stream.heard_at == float("-inf")
        if isinstance(broken, UnknownSessionError) or (
            # A write to a call that the server has just ended hides the server's status, which may
            # have been "unknown session": if the stream never spoke, negotiate again.
            silent and isinstance(broken, EngineUnavailableError) and not self._closed
        ):
            self.forget(stream.session)
        left = self.stream is not None and self.stream is not stream
        if not self._closed and not left:
            self._log.warning("stream_broken", error=broken.name, cause=str(broken))
        if not left:
            self._metrics.connected.set(0)
            if stream.dial is not None and not self._closed:
                self._servers.broke(stream.dial)
                if self._keepalive is not None:
                    self._keepalive.ended(address_of(stream.dial), broken, stream.idle_s)
        stream.fail(broken)

    async def _end_events(self, stream: Stream) -> None:
        """If the events have a call of their own, end it with the Infer call."""
        if stream.events is not stream.call:
            await stream.call.code()
            stream.events.cancel()

    def _take(self, stream: Stream, event: bridge_pb2.InferEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "rate_advice":
            advice = event.rate_advice
            if advice.point in stream.session.points:
                stream.session.advised = advice.point
            if advice.max_in_flight:
                stream.session.max_in_flight = advice.max_in_flight
            self._log.info("rate_advice", point=advice.point, cause=advice.cause)
            return
        if kind == "refused" and not event.request_id:
            # Bytes changed on the way, so the server cannot tell which request it was.
            stream.course.begin_anew()
            stream.end_all(EngineUnavailableError(f"damaged on the way: {event.refused.message}"))
            return
        waiting = stream.waiting.get(event.request_id)
        if kind == "crop_wanted":
            if self.crops is not None and waiting is not None and not waiting.future.done():
                self.crops.wanted(stream, event)
            return
        if waiting is None or waiting.future.done():
            if kind in ("answer", "refused"):
                self._metrics.duplicates.inc()
        elif kind in waiting.ends:
            waiting.future.set_result(event)


async def _half_close(stream: Stream, error: BridgeError) -> None:
    """Send no more, let the server end the stream, then drop it."""
    if stream.broken is None and stream.reader is not None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await stream.call.done_writing()
        await asyncio.wait({stream.reader}, timeout=1.0)
    await stream.drop(error)


def _explained(error: BridgeError, dial: Dial | None) -> BridgeError:
    return error if dial is None else explained(dial, error)


def _typed(error: grpc.aio.AioRpcError, dial: Dial | None) -> BridgeError:
    return _explained(error_of(error), dial)
