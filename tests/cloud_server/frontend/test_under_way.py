"""Requests whose callers leave: their places are free, and those that come back are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from reference.demo.relay import Relay
from tests.cloud_server.front_end import Running, at_least, let_go_of, running


@pytest.mark.quick(1)
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
            await server.until(lambda: at_least(server.metric("queue_depth"), 8))
            if how == "cancelled":
                call.cancel()

            async def free() -> bool:
                return await server.metric("queue_depth") == 0

            await server.until(free)
            await server.until(lambda: at_least(let_go_of(server), 8))
            assert (await edge.say("count 3", seed=100)).answer.tokens == 3

            async def let_go() -> bool:  # the engine too
                return await server.metric("running_requests") == 0

            await server.until(let_go)

    asyncio.run(work())


@pytest.mark.slow
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
                await server.until(lambda: at_least(server.metric("queue_depth"), 8))
                await server.until(lambda: at_least(server.metric("running_requests"), 1))
            lost = 'left_requests_total{how="lost"}'
            await server.until(lambda: at_least(server.metric(lost), 8))
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

    asyncio.run(work())


def test_a_request_resent_on_a_new_stream_joins_the_computation_of_the_broken_one(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            request = edge.frame(seed=1, question="hold")
            with Relay(f"127.0.0.1:{server.port}") as relay:
                cut = grpc.aio.insecure_channel(relay.address)
                broken = bridge_pb2_grpc.BridgeStub(cut).Infer(metadata=edge.metadata)
                await broken.write(request)
                assert (await broken.read()).HasField("accepted")
            await server.until(lambda: _positive(server.metric('left_requests_total{how="lost"}')))
            await cut.close()
            call = edge.open()
            await call.write(request)
            assert (await call.read()).HasField("accepted")
            await edge.say("release", seed=9)
            kinds = []
            while not kinds or kinds[-1] != "answer":
                kinds.append((await call.read()).WhichOneof("event"))
            assert kinds == ["token", "answer"]
            assert await server.metric("joined_requests_total") == 1
            assert await server.metric('frames_total{point="fp8"}') == 2  # hold and release
            call.cancel()

    asyncio.run(scene())


def test_draining_answers_what_is_under_way_and_takes_nothing_new(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, drain_s=20.0) as server:
            edge = await server.edge()
            call = edge.open()
            await call.write(edge.frame(seed=1, question="slow"))
            await server.until(lambda: _positive(server.metric("queue_depth")))
            server.service.stop()
            await server.until(lambda: _draining(server))
            await call.write(edge.frame(seed=2, question="count 1"))
            ends = {}
            while len(ends) < 2:
                event = await call.read()
                if event.WhichOneof("event") in ("answer", "refused"):
                    ends[event.frame_number] = event
            assert ends[1].HasField("answer")
            assert ends[2].refused.retryable
            await server.task

    asyncio.run(scene())


def test_a_drain_ends_every_stream_once_its_answers_are_written_and_opens_no_session(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, drain_s=60.0) as server:
            edge, idle = await server.edge(), await server.edge()
            quiet = idle.open()
            await quiet.write(idle.frame(seed=1, question="count 1"))
            while not (await quiet.read()).HasField("answer"):
                pass
            call = edge.open()
            await call.write(edge.frame(seed=1, question="hold"))
            await server.until(lambda: _positive(server.metric("queue_depth")))
            server.service.stop()
            await server.until(lambda: _draining(server))
            assert await quiet.code() == grpc.StatusCode.UNAVAILABLE, "nothing was under way on it"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await idle.meet()
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert not call.done(), "its request is under way"
            await call.write(edge.frame(seed=2, question="release"))
            assert (await _terminal(call)).frame_number == 2  # refused: it is new
            call.cancel()
            await server.task

    asyncio.run(scene())


async def _terminal(call: Any) -> pb.InferEvent:
    while True:
        event: pb.InferEvent = await call.read()
        if event.WhichOneof("event") in ("answer", "refused"):
            return event


async def _positive(value: Awaitable[float]) -> bool:
    return await value > 0


async def _draining(server: Running) -> bool:
    return (await server.get("/readyz")) == (503, "draining\n")
