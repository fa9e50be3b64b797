"""Turns and places: a caller that fills the queue delays only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cloud_server.engine.jobs import Accepted, Answered, Cancel, Dropped, Job, JobEvent
from cloud_server.engine.link import Sink
from cloud_server.frontend.admission.admission import Admission, QueueBounds, Request
from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.admission.turns import Lane
from cloud_server.state.quota import Quota
from protos.errors import BridgeError, EngineUnavailableError, OverloadedError
from tests.cloud_server.front_end import at_least, running


class Link:
    """An engine's end of the link that only records jobs."""

    def __init__(self) -> None:
        self.given: list[Job] = []
        self.sinks: dict[int, Sink] = {}
        self.told: list[object] = []
        self.up, self.engines_up = True, 1

    def submit(self, job: Job, sink: Sink) -> None:
        if not self.up:
            raise EngineUnavailableError("gone")
        self.given.append(job)
        self.sinks[job.id] = sink

    def tell(self, message: object) -> None:
        self.told.append(message)

    def answer(self, job: int) -> None:
        self.sinks.pop(job)(Answered(job, "x", 1, 0.0, 0.0, 0.0))


class Door:
    """An `Admission` over such a link, and each request's events."""

    def __init__(self, **settings: Any) -> None:
        self.link = Link()
        sizes = {"places": 100, "share": 64, "given": 2, "pictures": 1, "window_s": 3600.0}
        sizes |= {"bytes": 1 << 20, "batch": 2, "queue_s": 3600.0, "active_s": 3600.0}
        bounds = QueueBounds(**(sizes | settings))  # type: ignore[arg-type]
        self.quotas: dict[tuple[str, str | None], Quota] = {}
        self.memory = Room()
        self.admission = Admission(
            self.link,
            bounds,
            lambda tenant, device: self.quotas.get((tenant, device), Quota()),
            self.memory,
        )
        self.admission.start()
        self.heard: dict[int, list[JobEvent | BridgeError]] = {}
        self.dropped: list[int] = []
        self._ids = iter(range(1, 1 << 30))

    def send(
        self,
        caller: str,
        picture: bool = False,
        question: str = "q",
        lane: Lane | None = None,
        **further: Any,
    ) -> Request:
        number = next(self._ids)
        heard = self.heard.setdefault(number, [])
        return self.admission.submit(
            Job(number, caller, number, f"{number:016x}", question, 1, 0, point=1),
            lane or Lane("tenant", caller, caller),
            heard.append,
            lambda: self.dropped.append(number),
            picture,
            **further,
        )

    async def settle(self) -> list[str]:
        """Callers of the engine's jobs, in order."""
        for _ in range(10):
            await asyncio.sleep(0)
        return [job.session for job in self.link.given]

    async def answer_all(self) -> list[str]:
        await self.settle()
        while self.link.sinks:
            self.link.answer(next(iter(self.link.sinks)))
            await self.settle()
        return await self.settle()


def scene(work: Callable[[], Any]) -> None:
    asyncio.run(work())


def test_a_caller_of_one_request_waits_for_no_more_than_one_of_each_other() -> None:
    async def work() -> None:
        door = Door()
        for _ in range(20):
            door.send("loud")
        for _ in range(10):
            door.send("noisy")
        await door.settle()
        door.send("quiet")
        order = await door.answer_all()
        assert order[:2] == ["loud", "noisy"] or order[:2] == ["loud", "loud"]
        assert order.index("quiet") <= 5
        assert len(order) == 31
        await door.admission.stop()

    scene(work)


def test_when_all_places_are_taken_who_holds_most_gives_its_newest_to_who_holds_fewer() -> None:
    async def work() -> None:
        door = Door(places=10)
        loud = [door.send("loud") for _ in range(10)]
        await door.settle()
        with pytest.raises(OverloadedError) as full:
            door.send("loud")
        assert full.value.cause == "queue"
        door.send("quiet")
        (error,) = door.heard[loud[-1].job.id]
        assert isinstance(error, OverloadedError) and error.cause == "pushed_out"
        assert door.admission.depth == 10
        for _ in range(4):
            door.send("quiet")
        with pytest.raises(OverloadedError):  # five each: nobody holds more than the other
            door.send("quiet")
        assert sorted(await door.answer_all()) == ["loud"] * 5 + ["quiet"] * 5
        assert door.admission.depth == 0
        await door.admission.stop()

    scene(work)


def test_one_caller_cannot_take_more_places_than_its_share() -> None:
    async def work() -> None:
        door = Door(share=3)
        for _ in range(3):
            door.send("loud")
        with pytest.raises(OverloadedError) as over:
            door.send("loud")
        assert over.value.cause == "share" and over.value.retryable
        door.send("quiet")
        await door.admission.stop()

    scene(work)


def test_pictures_leave_room_in_the_engine_for_everything_else() -> None:
    async def work() -> None:
        door = Door(given=4, pictures=2, active_s=0.0)
        for _ in range(8):
            door.send("pictures", picture=True)
        door.send("frames")
        door.send("pictures")
        order = await door.settle()
        assert sorted(order) == ["frames", "pictures", "pictures", "pictures"]
        assert len(await door.answer_all()) == 10
        await door.admission.stop()

    scene(work)


