"""Many callers at once: floods hurt who sends them, places of callers that left are free."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.engine.jobs import Accepted, Answered, Cancel, Dropped, Job, JobEvent, Offer
from cloud_server.engine.link import Sink
from cloud_server.frontend.admission import Admission, Request
from cloud_server.frontend.answers import Answers, Computation
from cloud_server.frontend.crowd import Crowd
from cloud_server.frontend.peers import Connections, address_of
from cloud_server.frontend.sessions import Session, Sessions
from cloud_server.throttle import Buckets
from protos.errors import BridgeError, EngineUnavailableError, OverloadedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.points import points_to_json
from protos.quantize import QUANTIZERS
from protos.requests import seal_ask
from reference.demo.relay import Relay
from tests.cloud_server import stage
from tests.cloud_server.test_service import Edge, Running, running
from tests.cloud_server.test_service import paths as paths  # noqa: PLC0414 - a fixture

# ------------------------------------------------------------------ sessions


def test_devices_that_work_keep_their_sessions_through_a_flood_of_empty_ones(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        few = {"sessions": 4, "fresh_sessions": 16, "negotiations_per_s": 0.0}
        async with running(paths, **few) as server:
            working = [await server.edge() for _ in range(4)]
            for edge in working:
                assert (await edge.say("count 1")).HasField("answer")
            flood = Edge(server.channel)
            for _ in range(200):
                await flood.meet()
            for edge in working:
                assert (await edge.say("count 1", seed=1)).HasField("answer")
            assert await server.metric("sessions") == 4 + 16
            assert await server.metric("fresh_sessions") == 16
            assert await server.metric("sessions_dropped_total") == 200 - 16

    asyncio.run(scene())


def test_sessions_beyond_an_addresss_rate_are_refused_with_the_time_to_wait(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        slow = {"negotiations_per_s": 0.001, "negotiation_burst": 3}
        async with running(paths, **slow) as server:
            edges = [await server.edge() for _ in range(3)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await server.edge()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            trailer = dict(refused.value.trailing_metadata())
            assert trailer["nb-error-code"] == "501"
            assert int(str(trailer["nb-retry-after-ms"])) > 900_000
            assert (await edges[0].say("count 1")).HasField("answer")
            assert await server.metric('overloads_total{cause="negotiations"}') == 1

    asyncio.run(scene())


def _offer() -> Offer:
    encoder = stage.encoder()
    return Offer(
        bundle_id="fake",
        bundle_version="1",
        bundle_digest="b" * 64,
        encoder_digest=encoder.digest,
        source_fingerprint=stage.SOURCE.fingerprint,
        source_layout_json=stage.SOURCE.to_json(),
        target_layout_json="{}",
        operating_points_json=points_to_json(encoder.points),
        default_point="fp8",
        ladder=["uniform", "fp8"],
        encoder=encoder.to_bytes(),
    )


def _sessions(most: int, fresh: int, memory: int = 1 << 20) -> tuple[Sessions, list[Session]]:
    dropped: list[Session] = []
    made = Sessions(most, fresh, memory, dropped.append)
    made.offer([_offer()])
    return made, dropped


def _open(sessions: Sessions, peer: str) -> Session:
    return sessions.open(stage.SOURCE, tuple(QUANTIZERS), "", peer)


def test_a_new_device_survives_a_flood_from_another_address() -> None:
    sessions, dropped = _sessions(8, 8)
    quiet = _open(sessions, "10.0.0.1")
    for _ in range(100):
        _open(sessions, "10.0.0.2")
    assert sessions.get(quiet.id) is quiet
    assert {session.peer for session in dropped} == {"10.0.0.2"}


def test_an_address_that_makes_its_sessions_work_pushes_out_its_own() -> None:
    sessions, dropped = _sessions(8, 8)
    quiet = [_open(sessions, f"10.0.0.{i}") for i in range(4)]
    for session in quiet:
        sessions.worked(session)
    for _ in range(100):
        sessions.worked(_open(sessions, "10.0.0.9"))
    assert {session.peer for session in dropped} == {"10.0.0.9"}
    assert len(sessions) == 8


def test_among_addresses_of_one_session_each_the_longest_unused_goes_first() -> None:
    sessions, dropped = _sessions(3, 8)
    made = [_open(sessions, f"10.0.0.{i}") for i in range(4)]
    for session in made[:3]:
        sessions.worked(session)
    sessions.get(made[0].id)
    sessions.worked(made[3])
    assert dropped == [made[1]]


def test_a_session_takes_no_more_memory_than_it_is_counted_with() -> None:
    sessions, _ = _sessions(10_000, 10_000, memory=256 << 10)
    for index in range(64):
        _open(sessions, f"10.0.1.{index}")
    report = pb.DistortionReport(quantize=0.5, dropped_attention=0.5, latent_residual=0.5)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = [_open(sessions, f"10.0.{i // 200}.{i % 200}") for i in range(2000)]
    assert (tracemalloc.get_traced_memory()[0] - before) / len(made) < 2048
    before = tracemalloc.get_traced_memory()[0]
    for session in made[:100]:
        for number in range(100):
            sessions.remember_report(session, number, report, "", [])
    assert tracemalloc.get_traced_memory()[0] - before < 256 << 10
    tracemalloc.stop()
    assert sessions.report(made[99], 99)[0] == report


def test_a_bundle_digest_that_is_none_is_refused_and_not_kept(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = Edge(server.channel)
            edge.known_digest = "x" * 100_000
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await edge.meet()
            assert dict(refused.value.trailing_metadata())["nb-error-code"] == "203"

    asyncio.run(scene())


def test_a_session_that_asks_much_does_not_push_out_the_answers_of_others() -> None:
    answers = Answers(4, 1 << 20)

    def answered(session: bytes, number: int) -> None:
        made = Computation(b"%08d" % number, number, "q", 0)
        answers.begin(session, made)
        answers.end(session, made, pb.Answer(text="x"))

    answered(b"quiet", 0)
    for number in range(100):
        answered(b"loud", number)
    assert answers.find(b"quiet", b"%08d" % 0, 0, "q") is not None
    assert answers.find(b"loud", b"%08d" % 99, 99, "q") is not None
    assert answers.find(b"loud", b"%08d" % 1, 1, "q") is None


def test_the_next_to_go_is_the_longest_unused_of_the_largest_group() -> None:
    crowd: Crowd[str, int] = Crowd()
    for group, key in (("a", 1), ("b", 2), ("b", 3), ("c", 4), ("c", 5), ("c", 6)):
        crowd.add(group, key)
    gone = []
    while len(crowd):
        gone.append(crowd.next_to_go())
        crowd.remove(gone[-1])
    assert gone == [4, 2, 5, 1, 3, 6]
    crowd.add("a", 1)
    crowd.add("b", 2)
    crowd.touch(1)
    assert crowd.next_to_go() == 2 and crowd.size("a") == 1 and 1 in crowd and 3 not in crowd


def test_a_bucket_refuses_once_it_is_in_debt_and_says_for_how_long() -> None:
    now = [0.0]
    buckets = Buckets(10.0, 20.0, most=2, clock=lambda: now[0])
    assert buckets.take("a", 50) == 0.0  # larger than any bucket, but it was full
    assert buckets.take("a", 1) == pytest.approx(3.1)
    assert buckets.take("b", 1) == 0.0
    now[0] = 3.0
    assert buckets.take("a", 1) > 0.0
    now[0] = 3.2
    assert buckets.take("a", 1) == 0.0
    assert Buckets(0.0, 1.0).take("a", 1e9) == 0.0


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:4711", "10.0.0.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("unix:/tmp/x.sock", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_counted_by_its_address_or_its_network(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_connection_is_gone_when_the_systems_table_has_it_no_more(tmp_path: Path) -> None:
    async def scene() -> None:
        async def nothing(reader: Any, writer: Any) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(nothing, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        peer = "ipv4:{}:{}".format(*writer.get_extra_info("sockname"))
        connections = Connections()
        assert not await connections.gone(peer)
        writer.close()
        await writer.wait_closed()
        while not await connections.gone(peer):
            pass
        assert await Connections((tmp_path / "none",)).gone(peer)
        assert not await connections.gone("unix:")
        server.close()

    asyncio.run(scene())


# ------------------------------------------------------------------ turns and places


class Link:
    """An engine's end that only writes down what it is given."""

    def __init__(self) -> None:
        self.given: list[Job] = []
        self.sinks: dict[int, Sink] = {}
        self.told: list[object] = []
        self.up = True

    async def submit(self, job: Job, sink: Sink) -> None:
        if not self.up:
            raise EngineUnavailableError("gone")
        self.given.append(job)
        self.sinks[job.id] = sink

    async def tell(self, message: object) -> None:
        self.told.append(message)

    def answer(self, job: int) -> None:
        self.sinks.pop(job)(Answered(job, "x", 1, 0.0, 0.0, 0.0))


