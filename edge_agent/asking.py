"""Puts the questions about one capture: with its frame, by Ask, or to the state sent back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from edge_agent.bookkeeping import Bookkeeping
from edge_agent.frame_maker import FrameMaker
from edge_agent.sight import EdgeModel, Sight
from edge_agent.uplink.delivery import Uplink
from edge_agent.uplink.outcome import Outcome
from edge_agent.uplink.point_controller import PointController
from edge_agent.uplink.request import Request, check_question
from edge_agent.uplink.scenes import Scene, Scenes
from protos.errors import BridgeError, LateError, OfflineError
from protos.neuralbridge.v1 import bridge_pb2

Ended = TypeVar("Ended")


@dataclass
class Asking:
    """Puts questions to the service and gives what comes of them to the books.

    Attributes:
        model: the small model.
        uplink: the way to the server.
        books: gets what comes of each question.
        new_id: makes the request ids of Ask; a frame's id is derived.
        controller: knows the latency objective.
        edge_only_too: also answer with the small model.
        edge_fallback: let the small model answer if the service could not.
        feedback_point: operating point of the feedback; empty: the bundle's default.
        clock: seconds, for stage times.
    """

    model: EdgeModel
    uplink: Uplink
    books: Bookkeeping
    new_id: Callable[[], bytes]
    controller: PointController | None = None
    edge_only_too: bool = False
    edge_fallback: bool = False
    feedback_point: str = ""
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._scenes = Scenes(self.uplink)

    async def infer(self, maker: FrameMaker, question: str) -> None:
        """The question travels with the frame; an empty one only has the frame held."""
        request = Request(question, maker)
        wanted = self.edge_only_too and question != ""
        edge = asyncio.create_task(self.books.edge_answer(maker, question, wanted))
        outcome = await self._in_time(self.uplink.deliver(request), lambda: _unanswered(request))
        await self.books.record(maker, question, outcome, outcome, edge, request.kept_back)

    async def hold_and_ask(self, maker: FrameMaker, questions: tuple[str, ...]) -> None:
        """The server holds the frame; the questions follow by Ask."""
        request = Request("", maker)
        held = await self._in_time(self._scenes.hold(request), lambda: _unanswered(request))
        for question in questions:
            edge = asyncio.create_task(self.books.edge_answer(maker, question, self.edge_only_too))
            carried = held.outcome if isinstance(held, Scene) else held
            outcome = (
                held
                if isinstance(held, Outcome)
                else await self._ask(held, question, maker.plan.max_new_tokens)
            )
            await self.books.record(maker, question, outcome, carried, edge, request.kept_back)

    async def _ask(self, scene: Scene, question: str, max_new_tokens: int) -> Outcome:
        request_id = self.new_id()
        try:
            check_question(question, scene.session.limits)
        except BridgeError as error:
            return Outcome(request_id, error=error)
        asking = self._scenes.ask(scene, request_id, question, max_new_tokens)
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

    async def hold_and_recall(self, maker: FrameMaker, questions: tuple[str, ...]) -> None:
        """The server holds the frame and sends its state back; that answers every question here."""
        held = await self._scenes.hold(Request("", maker))
        back, sight = await self._recall(maker, held)
        carried = held.outcome if isinstance(held, Scene) else held
        for question in questions:
            edge = asyncio.create_task(self.books.edge_answer(maker, question, self.edge_only_too))
            outcome = back
            if sight is not None:
                outcome = await self._answer_here(back, sight, question, maker.plan.max_new_tokens)
            await self.books.record(maker, question, outcome, carried, edge)

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
        self.books.metrics.feedbacks.labels(returned.point).inc()
        seconds = self.clock() - start + back.uplink_ms / 1000
        self.books.metrics.stage_seconds.labels("feedback").observe(seconds)
        if maker.sight is not None:
            away = returned.decoder.round_trip(returned.latents, maker.sight.state)
            self.books.metrics.round_trip.observe(away)
            back = dataclasses.replace(
                back, returned=dataclasses.replace(returned, round_trip=away)
            )
        return back, sight

    async def _answer_here(
        self, back: Outcome, sight: Sight, question: str, max_new_tokens: int
    ) -> Outcome:
        try:
            if back.session is not None:
                check_question(question, back.session.limits)
            text = await asyncio.to_thread(sight.answer, question, max_new_tokens)
        except BridgeError as error:
            return dataclasses.replace(back, error=error)
        self.books.metrics.feedback_answers.inc()
        return dataclasses.replace(back, answer=bridge_pb2.Answer(text=text))


def _unanswered(request: Request) -> Outcome:
    """The outcome of a request that nobody waits for any longer."""
    return Outcome(request.request_id, sealed=request.sealed)