def test_requests_of_a_broken_stream_go_last_and_give_their_places_away() -> None:
    async def work() -> None:
        door = Door(places=6, given=1)
        first = door.send("here")
        await door.settle()
        left = [door.send("gone") for _ in range(5)]
        for request in left:
            door.admission.leave(request)
        assert door.admission.depth == 1 and door.admission.waiting_for_nobody == 5
        door.send("here")  # no place is free but those
        assert door.dropped == [left[0].job.id]
        back = left[2]
        door.admission.rejoin(back)
        door.link.answer(first.job.id)
        order = await door.answer_all()
        assert order == ["here", "here", "gone", "gone", "gone", "gone"]
        assert door.link.given[2] is back.job, "who came back is before those who did not"
        await door.admission.stop()

    scene(work)


def test_nobody_computes_for_a_caller_that_does_not_come_back_in_time() -> None:
    async def work() -> None:
        door = Door(given=1, window_s=0.05)
        busy = door.send("here")
        await door.settle()
        request = door.send("gone")
        door.admission.leave(request)
        while not door.dropped:
            await asyncio.sleep(0.01)
        door.link.answer(busy.job.id)
        assert await door.answer_all() == ["here"]
        assert door.dropped == [request.job.id] and door.heard[request.job.id] == []
        await door.admission.stop()

    scene(work)


def test_a_cancelled_request_is_free_at_once_and_the_engine_hears_of_it() -> None:
    async def work() -> None:
        door = Door(given=1)
        given, queued = door.send("a"), door.send("a")
        last = door.send("b")
        await door.settle()
        door.admission.withdraw(queued)
        door.admission.withdraw(given)
        assert door.admission.depth == 1
        await door.settle()
        assert door.link.told == [Cancel(given.job.id, begun=1)]
        door.link.sinks.pop(given.job.id)(Dropped(given.job.id))
        assert await door.answer_all() == ["a", "b"]
        assert not door.heard[given.job.id] and not door.heard[queued.job.id]
        assert isinstance(door.heard[last.job.id][-1], Answered)
        await door.admission.stop()

    scene(work)


def test_what_the_engine_had_not_begun_comes_back_and_goes_last() -> None:
    async def work() -> None:
        door = Door(given=1)
        gone = door.send("gone")
        await door.settle()
        door.admission.leave(gone)
        await door.settle()
        assert door.link.told == [Cancel(gone.job.id, begun=0)]
        door.send("here")
        door.link.sinks.pop(gone.job.id)(Dropped(gone.job.id))
        order = await door.answer_all()
        assert order == ["gone", "here", "gone"], "given, taken back, given again after the other"
        assert isinstance(door.heard[gone.job.id][-1], Answered), "it is remembered for a resend"
        await door.admission.stop()

    scene(work)


def test_what_came_back_while_its_caller_did_too_is_first_again() -> None:
    async def work() -> None:
        door = Door(given=1)
        request = door.send("a")
        await door.settle()
        door.admission.leave(request)
        door.admission.rejoin(request)
        assert door.admission.depth == 1
        door.send("a")
        door.link.sinks.pop(request.job.id)(Dropped(request.job.id))
        await door.answer_all()
        assert [job.id for job in door.link.given] == [request.job.id, request.job.id, 2]
        assert door.admission.depth == 0
        await door.admission.stop()

    scene(work)


def test_without_an_engine_what_is_queued_ends_with_a_retryable_error() -> None:
    async def work() -> None:
        door = Door(given=1)
        first, second = door.send("a"), door.send("a")
        await door.settle()
        door.link.up = False
        door.link.sinks.pop(first.job.id)(EngineUnavailableError("lost"))
        await door.settle()
        for request in (first, second):
            (error,) = door.heard[request.job.id]
            assert isinstance(error, EngineUnavailableError) and error.retryable
        assert door.admission.depth == 0
        await door.admission.stop()

    scene(work)


def test_a_frame_without_a_question_frees_its_place_once_it_is_accepted() -> None:
    async def work() -> None:
        door = Door(given=1)
        held = door.send("a", question="")
        door.send("b")
        await door.settle()
        door.link.sinks.pop(held.job.id)(Accepted(held.job.id, 0, 0, 0, 0))
        assert await door.answer_all() == ["a", "b"]
        await door.admission.stop()

    scene(work)


def test_polite_devices_are_answered_while_others_fill_every_place(paths: dict[str, Any]) -> None:
    async def work() -> None:
        sizes = {"queue_requests": 32, "session_requests": 64, "engine_requests": 4}
        async with running(paths, **sizes) as server:
            floods = []
            for _ in range(4):
                edge = await server.edge()
                call = edge.open()
                for seed in range(16):
                    await call.write(edge.frame(seed=seed, question="hold"))
                floods.append((edge, call))
            await server.until(lambda: at_least(server.metric("queue_depth"), 32))
            polite = await server.edge()
            call = polite.open()
            await call.write(polite.frame(seed=1, question="count 1"))
            blocker = await floods[0][1].read()
            assert blocker.HasField("accepted")
            for _, flood in floods:
                flood.cancel()  # the engine holds what is never released: it must be freed
            while not (event := await call.read()).HasField("answer"):
                assert not event.HasField("refused"), event
            assert await server.metric('overloads_total{cause="pushed_out"}') >= 1
            call.cancel()

    scene(work)
