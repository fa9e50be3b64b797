"""The run: source → frames → uplink → records, with bounded memory.

Without a spool, frames wait in memory and the source waits for them. With one, frames wait on the
disk and the source goes on. `asking` puts the questions, `bookkeeping` writes what comes of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from edge_agent.asking import Asking
from edge_agent.beginning import Beginning
from edge_agent.bookkeeping import Bookkeeping
from edge_agent.cameras.triggers import LOCAL, Trigger
from edge_agent.cascade import Cascade
from edge_agent.frame_maker import FrameMaker
from edge_agent.guard import DEGENERATE
from edge_agent.metrics import Metrics
from edge_agent.output import Answered
from edge_agent.picture import PICTURE
from edge_agent.plan import Plan, unknown_point
from edge_agent.record import AnswerRecord
from edge_agent.sight import EdgeModel
from edge_agent.sources import Capture, LiveSource, Source, endless
from edge_agent.spool.intake import stored_frame_of
from edge_agent.spool.outgoing import Outgoing
from edge_agent.spool.stored_frame import rank_of
from edge_agent.summary import Summary
from edge_agent.tracing import FrameTraces
from edge_agent.uplink.connection import FATAL
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.request import Request
from protos.errors import BridgeError, ConfigError, ContextError, OfflineError, PictureError
from protos.process.console import ReaderGoneError
from protos.process.logs import Logger

_PATIENCE_S = 10.0


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
        tracing: makes traces of frames; None makes none.
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
    tracing: FrameTraces | None = None
    new_id: Callable[[], bytes] = new_request_id
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], float] = time.time
    summary: Summary = field(default_factory=Summary)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _unknown: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self._books = Bookkeeping(
            self.on_record,
            self.metrics,
            self.log,
            self.now,
            self.summary,
            holding=self.hold_every_s is not None,
            edge_fallback=self.edge_fallback,
            patient=self.outgoing is not None,
            tracing=self.tracing,
        )
        self._asking = Asking(
            self.model,
            self.uplink,
            self._books,
            self.new_id,
            self.controller,
            self.edge_only_too,
            self.edge_fallback,
            self.feedback_point,
            self.clock,
        )
        if self.outgoing is not None:
            self.outgoing.on_end = self._books.waited

    def stop(self) -> None:
        """Take no further capture; what is in flight still ends, what waits on the disk stays."""
        self._stopped.set()
        if self.outgoing is not None:
            self.outgoing.stop()
        if isinstance(self.source, LiveSource):  # it may be waiting for its next capture
            self.source.close()

    def request_capture(self, camera: str = "") -> None:
        """Have the next picture of a camera taken, as the service asks; from any thread.

        Args:
            camera: its name; empty for every one.

        Raises:
            ConfigError: there is no such camera, or no source that waits for anything.
        """
        if not isinstance(self.source, LiveSource):
            raise ConfigError("this device has no camera that a picture could be taken with")
        self.source.request(camera)

    async def run(self) -> Summary:
        """Work through the source.

        Raises:
            BridgeError: no session could be agreed, the settings do not fit the server, or a
                capture has no question.
        """
        tasks: set[asyncio.Task[None]] = set()
        try:
            start = Beginning(
                self.uplink, self.plan, self.controller, self.log, endless(self.source)
            )
            if self.outgoing is None:
                await start.connect(_PATIENCE_S if self.edge_fallback else None)
            elif not await start.stay(self._stopped):
                return self.summary
            if self.outgoing is not None:
                sending = asyncio.create_task(self.outgoing.run())
                tasks.add(sending)
                sending.add_done_callback(lambda done: self._ended(done, tasks))
            captures = iter(self.source)
            while not self._stopped.is_set() and self._books.fatal is None:
                capture = await asyncio.to_thread(self._next, captures)
                if capture is None:
                    break
                self.summary.captures += 1
                self.metrics.captures.inc()
                self._look_at_point()
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
        if self._books.fatal is not None:
            raise self._books.fatal
        getattr(self.source, "finished", int)()  # a watched folder gives them never again
        return self.summary

    def _look_at_point(self) -> None:
        """Say, once, if the service's present bundle lacks a point of the settings."""
        session, plan, before = self.uplink.connection.latest, self.plan, self._unknown
        if session is None:
            return
        unknown = unknown_point(plan.point, plan.highest_point, session.points)
        self._unknown = "" if unknown is None else unknown.message
        self.metrics.point_fallback.set(bool(self._unknown))
        if self._unknown and self._unknown != before:
            self.log.warning("point_fallback", bundle=session.bundle_id, cause=self._unknown)

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
            self._books.capture_failed(capture, error)
            self.on_capture()
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
                    await self._asking.infer(maker, "")
                elif self.feedback_mode:
                    await self._asking.hold_and_recall(maker, group)
                elif self.ask_mode:
                    await self._asking.hold_and_ask(maker, group)
                else:
                    await self._asking.infer(maker, group[0])
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
        if self._books.fatal is None and isinstance(error, BridgeError | ReaderGoneError):
            self._books.fatal = error
        elif self._books.fatal is None:
            self._books.fatal = BridgeError(f"the agent failed: {type(error).__name__}: {error}")
            self._books.fatal.__cause__ = error

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
        edge = asyncio.create_task(self._books.edge_answer(maker, question, wanted))
        try:
            if session is None:
                raise OfflineError("no terms to make a frame by")
            stored = await stored_frame_of(request, maker, session, await edge, self.uplink.base)
        except FATAL:
            raise
        except BridgeError as error:
            outcome = Outcome(request.request_id, error=error)
            await self._books.record(maker, question, outcome, outcome, edge, request.kept_back)
            return True
        if self.uplink.crops is not None and question and maker.picture is not None:
            self.uplink.crops.hold(stored.request_id, maker.picture)
        if self.uplink.shadows is not None and maker.picture is not None:
            self.uplink.shadows.hold(stored.request_id, maker.picture)
        try:
            await outgoing.accept(stored, rank_of(maker.priority))
        except BridgeError as error:
            self.metrics.spool_failures.labels(error.name).inc()
            self.log.warning("spool_not_written", capture=maker.capture.name, cause=str(error))
            await self._send(maker, (question,) if question else (), tasks)
            return False
        return True
