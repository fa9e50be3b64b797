"""The gRPC service: checks what arrives, gives it to the engine, tells the edge what became of it.

The way of a request: `parse_infer_request` → digest → session's operating point → known already? →
`FrontLink.submit` → events. A bad frame gets its `Refused` and the stream goes on. Knows the
contract, sessions and answers; never touches a tensor library.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from cloud_server.engine.jobs import (
    Accepted,
    Answered,
    Compressed,
    Failed,
    Forget,
    Job,
    JobEvent,
    Offer,
    TokenMade,
)
from cloud_server.engine.link import FrontLink
from cloud_server.frontend.admission import Admission
from cloud_server.frontend.answers import Answers, Computation
from cloud_server.frontend.peers import Connections, address_of
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from cloud_server.throttle import Buckets, Throttle
from projector.codec.feedback import point_of
from protos.calls import EVENTS_APART, PROTOCOL_VERSION, SERVICE, SESSION_METADATA_KEY
from protos.digest import derived_id
from protos.distortion import Distortion
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameMalformedError,
    FrameTooLargeError,
    OverloadedError,
    ProtocolVersionError,
    UnknownQuantizerError,
    UnknownSessionError,
)
from protos.feedback import parse_feedback_request, seal_response
from protos.header import Header, frame_number_of
from protos.layout import KVLayout
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import PICTURE_POINT, OperatingPoint, points_to_json
from protos.process.logs import Logger
from protos.refusals import refusal_of, refused, trailer_of
from protos.requests import id_of, parse_ask_request, parse_infer_request

_CHUNK_BYTES = 256 * 1024
_MAX_OUTBOX = 256
_NEGOTIATE_BYTES = 128 * 1024
_DIGEST_CHARS = 64
_BUSY, _CALM = 0.75, 0.25
"""Shares of the queue at which clients are advised to send less, and to send as before."""


class _Outbox:
    """What one stream still has to write; the reader waits while it is long."""

    def __init__(self) -> None:
        self._events: deque[tuple[pb.InferEvent | None, Computation | None]] = deque()
        self._filled, self._drained = asyncio.Event(), asyncio.Event()
        self.closed = asyncio.Event()
        self._drained.set()

    def put(self, event: pb.InferEvent | None, computation: Computation | None = None) -> None:
        self._events.append((event, computation))
        self._filled.set()
        if len(self._events) >= _MAX_OUTBOX:
            self._drained.clear()

    async def get(self) -> tuple[pb.InferEvent | None, Computation | None]:
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        if len(self._events) <= _MAX_OUTBOX // 2:
            self._drained.set()
        return self._events.popleft()

    async def room(self) -> None:
        await self._drained.wait()


class _Stream:
    """One Infer stream: its outbox and the requests that have no terminal event yet."""

    def __init__(self, apart: _Outbox | None = None) -> None:
        self.outbox = apart or _Outbox()
        self.waiting: dict[bytes, tuple[Computation, Any]] = {}
        self.half_closed = False
        self.advised_less = False
        self.ended = asyncio.Event()
        self._apart = apart is not None

    def follow(self, computation: Computation) -> None:
        """Pass a computation's events on, until its terminal one."""

        def pass_on(event: pb.InferEvent) -> None:
            self.outbox.put(event, computation)
            kind = event.WhichOneof("event")
            if kind in ("answer", "refused") or (kind == "accepted" and not computation.question):
                self.waiting.pop(computation.request_id, None)
                computation.leave(pass_on)
                self.end_if_done()

        self.waiting[computation.request_id] = (computation, pass_on)
        computation.listen(pass_on)

    def end_if_done(self) -> None:
        """Close the outbox once nothing can come any more."""
        if self.half_closed and not self.waiting:
            self.ended.set()
            if not self._apart:
                self.outbox.put(None)

    def abandon(self) -> list[Computation]:
        """The client is gone; returns the computations that nobody listens to any more."""
        waiting, self.waiting = self.waiting, {}
        for computation, listener in waiting.values():
            computation.leave(listener)
        return [computation for computation, _ in waiting.values() if not computation.heard]


