"""The front end's spans of a request, and those of its engine.

infer                     from the last byte received to the answer sent
├─ queue                  until the engine took it up
├─ engine                 in the engine's process
│  └─ decode, project, inject, prefill, generate
└─ reply                  from the engine's last word to the answer sent
"""

from __future__ import annotations

import time
from typing import Any, Final

from cloud_server.engine.jobs import Accepted, Answered
from cloud_server.frontend.answers import Computation
from protos.errors import BridgeError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.process.trace import UPLINK, Context, Trace
from protos.process.trace_export import Traces

REQUEST: Final = "infer"
"""Name of the span that holds all others of a request."""
ENGINE: Final = "engine"
_NS = 1e9


class Tracing:
    """Makes the traces of requests.

    Args:
        traces: sends those worth keeping.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def close(self) -> None:
        """Send what waits; takes a second at most."""
        self._traces.close()

    def of_stream(self, context: Context | None, session: bytes, request_id: bytes) -> Trace:
        """The trace of a request that came on a stream.

        Args:
            context: the stream's; None if its device makes no traces.
            session: id of the session.
            request_id: of the request.
        """
        if context is None:
            return Trace.of_stream(session, request_id)
        return Trace.of_stream(context.trace, request_id, UPLINK)

    def of_call(self, context: Context | None, session: bytes, request_id: bytes) -> Trace:
        """The trace of a question that came by a call of its own; see `of_stream`."""
        if context is None:
            return Trace.of_stream(session, request_id)
        return Trace.joined(context, request_id)

    def accepted(self, computation: Computation, trace: Trace, said: Accepted) -> None:
        """The engine holds the scene; the end of a request without a question."""
        self._engine(computation, trace, said.queue_s, said.spans)
        if not computation.question:
            self._end(computation, trace, {"neural_bridge.held": True})

    def answered(self, computation: Computation, trace: Trace, said: Answered) -> None:
        """The engine has answered."""
        self._engine(computation, trace, said.queue_s, said.spans)

    def sent(self, computation: Computation, trace: Trace, answer: pb.Answer) -> None:
        """The answer has left."""
        facts: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.output_tokens": answer.tokens,
            "neural_bridge.first_token_ms": answer.timings.ttft_ms,
        }
        if answer.fallback:
            facts["neural_bridge.fallback"] = answer.fallback
        if trace.risk is not None:
            facts["neural_bridge.risk"] = trace.risk
        self._end(computation, trace, facts)

    def refused(self, computation: Computation, trace: Trace, error: BridgeError) -> None:
        """The request was refused."""
        self._end(computation, trace, {"error.type": error.name}, refused=True)

    def turned_away(
        self, trace: Trace, request_id: bytes, received_ns: int, error: BridgeError
    ) -> None:
        """A request was refused before it was begun."""
        now = time.monotonic_ns()
        facts = {"neural_bridge.request_id": request_id.hex(), "error.type": error.name}
        trace.note(REQUEST, received_ns, now, **facts)
        self._traces.end(trace, (now - received_ns) / _NS, refused=True)

    def _engine(
        self,
        computation: Computation,
        trace: Trace,
        queue_s: float,
        spans: list[tuple[str, int, int]],
    ) -> None:
        begin_ns = computation.received_ns
        trace.note("queue", begin_ns, begin_ns + round(queue_s * _NS), REQUEST)
        for name, span_ns, end_ns in spans:
            trace.note(name, span_ns, end_ns, ENGINE, ENGINE)

    def _end(
        self,
        computation: Computation,
        trace: Trace,
        facts: dict[str, Any],
        refused: bool = False,
    ) -> None:
        now = time.monotonic_ns()
        of_engine = [one for one in trace.spans if one.by == ENGINE]
        if of_engine:
            last_ns = max(one.end_ns for one in of_engine)
            trace.note(ENGINE, min(one.begin_ns for one in of_engine), last_ns, REQUEST, ENGINE)
            trace.note("reply", last_ns, now, REQUEST)
        facts |= {
            "neural_bridge.request_id": computation.request_id.hex(),
            "neural_bridge.device": "/".join(computation.owner),
            "neural_bridge.frame": computation.frame_number,
        }
        trace.note(REQUEST, computation.received_ns, now, **facts)
        self._traces.end(trace, (now - computation.received_ns) / _NS, refused)
