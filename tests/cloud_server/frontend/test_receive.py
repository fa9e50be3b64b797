"""Requests of Infer streams: credit, advice, ids, events on a call apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.frontend import receive
from protos.calls import ACCEPTED_WAIT_KEY, EVENTS_APART, WHOLE_ANSWERS
from protos.digest import derived_id
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.parcel import Course, pack
from tests.cloud_server.front_end import running
from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop


@pytest.mark.slow
def test_a_request_beyond_the_credit_is_refused_as_overload_and_may_be_sent_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, max_in_flight=2) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(3):
                await call.write(edge.frame(seed=seed, question="hold"))
            seen = []
            while not seen or not seen[-1].HasField("refused"):
                seen.append(await call.read())
            assert seen[-1].refused.code == 501 and seen[-1].refused.retryable
            assert seen[-1].frame_number == 2
            assert (await edge.say("release", seed=9)).HasField("answer")
            answered = set()
            while len(answered) < 2:
                event = await call.read()
                if event.HasField("answer"):
                    answered.add(event.frame_number)
            await call.write(edge.frame(seed=2, number=2, question="count 1"))
            while event.frame_number != 2 or not event.HasField("answer"):
                event = await call.read()
            call.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize("id_left_out", [False, True])
def test_another_frame_under_a_used_number_and_id_never_gets_the_first_ones_answer(
    paths: dict[str, Any], id_left_out: bool
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            id = b"" if id_left_out else b"12345678"

            async def say(seed: int, question: str) -> pb.InferEvent:
                call = edge.open()
                await call.write(edge.frame(seed, question, number=5, request_id=id))
                await call.done_writing()
                return [event async for event in call][-1]

            assert not (await say(1, "count 2")).answer.from_memory
            assert (await say(1, "count 2")).answer.from_memory, "it was resent unchanged"
            other = await say(2, "count 2")
            assert other.refused.code == 203 and not other.refused.retryable
            assert (await say(1, "count 2")).answer.from_memory

    asyncio.run(scene())


def test_requests_beyond_the_queue_are_refused_whatever_their_stream(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, queue_requests=2) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(2):
                await call.write(edge.frame(seed=seed, question="hold"))
                await call.read()
            refused = (await edge.say("release")).refused
            assert refused.code == 501 and refused.retryable
            assert await server.metric("queue_depth") == 2
            call.cancel()

    asyncio.run(scene())


def test_a_long_queue_lowers_the_credit_and_a_short_one_gives_it_back(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, queue_requests=4, max_in_flight=8) as server:
            edge = await server.edge()
            call = edge.open()
            advised: list[pb.RateAdvice] = []
            held = 0

            async def heard(done: Callable[[pb.InferEvent], bool]) -> None:
                event = await call.read()
                while not done(event):
                    if event.HasField("rate_advice"):
                        assert not event.request_id
                        advised.append(event.rate_advice)
                    event = await call.read()

            for seed in range(3):
                await call.write(edge.frame(seed=seed, question="hold"))
                await heard(lambda e: e.HasField("accepted"))
                held += 1
            await call.write(edge.frame(seed=3, question="count 1"))
            await heard(lambda e: e.HasField("answer") and e.frame_number == 3)
            (less,) = advised
            assert (less.max_in_flight, less.cause) == (2, "load")
            assert less.point == edge.session.default_point
            assert (await edge.say("release", seed=9)).HasField("answer")
            for _ in range(held):
                await heard(lambda e: e.HasField("answer"))
            await call.write(edge.frame(seed=4, question="count 1"))
            await heard(lambda e: e.HasField("answer"))
            assert [a.max_in_flight for a in advised] == [2, 8]
            call.cancel()

    asyncio.run(scene())


def test_a_request_without_an_id_is_known_by_its_session_and_frame_number(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            request = edge.frame(seed=1, question="count 1", request_id=b"")
            told = derived_id(edge.session.session_constants, 1)
            calls = [edge.open(), edge.open()]
            for call in calls:
                await call.write(request)
                while not (event := await call.read()).HasField("answer"):
                    assert event.request_id == told
                assert event.request_id == told
                assert event.answer.from_memory == (call is calls[1])
            await calls[1].write(edge.frame(seed=1, number=1, question="another", request_id=b""))
            again = await calls[1].read()
            assert again.refused.code == 203 and again.request_id == told
            blank = edge.frame(seed=2, question="  ", request_id=b"")
            await calls[1].write(blank)
            refused = await calls[1].read()
            assert refused.refused.code == 401
            assert refused.request_id == derived_id(edge.session.session_constants, 2)
            for call in calls:
                call.cancel()

    asyncio.run(scene())


def test_events_apart_come_on_their_own_call_and_end_their_infer_calls_when_it_goes(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)

            def infer() -> Any:
                return stub.Infer(metadata=(*edge.metadata, EVENTS_APART), timeout=120)

            async def open_events() -> Any:
                request = pb.EventsRequest(session_id=edge.session.session_id)
                call = stub.Events(request, timeout=120)
                await call.initial_metadata()
                return call

            async def end(call: Any) -> tuple[grpc.StatusCode, str]:
                code, trailer = await call.code(), dict(await call.trailing_metadata())
                return code, trailer.get("nb-error-code", "")

            assert await end(infer()) == (grpc.StatusCode.UNAVAILABLE, "502")
            events, first, second = await open_events(), infer(), infer()
            await first.write(edge.frame(seed=1, question="count 1"))
            await second.write(edge.frame(seed=2, question="count 1"))
            answered = set()
            while answered != {1, 2}:
                event = await events.read()
                if event.HasField("answer"):
                    answered.add(event.frame_number)
            await first.done_writing()
            assert await first.read() is grpc.aio.EOF and await first.code() == grpc.StatusCode.OK
            held = edge.frame(seed=3, question="hold")
            await second.write(held)
            assert (await events.read()).HasField("accepted")
            newer = await open_events()
            assert await events.read() is grpc.aio.EOF
            assert await end(second) == (grpc.StatusCode.UNAVAILABLE, "502")
            third = infer()
            await third.write(held)
            assert (await newer.read()).HasField("accepted")
            assert (await edge.say("release")).HasField("answer")
            while not (event := await newer.read()).HasField("answer"):
                pass
            assert event.request_id == held.request_id
            assert await server.metric("joined_requests_total") == 1
            newer.cancel()
            assert await end(third) == (grpc.StatusCode.UNAVAILABLE, "502")
            assert await end(stub.Events(pb.EventsRequest(session_id=bytes(16)))) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "303",
            )

    asyncio.run(scene())


def test_a_message_above_grpcs_own_cap_ends_its_stream_and_no_answer_is_lost(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            held, elsewhere = (
                edge.frame(seed=1, question="hold"),
                edge.frame(seed=2, question="hold"),
            )
            cut, other = edge.open(), edge.open()
            await cut.write(held)
            await other.write(elsewhere)
            assert (await cut.read()).HasField("accepted")
            assert (await other.read()).HasField("accepted")
            huge = edge.frame(seed=3)
            huge.frame.payload = bytes(edge.session.limits.max_picture_bytes + (17 << 20))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await cut.write(huge)
                await cut.read()
            assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"larger than max ({huge.ByteSize()} vs. " in str(ended.value.details())
            assert "nb-error-code" not in dict(ended.value.trailing_metadata())
            again = edge.open()
            await again.write(held)
            assert (await again.read()).HasField("accepted")
            await edge.say("release", seed=9)
            for call, request in ((again, held), (other, elsewhere)):
                while not (event := await call.read()).HasField("answer"):
                    pass
                assert event.request_id == request.request_id
                call.cancel()

    asyncio.run(scene())


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

    asyncio.run(work())


# ------------------------------------------------------------------ parcels


async def ends(call: Any, count: int) -> dict[bytes, pb.InferEvent]:
    """The terminal events of so many requests, by id."""
    found: dict[bytes, pb.InferEvent] = {}
    while len(found) < count:
        event = await call.read()
        if event.WhichOneof("event") in ("answer", "refused"):
            assert event.request_id not in found
            found[event.request_id] = event
    return found


def test_each_request_of_a_parcel_is_answered_under_its_own_id(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert edge.session.parcel_requests == edge.session.limits.max_in_flight
            sent = [edge.frame(seed=seed, question="count 2") for seed in range(5)]
            call = edge.open()
            await call.write(pack(edge.session.session_constants, sent, Course()))
            found = await ends(call, 5)
            assert set(found) == {request.request_id for request in sent}
            assert all(event.HasField("answer") for event in found.values())
            # One of them alone, under the same id: it is remembered as if it had come alone.
            await call.write(sent[3])
            again = await ends(call, 1)
            assert again[sent[3].request_id].answer.from_memory
            call.cancel()

    asyncio.run(scene())


def test_a_bad_request_in_a_parcel_takes_no_neighbour_with_it(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            sent = [edge.frame(seed=seed, question="count 2") for seed in range(5)]
            sent[1] = edge.frame(seed=11, question=" ")
            sent[2] = edge.frame(seed=0, number=0, question="count 2")  # a number that is taken
            sent[3] = edge.frame(seed=13, question="count 2", limit=9999)
            call = edge.open()
            await call.write(pack(edge.session.session_constants, sent, Course()))
            found = await ends(call, 5)
            codes = [found[request.request_id].refused.code for request in sent]
            assert codes == [0, 401, 308, 203, 0]
            call.cancel()

    asyncio.run(scene())


def test_a_request_that_comes_twice_in_a_parcel_is_computed_once(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            one = edge.frame(seed=1, question="count 2")
            call = edge.open()
            await call.write(pack(edge.session.session_constants, [one, one, one], Course()))
            assert (await ends(call, 1))[one.request_id].HasField("answer")
            assert await server.metric("joined_requests_total") == 2
            call.cancel()

    asyncio.run(scene())


def test_a_damaged_parcel_is_refused_without_an_id_and_the_stream_goes_on(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            good = pack(
                edge.session.session_constants, [edge.frame(seed=1, question="count 2")], Course()
            )
            call = edge.open()
            for parcel, code in (
                (good.parcel[:-1] + bytes([good.parcel[-1] ^ 1]), 202),
                (good.parcel[:3], 203),
                (bytes(200), 203),
                (good.parcel[:-9], 202),
            ):
                await call.write(pb.InferRequest(parcel=parcel))
                refused = await call.read()
                assert refused.refused.code in (code, 201), refused
                assert not refused.request_id
            await call.write(good)
            assert len(await ends(call, 1)) == 1
            call.cancel()

    asyncio.run(scene())


def test_a_parcel_beyond_the_credit_is_refused_request_by_request(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, max_in_flight=3) as server:
            edge = await server.edge()
            call = edge.open()
            await call.write(edge.frame(seed=9, question="hold"))
            sent = [edge.frame(seed=seed, question="hold") for seed in range(3)]
            await call.write(pack(edge.session.session_constants, sent, Course()))
            found = await ends(call, 1)
            (refused,) = found.values()
            assert refused.refused.code == 501 and refused.request_id == sent[2].request_id
            sent.append(edge.frame(seed=5))
            await call.write(pack(edge.session.session_constants, sent, Course()))
            while not (event := await call.read()).HasField("refused"):
                pass
            assert event.refused.code == 204 and not event.request_id
            call.cancel()

    asyncio.run(scene())


@on_loop
async def test_each_request_of_a_parcel_counts_against_the_quota(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(
        paths, tmp_path / "svc", device_requests_per_s=0.01
    ) as server:  # one at once
        edge = await server.edge(await server.enrol(server.premises.code("gate-3", "acme")))
        call = edge.open()
        sent = [edge.frame(seed=seed, question="count 2") for seed in range(5)]
        await call.write(pack(edge.session.session_constants, sent, Course()))
        found = await ends(call, 5)
        kinds = [found[request.request_id].WhichOneof("event") for request in sent]
        assert kinds == ["answer"] + ["refused"] * 4
        refused = found[sent[-1].request_id].refused
        assert refused.code == 501 and refused.retryable and refused.retry_after_ms > 0
        call.cancel()


# ------------------------------------------------------------------ acknowledgements that wait


@pytest.mark.parametrize("apart", [False, True])
def test_acknowledgements_wait_for_each_other_and_anything_else_takes_them_along(
    paths: dict[str, Any], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "MOST_ACCEPTED_WAIT_MS", 600_000)  # longer than any call here

    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)
            metadata = (*edge.metadata, (ACCEPTED_WAIT_KEY, "600000,3"))
            down = None
            if apart:
                request = pb.EventsRequest(session_id=edge.session.session_id)
                down = stub.Events(request, timeout=120)
                await down.initial_metadata()
                metadata += (EVENTS_APART,)
            call = stub.Infer(metadata=metadata, timeout=120)
            events = down or call
            for seed in range(3):
                await call.write(edge.frame(seed=seed, question=""))
            together = await events.read()
            assert [e.WhichOneof("event") for e in together.events] == ["accepted"] * 3
            assert [e.frame_number for e in together.events] == [0, 1, 2]
            assert not any(e.accepted.HasField("distortion") for e in together.events)
            await call.write(edge.frame(seed=3, question=""))
            await call.write(edge.frame(seed=4, question="count 1"))
            seen: list[pb.InferEvent] = []
            while not seen or not seen[-1].HasField("answer"):
                event = await events.read()
                seen += event.events or [event]
            kinds = [(e.frame_number, e.WhichOneof("event")) for e in seen]
            assert kinds[:2] == [(3, "accepted"), (4, "accepted")]
            await call.write(edge.frame(seed=5, question=""))
            await call.done_writing()
            last = await events.read()
            assert (last.events or [last])[-1].frame_number == 5, "the end takes it along"
            call.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize("apart", [False, True])
def test_a_device_that_wants_whole_answers_gets_one_event_for_each(
    paths: dict[str, Any], apart: bool
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)
            metadata = (*edge.metadata, WHOLE_ANSWERS)
            down = None
            if apart:
                request = pb.EventsRequest(session_id=edge.session.session_id)
                down = stub.Events(request, timeout=120)
                await down.initial_metadata()
                metadata += (EVENTS_APART,)
            call = stub.Infer(metadata=metadata, timeout=120)
            events = down or call
            for asked in ("count 4", "", "count 2"):
                request = edge.frame(question=asked)
                await call.write(request)
                event = await events.read()
                assert event.request_id == request.request_id
                assert event.WhichOneof("event") == ("answer" if asked else "accepted")
                if asked:
                    told = event.answer
                    assert told.tokens == int(asked[-1]) and told.text
                    assert 0 < told.timings.ttft_ms < told.timings.total_ms
            call.cancel()

    asyncio.run(scene())


def test_a_lone_acknowledgement_leaves_when_its_time_is_over(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            stub = bridge_pb2_grpc.BridgeStub(server.channel)
            for told in ("1,9", "soon", "60000,0", "-1,2", ""):
                metadata = (*edge.metadata, (ACCEPTED_WAIT_KEY, told))
                call = stub.Infer(metadata=metadata, timeout=120)
                await call.write(edge.frame(question=""))
                assert (await call.read()).HasField("accepted")
                call.cancel()

    asyncio.run(scene())
