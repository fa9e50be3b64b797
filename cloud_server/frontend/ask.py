"""Ask: answer another question about a scene that is held."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloud_server.engine.jobs import Job
from cloud_server.frontend.access.gate import Gate, owner_of
from cloud_server.frontend.admission.quotas import Quotas
from cloud_server.frontend.answers import Computation, Owner
from cloud_server.frontend.outbox import Outboxes
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.tell import Asked, Stream, Teller
from cloud_server.frontend.tracing import REQUEST
from cloud_server.frontend.under_way import UnderWay
from projector.codec.risk import RiskModel
from protos.errors import BridgeError, EngineUnavailableError
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.points import PICTURE_POINT
from protos.process.trace import TRACEPARENT, Context, Trace, context_of
from protos.refusals import refusal_of
from protos.requests import parse_ask_request


@dataclass(frozen=True)
class Application:
    """An application that asks over HTTP; takes the place of a session (see `Asked`)."""

    id: bytes
    bundle_id: str = ""
    risk: RiskModel | None = None


class Asker:
    """The RPC Ask, and the questions of applications.

    Args:
        limits: what is accepted.
        sessions: the sessions held.
        under_way: takes the request.
        teller: hears the engine.
        telemetry: counts questions.
        refusals: where refusals are counted.
        gate: checks callers.
        quotas: counts requests against quotas.
        outboxes: where answers wait to be read.

    Attributes:
        outboxes: the same.
    """

    def __init__(
        self,
        limits: Limits,
        sessions: Sessions,
        under_way: UnderWay,
        teller: Teller,
        telemetry: Telemetry,
        refusals: Refusals,
        gate: Gate,
        quotas: Quotas,
        outboxes: Outboxes,
    ) -> None:
        self._gate, self._quotas, self.outboxes = gate, quotas, outboxes
        self._limits, self._sessions, self._under_way = limits, sessions, under_way
        self._teller, self._refusals = teller, refusals
        self._telemetry, self._metrics = telemetry, telemetry.metrics

    async def ask(self, raw: bytes, context: Any) -> None:
        """Stream the events of one question."""
        received_ns = time.monotonic_ns()
        self._metrics.received_bytes.labels("ask").inc(len(raw))
        stream = Stream()
        noted = False
        try:
            caller = self._gate.asker(context)
            request = parse_ask_request(raw, self._limits)
            session = self._sessions.get(request.session_id, caller)
            owner = session.owner if caller.kind == "anyone" else owner_of(caller)
            self._quotas.charge(*owner, len(raw))
            self._sessions.check(request, session)
            self._telemetry.asked("ask", request.request_id)
            known = self._under_way.answers.find(
                session.id, request.request_id, request.frame_number, request.question, owner=owner
            )
            if known is None:
                known = self._begin(request, session, owner, context, received_ns)
            elif isinstance(known, Computation):
                self._under_way.join(known)
            outbox = self.outboxes.make(owner[0])
            stream = Stream(outbox)
            noted = isinstance(known, Computation)  # by `Teller.hear`
            await self.outboxes.write(outbox, self._write(request, known, stream, context))
        except BridgeError as error:
            noted = noted and error is not stream.outbox.unread
            await self._refusals.abort(context, error, "Ask", noted)
        finally:
            self._under_way.leave(stream.abandon(), context)

    async def _write(
        self,
        request: pb.AskRequest,
        known: Computation | pb.Answer,
        stream: Stream,
        context: Any,
    ) -> None:
        """Write the events of a question to its client."""
        outbox = stream.outbox
        if isinstance(known, pb.Answer):
            self._metrics.answers_from_memory.inc()
            outbox.writing_since = time.monotonic()
            await context.write(
                pb.InferEvent(
                    request_id=request.request_id, frame_number=request.frame_number, answer=known
                )
            )
            return
        async for event in self.events(known, stream):
            outbox.writing_since = time.monotonic()
            await context.write(event)
            outbox.writing_since = 0.0

    def _begin(
        self,
        request: pb.AskRequest,
        session: Session,
        owner: Owner,
        context: Any,
        received_ns: int,
    ) -> Computation:
        made = Computation(request.request_id, request.frame_number, request.question, received_ns)
        self._teller.describe(made, session.id.hex())
        made.owner, made.wait_s = owner, context.time_remaining()
        sent = dict(context.invocation_metadata() or ()).get(TRACEPARENT)
        made.trace = self.trace(context_of(sent), session.id, made.request_id)
        self.begin(session, made, request.max_new_tokens or self._limits.max_new_tokens)
        return made

    def begin(
        self, asked: Asked, made: Computation, max_new_tokens: int, picture: bytes = b""
    ) -> None:
        """Send a question to the engine.

        Args:
            asked: the session of the scene that it is about, or the sender of the picture.
            made: the question.
            max_new_tokens: longest answer.
            picture: a picture file in place of a scene; it is not held.

        Raises:
            EngineUnavailableError, OverloadedError: as `UnderWay.submit`.
        """
        job = Job(
            id=self._under_way.next_id(),
            session=asked.id.hex(),
            frame_number=made.frame_number,
            request_id=made.request_id.hex(),
            question=made.question,
            max_new_tokens=max_new_tokens,
            received_ns=made.received_ns,
            point=PICTURE_POINT if picture else -1,
            body=picture,
            hold=0 if picture else 1,
            owner="/".join(made.owner),
            trace="" if made.trace is None else made.trace.context(REQUEST).header,
        )
        hear = partial(self._teller.hear, asked, made, job)
        self._under_way.submit(asked.id, made, job, hear)

    def trace(self, context: Context | None, session: bytes, request_id: bytes) -> Trace | None:
        """A question's trace; see `Tracing.of_call`. None if none are made."""
        tracing = self._telemetry.tracing
        return None if tracing is None else tracing.of_call(context, session, request_id)

    def asked(self, call: str, request_id: bytes) -> None:
        """Count a question (`Telemetry.asked`)."""
        self._telemetry.asked(call, request_id)

    def unread(self, error: BridgeError, made: Computation) -> None:
        """Count and log an answer over HTTP that its client does not read."""
        self._refusals.note(error, made.request_id, made.frame_number)

    async def events(
        self, made: Computation, stream: Stream
    ) -> AsyncGenerator[pb.InferEvent, None]:
        """The events of a question until its answer.

        Args:
            made: the question.
            stream: gets its events from now on.

        Raises:
            BridgeError: the question was refused.
        """
        stream.follow(made)
        while True:
            await stream.outbox.filled()
            event, kind, _ = stream.outbox.take()
            if event is None:
                raise EngineUnavailableError("the answer never came; ask again")
            if kind == "refused":
                raise refusal_of(event.refused)
            if kind == "answer":
                made.left(event, kind)
            yield event
            if kind == "token":
                made.left(event, kind)
            if kind == "answer":
                self._teller.sent(made, event.answer)
                return
