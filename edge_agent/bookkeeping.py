"""What comes of each question: its record, its log line, the run's counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_agent.frame import Frame
from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.record import (
    GUARDED,
    AnswerRecord,
    cause_of,
    finished,
    record_of,
    record_of_failure,
    timed,
)
from edge_agent.sources import Capture
from edge_agent.summary import Summary
from edge_agent.tracing import FrameTraces
from edge_agent.uplink.connection import FATAL
from edge_agent.uplink.outcome import Outcome
from protos.errors import BridgeError
from protos.process.logs import Logger


@dataclass
class Bookkeeping:
    """Keeps the records and counts of one run.

    Attributes:
        on_record: gets every record, in the order in which questions end.
        metrics: what is counted.
        log: structured logger.
        now: the time, seconds since 1970, for captures made before this device's clock was set.
        summary: counts of the run.
        holding: whether frames are sent without a question.
        edge_fallback: let the small model answer if the service could not.
        patient: whether frames wait on the disk, so that no error of the service ends the run.
        tracing: makes traces; None makes none.
        fatal: the error that ends the run; None as long as it goes on.
    """

    on_record: Callable[[AnswerRecord], None]
    metrics: Metrics
    log: Logger
    now: Callable[[], float]
    summary: Summary = field(default_factory=Summary)
    holding: bool = False
    edge_fallback: bool = False
    patient: bool = False
    tracing: FrameTraces | None = None
    fatal: Exception | None = None

    async def edge_answer(
        self, maker: FrameMaker, question: str, wanted: bool
    ) -> tuple[str | None, float]:
        """The small model's answer if it is wanted and there is one, and its time in ms."""
        if not wanted:
            return None, 0.0
        try:
            text, milliseconds = await asyncio.to_thread(maker.edge_answer, question)
        except BridgeError as error:
            self.log.warning("edge_only_failed", capture=maker.capture.name, cause=str(error))
            return None, 0.0
        self.metrics.edge_only_answers.inc()
        return text, milliseconds

    async def record(
        self,
        maker: FrameMaker,
        question: str,
        outcome: Outcome,
        carried: Outcome,
        edge: asyncio.Task[tuple[str | None, float]],
        kept_back: Frame | None = None,
    ) -> None:
        """Turn what happened into one record.

        Args:
            maker: of the capture.
            question: that was put.
            outcome: of the question.
            carried: outcome of the request that carried the frame.
            edge: the small model's answer, still being made.
            kept_back: the frame that the guard did not send.
        """
        edge_answer, edge_only_ms = await edge
        fallback, error = "", outcome.error
        if error is None:
            fallback = outcome.answer.fallback if outcome.answer is not None else ""
            fallback = fallback or (carried.sealed.frame.fallback if carried.sealed else "")
        elif question and (self.edge_fallback or isinstance(error, GUARDED)):
            if edge_answer is None:
                edge_answer, edge_only_ms = await self.edge_answer(maker, question, True)
            if edge_answer is not None:
                fallback = cause_of(error)
        record = record_of(
            maker, question, outcome, carried, edge_answer, edge_only_ms, fallback, kept_back
        )
        if outcome.attempts:
            self.metrics.stage_seconds.labels("uplink").observe(outcome.uplink_ms / 1000)
        if self.tracing is not None:
            self.tracing.ended(maker, outcome, carried)
        self.finish(timed(record, maker.capture.age_s, self.now()), error)

    def waited(self, draft: AnswerRecord, outcome: Outcome) -> None:
        """A frame that waited on the disk has ended."""
        error, fallback = outcome.error, ""
        if isinstance(error, GUARDED) and draft.edge_answer is not None:
            fallback = cause_of(error)
        if outcome.attempts:
            self.metrics.stage_seconds.labels("uplink").observe(outcome.uplink_ms / 1000)
        if self.tracing is not None:
            self.tracing.waited(draft.capture, outcome)
        self.finish(finished(draft, outcome, fallback), error)

    def capture_failed(self, capture: Capture, error: BridgeError) -> None:
        """Nothing can be made of a capture."""
        self.metrics.capture_errors.labels(error.name).inc()
        if capture.set_aside:
            self.metrics.entries_skipped.labels("set_aside").inc()
            self.log.error("set_aside", capture=capture.name, cause=error.message)
        self.finish(record_of_failure(capture, error), error)

    def finish(self, record: AnswerRecord, error: BridgeError | None) -> None:
        """A question has ended: count it, log it, hand out its record."""
        summary = self.summary
        summary.questions += 1
        bound = {"request_id": record.request_id, "capture": record.capture}
        if record.fallback:
            self.metrics.fallbacks.labels(record.fallback).inc()
            bound["fallback"] = record.fallback
        if error is None:
            summary.answered += 1
            summary.payload_bytes += record.payload_bytes
            uplink_ms = round(record.edge_ms["uplink"], 1)
            if not self.holding:
                self.metrics.answers.inc()
                self.log.info("answered", **bound, uplink_ms=uplink_ms)
            else:
                self.metrics.scenes_held.inc()
                self.log.info("held", **bound, uplink_ms=uplink_ms)
        else:
            self.metrics.refusals.labels(error.name).inc()
            self.log.warning("not_answered", **bound, error=error.name, cause=str(error))
            if record.fallback:
                summary.fallbacks += 1
            else:
                summary.failed += 1
                summary.first_error = summary.first_error or error
            if isinstance(error, FATAL) and not self.patient:
                self.fatal = self.fatal or error
        self.on_record(record)
