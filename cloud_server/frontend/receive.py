"""Receive: the Infer and Events streams, from a request's bytes to a job for the engine.

A request's way: parse and bound (`parse_infer_request`) → session → digest → operating point →
known already? → credit → admission. A bad frame gets its `Refused` and the stream goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from cloud_server.engine.jobs import Job
from cloud_server.frontend.access.gate import Gate
from cloud_server.frontend.admission.openings import Openings
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.admission.turns import RANKS
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.crops import Crops
from cloud_server.frontend.outbox import Outbox, Outboxes
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.tell import Stream, Teller
from cloud_server.frontend.tracing import REQUEST
from cloud_server.frontend.under_way import LEAVING, UnderWay
from cloud_server.identity.caller import Caller
from cloud_server.settings import Settings
from cloud_server.throttle import Throttle
from protos.calls import (
    ACCEPTED_WAIT_KEY,
    CROP_KEY,
    EVENTS_APART,
    MOST_ACCEPTED_WAIT_MS,
    SESSION_METADATA_KEY,
    WHOLE_ANSWERS,
)
from protos.digest import derived_id
from protos.errors import (
    BridgeError,
    EngineUnavailableError,
    FrameMalformedError,
    OverloadedError,
    UnknownQuantizerError,
    UnknownSessionError,
)
from protos.header import Header, frame_number_of
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.parcel import is_parcel, unpack
from protos.points import OperatingPoint
from protos.process.logs import Logger
from protos.process.trace import TRACEPARENT, context_of
from protos.refusals import refused
from protos.requests import Parsed, id_of, parse_infer_request

_WAIT = re.compile("([0-9]{1,6}),([0-9]{1,6})")
_BUSY, _CALM = 0.75, 0.25
"""Shares of the queue at which clients are advised to send less, and to send as much as before."""


_KEPT_S = 60.0
"""How long a session for waiting frames outlives its streams: a device may come back, seconds."""


class Receiver:
    """The RPCs Infer and Events.

    Args:
        settings: limits and sizes.
        sessions: the sessions held.
        under_way: takes requests.
        teller: hears the engine, and writes to clients.
        telemetry: counts frames.
        refusals: where refusals are counted.
        log: a bound logger.
        few: lets the first log lines of a kind pass.
        gate: checks callers.
        quotas: counts requests against quotas.
        openings: counts their calls.
        outboxes: where events wait to be read.
        crops: takes the crops that were asked for.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        under_way: UnderWay,
        teller: Teller,
        telemetry: Telemetry,
        refusals: Refusals,
        log: Logger,
        few: Throttle,
        gate: Gate,
        quotas: Quotas,
        openings: Openings,
        outboxes: Outboxes,
        crops: Crops,
    ) -> None:
        self._outboxes, self._crops = outboxes, crops
        self._gate, self._quotas, self._openings = gate, quotas, openings
        self._limits, self._queue_requests = settings.limits, settings.queue_requests
        self._sessions, self._under_way, self._teller = sessions, under_way, teller
        self._telemetry, self._metrics = telemetry, telemetry.metrics
        self._refusals, self._log, self._few = refusals, log, few
        self._apart: dict[bytes, Outbox] = {}  # outboxes of the Events calls, by session id
        self._open: set[Outbox] = set()
        self._of: dict[bytes, set[Outbox]] = {}  # the open ones, by session id
        self._moving: set[bytes] = set()  # ids of sessions that take no new frames
        self._none_open = asyncio.Event()
        self._none_open.set()

    # ------------------------------------------------------------------ streams

    async def infer(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Take frames, many at a time, and stream their events."""
        metadata = dict(context.invocation_metadata() or ())
        session_id = metadata.get(SESSION_METADATA_KEY, b"")
        try:
            self._under_way.require_staying()
            caller = self._gate.device(context)
            self._openings.call(caller, context)
            named = session_id if isinstance(session_id, bytes) else b""
            session = self._sessions.get(named, caller)
            self._require_unmoved(session)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Infer")
        apart = self._apart.get(session.id)
        if metadata.get(EVENTS_APART[0]) != EVENTS_APART[1]:
            apart = None
        elif apart is None:
            missing = "no Events call is open in this session: open one first"
            await self._refusals.abort(context, EngineUnavailableError(missing), "Infer")
        stream = Stream(apart or self._outboxes.make(session.owner[0]))
        stream.apart = apart is not None
        stream.context = context_of(metadata.get(TRACEPARENT))
        stream.whole = metadata.get(WHOLE_ANSWERS[0]) == WHOLE_ANSWERS[1]
        wait_s, most = _accepted_wait(metadata.get(ACCEPTED_WAIT_KEY, ""))
        stream.outbox.wait_s = wait_s
        stream.crop_bytes = self._crops.allowed(metadata.get(CROP_KEY))
        stream.outbox.most_aside = min(most, self._limits.max_in_flight)
        reader = asyncio.create_task(self._read(requests, stream, session, caller))
        cancelled = True
        try:
            if apart is None:
                await self._write(stream.outbox, context, session)
            elif not await _first(stream.ended, apart.closed):
                cancelled = False
                self._require_unmoved(session)
                raise EngineUnavailableError("the Events call of this session is gone")
            if stream.outbox.leaving and not stream.half_closed:
                cancelled = False
                self._require_unmoved(session)
                raise EngineUnavailableError(LEAVING)
            await reader
        except BridgeError as error:
            await self._refusals.abort(context, error, "Infer")
        finally:
            reader.cancel()
            self._under_way.leave(stream.abandon(), context, cancelled)

    async def events(self, raw: bytes, context: Any) -> None:
        """Stream the events of a session's Infer calls that ask for it."""
        try:
            try:
                request = pb.EventsRequest.FromString(raw)
            except DecodeError as error:
                raise FrameMalformedError(f"not an EventsRequest: {error}") from error
            self._under_way.require_staying()
            caller = self._gate.device(context)
            self._openings.call(caller, context)
            session = self._sessions.get(request.session_id, caller)
            self._require_unmoved(session)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Events")
        outbox = self._outboxes.make(session.owner[0])
        before = self._apart.get(session.id)
        self._apart[session.id] = outbox
        if before is not None:
            before.put(None)
        try:
            await context.send_initial_metadata(())
            await self._write(outbox, context, session)
        except BridgeError as error:
            await self._refusals.abort(context, error, "Events")
        finally:
            outbox.close()
            if self._apart.get(session.id) is outbox:
                del self._apart[session.id]

    async def leave(self) -> None:
        """End every call after its requests have ended and its events are written."""
        for outbox in list(self._open):
            outbox.leave()
        await self._none_open.wait()

    async def move(self, session: Session, timeout_s: float) -> None:
        """End a session, so that its device negotiates again and gets the version offered now.

        Requests that its streams have read are answered first. Later ones are not read; the device
        sends them again in its next session.

        Args:
            session: ended when this returns.
            timeout_s: longest wait for answers, and for a client that does not read them.
        """
        self._moving.add(session.id)
        try:
            outboxes = list(self._of.get(session.id, ()))
            for outbox in outboxes:
                outbox.leave()
            ended = asyncio.gather(*(outbox.closed.wait() for outbox in outboxes))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended, timeout_s)
        finally:
            self._sessions.end(session)
            self._moving.discard(session.id)

    def _require_unmoved(self, session: Session) -> None:
        if session.id in self._moving:
            raise UnknownSessionError(
                "another version of the bundle is served now: negotiate again, then resend"
            )
        self._sessions.require(session)

    async def _write(self, outbox: Outbox, context: Any, session: Session) -> None:
        self._open.add(outbox)
        self._of.setdefault(session.id, set()).add(outbox)
        self._none_open.clear()
        if self._under_way.draining:
            outbox.leave()
        try:
            await self._outboxes.write(outbox, self._teller.write(outbox, context))
        finally:
            self._open.discard(outbox)
            mine = self._of[session.id]
            mine.discard(outbox)
            if not mine:
                del self._of[session.id]
                if session.kept_since is not None:  # maybe a bundle is loaded for it alone
                    loop = asyncio.get_running_loop()
                    loop.call_later(_KEPT_S, self._end_if_idle, session)
            if not self._open:
                self._none_open.set()

    def _end_if_idle(self, session: Session) -> None:
        if session.id not in self._of:
            self._sessions.end(session)

    async def _read(
        self, requests: AsyncIterator[bytes], stream: Stream, session: Session, caller: Caller
    ) -> None:
        """Take a stream's requests one by one; a bad one gets its error, and the stream goes on."""
        try:
            async for raw in requests:
                received_ns = time.monotonic_ns()
                self._metrics.received_infer.inc(len(raw))
                if session.id in self._moving:
                    continue
                if stream.crop_bytes and self._crops.take(raw, session):
                    continue
                self._advise(stream, session)
                for one, size in self._requests(raw, stream, session):
                    try:
                        self._quotas.charge(*session.owner, size)
                        self._take(one, stream, session.id, caller, received_ns)
                    except BridgeError as error:
                        self._refuse(error, one, stream, session, received_ns)
                if stream.outbox.full:
                    await stream.outbox.room()
        finally:
            stream.half_closed = True
            stream.end_if_done()

    def _requests(self, raw: bytes, stream: Stream, session: Session) -> list[tuple[bytes, int]]:
        """The requests in a message, each with its share of the message's bytes."""
        if not is_parcel(raw):
            return [(raw, len(raw))]
        try:
            found = unpack(
                raw, session.constants, stream.course, self._limits.max_in_flight, self._limits
            )
        except BridgeError as error:
            with contextlib.suppress(OverloadedError):  # the refusal tells enough
                self._quotas.charge(*session.owner, len(raw))
            self._refuse(error, b"", stream, session, time.monotonic_ns())
            return []
        self._metrics.parcels.labels(len(found)).inc()
        each, more = divmod(len(raw), len(found))
        return [(request.SerializeToString(), each + (i < more)) for i, request in enumerate(found)]

    def _refuse(
        self, error: BridgeError, raw: bytes, stream: Stream, session: Session, received_ns: int
    ) -> None:
        request_id, frame_number = _identify(raw, session.constants)
        if (tracing := self._telemetry.tracing) is not None:
            trace = tracing.of_stream(stream.context, session.id, request_id)
            tracing.turned_away(trace, request_id, received_ns, error)
        self._refusals.note(error, request_id, frame_number, session.owner)
        self._sessions.refused(session.offer.bundle_digest, session.owner, error)
        stream.outbox.put(
            pb.InferEvent(request_id=request_id, frame_number=frame_number, refused=refused(error))
        )

    # ------------------------------------------------------------------ one request

    def _take(
        self, raw: bytes, stream: Stream, session_id: bytes, caller: Caller, received_ns: int
    ) -> None:
        parsed = parse_infer_request(raw, self._limits)
        request, header, body = parsed
        session = self._sessions.get(session_id, caller)
        self._sessions.check(request, session)
        point = _point_of(header, session)
        request_id = request.request_id or derived_id(session.constants, header.frame_number)
        digest, question = request.frame.digest, request.question
        known = self._under_way.answers.find(
            session.id, request_id, header.frame_number, question, digest, session.owner
        )
        if isinstance(known, pb.Answer):
            self._metrics.answers_from_memory.inc()
            stream.outbox.put(
                pb.InferEvent(request_id=request_id, frame_number=header.frame_number, answer=known)
            )
            return
        if isinstance(known, Computation):
            self._under_way.join(known)
            if request_id not in stream.waiting:
                stream.follow(known)
            return
        if len(stream.waiting) >= self._limits.max_in_flight:
            raise OverloadedError(
                f"{len(stream.waiting)} requests of this stream have no answer yet, "
                f"{self._limits.max_in_flight} may: wait for one to end",
                cause="credit",
            )
        self._telemetry.frame(request_id, session.owner, point, header, len(body), question)
        computation = Computation(
            request_id,
            header.frame_number,
            question,
            received_ns,
            digest,
            header.distortion.to_proto(),
        )
        computation.fallback = header.cause
        computation.owner, computation.rank = session.owner, RANKS[request.priority]
        computation.crop_bytes = stream.crop_bytes
        if (tracing := self._telemetry.tracing) is not None:
            computation.trace = tracing.of_stream(stream.context, session.id, request_id)
        job = self._job(parsed, session, point, computation)
        hear = partial(self._teller.hear, session, computation, job)
        self._under_way.submit(session.id, computation, job, hear)
        stream.follow(computation)

    def _job(
        self,
        parsed: Parsed,
        session: Session,
        point: OperatingPoint,
        computation: Computation,
    ) -> Job:
        request, header, body = parsed
        trace = computation.trace
        return Job(
            id=self._under_way.next_id(),
            session=session.hex,
            frame_number=header.frame_number,
            request_id=computation.request_id.hex(),
            question=request.question,
            max_new_tokens=request.max_new_tokens or self._limits.max_new_tokens,
            received_ns=computation.received_ns,
            bundle=session.offer.bundle_digest,
            point=point.index,
            kept=header.kept.tobytes(),
            body=body,
            base=-1 if header.base is None else header.base,
            differences=int(header.differences),
            owner=session.whose,
            rank=RANKS[request.priority],
            trace="" if trace is None else trace.context(REQUEST).header,
        )

    # ------------------------------------------------------------------ advice

    def _advise(self, stream: Stream, session: Session) -> None:
        """Advise a client when the queue has become long, or short again.

        Under load it gets a quarter of the credit: few frames wait then, and those that are sent
        are answered while they are new. The point is the bundle's default both times: pictures cost
        the engine more, and a coarser point would lose right answers and save no time.
        """
        share = self._under_way.depth / self._queue_requests
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


