"""Deliver each request exactly once: send it, keep it, send it again until its terminal event.

Calls, in order: `connect` → `credit` (wait for room: back-pressure on the source) → `deliver` →
`close`. When the stream breaks, each request waits a full-jitter pause and goes again under the
same request id; the first one to wake connects for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from edge_agent.metrics import Metrics
from edge_agent.uplink.connection import Connection
from edge_agent.uplink.crops import Crops
from edge_agent.uplink.dial import Dial
from edge_agent.uplink.encoder_store import EncoderStore
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.post import Letter, Post
from edge_agent.uplink.request import Deliverable, Sealed
from edge_agent.uplink.retry import Refused, Retries, RetryPolicy
from edge_agent.uplink.servers import Servers
from edge_agent.uplink.session import Base, Session
from edge_agent.uplink.shadows import Shadows
from edge_agent.uplink.stream import Stream
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameCorruptError,
    MissingKeyFrameError,
    UnknownSceneError,
    UnknownSessionError,
)
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.logs import Logger
from protos.refusals import refusal_of

_TOGETHER_S = 0.25
"""How long acknowledgements of frames that shared a message may wait for each other, seconds."""
_SHARE = 0.75
"""Of the time after which a frame is sent again, how much its acknowledgement may wait."""
_QUIET_S = 0.25
"""Where acknowledgements may wait, frames count as on their way for so long after they left."""
_DAMAGED = 3  # how often a request is sent again because its bytes changed on the way


@dataclass
class Sent:
    """What has been sent for one request so far.

    Attributes:
        request_id: empty until it is sealed.
        attempts: times it was sent.
        at: when it was sent last, seconds.
        message_bytes: size of the last message.
        sealed: what was sent last; None for questions about a held scene.
        reached: whether the last attempt had an open stream: else it says nothing about the frame.
    """

    request_id: bytes = b""
    attempts: int = 0
    at: float = 0.0
    message_bytes: int = 0
    sealed: Sealed | None = None
    reached: bool = True


class Uplink:
    """The way to the service.

    Args:
        layout: the small model's cache layout.
        dial: makes a fresh channel to the server; or several servers, in order of preference.
        store: where encoders are kept.
        metrics: what is counted.
        log: structured logger.
        policy: retries and time limits.
        in_flight: most frames at once; the server's own limit holds too.
        clock: seconds, monotonic.
        sleep: waits that many seconds.
        controller: is told of every frame that leaves and ends; may hold frames back.
        device: this device's name, for a service without identities.
        keep: digest of the bundle that the frames of this uplink were made with; see `negotiate`.
        linger_s: longest time that a frame waits for others to share its message, seconds.
        ack_wait_s: longest time that the acknowledgement of a frame without a question waits in the
            service for others, seconds.
        crops: sends crops of pictures; None allows none.
        shadows: sends pictures that measure what the map loses; None allows none.

    Attributes:
        connection: the session and the open stream.
        in_flight: most frames at once.
        held: frames that hold `credit` now.
        controller, metrics, policy, clock, crops, shadows: as given, or their defaults.
    """

    def __init__(
        self,
        layout: KVLayout,
        dial: Dial | Servers,
        store: EncoderStore,
        metrics: Metrics,
        log: Logger,
        policy: RetryPolicy | None = None,
        in_flight: int = 8,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        controller: PointController | None = None,
        device: str = "",
        keep: str = "",
        linger_s: float = 0.0,
        ack_wait_s: float = 0.0,
        crops: Crops | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        self.metrics = metrics
        self.policy = policy or RetryPolicy()
        self.clock = clock
        self.controller = controller or PointController(clock=clock)
        self.connection = Connection(
            layout, dial, store, metrics, log, self.policy, clock, self._wake, device, keep
        )
        self.in_flight = in_flight
        self.crops = self.connection.crops = crops
        self.shadows = shadows
        self._left_at = float("-inf")
        self._sleep = sleep
        self._closing = asyncio.Event()
        self._retries = Retries(self.policy, metrics, log, clock, self._pause)
        if ack_wait_s or linger_s:
            longest_s = _SHARE * self.policy.answer_timeout_s
            wait_s, most = _TOGETHER_S, in_flight
            if ack_wait_s:
                wait_s, most = min(ack_wait_s, longest_s), in_flight // 2
            self.connection.accepted_wait = f"{round(1000 * wait_s)},{max(1, most)}"
        self._patient = ack_wait_s > 0
        self._post = Post(metrics, self.controller, clock, sleep, linger_s, in_flight)
        self._room = asyncio.Condition()
        self.held = 0

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self.connection.connected

    async def connect(self) -> Session:
        """Negotiate and open the stream, with retries.

        Raises:
            BridgeError: the server's refusal, or OfflineError once the time for it is spent.
        """
        opened: list[Stream] = []
        try:
            async for attempt in self._retries.attempts():
                with attempt:
                    opened.append(await self.connection.open())
        except Refused as refused:
            raise refused.error from refused
        return opened[-1].session

    @contextlib.asynccontextmanager
    async def credit(self) -> AsyncIterator[None]:
        """Wait until fewer frames are in flight than both sides allow, then hold one place."""
        async with self._room:
            await self._room.wait_for(lambda: self.held < self._allowed() and self._may_send())
            self.held += 1
            self.controller.admit()
            self.metrics.queue_depth.set(self.held)
        try:
            yield
        finally:
            async with self._room:
                self.held -= 1
                self.controller.settle(self.held)
                self.metrics.queue_depth.set(self.held)
                self._room.notify_all()

    async def deliver(self, request: Deliverable) -> Outcome:
        """Send a request and resend it until it ends; hold `credit` around this.

        Returns:
            The outcome; an error of the request (refused, time spent, cannot be sealed) is in
            `Outcome.error`, never raised.
        """
        sent = Sent()

        async def once() -> Outcome:
            sent.reached = False
            stream = await self.connection.open()
            sent.reached = True
            session = stream.session
            event = await self._exchange(stream, request, sent)
            if event.WhichOneof("event") == "refused":
                self._post.refused()
                if event.refused.code == MissingKeyFrameError.code:
                    request.base_lost(session)
                raise self.refusal(event.refused, session, sent)
            request.accepted(session)
            answer = event.answer if event.WhichOneof("event") == "answer" else None
            return Outcome(sent.request_id, answer=answer, session=session)

        return await self.until_ended(sent, once)

    @property
    def busy(self) -> bool:
        """Whether frames are on their way up: what can wait lets them go first."""
        if self._patient:
            return self.clock() - self._left_at < _QUIET_S
        return self.held > 0 and self.controller.queued_bytes > 0

    @property
    def lingers(self) -> bool:
        """Whether frames, or their acknowledgements, may wait for others."""
        return self._post.lingers or self._patient

    def base(self, priority: int) -> Base | None:
        """See `Post.base`."""
        return self._post.base(priority)

    def hurry(self) -> None:
        """Let no frame wait for others from now on: the run ends."""
        self._post.hurry()

    async def close(self) -> None:
        """Half-close the stream, wait for the server's end of it, close the channel.

        Requests that have not ended by then end with an error.
        """
        self._closing.set()
        await self.connection.close()

    async def _pause(self, seconds: float) -> None:
        """Wait before an attempt, no longer than until `close`."""
        pausing = asyncio.ensure_future(self._sleep(seconds))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await _first(pausing, closing)
        finally:
            pausing.cancel()
            closing.cancel()

    async def until_ended(self, sent: Sent, once: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Try until one attempt ends it or the retries are spent.

        Args:
            sent: kept up to date by `once`.
            once: makes one attempt; raises what ended it, Refused or a typed error.
        """
        outcome = Outcome(sent.request_id)
        try:
            async for attempt in self._retries.attempts(lambda: sent.request_id):
                with attempt:
                    outcome = await once()
        except (BridgeError, Refused) as failure:
            error = failure.error if isinstance(failure, Refused) else failure
            final = sent.reached and not failure.retryable
            outcome = replace(outcome, error=error, session=self.connection.session, final=final)
        cropped = 0
        if self.crops is not None and outcome.final:
            cropped = self.crops.end(sent.request_id)
        outcome = replace(
            outcome,
            request_id=sent.request_id,
            sealed=sent.sealed,
            message_bytes=sent.message_bytes,
            uplink_ms=(self.clock() - sent.at) * 1000 if sent.attempts else 0.0,
            attempts=sent.attempts,
            crop_bytes=cropped,
            ended_ns=time.monotonic_ns(),
        )
        if self.shadows is not None and outcome.final:
            self.shadows.ended(outcome)
        return outcome

    def refusal(
        self, refused: bridge_pb2.Refused, session: Session, sent: Sent
    ) -> BridgeError | Refused:
        """The error to raise for the server's refusal; `Refused` says whether to try again."""
        error = refusal_of(refused)
        if isinstance(error, UnknownSceneError):
            return error
        if isinstance(error, UnknownSessionError):
            self.connection.forget(session)
            return error
        damaged = isinstance(error, FrameCorruptError) and sent.attempts <= _DAMAGED
        return Refused(error, refused.retryable or damaged)

    async def _wake(self) -> None:
        """Let those who wait for credit look again."""
        async with self._room:
            self._room.notify_all()

    def _allowed(self) -> int:
        offered = (
            self.connection.session.max_in_flight
            if self.connection.session is not None
            else self.in_flight
        )
        return max(1, min(self.in_flight, offered))

    def _may_send(self) -> bool:
        session = self.connection.session
        return session is None or self.controller.may_send(session.rungs)

    async def _exchange(
        self, stream: Stream, request: Deliverable, sent: Sent
    ) -> bridge_pb2.InferEvent:
        if stream.broken is not None:
            raise EngineUnavailableError(f"the stream broke before: {stream.broken}")
        letter = await self._post.send(stream, request, sent.attempts > 0)
        sent.sealed, sent.request_id = letter.sealed, letter.sealed.request_id
        if self.crops is not None and request.question and request.picture is not None:
            self.crops.hold(sent.request_id, request.picture)
        if self.shadows is not None and request.picture is not None:
            self.shadows.hold(sent.request_id, request.picture)
        try:
            await _first(letter.left, letter.event)
            if not letter.left.done():  # the stream broke while it waited for others
                return letter.event.result()
            sent.message_bytes = letter.left.result()
            sent.attempts += 1
            sent.at = self._left_at = self.clock()
            return await self._in_time(stream, letter, sent)
        finally:
            stream.waiting.pop(sent.request_id, None)
            self.controller.lost(sent.request_id)
            for waiting in (letter.left, letter.event):
                if not waiting.cancel() and not waiting.cancelled():
                    waiting.exception()  # read, or asyncio reports it as never retrieved
            await self._wake()  # the link is free again, though the credit is still held

    async def _in_time(self, stream: Stream, letter: Letter, sent: Sent) -> bridge_pb2.InferEvent:
        """Wait for the event of a letter that has left."""
        timer = asyncio.ensure_future(self._sleep(self.policy.answer_timeout_s))
        try:
            await _first(letter.event, timer)
            if letter.event.done():
                event = letter.event.result()
                if not self._patient or event.HasField("answer"):
                    self._measured(sent.request_id, event)
                return event
            late = EngineUnavailableError(f"no answer within {self.policy.answer_timeout_s:g} s")
            if stream.heard_at <= sent.at:  # nothing came down at all: the connection is dead
                await stream.drop(late)
            raise late
        finally:
            timer.cancel()

    def _measured(self, request_id: bytes, event: bridge_pb2.InferEvent) -> None:
        """Tell the controller, and show its estimate of the link."""
        self.controller.ended(request_id, event.answer.timings.total_ms / 1000)
        rtt_s, bytes_per_s = self.controller.link
        self.metrics.uplink_rtt.set(rtt_s)
        self.metrics.uplink_rate.set(bytes_per_s)


async def _first(*futures: asyncio.Future[Any]) -> None:
    """Wait for one of them."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