class Door:
    """An `Admission` over such a link, and what each request heard."""

    def __init__(self, **settings: Any) -> None:
        self.link = Link()
        sizes = {"places": 100, "share": 64, "given": 2, "pictures": 1, "window_s": 3600.0}
        self.admission = Admission(self.link, **(sizes | settings))  # type: ignore[arg-type]
        self.admission.start()
        self.heard: dict[int, list[JobEvent | BridgeError]] = {}
        self.dropped: list[int] = []
        self._ids = iter(range(1, 1 << 30))

    def send(self, caller: str, picture: bool = False, question: str = "q") -> Request:
        number = next(self._ids)
        heard = self.heard.setdefault(number, [])
        return self.admission.submit(
            Job(number, caller, number, f"{number:016x}", question, 1, 0, point=1),
            caller,
            heard.append,
            lambda: self.dropped.append(number),
            picture,
        )

    async def settle(self) -> list[str]:
        """Callers of what the engine was given, in order."""
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
        door = Door(given=4, pictures=2)
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
            await server.until(lambda: _at_least(server.metric("queue_depth"), 32))
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


async def _at_least(value: Any, least: float) -> bool:
    return bool(await value >= least)


# ------------------------------------------------------------------ callers that leave


async def _let_go(server: Running) -> float:
    """Requests that ended with their call. (A client may cancel just before its deadline is up.)"""
    told = [
        await server.metric(f'left_requests_total{{how="{how}"}}')
        for how in ("cancelled", "deadline")
    ]
    return sum(told)


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_after_a_cancel_or_a_deadline_every_place_is_free_in_queue_and_engine(
    paths: dict[str, Any], how: str
) -> None:
    async def work() -> None:
        sizes = {"queue_requests": 8, "engine_requests": 4, "max_in_flight": 8}
        async with running(paths, **sizes) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)
            timeout = 1.0 if how == "deadline" else None
            call = stub.Infer(metadata=edge.metadata, timeout=timeout)
            for seed in range(8):
                await call.write(edge.frame(seed=seed, question="hold"))
            await server.until(lambda: _at_least(server.metric("queue_depth"), 8))
            if how == "cancelled":
                call.cancel()

            async def free() -> bool:
                return await server.metric("queue_depth") == 0

            await server.until(free)
            await server.until(lambda: _at_least(_let_go(server), 8))
            assert (await edge.say("count 3", seed=100)).answer.tokens == 3

            async def let_go() -> bool:  # the engine too
                return await server.metric("running_requests") == 0

            await server.until(let_go)

    scene(work)


