"""The cascade: the small model answers where it is confident; only other questions go up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.frame_maker import FrameMaker
from edge_agent.metrics import Metrics
from edge_agent.record import AnswerRecord, origin
from edge_agent.summary import Summary
from projector.codec.confidence import Confidence
from protos.errors import BridgeError
from protos.process.logs import Logger

CONFIDENT = "confident"
"""`fallback` of a record whose question did not go up."""


@dataclass
class Cascade:
    """Answers what the small model is confident about.

    Attributes:
        confidence: calibrated for the small model.
        limit: least confidence at which its answer counts.
        metrics: what is counted.
        log: structured logger.
        clock: seconds.
    """

    confidence: Confidence
    limit: float
    metrics: Metrics
    log: Logger
    clock: Callable[[], float] = time.perf_counter

    async def answer(
        self,
        maker: FrameMaker,
        questions: tuple[str, ...],
        summary: Summary,
        on_record: Callable[[AnswerRecord], None],
    ) -> tuple[str, ...]:
        """Answer some questions here; returns the others.

        Args:
            maker: has seen the capture, and learns each confidence for the record.
            questions: about it.
            summary: of the run.
            on_record: gets the record of each question that is answered here.
        """
        if maker.degenerate:
            return questions
        up = []
        for question in questions:
            record = await asyncio.to_thread(self._here, maker, question)
            if record is None:
                up.append(question)
                continue
            summary.questions += 1
            summary.confident += 1
            self.metrics.fallbacks.labels(CONFIDENT).inc()
            self.metrics.edge_only_answers.inc()
            self.log.info(
                "answered", capture=record.capture, fallback=CONFIDENT, confidence=record.confidence
            )
            on_record(record)
        return tuple(up)

    def _here(self, maker: FrameMaker, question: str) -> AnswerRecord | None:
        """The record of a confident answer; None if the question is to go up."""
        sight = maker.see()
        if sight.first_token is None:
            return None
        try:
            with maker.capture.work():
                first = sight.first_token(question)
            confidence = self.confidence.of_answer(question, first)
            maker.confidences[question] = confidence
            self.metrics.confidence.observe(confidence)
            if not confidence >= self.limit:
                return None
            text, milliseconds = maker.edge_answer(question)
        except BridgeError:  # the service says what is wrong with the question
            return None
        capture = maker.capture
        return AnswerRecord(
            request_id="",
            **origin(capture),
            question=question,
            edge_answer=text,
            edge_ms={"prefill": maker.prefill_ms, "edge_only": milliseconds},
            fallback=CONFIDENT,
            confidence=confidence,
        )
