"""Frames up, answers down, each exactly once for the consumer, whatever the network does.

Calls, in order: `connect` (negotiate, fetch the encoder, open the Infer stream) → `credit` (wait
for room: back-pressure on the source) → `deliver` (send, keep, resend until the terminal event) →
`close`. Knows sessions, streams, credit and retries; knows nothing of tensors: a parcel packs
itself for a session.

Every request is kept by its own `deliver` until its terminal event. When the stream breaks, each of
them waits a full-jitter pause and sends again with the same request id; the first one to wake
connects for all, in a task of its own, so that a request that is given up does not end it. Whatever
arrives for a request id that has ended already is counted and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_random_exponential

from edge_agent.metrics import Metrics
from edge_agent.uplink.budget import Budget
from edge_agent.uplink.session import (
    Dial,
    Session,
    error_of,
    negotiate,
    open_events,
    reverse_decoder,
    unhidden,
)
from edge_agent.uplink.store import EncoderStore
from projector.codec.arrays import Floats
from projector.codec.feedback import FeedbackDecoder
from protos.calls import EVENTS_APART, SESSION_METADATA_KEY
from protos.digest import session_constants
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    BundleVersionError,
    ConfigError,
    EngineUnavailableError,
    FrameCorruptError,
    FrameTooLargeError,
    IncompatibleLayoutError,
    MissingKeyFrameError,
    NoFeedbackError,
    OfflineError,
    OverloadedError,
    ProtocolVersionError,
    UnknownSceneError,
    UnknownSessionError,
)
from protos.feedback import open_response, seal_feedback
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2, bridge_pb2_grpc
from protos.process.logs import Logger
from protos.refusals import refusal_of
from protos.requests import seal_ask

FATAL = (
    ConfigError,
    IncompatibleLayoutError,
    BundleVersionError,
    ProtocolVersionError,
    NoFeedbackError,
)
"""Errors that every further frame would meet as well: they end the run."""

_LONGEST_ASKED_S = 60.0
"""A server that asks for a longer pause gets no more than this."""
_DAMAGED = 3  # times that a request goes again because its bytes changed on the way


@dataclass(frozen=True)
class Packed:
    """One request, sealed for one session.

    Attributes:
        request: the message, its digest over this session's constants.
        request_id: of the request, whether the message carries it or not.
        frame_number: the frame's number in this session.
        point: name of the operating point.
        tokens: image tokens of the grid, 0 for a picture.
        kept_tokens: tokens in the payload.
        distortion: as measured here; None for a picture.
        risk: probability of another answer than the picture's; None where nobody looked.
        fallback: why the guard sends the picture; else empty.
    """

    request: bridge_pb2.InferRequest
    request_id: bytes
    frame_number: int
    point: str
    tokens: int
    kept_tokens: int
    distortion: Distortion | None
    select_ms: float
    encode_ms: float
    risk: float | None = None
    fallback: str = ""


class Parcel(Protocol):
    """A request that can seal itself for any session; sealing twice for one gives equal bytes."""

    @property
    def question(self) -> str:
        """Empty where the frame is only to be held."""

    def pack(self, session: Session) -> Packed:
        """Seal for this session, always under the same request id; called on a worker thread."""

    def accepted(self, session: Session) -> None:
        """Called when the service holds the frame as it was packed for this session."""

    def base_lost(self, session: Session) -> None:
        """Called when it could not be taken as a delta frame: pack a key frame next."""

    def renew(self) -> Parcel:
        """The same frame under another request id and frame number."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        request_id: empty where it never got one.
        answer: the service's answer; None for a held scene and for an error.
        error: what ended it otherwise.
        packed: what was sent last; None where nothing was.
        message_bytes: size of the last message sent.
        uplink_ms: from the last send to the terminal event, milliseconds.
        attempts: times it was sent.
        session: the session in which it ended.
        returned: the state that was asked for; None for any other request.
    """

    request_id: bytes
    answer: bridge_pb2.Answer | None = None
    error: BridgeError | None = None
    packed: Packed | None = None
    message_bytes: int = 0
    uplink_ms: float = 0.0
    attempts: int = 0
    session: Session | None = None
    returned: Returned | None = None


@dataclass(frozen=True)
class Returned:
    """What the server sent back of a scene that it holds: its own state, for the small model.

    Attributes:
        decoder: the edge's half of the way back.
        latents: as decoded, `[M, r + 1]`.
        point: name of the operating point.
        payload_bytes: of the frame that carried it.
        distortion: as the server measured it.
        round_trip: see `protos.distortion`, where the small model saw the picture too.
    """

    decoder: FeedbackDecoder
    latents: Floats
    point: str
    payload_bytes: int
    distortion: Distortion
    round_trip: float | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """Full-jitter exponential back-off: the n-th pause is uniform in 0..min(max, base · 2^(n-1)).

    Attributes:
        give_up_s: how long a request is sent again before it ends with its last error, seconds;
            0: for as long as it takes.
        retries: attempts after the first; None: as many as fit into `give_up_s`.
        backoff_s: base, seconds.
        backoff_max_s: upper end of any pause, seconds.
        answer_timeout_s: after which a request without a terminal event is sent again, seconds.
        connect_timeout_s: for each call of a negotiation, seconds.
    """

    give_up_s: float = 180.0
    retries: int | None = None
    backoff_s: float = 0.2
    backoff_max_s: float = 10.0
    answer_timeout_s: float = 60.0
    connect_timeout_s: float = 10.0


@dataclass
class Scene:
    """A frame that the server holds for questions.

    Attributes:
        parcel: what it was sent with; kept until its last question has ended.
        session: where it is held.
        frame_number: its number there.
        outcome: how sending it ended.
    """

    parcel: Parcel
    session: Session
    frame_number: int
    outcome: Outcome
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


class _Refused(Exception):
    """The server's word on one request; its flag, not the error's class, says what to do next."""

    def __init__(self, error: BridgeError, retryable: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.retryable = retryable


@dataclass
class _Sent:
    """What has been sent for one request so far."""

    request_id: bytes = b""
    attempts: int = 0
    at: float = 0.0
    message_bytes: int = 0
    packed: Packed | None = None


@dataclass
class _Waiting:
    future: asyncio.Future[bridge_pb2.InferEvent]
    ends: tuple[str, ...]


class _Stream:
    """One open Infer stream and the requests that wait on it.

    Args:
        session: in which it was opened.
        channels: the first carries frames and questions, the second, if any, the events.
        call: the Infer call.
        events: where events come from: the Events call, or the Infer call itself.

    Attributes:
        heard_at: when something came down last.
        asked_at: when the first request went up since then; None where none did.
    """

    def __init__(
        self, session: Session, channels: list[grpc.aio.Channel], call: Any, events: Any
    ) -> None:
        self.session = session
        self.channels = channels
        self.channel = channels[0]
        self.call = call
        self.events = events
        self.waiting: dict[bytes, _Waiting] = {}
        self.broken: BridgeError | None = None
        self.heard_at = float("-inf")
        self.asked_at: float | None = None
        self.reader: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()

    def asked(self, now: float) -> None:
        if self.asked_at is None:
            self.asked_at = now

    def heard(self, now: float) -> None:
        self.heard_at, self.asked_at = now, None

    def fail(self, error: BridgeError) -> None:
        self.broken = self.broken or error
        self.end_all(error)

    def end_all(self, error: BridgeError) -> None:
        """End the attempts of all who wait; the stream itself may go on."""
        if not error.retryable and len(self.waiting) > 1:
            # Each goes again. A request above the cap is then refused here, by `check_message`;
            # any other culprit, which is unknown, goes until it is alone or its retries end.
            error = EngineUnavailableError(f"the stream broke: {error}")
        for waiting in self.waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(error)
        self.waiting.clear()


class Uplink:
    """The way to one server.

    Args:
        layout: the small model's cache layout.
        dial: makes a fresh channel; called for every connection.
        store: where encoders are kept.
        metrics: what is counted.
        log: structured logger.
        policy: retries and time limits.
        in_flight: most frames at once; the server's own limit holds too.
        budget: is told of every frame that leaves and ends; may hold frames back.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        layout: KVLayout,
        dial: Dial,
        store: EncoderStore,
        metrics: Metrics,
        log: Logger,
        policy: RetryPolicy | None = None,
        in_flight: int = 8,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        budget: Budget | None = None,
    ) -> None:
        self._layout = layout
        self._dial = dial
        self._store = store
        self._metrics = metrics
        self._log = log
        self._policy = policy or RetryPolicy()
        self._in_flight = in_flight
        self._clock = clock
        self._sleep = sleep
        self._budget = budget or Budget(clock=clock)
        self._session: Session | None = None
        self._before: Session | None = None
        self._stream: _Stream | None = None
        self._opening: asyncio.Task[_Stream] | None = None
        self._room = asyncio.Condition()
        self._held = 0
        self._opened = 0
        self._apart = True
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self._stream is not None and self._stream.broken is None

    async def connect(self) -> Session:
        """Negotiate and open the stream, with retries.

        Raises:
            BridgeError: the server's refusal, or OfflineError once the time for it is spent.
        """
        opened: list[_Stream] = []
        async for attempt in self._retrying():
            with attempt:
                opened.append(await self._open())
        return opened[-1].session

    @contextlib.asynccontextmanager
    async def credit(self) -> AsyncIterator[None]:
        """Wait until fewer frames are in flight than both sides allow, then hold one place."""
        async with self._room:
            await self._room.wait_for(lambda: self._held < self._allowed() and self._may_send())
            self._held += 1
            self._budget.admit()
            self._metrics.queue_depth.set(self._held)
        try:
            yield
        finally:
            async with self._room:
                self._held -= 1
                self._budget.settle(self._held)
                self._metrics.queue_depth.set(self._held)
                self._room.notify_all()

    async def deliver(self, parcel: Parcel) -> Outcome:
        """Send a request and resend it until it ends; hold `credit` around this.

        Returns:
            The outcome; an error of the request (refused, time spent, cannot be packed) is in
            `Outcome.error`, never raised.
        """
        sent = _Sent()

        async def once() -> Outcome:
            stream = await self._open()
            session = stream.session
            sent.packed = packed = await asyncio.to_thread(parcel.pack, session)
            sent.request_id = packed.request_id
            event = await self._exchange(stream, parcel, packed, sent)
            if event.WhichOneof("event") == "refused":
                if event.refused.code == MissingKeyFrameError.code:
                    parcel.base_lost(session)
                raise self._refusal(event.refused, session, sent)
            parcel.accepted(session)
            answer = event.answer if event.WhichOneof("event") == "answer" else None
            return Outcome(packed.request_id, answer=answer, session=session)

        return await self._until_ended(sent, once)

    async def hold(self, parcel: Parcel) -> Scene | Outcome:
        """Send a frame without a question, for `ask`; hold `credit` around this.

        Returns:
            The scene; or, where it could not be held, the outcome with its error.
        """
        outcome = await self.deliver(parcel)
        if outcome.error is not None or outcome.packed is None or outcome.session is None:
            return outcome
        return Scene(parcel, outcome.session, outcome.packed.frame_number, outcome)

    async def ask(
        self, scene: Scene, request_id: bytes, question: str, max_new_tokens: int
    ) -> Outcome:
        """Ask about a held scene; where the server lost it, hold it again and ask again.

        Args:
            scene: from `hold`.
            request_id: of this question, 8 to 16 bytes.
            question: not blank.
            max_new_tokens: longest answer.

        Returns:
            The outcome; an error is in `Outcome.error`, never raised.
        """
        return await self._about(
            scene,
            request_id,
            lambda stream, held, sent: self._ask_once(
                stream, held, request_id, question, max_new_tokens, sent
            ),
        )

    async def feedback(self, scene: Scene, request_id: bytes, point: str = "") -> Outcome:
        """Have the server send back its own state of a held scene; otherwise as `ask`.

        Args:
            scene: from `hold`.
            request_id: of this request, 8 to 16 bytes.
            point: name of an operating point of the way back; empty for its default.

        Returns:
            The outcome, with `returned`; an error is in `Outcome.error`, never raised.
        """
        return await self._about(
            scene,
            request_id,
            lambda stream, held, sent: self._feedback_once(stream, held, request_id, point, sent),
        )

    async def close(self) -> None:
        """Half-close the stream, wait for the server's end of it, close the channel."""
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        stream, self._stream = self._stream, None
        if stream is not None:
            if stream.broken is None and stream.reader is not None:
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                    await stream.call.done_writing()
                await asyncio.wait({stream.reader}, timeout=1.0)
            await self._drop(stream, OfflineError("the agent is closing"))

    # ------------------------------------------------------------------ one attempt

    async def _exchange(
        self, stream: _Stream, parcel: Parcel, packed: Packed, sent: _Sent
    ) -> bridge_pb2.InferEvent:
        if stream.broken is not None:
            raise EngineUnavailableError(f"the stream broke before: {stream.broken}")
        message_bytes = packed.request.ByteSize()
        stream.session.check_message(message_bytes)
        request_id = packed.request_id
        future: asyncio.Future[bridge_pb2.InferEvent] = asyncio.get_running_loop().create_future()
        ends = ("answer", "refused") if parcel.question else ("accepted", "refused")
        stream.waiting[request_id] = _Waiting(future, ends)
        sent.attempts += 1
        sent.message_bytes = message_bytes
        sent.at = self._clock()
        stream.asked(sent.at)
        exchange = asyncio.ensure_future(self._write_and_wait(stream, packed, future))
        timer = asyncio.ensure_future(self._sleep(self._policy.answer_timeout_s))
        try:
            await asyncio.wait({exchange, timer}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                event = exchange.result()
                self._measured(request_id, event)
                return event
            late = EngineUnavailableError(f"no answer within {self._policy.answer_timeout_s:g} s")
            if stream.heard_at <= sent.at:  # nothing came down at all: the connection is dead
                await self._drop(stream, late)
            raise late
        finally:
            timer.cancel()
            exchange.cancel()
            stream.waiting.pop(request_id, None)
            self._budget.lost(request_id)
            await asyncio.wait({exchange})
            for done in (exchange, future):
                if done.done() and not done.cancelled():
                    done.exception()  # looked at, so that the loop does not report it as lost
            async with self._room:
                self._room.notify_all()  # the link is free again, though the credit is still held

    def _measured(self, request_id: bytes, event: bridge_pb2.InferEvent) -> None:
        """Tell the budget, and show what it makes of it."""
        self._budget.ended(request_id, event.answer.timings.total_ms / 1000)
        rtt_s, bytes_per_s = self._budget.link
        self._metrics.uplink_rtt.set(rtt_s)
        self._metrics.uplink_rate.set(bytes_per_s)

    async def _write_and_wait(
        self, stream: _Stream, packed: Packed, future: asyncio.Future[bridge_pb2.InferEvent]
    ) -> bridge_pb2.InferEvent:
        try:
            async with stream.writing:
                self._budget.sent(packed.request_id, packed.request.ByteSize())
                await stream.call.write(packed.request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            await self._ended(stream)
            if not future.done():  # `fail` did not reach this request, so it is none of its doing
                raise EngineUnavailableError(f"the stream broke: {stream.broken}") from error
            return await future
        self._metrics.frames_sent.labels(packed.point).inc()
        self._metrics.sent_bytes.inc(packed.request.ByteSize())
        return await future

    async def _ended(self, stream: _Stream) -> None:
        """Wait until the reader of a call that has ended knows why, and has told all who wait."""
        if stream.reader is not None:
            await asyncio.wait({stream.reader}, timeout=1.0)
            stream.call.cancel()
            await asyncio.wait({stream.reader})

    async def _ask_once(
        self,
        stream: _Stream,
        frame_number: int,
        request_id: bytes,
        question: str,
        max_new_tokens: int,
        sent: _Sent,
    ) -> Outcome:
        session = stream.session
        request = seal_ask(
            session.constants,
            session.session_id,
            request_id,
            frame_number,
            question,
            min(max_new_tokens, session.limits.max_new_tokens),
        )
        sent.attempts += 1
        sent.message_bytes = request.ByteSize()
        sent.at = self._clock()
        self._metrics.sent_bytes.inc(sent.message_bytes)
        answer: bridge_pb2.Answer | None = None
        try:
            stub = bridge_pb2_grpc.BridgeStub(stream.channel)
            async for event in stub.Ask(request, timeout=self._policy.answer_timeout_s):
                kind = event.WhichOneof("event")
                if kind == "refused":
                    raise self._refusal(event.refused, session, sent)
                if kind == "answer" and answer is None:
                    answer = event.answer
                elif kind == "answer":
                    self._metrics.duplicates.inc()
        except grpc.aio.AioRpcError as error:
            typed = self._typed(error)
            if isinstance(typed, UnknownSessionError):
                self._forget(session)
            raise typed from error
        if answer is None:
            raise EngineUnavailableError("the server ended the call without an answer")
        return Outcome(request_id, answer=answer, session=session)

    async def _feedback_once(
        self, stream: _Stream, frame_number: int, request_id: bytes, point: str, sent: _Sent
    ) -> Outcome:
        session, policy = stream.session, self._policy
        sent.at = self._clock()
        decoder = await reverse_decoder(
            stream.channel,
            session,
            self._layout,
            self._store,
            self._metrics,
            policy.connect_timeout_s,
        )
        wanted = decoder.point(point).name
        request = seal_feedback(
            session.constants, session.session_id, request_id, frame_number, wanted
        )
        sent.attempts += 1
        sent.message_bytes = request.ByteSize()
        self._metrics.sent_bytes.inc(sent.message_bytes)
        try:
            response = await bridge_pb2_grpc.BridgeStub(stream.channel).Feedback(
                request, timeout=policy.answer_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            typed = self._typed(error)
            if isinstance(typed, UnknownSessionError):
                self._forget(session)
            raise typed from error
        header, body = open_response(
            response,
            session_constants(
                session.session_id, decoder.source_fingerprint, session.bundle_digest
            ),
            request_id,
            frame_number,
            replace(
                session.limits,
                max_payload_bytes=decoder.max_payload_bytes,
                max_tokens=decoder.tokens,
            ),
        )
        latents = await asyncio.to_thread(decoder.decode, body, header.kept, header.operating_point)
        size = len(response.frame.payload)
        self._metrics.received_back_bytes.labels(wanted).observe(size)
        returned = Returned(decoder, latents, wanted, size, header.distortion)
        return Outcome(request_id, session=session, returned=returned)

    async def _about(
        self,
        scene: Scene,
        request_id: bytes,
        call: Callable[[_Stream, int, _Sent], Awaitable[Outcome]],
    ) -> Outcome:
        """Call about a held scene; where the server lost it, hold it again and call again."""
        sent = _Sent(request_id)

        async def once() -> Outcome:
            stream = await self._open()
            if stream.session is not scene.session:
                await self._hold_again(scene, scene.frame_number, scene.session)
                stream = await self._open()
            held = scene.frame_number
            stream.asked(self._clock())
            try:
                outcome = await call(stream, held, sent)
                stream.heard(self._clock())
                return outcome
            except OfflineError:
                raise  # nothing came down
            except (BridgeError, _Refused) as error:
                stream.heard(self._clock())
                if not isinstance(error, UnknownSceneError):
                    raise
                await self._hold_again(scene, held, stream.session)
                raise _Refused(error, retryable=True) from error

        return await self._until_ended(sent, once)

    async def _hold_again(self, scene: Scene, frame_number: int, session: Session) -> None:
        async with scene.renewing:
            if (scene.frame_number, scene.session) != (frame_number, session):
                return  # another question did it meanwhile
            held = await self.hold(scene.parcel.renew())
            if isinstance(held, Outcome):
                raise _Refused(held.error or OfflineError("the scene is not held"), False)
            scene.parcel, scene.session = held.parcel, held.session
            scene.frame_number = held.frame_number

    # ------------------------------------------------------------------ retries

    def _retrying(self, sent: _Sent | None = None) -> AsyncRetrying:
        start = self._clock()
        most = self._policy.retries

        def stop(state: RetryCallState) -> bool:
            spent = most is not None and state.attempt_number > most
            most_s = self._policy.give_up_s
            return spent or (most_s > 0 and self._clock() - start >= most_s)

        jitter = wait_random_exponential(
            multiplier=self._policy.backoff_s, max=self._policy.backoff_max_s
        )

        def pause_s(state: RetryCallState) -> float:
            """Full jitter, after the time that the server asked for, if it did."""
            failure = state.outcome.exception() if state.outcome is not None else None
            error = failure.error if isinstance(failure, _Refused) else failure
            asked_s = error.retry_after_s if isinstance(error, OverloadedError) else 0.0
            return min(asked_s, _LONGEST_ASKED_S) + jitter(state)

        def before_sleep(state: RetryCallState) -> None:
            failure = state.outcome.exception() if state.outcome is not None else None
            error = failure.error if isinstance(failure, _Refused) else failure
            self._metrics.retries.labels(getattr(error, "name", "unknown")).inc()
            self._log.info(
                "retry",
                request_id=sent.request_id.hex() if sent is not None else "",
                cause=str(error),
                attempt=state.attempt_number,
                pause_s=state.upcoming_sleep,
            )

        return AsyncRetrying(
            retry=retry_if_exception(
                lambda e: isinstance(e, BridgeError | _Refused) and e.retryable
            ),
            stop=stop,
            wait=pause_s,
            sleep=self._sleep,
            before_sleep=before_sleep,
            reraise=True,
        )

    async def _until_ended(self, sent: _Sent, once: Callable[[], Awaitable[Outcome]]) -> Outcome:
        outcome = Outcome(sent.request_id)
        try:
            async for attempt in self._retrying(sent):
                with attempt:
                    outcome = await once()
        except (BridgeError, _Refused) as failure:
            error = failure.error if isinstance(failure, _Refused) else failure
            outcome = replace(outcome, error=error, session=self._session)
        return replace(
            outcome,
            request_id=sent.request_id,
            packed=sent.packed,
            message_bytes=sent.message_bytes,
            uplink_ms=(self._clock() - sent.at) * 1000 if sent.attempts else 0.0,
            attempts=sent.attempts,
        )

    def _refusal(
        self, refused: bridge_pb2.Refused, session: Session, sent: _Sent
    ) -> BridgeError | _Refused:
        error = refusal_of(refused)
        if isinstance(error, UnknownSceneError):
            return error
        if isinstance(error, UnknownSessionError):
            self._forget(session)
            return error
        damaged = isinstance(error, FrameCorruptError) and sent.attempts <= _DAMAGED
        return _Refused(error, refused.retryable or damaged)

    # ------------------------------------------------------------------ the connection

    def _allowed(self) -> int:
        offered = self._session.max_in_flight if self._session is not None else self._in_flight
        return max(1, min(self._in_flight, offered))

    def _may_send(self) -> bool:
        session = self._session
        return session is None or self._budget.may_send(session.rungs)

    def _forget(self, session: Session) -> None:
        if self._session is session:
            self._session = None
        stream = self._stream
        if stream is not None and stream.session is session and stream.broken is None:
            stream.broken = UnknownSessionError("the session is negotiated again")

    async def _open(self) -> _Stream:
        """The open stream; connects if there is none, one attempt for all who wait.

        The attempt goes on where whoever wanted it has been given up meanwhile.
        """
        if self._closed:
            raise _Refused(OfflineError("the agent is closing"), retryable=False)
        stream = self._stream
        if stream is not None and stream.broken is None:
            if not self._dead(stream):
                return stream
            stream.broken = EngineUnavailableError(
                f"nothing came down for {self._policy.answer_timeout_s:g} s"
            )
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._reopen())
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(self._opening)
        except BridgeError as error:
            if self._opened and not error.retryable and not isinstance(error, FATAL):
                # What was agreed before cannot be agreed now: the other side may be mended.
                raise _Refused(error, retryable=True) from error
            raise

    def _dead(self, stream: _Stream) -> bool:
        """Whether requests went up and nothing has come down for as long as one may take."""
        asked = stream.asked_at
        return asked is not None and self._clock() - asked >= self._policy.answer_timeout_s

    async def _reopen(self) -> _Stream:
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._drop(stream, OfflineError("the stream is gone"))
        stream = self._stream = await self._connect()
        stream.reader = asyncio.create_task(self._read(stream))
        if self._opened:
            self._metrics.reconnects.inc()
        self._opened += 1
        self._metrics.connected.set(1)
        async with self._room:
            self._room.notify_all()  # the new session may allow more
        return stream

    async def _connect(self) -> _Stream:
        async with contextlib.AsyncExitStack() as opened:  # closes what a failure leaves open
            up = self._dial()
            opened.push_async_callback(up.close)
            known = self._session
            session = known or await self._negotiate(up)
            channels = [up]
            metadata: tuple[tuple[str, str | bytes], ...] = (
                (SESSION_METADATA_KEY, session.session_id),
            )
            events = None
            if self._apart:
                down = self._dial()
                opened.push_async_callback(down.close)
                channels.append(down)
                events = await self._events(session, down, known is None)
            if events is not None:
                metadata += (EVENTS_APART,)
            call = bridge_pb2_grpc.BridgeStub(up).Infer(metadata=metadata)
            opened.pop_all()
            session.forget_advice()  # it was a stream's, and that one is gone
            return _Stream(session, channels, call, events or call)

    async def _events(self, session: Session, channel: grpc.aio.Channel, fresh: bool) -> Any:
        """The Events call; None where events have to come on the frames' own connection."""
        try:
            return await open_events(channel, session, self._policy.connect_timeout_s)
        except grpc.aio.AioRpcError as error:
            typed = self._typed(error)
            unknown = isinstance(typed, UnknownSessionError)
            if error.code() != grpc.StatusCode.UNIMPLEMENTED and not (unknown and fresh):
                if unknown:
                    self._forget(session)
                raise typed from error
            # An older server, or a load balancer that takes each connection elsewhere.
            self._apart = False
            self._log.info("one_connection", cause=str(typed))
            return None

    def _typed(self, error: grpc.aio.AioRpcError) -> BridgeError:
        typed = error_of(error)
        return self._by_proxy(typed) if isinstance(typed, OfflineError) else typed

    def _by_proxy(self, error: OfflineError) -> OfflineError:
        """The error, with the proxy that stood on the way."""
        proxy = getattr(self._dial, "proxy", "")
        if not proxy or proxy in error.message:
            return error
        return OfflineError(
            f"{error.message}; on the way stands the HTTP proxy {proxy}: to go past it, name the "
            "server in no_proxy"
        )

    async def _negotiate(self, channel: grpc.aio.Channel) -> Session:
        try:
            session = await negotiate(
                channel,
                self._layout,
                self._store,
                self._metrics,
                self._policy.connect_timeout_s,
                self._before,
            )
        except OfflineError as error:
            raise self._by_proxy(error) from error
        self._session = self._before = session
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

    async def _read(self, stream: _Stream) -> None:
        ends = asyncio.create_task(self._end_events(stream))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):  # `_ending` tells
            async for event in stream.events:
                stream.heard(self._clock())
                self._take(stream, event)
        ends.cancel()
        broken = stream.broken or await _ending(stream)
        if isinstance(broken, FrameTooLargeError):
            stream.session.learn_cap(broken)
        silent = stream.heard_at == float("-inf")
        if isinstance(broken, UnknownSessionError) or (
            # A write to a call that the server has just ended hides the server's status, which may
            # have been "unknown session": where the stream never spoke, negotiate again.
            silent and isinstance(broken, EngineUnavailableError) and not self._closed
        ):
            self._forget(stream.session)
        if not self._closed:
            self._log.warning("stream_broken", error=broken.name, cause=str(broken))
        self._metrics.connected.set(0)
        stream.fail(broken)

    async def _end_events(self, stream: _Stream) -> None:
        """Where the events have a call of their own: end it with the Infer call."""
        if stream.events is not stream.call:
            await stream.call.code()
            stream.events.cancel()

    def _take(self, stream: _Stream, event: bridge_pb2.InferEvent) -> None:
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
            # Bytes changed on the way, so the server cannot tell whose they were.
            stream.end_all(EngineUnavailableError(f"damaged on the way: {event.refused.message}"))
            return
        waiting = stream.waiting.get(event.request_id)
        if waiting is None or waiting.future.done():
            if kind in ("answer", "refused"):
                self._metrics.duplicates.inc()
        elif kind in waiting.ends:
            waiting.future.set_result(event)

    async def _drop(self, stream: _Stream, error: BridgeError) -> None:
        stream.broken = stream.broken or error
        stream.call.cancel()
        stream.events.cancel()
        if stream.reader is not None:
            await asyncio.wait({stream.reader})
        stream.fail(stream.broken)
        for channel in stream.channels:
            await channel.close()


async def _ending(stream: _Stream) -> BridgeError:
    """Why a stream has ended by itself: what its Infer call ended with, or else its events."""
    for call in (stream.call, stream.events):
        if call.done() and not call.cancelled() and await call.code() != grpc.StatusCode.OK:
            ended = grpc.aio.AioRpcError(
                await call.code(),
                grpc.aio.Metadata(),
                await call.trailing_metadata(),
                await call.details(),
            )
            return error_of(await unhidden(call, ended))
    return EngineUnavailableError("the server ended the stream")
