"""The run: source → view → uplink → records, with bounded memory and nothing dropped.

Knows the order of things and what becomes of each failure; knows nothing of tensors, gRPC or files.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from edge_agent.encode import AUTO, Clock, Plan, choose_point
from edge_agent.guard import DEGENERATE
from edge_agent.metrics import Metrics
from edge_agent.pipeline import Guarded, Outgoing, View, check_question
from edge_agent.prefill import EdgeModel, Sight
from edge_agent.records import Answered, AnswerRecord
from edge_agent.sources import Capture, Source
from edge_agent.uplink.budget import Budget
from edge_agent.uplink.uplink import FATAL, Outcome, Packed, Returned, Scene, Uplink
from protos.errors import (
    BridgeError,
    ConfigError,
    ContextError,
    DegenerateError,
    DistortionError,
    LateError,
    OfflineError,
    PictureError,
    UnfamiliarError,
)
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.console import ReaderGoneError
from protos.process.logs import Logger

_PATIENCE_S = 10.0

GUARDED = (DistortionError, UnfamiliarError, DegenerateError)
"""Errors by which the guard keeps a frame back: the small model answers, whatever else is set."""

Ended = TypeVar("Ended")


def new_request_id() -> bytes:
    """Eight random bytes."""
    return secrets.token_bytes(8)


@dataclass
class Summary:
    """What a run came to.

    Attributes:
        captures: taken from the source.
        questions: that ended, one record each (a failed capture counts as one).
        answered: by the service.
        fallbacks: that the small model answered because the service could not.
        failed: without an answer.
        payload_bytes: of the frames of answered questions.
        first_error: the first that left a question without an answer.
    """

    captures: int = 0
    questions: int = 0
    answered: int = 0
    fallbacks: int = 0
    failed: int = 0
    payload_bytes: int = 0
    first_error: BridgeError | None = None


@dataclass
class Agent:
    """One run over one source.

    Attributes:
        source: where captures come from.
        model: the small model.
        uplink: the way to the server.
        plan: how frames are made.
        on_record: gets every record, in the order in which questions end.
        metrics: what is counted.
        log: structured logger.
        questions: asked about every capture; empty asks each capture's own.
        ask_mode: hold each frame once and put its questions by Ask.
        feedback_mode: hold each frame once, have the server send back its own state of it, and
            answer with the small model from that.
        feedback_point: operating point of what is sent back; empty for the bundle's own.
        edge_only_too: also answer with the small model.
        edge_fallback: answer with the small model where the service could not.
        budget: chooses the operating point where the plan leaves that open.
        on_capture: called when a capture has ended, for a progress bar.
        done: what an earlier run answered; it is left out.
        new_id: makes the request ids of Ask; a frame's is derived.
        clock: seconds, for stage times.
    """

    source: Source
    model: EdgeModel
    uplink: Uplink
    plan: Plan
    on_record: Callable[[AnswerRecord], None]
    metrics: Metrics
    log: Logger
    questions: tuple[str, ...] = ()
    ask_mode: bool = False
    feedback_mode: bool = False
    feedback_point: str = ""
    edge_only_too: bool = False
    edge_fallback: bool = False
    budget: Budget | None = None
    on_capture: Callable[[], None] = lambda: None
    done: Answered = Answered()
    new_id: Callable[[], bytes] = new_request_id
    clock: Clock = time.perf_counter
    summary: Summary = field(default_factory=Summary)
    _stopping: bool = field(default=False, repr=False)
    _fatal: Exception | None = field(default=None, repr=False)

    def stop(self) -> None:
        """Take no further capture; what is in flight still ends."""
        self._stopping = True

    async def run(self) -> Summary:
        """Work through the source.

        Raises:
            BridgeError: no session could be agreed, the settings do not fit the server, or a
                capture has no question.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._connect()
            captures = iter(self.source)
            while not self._stopping and self._fatal is None:
                capture = await asyncio.to_thread(self._next, captures)
                if capture is None:
                    break
                self.summary.captures += 1
                self.metrics.captures.inc()
                await self._start(capture, tasks)
            if tasks:
                await asyncio.wait(tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            await self.uplink.close()
        if self._fatal is not None:
            raise self._fatal
        return self.summary

    async def _connect(self) -> None:
        """Agree on a session, and see to it that the settings fit it.

        Where the small model answers what the service cannot, the run starts without one.
        """
        patience_s = _PATIENCE_S if self.edge_fallback else None
        try:
            session = await asyncio.wait_for(self.uplink.connect(), patience_s)
        except (asyncio.TimeoutError, BridgeError) as error:
            if isinstance(error, BridgeError) and not (self.edge_fallback and error.retryable):
                raise
            self.log.warning("offline_at_start", cause=str(error) or f"{patience_s:g} s")
            return
        point = choose_point(self.plan, session)
        if point.kind != "picture":
            session.encoder.selecting(self.plan.selector)
        if session.encoder.text and (self.plan.delta or self.plan.selector is not None):
            what = "--delta" if self.plan.delta else "--selector"
            raise ConfigError(f"{what} is for pictures: texts travel whole")
        if self.budget is not None and self.plan.point == AUTO:
            highest = self.plan.highest_point or session.advised
            if unmet := self.budget.unmet(session.rungs, highest):
                self.log.warning("limits_unmet", cause=unmet)
        if self.plan.guard.acts() and not self.plan.guard.watches(session.encoder):
            self.log.warning(
                "no_guard", cause=f"bundle {session.bundle_id} was not calibrated for it"
            )

    def _next(self, captures: Iterator[Capture]) -> Capture | None:
        start = self.clock()
        capture = next(captures, None)
        self.metrics.stage_seconds.labels("read").observe(self.clock() - start)
        return capture

    async def _start(self, capture: Capture, tasks: set[asyncio.Task[None]]) -> None:
        """See the picture or text, wait for credit, and leave the rest to a task."""
        asked = self.questions or capture.questions
        questions = tuple(q for q in asked if not self.done.holds(capture, q))
        if asked and not questions:
            self.on_capture()
            return
        try:
            if capture.error is None and not questions:
                raise ConfigError(
                    f"nothing to ask about {capture.name}: give --question, or a source that "
                    "brings its own"
                )
            view = View(capture, self.model, self.plan, self.metrics, self.clock, self.budget)
            if view.degenerate:
                self.metrics.warnings.labels(DEGENERATE).inc()
                self.log.warning(DEGENERATE, capture=capture.name, cause=view.degenerate)
            if self.plan.point != "picture" or self.edge_only_too:
                await asyncio.to_thread(view.see)
        except (PictureError, ContextError) as error:
            self._capture_failed(capture, error)
            return
        together = self.ask_mode or self.feedback_mode
        groups = [questions] if together else [(question,) for question in questions]
        left = len(groups)

        async def one(group: tuple[str, ...], credit: AsyncExitStack) -> None:
            nonlocal left
            async with credit:
                if self.feedback_mode:
                    await self._hold_and_recall(view, group)
                elif self.ask_mode:
                    await self._hold_and_ask(view, group)
                else:
                    await self._infer(view, group[0])
            left -= 1
            if left == 0:
                self.on_capture()

        for group in groups:
            credit = AsyncExitStack()
            await credit.enter_async_context(self.uplink.credit())
            task = asyncio.create_task(one(group, credit))
            tasks.add(task)
            task.add_done_callback(lambda done: self._ended(done, tasks))

    def _ended(self, task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
        if task.cancelled():
            return
        tasks.discard(task)
        error = task.exception()
        if error is None:
            return
        self._stopping = True
        if self._fatal is None:
            self._fatal = (
                error
                if isinstance(error, BridgeError | ReaderGoneError)
                else BridgeError(f"the agent failed: {type(error).__name__}: {error}")
            )

    async def _infer(self, view: View, question: str) -> None:
        parcel = Outgoing(question, view)
        edge = asyncio.create_task(self._edge_answer(view, question, self.edge_only_too))
        outcome = await self._in_time(self.uplink.deliver(parcel), lambda: parcel.unanswered)
        await self._record(view, question, outcome, outcome, edge, parcel.kept_back)

    async def _hold_and_ask(self, view: View, questions: tuple[str, ...]) -> None:
        parcel = Outgoing("", view)
        held = await self._in_time(self.uplink.hold(parcel), lambda: parcel.unanswered)
        for question in questions:
            edge = asyncio.create_task(self._edge_answer(view, question, self.edge_only_too))
            frame = held.outcome if isinstance(held, Scene) else held
            outcome = held if isinstance(held, Outcome) else await self._ask(held, question)
            await self._record(view, question, outcome, frame, edge, parcel.kept_back)

    async def _ask(self, scene: Scene, question: str) -> Outcome:
        request_id = self.new_id()
        try:
            check_question(question, scene.session.limits)
        except BridgeError as error:
            return Outcome(request_id, error=error)
        asking = self.uplink.ask(scene, request_id, question, self.plan.max_new_tokens)
        return await self._in_time(asking, lambda: Outcome(request_id))

    async def _in_time(
        self, coming: Awaitable[Ended], unanswered: Callable[[], Outcome]
    ) -> Ended | Outcome:
        """Wait no longer than the objective, where the small model answers what comes too late."""
        objective_s = self.budget.latency_s if self.budget is not None else None
        if objective_s is None or not self.edge_fallback:
            return await coming
        try:
            return await asyncio.wait_for(coming, objective_s)
        except asyncio.TimeoutError:
            late = LateError if self.uplink.connected else OfflineError
            error = late(f"no answer within {1000 * objective_s:g} ms")
            return dataclasses.replace(unanswered(), error=error)

    async def _hold_and_recall(self, view: View, questions: tuple[str, ...]) -> None:
        """The server holds the frame; what it sends back of it answers every question here."""
        held = await self.uplink.hold(Outgoing("", view))
        back, sight = await self._recall(view, held)
        frame = held.outcome if isinstance(held, Scene) else held
        for question in questions:
            edge = asyncio.create_task(self._edge_answer(view, question, self.edge_only_too))
            outcome = back
            if sight is not None:
                outcome = await self._answer_here(back, sight, question)
            await self._record(view, question, outcome, frame, edge)

    async def _recall(self, view: View, held: Scene | Outcome) -> tuple[Outcome, Sight | None]:
        """How asking for the state ended, and that state in the small model."""
        if isinstance(held, Outcome):
            return held, None
        back = await self.uplink.feedback(held, self.new_id(), self.feedback_point)
        returned, start = back.returned, self.clock()
        if returned is None:
            return back, None
        try:
            sight = await asyncio.to_thread(self.model.inject, returned.decoder, returned.latents)
        except BridgeError as error:
            return dataclasses.replace(back, error=error), None
        self.metrics.feedbacks.labels(returned.point).inc()
        seconds = self.clock() - start + back.uplink_ms / 1000
        self.metrics.stage_seconds.labels("feedback").observe(seconds)
        if view.seen is not None:
            away = returned.decoder.round_trip(returned.latents, view.seen.state)
            self.metrics.round_trip.observe(away)
            back = dataclasses.replace(
                back, returned=dataclasses.replace(returned, round_trip=away)
            )
        return back, sight

    async def _answer_here(self, back: Outcome, sight: Sight, question: str) -> Outcome:
        try:
            if back.session is not None:
                check_question(question, back.session.limits)
            text = await asyncio.to_thread(sight.answer, question, self.plan.max_new_tokens)
        except BridgeError as error:
            return dataclasses.replace(back, error=error)
        self.metrics.feedback_answers.inc()
        return dataclasses.replace(back, answer=bridge_pb2.Answer(text=text))

    async def _edge_answer(
        self, view: View, question: str, wanted: bool
    ) -> tuple[str | None, float]:
        if not wanted:
            return None, 0.0
        try:
            text, milliseconds = await asyncio.to_thread(view.edge_answer, question)
        except BridgeError as error:
            self.log.warning("edge_only_failed", capture=view.capture.name, cause=str(error))
            return None, 0.0
        self.metrics.edge_only_answers.inc()
        return text, milliseconds

    async def _record(
        self,
        view: View,
        question: str,
        outcome: Outcome,
        frame: Outcome,
        edge: asyncio.Task[tuple[str | None, float]],
        kept_back: Guarded | None = None,
    ) -> None:
        """Turn what happened into one record.

        Args:
            view: of the capture.
            question: asked.
            outcome: how it ended.
            frame: the outcome that carried the frame.
            edge: the small model's answer, on its way.
            kept_back: the frame that the guard did not let go.
        """
        edge_answer, edge_only_ms = await edge
        packed = frame.packed
        fallback, error = "", outcome.error
        if error is None:
            fallback = outcome.answer.fallback if outcome.answer is not None else ""
            fallback = fallback or (packed.fallback if packed is not None else "")
        elif self.edge_fallback or isinstance(error, GUARDED):
            if edge_answer is None:
                edge_answer, edge_only_ms = await self._edge_answer(view, question, True)
            if edge_answer is not None:
                fallback = _cause(error)
        edge_ms = {
            "prefill": view.prefill_ms,
            "select": packed.select_ms if packed else 0.0,
            "encode": packed.encode_ms if packed else 0.0,
            "uplink": outcome.uplink_ms,
        }
        if edge_answer is not None:
            edge_ms["edge_only"] = edge_only_ms
        record = AnswerRecord(
            request_id=outcome.request_id.hex(),
            capture=view.capture.name,
            captured_at=view.capture.captured_at,
            content=view.capture.content,
            question=question,
            answer=outcome.answer.text if outcome.answer is not None else None,
            edge_answer=edge_answer,
            frame_number=packed.frame_number if packed else None,
            point=packed.point if packed else kept_back.coded.point.name if kept_back else "",
            tokens=packed.tokens if packed else 0,
            kept_tokens=packed.kept_tokens if packed else 0,
            payload_bytes=len(packed.request.frame.payload) if packed else 0,
            message_bytes=outcome.message_bytes,
            attempts=outcome.attempts,
            edge_ms=edge_ms,
            server_ms=_server_ms(outcome),
            distortion=_distortion(packed, kept_back),
            feedback=_feedback(outcome.returned),
            answer_tokens=outcome.answer.tokens if outcome.answer is not None else 0,
            from_memory=outcome.answer.from_memory if outcome.answer is not None else False,
            fallback=fallback,
            risk=packed.risk if packed else kept_back.risk if kept_back else None,
            warnings=_warnings(view, outcome),
            error=_error(error),
        )
        if outcome.attempts:
            self.metrics.stage_seconds.labels("uplink").observe(outcome.uplink_ms / 1000)
        self._finish(record, error)

    def _capture_failed(self, capture: Capture, error: BridgeError) -> None:
        self.metrics.capture_errors.labels(error.name).inc()
        self._finish(
            AnswerRecord("", capture.name, capture.captured_at, "", error=_error(error)), error
        )
        self.on_capture()

    def _finish(self, record: AnswerRecord, error: BridgeError | None) -> None:
        summary = self.summary
        summary.questions += 1
        bound = {"request_id": record.request_id, "capture": record.capture}
        if record.fallback:
            self.metrics.fallbacks.labels(record.fallback).inc()
            bound["fallback"] = record.fallback
        if error is None:
            summary.answered += 1
            summary.payload_bytes += record.payload_bytes
            self.metrics.answers.inc()
            self.log.info("answered", **bound, uplink_ms=round(record.edge_ms["uplink"], 1))
        else:
            self.metrics.refusals.labels(error.name).inc()
            self.log.warning("not_answered", **bound, error=error.name, cause=str(error))
            if record.fallback:
                summary.fallbacks += 1
            else:
                summary.failed += 1
                summary.first_error = summary.first_error or error
            if isinstance(error, FATAL):
                self._fatal = self._fatal or error
        self.on_record(record)


def _cause(error: BridgeError) -> str:
    """The design's word for why the service's answer is missing."""
    if isinstance(error, (*GUARDED, LateError)):
        return error.name
    if 200 <= error.code < 300:
        return "corrupt"
    if 300 <= error.code < 400 or 600 <= error.code < 700:
        return "incompatible"
    return "offline"


def _error(error: BridgeError | None) -> dict[str, object] | None:
    if error is None:
        return None
    return {"code": error.code, "name": error.name, "message": str(error)}


def _server_ms(outcome: Outcome) -> dict[str, float]:
    if outcome.answer is None or not outcome.answer.HasField("timings"):
        return {}
    timings = outcome.answer.timings
    return {
        entry.name.removesuffix("_ms"): getattr(timings, entry.name)
        for entry in timings.DESCRIPTOR.fields
    }


def _warnings(view: View, outcome: Outcome) -> tuple[str, ...]:
    """What this side and the service warn of, each once."""
    mine = (DEGENERATE,) if view.degenerate else ()
    theirs = outcome.answer.warnings if outcome.answer is not None else ()
    return tuple(dict.fromkeys((*mine, *theirs)))


def _feedback(returned: Returned | None) -> dict[str, object] | None:
    if returned is None:
        return None
    return {
        "point": returned.point,
        "payload_bytes": returned.payload_bytes,
        "round_trip": returned.round_trip,
        **dataclasses.asdict(returned.distortion),
    }


def _distortion(packed: Packed | None, kept_back: Guarded | None) -> dict[str, float]:
    measured = packed.distortion if packed is not None else None
    if packed is None and kept_back is not None:
        measured = kept_back.coded.distortion
    return dataclasses.asdict(measured) if measured is not None else {}