async def _first(one: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for either event; returns whether `one` is set."""
    waits = {asyncio.create_task(one.wait()), asyncio.create_task(other.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return one.is_set()


def _accepted_wait(told: object) -> tuple[float, int]:
    """Seconds that Accepted events may wait, and how many; not at all if that cannot be read."""
    found = _WAIT.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        return 0.0, 1
    wait_ms, most = map(int, found.groups())
    return min(wait_ms, MOST_ACCEPTED_WAIT_MS) / 1000, max(1, most)


def _point_of(header: Header, session: Session) -> OperatingPoint:
    """A frame's operating point in the session; checks the frame's grid too.

    Raises:
        UnknownQuantizerError: the session has no such point.
        FrameMalformedError: the grid is not the edge model's.
    """
    point = session.terms.points.get(header.operating_point)
    if point is None:
        known = ", ".join(f"{p.index} ({p.name})" for p in session.terms.points.values())
        raise UnknownQuantizerError(
            f"the frame is at operating point {header.operating_point}; this session has {known}"
        )
    most = session.terms.offer.tokens or session.source.tokens
    whole = header.tokens <= most if session.source.of_text else header.tokens == most
    if point.kind != "picture" and not whole:
        raise FrameMalformedError(
            f"the frame's grid has {header.tokens} tokens; the bundle of "
            f"edge model '{session.source.model_id}' has {most}"
        )
    return point


def _identify(raw: bytes, constants: bytes) -> tuple[bytes, int]:
    """The id and frame number of a bad request, if they can be read."""
    try:
        request = pb.InferRequest.FromString(raw)
    except DecodeError:
        return b"", 0
    return id_of(request, constants), frame_number_of(request.frame.header) or 0
