"""The run: source → frames → uplink → records, with bounded memory.

Without a spool, frames wait in memory and the source waits for them. With one, frames wait on the
disk and the source goes on. Sets the order of things and decides what follows each failure.
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

from edge_agent.beginning import Beginning
from edge_agent.cameras.triggers import LOCAL, Trigger
from edge_agent.cascade import Cascade
from edge_agent.frame import Frame
from edge_agent.frame_maker import FrameMaker
from edge_agent.guard import DEGENERATE
from edge_agent.metrics import Metrics
from edge_agent.output import Answered
from edge_agent.picture import PICTURE
from edge_agent.plan import Plan
from edge_agent.record import (
    GUARDED,
    AnswerRecord,
    cause_of,
    finished,
    record_of,
    record_of_failure,
    timed,
)
from edge_agent.sight import EdgeModel, Sight
from edge_agent.sources import Capture, LiveSource, Source
from edge_agent.spool.intake import stored_frame_of
from edge_agent.spool.outgoing import Outgoing
from edge_agent.spool.stored_frame import rank_of
from edge_agent.summary import Summary
from edge_agent.uplink.connection import FATAL
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.request import Request, check_question
from edge_agent.uplink.scenes import Scene, Scenes
from protos.errors import (
    BridgeError,
    ConfigError,
    ContextError,
    LateError,
    OfflineError,
    PictureError,
)
from protos.neuralbridge.v1 import bridge_pb2
from protos.process.console import ReaderGoneError
from protos.process.logs import Logger

_PATIENCE_S = 10.0

Ended = TypeVar("Ended")


def new_request_id() -> bytes:
    """Make a request id: eight random bytes."""
    return secrets.token_bytes(8)


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
        feedback_point: operating point of the feedback; empty: the bundle's default.
        hold_every_s: hold mode: seconds between captures, whose frames have no question; else None.
        edge_only_too: also answer with the small model.
        edge_fallback: let the small model answer if the service could not.
        controller: chooses the operating point if the plan does not name one.
        pace: waits before a capture, as long as it is told that the run goes on.
        on_capture: called when a capture has ended, for a progress bar.
        done: questions that an earlier run answered; they are not asked again.
        cascade: answers here what the small model is confident about; None sends everything.
        outgoing: sends what waits on the disk; None: frames wait in memory.
        new_id: makes the request ids of Ask; a frame's id is derived.
        clock: seconds, for stage times.
        sleep: waits that many seconds.
        now: the time, seconds since 1970, for captures made before this device's clock was set.
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
    hold_every_s: float | None = None
    edge_only_too: bool = False
    edge_fallback: bool = False
    cascade: Cascade | None = None
    controller: PointController | None = None
    pace: Callable[[Callable[[], bool]], None] = lambda stopped: None
    on_capture: Callable[[], None] = lambda: None
    done: Answered = Answered()
    outgoing: Outgoing | None = None
    new_id: Callable[[], bytes] = new_request_id
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], float] = time.time
    summary: Summary = field(default_factory=Summary)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _fatal: Exception | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._scenes = Scenes(self.uplink)
        if self.outgoing is not None:
            self.outgoing.on_end = self._waited

    def stop(self) -> None:
        """Take no further capture; what is in flight still ends, what waits on the disk stays."""
        self._stopped.set()
        if self.outgoing is not None:
            self.outgoing.stop()
        if isinstance(self.source, LiveSource):  # it may be waiting for its next capture
            self.source.close()

    def request_capture(self) -> None:
        """Have every camera's next picture taken, as the service asks; from any thread."""
        if isinstance(self.source, LiveSource):
            self.source.request()

    async def run(self) -> Summary:
        """Work through the source.

        Raises:
            BridgeError: no session could be agreed, the settings do not fit the server, or a
                capture has no question.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            start = Beginning(self.uplink, self.plan, self.controller, self.log)
            if self.outgoing is None:
                await start.connect(_PATIENCE_S if self.edge_fallback else None)
            elif not await start.stay(self._stopped):
                return self.summary
            if self.outgoing is not None:
                sending = asyncio.create_task(self.outgoing.run())
                tasks.add(sending)
                sending.add_done_callback(lambda done: self._ended(done, tasks))
            captures = iter(self.source)
            while not self._stopped.is_set() and self._fatal is None:
                capture = await asyncio.to_thread(self._next, captures)
                if capture is None:
                    break
                self.summary.captures += 1
                self.metrics.captures.inc()
                began = self.clock()
                await self._start(capture, tasks)
                if self.hold_every_s is not None:
                    held = set() if self.outgoing or self.uplink.lingers else tasks
                    await self._until_due(began + self.hold_every_s, held)
            if self.outgoing is not None:
                self.outgoing.finish()
            self.uplink.hurry()
            if tasks:
                await asyncio.wait(tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            self.stop()
            await self.uplink.close()
        if self._fatal is not None:
            raise self._fatal
        return self.summary

    def _next(self, captures: Iterator[Capture]) -> Capture | None:
        self.pace(self._stopped.is_set)
        start = self.clock()
        capture = next(captures, None)
        self.metrics.stage_seconds.labels("read").observe(self.clock() - start)
        return capture

    async def _until_due(self, due: float, tasks: set[asyncio.Task[None]]) -> None:
        """Wait until the frame is held and it is time for the next capture, or for `stop`."""
        stopped = asyncio.create_task(self._stopped.wait())
        pause = asyncio.ensure_future(self.sleep(max(0.0, due - self.clock())))
        try:
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.wait({stopped, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            pause.cancel()

    def _worth_sending(self, maker: FrameMaker, rule: Trigger) -> bool:
        """Whether the small model gives the answer at which a picture is taken."""
        said, _ = maker.edge_answer(rule.question)
        if rule.answered_by(said):
            return True
        self.metrics.camera_drops.labels(maker.capture.camera, LOCAL).inc()
        return False

    async def _start(self, capture: Capture, tasks: set[asyncio.Task[None]]) -> None:
        """Run the small model, and send what it saw or keep it on the disk."""
        asked = self.questions or capture.questions if self.hold_every_s is None else ()
        questions = tuple(q for q in asked if not self.done.holds(capture, q))
        if asked and not questions:
            self.on_capture()
            return
        try:
            if capture.error is None and not questions and self.hold_every_s is None:
                raise ConfigError(
                    f"nothing to ask about {capture.name}: give --question, or a source that "
                    "brings its own"
                )
            maker = FrameMaker(
                capture, self.model, self.plan, self.metrics, self.clock, self.controller
            )
            if capture.trigger is not None and capture.trigger.question:
                if not await asyncio.to_thread(self._worth_sending, maker, capture.trigger):
                    self.on_capture()
                    return
            if maker.degenerate:
                self.metrics.warnings.labels(DEGENERATE).inc()
                self.log.warning(DEGENERATE, capture=capture.name, cause=maker.degenerate)
            if self.plan.point != PICTURE or self.edge_only_too:
                await asyncio.to_thread(maker.see)
        except (PictureError, ContextError) as error:
            self._capture_failed(capture, error)
            return
        if self.cascade is not None and questions:
            questions = await self.cascade.answer(maker, questions, self.summary, self.on_record)
            if not questions:
                self.on_capture()
                return
        if self.outgoing is not None:
            kept = [await self._keep(self.outgoing, maker, q, tasks) for q in questions or ("",)]
            if all(kept):
                self.on_capture()
            return
        await self._send(maker, questions, tasks)

    async def _send(
        self, maker: FrameMaker, questions: tuple[str, ...], tasks: set[asyncio.Task[None]]
    ) -> None:
        """Wait for credit, and leave the rest to a task."""
        together = self.ask_mode or self.feedback_mode or self.hold_every_s is not None
        groups = [questions] if together else [(question,) for question in questions]
        left = len(groups)

        async def one(group: tuple[str, ...], credit: AsyncExitStack) -> None:
            nonlocal left
            async with credit:
                if self.hold_every_s is not None:
                    await self._infer(maker, "")
                elif self.feedback_mode:
                    await self._hold_and_recall(maker, group)
                elif self.ask_mode:
                    await self._hold_and_ask(maker, group)
                else:
                    await self._infer(maker, group[0])
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
        self.stop()
        if self._fatal is None and isinstance(error, BridgeError | ReaderGoneError):
            self._fatal = error
        elif self._fatal is None:
            self._fatal = BridgeError(f"the agent failed: {type(error).__name__}: {error}")
            self._fatal.__cause__ = error

    async def _keep(
        self,
        outgoing: Outgoing,
        maker: FrameMaker,
        question: str,
        tasks: set[asyncio.Task[None]],
    ) -> bool:
        """Make the frame and put it into the spool; if the disk does not take it, send it.

        Returns:
            Whether this capture's question is done with for now; else a task ends it.
        """
        request, session = Request(question, maker), self.uplink.connection.latest
        wanted = self.edge_only_too and question != ""
        edge = asyncio.create_task(self._edge_answer(maker, question, wanted))
        try:
            if session is None:
                raise OfflineError("no terms to make a frame by")
            stored = await stored_frame_of(request, maker, session, await edge, self.uplink.base)
        except FATAL:
            raise
        except BridgeError as error:
            outcome = Outcome(request.request_id, error=error)
            await self._record(maker, question, outcome, outcome, edge, request.kept_back)
            return True
        try:
            await outgoing.accept(stored, rank_of(maker.priority))
        except BridgeError as error:
            self.metrics.spool_failures.labels(error.name).inc()
            self.log.warning("spool_not_written", capture=maker.capture.name, cause=str(error))
            await self._send(maker, (question,) if question else (), tasks)
            return False
        return True

    def _waited(self, draft: AnswerRecord, outcome: Outcome) -> None:
        """A frame that waited on the disk has ended."""
        error, fallback = outcome.error, ""
        if isinstance(error, GUARDED) and draft.edge_answer is not None:
            fallback = cause_of(error)
        if outcome.attempts:
            self.metrics.stage_seconds.labels("uplink").observe(outcome.uplink_ms / 1000)
        self._finish(finished(draft, outcome, fallback), error)

    async def _infer(self, maker: FrameMaker, question: str) -> None:
        request = Request(question, maker)
        wanted = self.edge_only_too and question != ""
        edge = asyncio.create_task(self._edge_answer(maker, question, wanted))
        outcome = await self._in_time(self.uplink.deliver(request), lambda: _unanswered(request))
        await self._record(maker, question, outcome, outcome, edge, request.kept_back)

    async def _hold_and_ask(self, maker: FrameMaker, questions: tuple[str, ...]) -> None:
        request = Request("", maker)
        held = await self._in_time(self._scenes.hold(request), lambda: _unanswered(request))
        for question in questions:
            edge = asyncio.create_task(self._edge_answer(maker, question, self.edge_only_too))
            carried = held.outcome if isinstance(held, Scene) else held
            outcome = held if isinstance(held, Outcome) else await self._ask(held, question)
            await self._record(maker, question, outcome, carried, edge, request.kept_back)

    async def _ask(self, scene: Scene, question: str) -> Outcome:
        request_id = self.new_id()
        try:
            check_question(question, scene.session.limits)
        except BridgeError as error:
            return Outcome(request_id, error=error)
        asking = self._scenes.ask(scene, request_id, question, self.plan.max_new_tokens)
        return await self._in_time(asking, lambda: Outcome(request_id))

    async def _in_time(
        self, coming: Awaitable[Ended], unanswered: Callable[[], Outcome]
    ) -> Ended | Outcome:
        """Wait for the outcome; with `edge_fallback` no longer than the latency objective."""
        objective_s = self.controller.latency_s if self.controller is not None else None
        if objective_s is None or not self.edge_fallback:
            return await coming
        try:
            return await asyncio.wait_for(coming, objective_s)
        except asyncio.TimeoutError:
            late = LateError if self.uplink.connected else OfflineError
            error = late(f"no answer within {1000 * objective_s:g} ms")
            return dataclasses.replace(unanswered(), error=error)

    async def _hold_and_recall(self, maker: FrameMaker, questions: tuple[str, ...]) -> None:
        """The server holds the frame and sends its state back; that answers every question here."""
        held = await self._scenes.hold(Request("", maker))
        back, sight = await self._recall(maker, held)
        carried = held.outcome if isinstance(held, Scene) else held
        for question in questions:
            edge = asyncio.create_task(self._edge_answer(maker, question, self.edge_only_too))
            outcome = back
            if sight is not None:
                outcome = await self._answer_here(back, sight, question)
            await self._record(maker, question, outcome, carried, edge)

    async def _recall(
        self, maker: FrameMaker, held: Scene | Outcome
    ) -> tuple[Outcome, Sight | None]:
        """Ask for the server's state and put it into the small model; None if that failed."""
        if isinstance(held, Outcome):
            return held, None
        back = await self._scenes.feedback(held, self.new_id(), self.feedback_point)
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
        if maker.sight is not None:
            away = returned.decoder.round_trip(returned.latents, maker.sight.state)
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
        self, maker: FrameMaker, question: str, wanted: bool
    ) -> tuple[str | None, float]:
        if not wanted:
            return None, 0.0
        try:
            text, milliseconds = await asyncio.to_thread(maker.edge_answer, question)
        except BridgeError as error:
            self.log.warning("edge_only_failed", capture=maker.capture.name, cause=str(error))
            return None, 0.0
        self.metrics.edge_only_answers.inc()
        return text, milliseconds

    async def _record(
        self,
        maker: FrameMaker,
        question: str,
        outcome: Outcome,
        carried: Outcome,
        edge: asyncio.Task[tuple[str | None, float]],
        kept_back: Frame | None = None,
    ) -> None:
        """Turn what happened into one record.

        `carried` is the outcome of the request that carried the frame, `edge` the small model's
        answer, still being made, `kept_back` the frame that the guard did not send.
        """
        edge_answer, edge_only_ms = await edge
        fallback, error = "", outcome.error
        if error is None:
            fallback = outcome.answer.fallback if outcome.answer is not None else ""
            fallback = fallback or (carried.sealed.frame.fallback if carried.sealed else "")
        elif question and (self.edge_fallback or isinstance(error, GUARDED)):
            if edge_answer is None:
                edge_answer, edge_only_ms = await self._edge_answer(maker, question, True)
            if edge_answer is not None:
                fallback = cause_of(error)
        record = record_of(
            maker, question, outcome, carried, edge_answer, edge_only_ms, fallback, kept_back
        )
        if outcome.attempts:
            self.metrics.stage_seconds.labels("uplink").observe(outcome.uplink_ms / 1000)
        self._finish(timed(record, maker.capture.age_s, self.now()), error)

    def _capture_failed(self, capture: Capture, error: BridgeError) -> None:
        self.metrics.capture_errors.labels(error.name).inc()
        self._finish(record_of_failure(capture, error), error)
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
            uplink_ms = round(record.edge_ms["uplink"], 1)
            if self.hold_every_s is None:
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
            if isinstance(error, FATAL) and self.outgoing is None:
                self._fatal = self._fatal or error
        self.on_record(record)


def _unanswered(request: Request) -> Outcome:
    """The outcome of a request that nobody waits for any longer."""
    return Outcome(request.request_id, sealed=request.sealed)
