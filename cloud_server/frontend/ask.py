"""Ask: answer another question about a scene that is held."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from cloud_server.engine.jobs import Job
from cloud_server.frontend.answers import Computation
from cloud_server.frontend.refuse import Refusals
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.frontend.tell import Stream, Teller
from cloud_server.frontend.under_way import UnderWay
from cloud_server.metrics import Metrics
from protos.errors import BridgeError, EngineUnavailableError
from protos.limits import Limits
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.refusals import refusal_of
from protos.requests import parse_ask_request


class Asker:
    """The RPC Ask.

    Args:
        limits: what is accepted.
        sessions: the sessions held.
        under_way: takes the request.
        teller: hears the engine.
        metrics: what is counted.
        refusals: where refusals are counted.
    """

    def __init__(
        self,
        limits: Limits,
        sessions: Sessions,
        under_way: UnderWay,
        teller: Teller,
        metrics: Metrics,
        refusals: Refusals,
    ) -> None:
        self._limits, self._sessions, self._under_way = limits, sessions, under_way
        self._teller, self._metrics, self._refusals = teller, metrics, refusals

    async def ask(self, raw: bytes, context: Any) -> AsyncIterator[pb.InferEvent]:
        """Stream the events of one question."""
        received_ns = time.monotonic_ns()
        self._metrics.received_bytes.labels("ask").inc(len(raw))
        stream = Stream()
        noted = False
        try:
            request = parse_ask_request(raw, self._limits)
            session = self._sessions.get(request.session_id)
            self._sessions.check(request, session)
            self._metrics.questions.labels("ask").inc()
            frame_number = request.frame_number
            known = self._under_way.answers.find(
                session.id, request.request_id, frame_number, request.question
            )
            if isinstance(known, pb.Answer):
                self._metrics.answers_from_memory.inc()
                yield pb.InferEvent(
                    request_id=request.request_id, frame_number=frame_number, answer=known
                )
                return
            if known is None:
                known = self._begin(request, session, received_ns)
            else:
                self._under_way.join(known)
            stream.follow(known)
            while True:
                event, _ = await stream.outbox.get()
                if event is None:
                    raise EngineUnavailableError("the answer never came; ask again")
                if event.HasField("refused"):
                    noted = True
                    raise refusal_of(event.refused)
                if event.HasField("answer"):
                    known.left(event)
                yield event
                known.left(event)
                if event.HasField("answer"):
                    self._teller.observe(event.answer)
                    return
        except BridgeError as error:
            await self._refusals.abort(context, error, "Ask", noted)
        finally:
            self._under_way.leave(stream.abandon(), context)

    def _begin(self, request: pb.AskRequest, session: Session, received_ns: int) -> Computation:
        made = Computation(request.request_id, request.frame_number, request.question, received_ns)
        report = self._sessions.report(session, request.frame_number)
        made.distortion, made.fallback, made.warnings, made.moments_score = report
        job = Job(
            id=self._under_way.next_id(),
            session=session.id.hex(),
            frame_number=request.frame_number,
            request_id=request.request_id.hex(),
            question=request.question,
            max_new_tokens=request.max_new_tokens or self._limits.max_new_tokens,
            received_ns=received_ns,
        )
        hear = partial(self._teller.hear, session, made, job)
        self._under_way.submit(session.id, made, job, hear)
        return made