class Bridge:
    """The service `neuralbridge.v1.Bridge`.

    Args:
        settings: limits and sizes.
        link: the way to the engine.
        metrics: what is counted.
        log: a bound logger.
    """

    def __init__(
        self,
        settings: Settings,
        link: FrontLink,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self._settings, self._link, self._metrics = settings, link, metrics
        self._log = log
        self._limits = settings.limits
        self._sessions = Sessions(
            settings.sessions,
            settings.fresh_sessions,
            settings.session_memory_bytes,
            self._session_dropped,
        )
        self._negotiations = Buckets(settings.negotiations_per_s, settings.negotiation_burst)
        self._connections = Connections()
        self._admission = Admission(
            link,
            settings.queue_requests,
            settings.session_requests,
            settings.engine_requests or 2 * settings.batch_size,
            settings.batch_size,
            settings.resend_window_s,
        )
        self._answers = Answers(settings.answer_memory, settings.answer_memory_bytes)
        self._numbers = itertools.count(1)
        self._apart: dict[bytes, _Outbox] = {}  # by session id
        self._returning = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._told: set[asyncio.Task[None]] = set()
        self._few = Throttle(settings.log_burst, self._more, settings.log_interval_s)
        self.engine_ready = False
        self.draining = False

    def start(self) -> None:
        """Begin to give requests to the engine."""
        self._admission.start()

    def handler(self) -> grpc.GenericRpcHandler:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`.

        Requests arrive as raw bytes, so that a bad one is ours to refuse.
        """
        out = pb.InferEvent.SerializeToString
        methods = {
            "Negotiate": grpc.unary_unary_rpc_method_handler(
                self.negotiate, response_serializer=pb.NegotiateResponse.SerializeToString
            ),
            "FetchEncoder": grpc.unary_stream_rpc_method_handler(
                self.fetch_encoder, response_serializer=pb.Chunk.SerializeToString
            ),
            "Infer": grpc.stream_stream_rpc_method_handler(self.infer, response_serializer=out),
            "Events": grpc.unary_stream_rpc_method_handler(self.events, response_serializer=out),
            "Ask": grpc.unary_stream_rpc_method_handler(self.ask, response_serializer=out),
            "Feedback": grpc.unary_unary_rpc_method_handler(
                self.feedback, response_serializer=pb.FeedbackResponse.SerializeToString
            ),
            "Shadow": grpc.stream_unary_rpc_method_handler(
                self.shadow, response_serializer=pb.ShadowResponse.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # ------------------------------------------------------------------ the engine comes and goes

    def engine_up(self, offers: list[Offer]) -> None:
        """A (re)started engine takes jobs."""
        self._sessions.offer(offers)
        self._metrics.bundle_doubtful.clear()
        for offer in offers:
            if offer.doubt:
                self._metrics.bundle_doubtful.labels(offer.bundle_id, offer.verdict).set(1)
                self._log.warning("bundle in doubt", bundle=offer.bundle_id, doubt=offer.doubt)
        self.engine_ready = True
        self._metrics.engine_up.set(1)
        self._count_sessions()

    def engine_down(self) -> None:
        """There is no engine; its jobs have been ended by the link."""
        self.engine_ready = False
        self._metrics.engine_up.set(0)
        self._show_depth()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new; wait for what is under way. True if it all ended in time."""
        self.draining = True
        self._admission.forget_left()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Give the engine nothing more, and tell the log what was only counted so far."""
        await self._admission.stop()
        self._few.flush()

    # ------------------------------------------------------------------ RPCs

    async def negotiate(self, raw: bytes, context: Any) -> pb.NegotiateResponse:
        """Open a session on the bundle that serves the edge's model."""
        peer = address_of(context.peer())
        try:
            wait_s = self._negotiations.take(peer)
            if wait_s:
                raise OverloadedError(
                    f"too many sessions are being opened from {peer} (more than "
                    f"{self._settings.negotiations_per_s:g} a second): try again in {wait_s:.1f} s",
                    retry_after_s=wait_s,
                    cause="negotiations",
                )
            if len(raw) > _NEGOTIATE_BYTES:
                raise FrameMalformedError(f"a NegotiateRequest of {len(raw)} bytes")
            try:
                request = pb.NegotiateRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not a NegotiateRequest: {error}") from error
            if request.protocol_version != PROTOCOL_VERSION:
                raise ProtocolVersionError(
                    f"the edge speaks protocol version {request.protocol_version}, this service "
                    f"speaks {PROTOCOL_VERSION}: update the older side"
                )
            source = KVLayout.from_json(request.source_layout_json)
            if request.source_settings_digest:
                source = replace(source, settings_digest=request.source_settings_digest)
            known = request.bundle_digest
            if len(known) > _DIGEST_CHARS:
                raise FrameMalformedError(
                    f"bundle_digest has {len(known)} characters; SHA-256 in hex has {_DIGEST_CHARS}"
                )
            session = self._sessions.open(source, list(request.codecs), known, peer)
        except BridgeError as error:
            await self._abort(context, error, "Negotiate")
        offer = session.offer
        self._metrics.negotiations.labels(offer.bundle_id).inc()
        self._count_sessions()
        if self._few.passes("session opened"):
            self._log.info(
                "session opened",
                session=session.id.hex(),
                peer=peer,
                bundle=offer.bundle_id,
                bundle_version=offer.bundle_version,
                model=source.model_id,
                agent=request.agent_version[:64],
                **({"doubt": offer.doubt} if offer.doubt else {}),
            )
        return pb.NegotiateResponse(
            session_id=session.id,
            session_constants=session.constants,
            bundle_id=offer.bundle_id,
            bundle_version=offer.bundle_version,
            bundle_digest=offer.bundle_digest,
            encoder_digest=offer.encoder_digest,
            target_layout_json=offer.target_layout_json,
            limits=self._limits.to_proto(),
            operating_points_json=points_to_json(session.terms.points.values()),
            default_point=session.terms.default_point,
            ladder=session.terms.ladder,
            reverse_decoder_digest=offer.reverse_decoder_digest if session.terms.back else "",
            bundle_doubt=offer.doubt,
        )

    async def fetch_encoder(self, raw: bytes, context: Any) -> AsyncIterator[pb.Chunk]:
        """Send the edge half of the session's bundle, or the edge's half of its way back."""
        try:
            try:
                request = pb.FetchEncoderRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not a FetchEncoderRequest: {error}") from error
            offer = self._sessions.get(request.session_id).offer
            halves = {offer.encoder_digest: offer.encoder}
            if offer.reverse_decoder:
                halves[offer.reverse_decoder_digest] = offer.reverse_decoder
            if request.encoder_digest not in halves:
                raise FrameMalformedError(
                    f"no encoder {request.encoder_digest[:64]!r} in this session; Negotiate named "
                    f"{' and '.join(map(repr, halves))}"
                )
        except BridgeError as error:
            await self._abort(context, error, "FetchEncoder")
        blob = halves[request.encoder_digest]
        for start in range(0, len(blob), _CHUNK_BYTES):
            yield pb.Chunk(data=blob[start : start + _CHUNK_BYTES], total_bytes=len(blob))

    async def infer(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Take frames, many at a time, and stream what becomes of them."""
        metadata = dict(context.invocation_metadata() or ())
        session_id = metadata.get(SESSION_METADATA_KEY, b"")
        try:
            session = self._sessions.get(session_id if isinstance(session_id, bytes) else b"")
        except UnknownSessionError as error:
            await self._abort(context, error, "Infer")
        apart = self._apart.get(session.id)
        if metadata.get(EVENTS_APART[0]) != EVENTS_APART[1]:
            apart = None
        elif apart is None:
            missing = "no Events call is open in this session: open one first"
            await self._abort(context, EngineUnavailableError(missing), "Infer")
        stream = _Stream(apart)
        reader = asyncio.create_task(self._read(requests, stream, session))
        cancelled = True
        try:
            if apart is None:
                await self._write(stream.outbox, context)
            elif not await _first(stream.ended, apart.closed):
                cancelled = False
                gone = EngineUnavailableError("the Events call of this session is gone")
                await self._abort(context, gone, "Infer")
            await reader
        finally:
            reader.cancel()
            self._left(stream.abandon(), context, cancelled)

    async def events(self, raw: bytes, context: Any) -> None:
        """Stream what becomes of the requests of a session's Infer calls that ask for it."""
        try:
            try:
                request = pb.EventsRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not an EventsRequest: {error}") from error
            session = self._sessions.get(request.session_id)
        except BridgeError as error:
            await self._abort(context, error, "Events")
        outbox, before = _Outbox(), self._apart.get(session.id)
        self._apart[session.id] = outbox
        if before is not None:
            before.put(None)
        try:
            await context.send_initial_metadata(())
            await self._write(outbox, context)
        finally:
            outbox.closed.set()
            if self._apart.get(session.id) is outbox:
                del self._apart[session.id]

    async def _write(self, outbox: _Outbox, context: Any) -> None:
        while True:
            event, computation = await outbox.get()
            if event is None:
                return
            if computation is not None and event.HasField("answer"):
                computation.left(event)
            await context.write(event)
            if computation is not None and event.HasField("token"):
                computation.left(event)
            elif computation is not None and event.HasField("answer"):
                self._observe_answer(event.answer)

    async def ask(self, raw: bytes, context: Any) -> AsyncIterator[pb.InferEvent]:
        """Answer another question about a scene that is held."""
        received_ns = time.monotonic_ns()
        self._metrics.received_bytes.labels("ask").inc(len(raw))
        stream = _Stream()
        counted = False
        try:
            request = parse_ask_request(raw, self._limits)
            session = self._sessions.get(request.session_id)
            self._sessions.check(request, session)
            self._metrics.questions.labels("ask").inc()
            frame_number = request.frame_number
            known = self._answers.find(
                session.id, request.request_id, frame_number, request.question
            )
            if isinstance(known, pb.Answer):
                self._metrics.answers_from_memory.inc()
                yield pb.InferEvent(
                    request_id=request.request_id, frame_number=frame_number, answer=known
                )
                return
            if known is None:
                known = Computation(request.request_id, frame_number, request.question, received_ns)
                known.distortion, known.fallback, known.warnings = self._sessions.report(
                    session, frame_number
                )
                job = Job(
                    id=next(self._numbers),
                    session=session.id.hex(),
                    frame_number=frame_number,
                    request_id=request.request_id.hex(),
                    question=request.question,
                    max_new_tokens=request.max_new_tokens or self._limits.max_new_tokens,
                    received_ns=received_ns,
                )
                self._submit(session, known, job)
            else:
                self._join(known)
            stream.follow(known)
            while True:
                event, computation = await stream.outbox.get()
                if event is None:
                    raise EngineUnavailableError("the answer never came; ask again")
                if event.HasField("refused"):
                    counted = True
                    raise refusal_of(event.refused)
                if event.HasField("answer"):
                    known.left(event)
                yield event
                known.left(event)
                if event.HasField("answer"):
                    self._observe_answer(event.answer)
                    return
        except BridgeError as error:
            await self._abort(context, error, "Ask", counted)
        finally:
            self._left(stream.abandon(), context)

    async def feedback(self, raw: bytes, context: Any) -> pb.FeedbackResponse:
        """Send the large model's own state of a scene that is held, compressed."""
        received_ns = time.monotonic_ns()
        self._metrics.received_bytes.labels("feedback").inc(len(raw))
        try:
            request = parse_feedback_request(raw)
            session = self._sessions.get(request.session_id)
            self._sessions.check(request, session)
            constants, point = session.back_constants, point_of(session.terms.back, request.point)
            job = Job(
                id=next(self._numbers),
                session=session.id.hex(),
                frame_number=request.frame_number,
                request_id=request.request_id.hex(),
                question="",
                max_new_tokens=1,
                received_ns=received_ns,
                bundle=session.offer.bundle_digest,
                back=point.index,
            )
            response = self._response(
                await self._compressed(job), session, request, point, constants
            )
        except BridgeError as error:
            await self._abort(context, error, "Feedback")
        self._metrics.feedbacks.labels(point.name).inc()
        self._log.info(
            "sent back",
            request_id=job.request_id,
            session=job.session,
            frame=job.frame_number,
            point=point.name,
            payload_bytes=len(response.frame.payload),
            total_ms=round((time.monotonic_ns() - received_ns) / 1e6, 3),
        )
        return response

    async def shadow(self, _: AsyncIterator[bytes], context: Any) -> NoReturn:
        """Declared, not served."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "this service does not measure shadowed pictures: send them to Infer at the picture "
            "point instead",
        )
        raise AssertionError("abort returned")

    # ------------------------------------------------------------------ one stream's requests

    async def _read(
        self, requests: AsyncIterator[bytes], stream: _Stream, session: Session
    ) -> None:
        try:
            async for raw in requests:
                received_ns = time.monotonic_ns()
                self._metrics.received_bytes.labels("infer").inc(len(raw))
                self._advise(stream, session)
                try:
                    await self._take(raw, stream, session.id, received_ns)
                except BridgeError as error:
                    request_id, frame_number = _identify(raw, session.constants)
                    self._count_refusal(error, request_id, frame_number)
                    stream.outbox.put(
                        pb.InferEvent(
                            request_id=request_id,
                            frame_number=frame_number,
                            refused=refused(error),
                        )
                    )
                await stream.outbox.room()
        finally:
            stream.half_closed = True
            stream.end_if_done()

    async def _take(self, raw: bytes, stream: _Stream, session_id: bytes, received_ns: int) -> None:
        request, header, body = parse_infer_request(raw, self._limits)
        session = self._sessions.get(session_id)
        self._sessions.check(request, session)
        point = _point_of(header, session)
        request_id = request.request_id or derived_id(session.constants, header.frame_number)
        digest, question = request.frame.digest, request.question
        known = self._answers.find(session.id, request_id, header.frame_number, question, digest)
        if isinstance(known, pb.Answer):
            self._metrics.answers_from_memory.inc()
            stream.outbox.put(
                pb.InferEvent(request_id=request_id, frame_number=header.frame_number, answer=known)
            )
            return
        if isinstance(known, Computation):
            self._join(known)
            if request_id not in stream.waiting:
                stream.follow(known)
            return
        if len(stream.waiting) >= self._limits.max_in_flight:
            raise OverloadedError(
                f"{len(stream.waiting)} requests of this stream have no answer yet, "
                f"{self._limits.max_in_flight} may: wait for one to end",
                cause="credit",
            )
        self._observe_frame(header, point, request, body)
        computation = Computation(request_id, header.frame_number, question, received_ns, digest)
        computation.distortion = header.distortion.to_proto()
        computation.fallback = header.cause
        job = Job(
            id=next(self._numbers),
            session=session.id.hex(),
            frame_number=header.frame_number,
            request_id=request_id.hex(),
            question=request.question,
            max_new_tokens=request.max_new_tokens or self._limits.max_new_tokens,
            received_ns=received_ns,
            bundle=session.offer.bundle_digest,
            point=point.index,
            kept=header.kept.tobytes(),
            body=body,
            base=-1 if header.base is None else header.base,
            differences=int(header.differences),
        )
        self._submit(session, computation, job)
        stream.follow(computation)

    async def _compressed(self, job: Job) -> Compressed:
        """Have the engine compress a scene's state."""
        self._require_room()
        done: asyncio.Future[JobEvent | BridgeError] = asyncio.get_running_loop().create_future()

        def hear(said: JobEvent | BridgeError) -> None:
            if not done.done():  # the client may be gone
                done.set_result(said)

        request = self._admission.submit(job, job.session, hear, lambda: None)
        self._returning += 1
        self._idle.clear()
        try:
            said = await done
        finally:
            self._admission.withdraw(request)
            self._returning -= 1
            self._rest()
        if isinstance(said, Failed):
            said = said.error
        if isinstance(said, BridgeError):
            raise said
        if not isinstance(said, Compressed):
            raise EngineUnavailableError("the engine sent something else back; ask again")
        return said

    def _response(
        self,
        said: Compressed,
        session: Session,
        request: pb.FeedbackRequest,
        point: OperatingPoint,
        constants: bytes,
    ) -> pb.FeedbackResponse:
        """The frame that carries a compressed state; its size is bounded as a frame's is."""
        if len(said.body) > self._limits.max_payload_bytes:
            raise FrameTooLargeError(
                f"the state takes {len(said.body)} bytes at point '{point.name}', "
                f"{self._limits.max_payload_bytes} may be sent: ask for a coarser point"
            )
        target = session.terms.target
        tokens = target.tokens if target is not None else 0
        distortion = Distortion(said.quantize, 0.0, said.latent_residual, said.unfamiliarity)
        header = Header(point.index, request.frame_number, np.ones(tokens, np.bool_), 0, distortion)
        for stage in ("queue", "compress"):
            self._metrics.stage_seconds.labels(stage).observe(getattr(said, f"{stage}_s"))
        self._metrics.sent_back_bytes.labels(point.name).observe(len(said.body))
        return seal_response(constants, request.request_id, header, said.body)

    def _require_room(self) -> None:
        """Refuse what the engine could not take now."""
        if self.draining:
            raise EngineUnavailableError("this service is going down; send the frame elsewhere")
        if not self.engine_ready:
            raise EngineUnavailableError("the engine is starting; send the frame again")

    def _submit(self, session: Session, computation: Computation, job: Job) -> None:
        self._require_room()

        def dropped() -> None:
            self._metrics.left.labels("never_back").inc()
            self._end(session, computation, None)

        computation.request = self._admission.submit(
            job,
            job.session,
            partial(self._hear, session, computation, job),
            dropped,
            job.point == PICTURE_POINT,
        )
        self._answers.begin(session.id, computation)
        self._idle.clear()
        self._show_depth()

    def _join(self, computation: Computation) -> None:
        """A request id that is being computed has come again."""
        self._metrics.joined.inc()
        if computation.request is not None:
            self._admission.rejoin(computation.request)

    def _left(self, computations: list[Computation], context: Any, cancelled: bool = True) -> None:
        """The last who waited for these are gone.

        After an exceeded deadline or a cancellation nobody wants them. After a connection that
        broke, whoever it was will send them again: until then they go last. gRPC does not tell the
        two apart, the system's table of connections does.
        """
        if not computations:
            return
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s <= 0:
            self._withdraw(computations, "deadline")
            return
        for computation in computations:
            if computation.request is not None:
                self._admission.leave(computation.request)
        self._show_depth()
        if not cancelled:
            self._metrics.left.labels("lost").inc(len(computations))
            return

        async def look(peer: str) -> None:
            if await self._connections.gone(peer):
                self._metrics.left.labels("lost").inc(len(computations))
            else:
                self._withdraw([c for c in computations if not c.heard], "cancelled")

        self._later(look(context.peer()))

    def _withdraw(self, computations: list[Computation], how: str) -> None:
        for computation in computations:
            if computation.request is not None and computation.request.state != "over":
                self._metrics.left.labels(how).inc()
                self._admission.withdraw(computation.request)
                self._answers.end(bytes.fromhex(computation.request.job.session), computation, None)
        self._rest()

    def _advise(self, stream: _Stream, session: Session) -> None:
        """Where the queue has become long, or short again, say what suits it now.

        Under load that is a quarter of the credit: few frames wait then, and those that are sent
        are answered while they are new. The point is the bundle's default both times: pictures cost
        the engine more, a coarser point would cost answers and save it nothing.
        """
        share = self._admission.depth / self._settings.queue_requests
        if stream.advised_less == (share > _CALM if stream.advised_less else share >= _BUSY):
            return
        stream.advised_less = not stream.advised_less
        most = self._limits.max_in_flight
        advice = pb.RateAdvice(
            point=session.terms.default_point,
            max_in_flight=max(1, most // 4) if stream.advised_less else most,
            cause="load",
        )
        stream.outbox.put(pb.InferEvent(rate_advice=advice))
        if self._few.passes("rate advice"):
            self._log.info("rate advice", session=session.id.hex(), credit=advice.max_in_flight)

    # ------------------------------------------------------------------ what the engine says

    def _hear(
        self, session: Session, computation: Computation, job: Job, said: JobEvent | BridgeError
    ) -> None:
        timings = computation.timings
        if isinstance(said, Failed):
            said = said.error
        if isinstance(said, BridgeError):
            self._count_refusal(said, computation.request_id, computation.frame_number)
            self._end(session, computation, None)
            computation.emit(refused=refused(said))
        elif isinstance(said, Accepted):
            timings.queue_ms = said.queue_s * 1e3
            timings.decode_ms = said.decode_s * 1e3
            timings.project_ms = said.project_s * 1e3
            timings.inject_ms = said.inject_s * 1e3
            for stage in ("queue", "decode", "project", "inject"):
                self._metrics.stage_seconds.labels(stage).observe(getattr(said, f"{stage}_s"))
            computation.warnings = said.warnings
            self._warn(job, said.warnings)
            self._sessions.worked(session)
            self._sessions.remember_report(
                session,
                computation.frame_number,
                computation.distortion,
                computation.fallback,
                computation.warnings,
            )
            if not computation.question:
                self._end(session, computation, None)
            computation.emit(accepted=pb.Accepted(distortion=computation.distortion))
        elif isinstance(said, TokenMade):
            computation.emit(token=pb.Token(text=said.text, index=said.index))
        elif isinstance(said, Answered):
            self._answered(session, computation, job, said)

    def _answered(
        self, session: Session, computation: Computation, job: Job, said: Answered
    ) -> None:
        timings = computation.timings
        if not job.has_frame:
            timings.queue_ms = said.queue_s * 1e3
            self._metrics.stage_seconds.labels("queue").observe(said.queue_s)
        timings.prefill_ms, timings.generate_ms = said.prefill_s * 1e3, said.generate_s * 1e3
        self._metrics.stage_seconds.labels("prefill").observe(said.prefill_s)
        self._metrics.stage_seconds.labels("generate").observe(said.generate_s)
        self._metrics.generated_tokens.inc(said.tokens)
        self._metrics.answers.labels(session.offer.bundle_id).inc()
        answer = pb.Answer(
            text=said.text,
            tokens=said.tokens,
            timings=timings,
            distortion=computation.distortion,
            fallback=computation.fallback,
            warnings=computation.warnings,
        )
        self._end(session, computation, answer)
        self._log.info(
            "answered",
            request_id=job.request_id,
            session=job.session,
            frame=job.frame_number,
            point=job.point,
            tokens=said.tokens,
            total_ms=round((time.monotonic_ns() - computation.received_ns) / 1e6, 3),
        )
        computation.emit(answer=answer)

    def _end(self, session: Session, computation: Computation, answer: pb.Answer | None) -> None:
        self._answers.end(session.id, computation, answer)
        self._rest()

    def _rest(self) -> None:
        """Something is over; perhaps it was the last."""
        self._show_depth()
        if not self._answers.running and not self._returning:
            self._idle.set()

    # ------------------------------------------------------------------ sessions, counts, words

    def _session_dropped(self, session: Session) -> None:
        """Nothing of it is kept; what it waits for is refused, so that it negotiates again."""
        self._admission.end(
            session.id.hex(),
            UnknownSessionError("this service no longer holds that session: negotiate again"),
        )
        self._answers.forget(session.id)
        self._metrics.sessions_dropped.inc()
        self._count_sessions()
        self._later(self._link.tell(Forget(session.id.hex())))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    def _count_sessions(self) -> None:
        self._metrics.sessions.set(len(self._sessions))
        self._metrics.fresh_sessions.set(self._sessions.fresh)

    def _show_depth(self) -> None:
        self._metrics.queue_depth.set(self._admission.depth)
        self._metrics.left_queue.set(self._admission.waiting_for_nobody)

    def _observe_frame(
        self, header: Header, point: OperatingPoint, request: pb.InferRequest, body: bytes
    ) -> None:
        metrics = self._metrics
        metrics.frames.labels(point.name).inc()
        metrics.frame_kinds.labels("key" if header.base is None else "delta").inc()
        metrics.payload_bytes.labels(point.name).observe(len(body))
        if request.question:
            metrics.questions.labels("infer").inc()
        if header.cause:
            metrics.fallbacks.labels(header.cause).inc()
        if point.kind != "picture":
            metrics.kept_tokens.observe(header.kept_tokens)
            metrics.quantization_error.observe(header.distortion.quantize)
            metrics.dropped_attention.observe(header.distortion.dropped_attention)
            metrics.latent_residual.observe(header.distortion.latent_residual)
            metrics.unfamiliarity.observe(header.distortion.unfamiliarity)

    def _observe_answer(self, answer: pb.Answer) -> None:
        self._metrics.first_token_seconds.observe(answer.timings.ttft_ms / 1e3)
        self._metrics.answer_seconds.observe(answer.timings.total_ms / 1e3)

    def _count_refusal(self, error: BridgeError, request_id: bytes, frame_number: int) -> None:
        self._count(error)
        if self._few.passes(error.name):
            self._log.warning(
                "refused",
                request_id=request_id.hex(),
                frame=frame_number,
                code=error.code,
                error=error.name,
                message=error.message,
            )

    def _warn(self, job: Job, warnings: list[str]) -> None:
        for name in warnings:
            self._metrics.warnings.labels(name).inc()
            self._log.warning(
                name, request_id=job.request_id, session=job.session, frame=job.frame_number
            )

    def _count(self, error: BridgeError) -> None:
        self._metrics.refusals.labels(error.name).inc()
        if isinstance(error, OverloadedError):
            self._metrics.overloads.labels(error.cause or "engine").inc()

    def _more(self, name: str, count: int) -> None:
        self._log.warning("more of the same", what=name, count=count)

    async def _abort(
        self, context: Any, error: BridgeError, call: str, counted: bool = False
    ) -> NoReturn:
        if not counted:
            self._count(error)
            if self._few.passes(error.name):
                self._log.warning(
                    "call refused",
                    call=call,
                    code=error.code,
                    error=error.name,
                    message=error.message,
                )
        await context.abort(
            grpc.StatusCode[error.grpc_status],
            error.message,
            trailer_of(error),
        )
        raise AssertionError("abort returned")


async def _first(one: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for either; whether it was the first."""
    waits = {asyncio.create_task(one.wait()), asyncio.create_task(other.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return one.is_set()


def _point_of(header: Header, session: Session) -> OperatingPoint:
    point = session.terms.points.get(header.operating_point)
    if point is None:
        known = ", ".join(f"{p.index} ({p.name})" for p in session.terms.points.values())
        raise UnknownQuantizerError(
            f"the frame is at operating point {header.operating_point}; this session has {known}"
        )
    most = session.source.tokens
    whole = header.tokens <= most if session.source.of_text else header.tokens == most
    if point.kind != "picture" and not whole:
        raise FrameMalformedError(
            f"the frame's grid has {header.tokens} tokens; edge model "
            f"'{session.source.model_id}' has {most}"
        )
    return point


def _identify(raw: bytes, constants: bytes) -> tuple[bytes, int]:
    """Whose refusal it is, as far as a bad request tells: its id and frame number."""
    try:
        request = pb.InferRequest.FromString(raw)
    except DecodeError:
        return b"", 0
    return id_of(request, constants), frame_number_of(request.frame.header) or 0
