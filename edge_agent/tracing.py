"""The agent's spans of a frame; the service's lie under `uplink`, in the same trace.

frame                     from the capture to the terminal event
├─ edge.prefill, edge.select, edge.encode
└─ uplink                 from the last sending to the terminal event
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from edge_agent.frame_maker import FrameMaker
from edge_agent.uplink.outcome import Outcome
from protos.process.trace import UPLINK, Trace, fresh_context
from protos.process.trace_export import Traces

FRAME: Final = "frame"
"""Name of the span that holds all others of a frame."""
Mark: TypeAlias = tuple[str, int, int]
"""A span's name, begin and end (nanoseconds, the machine's monotonic clock)."""


class FrameTraces:
    """Makes the traces of one run.

    Args:
        traces: sends those worth keeping.

    Attributes:
        context: goes up with each stream, once.
    """

    def __init__(self, traces: Traces) -> None:
        self._traces, self.context = traces, fresh_context()
        self._carried = b""

    def close(self) -> None:
        """Send what waits; takes a second at most."""
        self._traces.close()

    def ended(self, maker: FrameMaker, outcome: Outcome, carried: Outcome) -> None:
        """A question has ended.

        Args:
            maker: of its frame.
            outcome: of the question.
            carried: of the request that carried the frame, maybe another one.
        """
        if carried.request_id not in (outcome.request_id, self._carried):
            self._carried = carried.request_id
            self._end(carried, maker.begun_ns, maker.marks, maker.capture.name)
        self._end(outcome, maker.begun_ns, maker.marks, maker.capture.name)

    def waited(self, capture: str, outcome: Outcome) -> None:
        """A frame that waited on the disk has ended."""
        self._end(outcome, 0, (), capture)

    def _end(self, outcome: Outcome, begun_ns: int, marks: Sequence[Mark], capture: str) -> None:
        if not outcome.request_id or not outcome.ended_ns:
            return  # nothing was sent
        trace = Trace.of_stream(self.context.trace, outcome.request_id)
        sent_ns = outcome.ended_ns - round(outcome.uplink_ms * 1e6)
        facts: dict[str, Any] = {
            "neural_bridge.request_id": outcome.request_id.hex(),
            "neural_bridge.capture": capture,
            "neural_bridge.attempts": outcome.attempts,
        }
        if outcome.sealed is not None:
            facts["neural_bridge.point"] = outcome.sealed.frame.point.name
            facts["neural_bridge.payload_bytes"] = len(outcome.sealed.frame.payload)
        if outcome.error is not None:
            facts["error.type"] = outcome.error.name
        trace.note(FRAME, min(begun_ns or sent_ns, sent_ns), outcome.ended_ns, **facts)
        for name, begin_ns, end_ns in marks:
            trace.note(f"edge.{name}", begin_ns, end_ns, FRAME)  # engines have a `prefill` too
        trace.note(UPLINK, sent_ns, outcome.ended_ns, FRAME)
        answer = outcome.answer
        if answer is not None and answer.HasField("risk"):
            trace.risk = answer.risk
        # The service counts from its last byte received; a slow link is slow here too.
        self._traces.end(trace, outcome.uplink_ms / 1000, outcome.error is not None)