def test_an_ask_whose_deadline_passes_frees_its_place(paths: dict[str, Any]) -> None:
    async def work() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert (await edge.say("", seed=1)).HasField("accepted")
            session = edge.session
            ask = seal_ask(session.session_constants, session.session_id, bytes(8), 1, "hold", 6)
            call = bridge_pb2_grpc.BridgeStub(server.channel).Ask(ask, timeout=0.5)
            with pytest.raises(grpc.aio.AioRpcError):
                while True:
                    await call.read()

            async def free() -> bool:
                return await server.metric("queue_depth") == 0

            await server.until(free)
            assert await _let_go(server) == 1

    scene(work)


def test_requests_of_a_broken_connection_wait_for_their_resend_and_are_then_answered(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        sizes = {"queue_requests": 8, "engine_requests": 1, "max_in_flight": 8}
        async with running(paths, **sizes) as server:
            edge = await server.edge()
            with Relay(f"127.0.0.1:{server.port}") as relay:
                cut = grpc.aio.insecure_channel(relay.address)
                broken = bridge_pb2_grpc.BridgeStub(cut).Infer(metadata=edge.metadata)
                first = edge.frame(seed=0, question="hold")
                requests = [edge.frame(seed=seed, question="count 2") for seed in range(1, 8)]
                for request in (first, *requests):
                    await broken.write(request)
                await server.until(lambda: _at_least(server.metric("queue_depth"), 8))
                await server.until(lambda: _at_least(server.metric("running_requests"), 1))
            lost = 'left_requests_total{how="lost"}'
            await server.until(lambda: _at_least(server.metric(lost), 8))
            await cut.close()
            assert await server.metric("left_queue_depth") == 7
            other = await server.edge()  # takes a place, and its turn is before theirs
            call = edge.open()
            for request in requests:
                await call.write(request)
            done = asyncio.create_task(other.say("release", seed=50))
            answers: dict[bytes, pb.Answer] = {}
            while len(answers) < 7:
                event = await call.read()
                assert not event.HasField("refused"), event
                if event.HasField("answer"):
                    answers[event.request_id] = event.answer
            await done
            assert set(answers) == {request.request_id for request in requests}
            assert await server.metric("joined_requests_total") == 7
            call.cancel()

    scene(work)


# ------------------------------------------------------------------ frame numbers


def test_a_frame_number_that_is_taken_is_refused_by_name_and_the_scene_stays(
    paths: dict[str, Any],
) -> None:
    async def work() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            first = edge.frame(seed=1, number=7, question="count 1")
            call = edge.open()

            async def end(request: pb.InferRequest) -> pb.InferEvent:
                await call.write(request)
                while True:
                    event = await call.read()
                    if event.WhichOneof("event") in ("answer", "refused"):
                        return event  # type: ignore[no-any-return]

            assert (await end(first)).HasField("answer")
            refused = (await end(edge.frame(seed=2, number=7, question="count 1"))).refused
            assert refused.code == 308 and refused.name == "frame_number"
            assert "7" in refused.message and not refused.retryable
            assert first.request_id.hex() in refused.message
            assert (await end(first)).answer.from_memory
            bad = edge.frame(seed=3, number=8, question="no")
            assert (await end(bad)).refused.code == 401
            assert (await end(edge.frame(seed=3, number=8, question="count 1"))).HasField("answer")
            another = await server.edge()
            assert (await another.say("count 1", seed=7)).HasField("answer")
            assert (await edge.say("die", seed=9)).refused.code == 502

            async def back() -> bool:
                return (await edge.say("count 1", seed=10)).HasField("answer")

            await server.until(back)
            again = edge.frame(seed=2, number=7, question="count 1")
            assert (await end(again)).HasField("answer"), "nothing is held under it any more"
            call.cancel()

    scene(work)
