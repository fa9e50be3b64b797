"""Clients that do not read: their calls end, their events are dropped, others go on."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cloud_server.frontend.admission.memory import Room
from cloud_server.frontend.outbox import Outbox, watch
from protos.calls import EVENTS_APART
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.requests import seal_ask
from tests.cloud_server.front_end import Edge, at_least, running
from tests.fakes.loop import on_loop

UNREAD = 'overloads_total{cause="outbox"}'
HELD = 'held_memory_bytes{store="outboxes",tenant="local"}'


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["infer", "events", "ask"])
@on_loop
async def test_a_call_that_nobody_reads_ends_and_its_events_are_forgotten(
    paths: dict[str, Any], kind: str
) -> None:
    async with running(paths, reader_s=0.3) as server:
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=narrow)
        deaf, other = Edge(channel), await server.edge()
        await deaf.meet()
        metadata, question = deaf.metadata, "count 30000"
        session = deaf.session
        if kind == "events":
            stuck = deaf.stub.Events(pb.EventsRequest(session_id=session.session_id))
            await stuck.initial_metadata()
            metadata = (*metadata, EVENTS_APART)
        if kind == "ask":
            await deaf.say("", seed=1)
            stuck = deaf.stub.Ask(
                seal_ask(
                    session.session_constants, session.session_id, b"12345678", 1, question, 6
                ),
                timeout=120,
            )
        else:
            call = deaf.stub.Infer(metadata=metadata, timeout=120)
            await call.write(deaf.frame(seed=1, question=question))
            stuck = stuck if kind == "events" else call
        await server.until(lambda: at_least(server.metric(UNREAD), 1))

        async def forgotten() -> bool:
            return await server.metric(HELD) == 0

        await server.until(forgotten)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await stuck.read() is not grpc.aio.EOF:
                pass
        assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "not read" in str(ended.value.details())
        assert (await other.say("count 3")).answer.tokens == 3
        assert (await deaf.say("count 2", seed=5)).answer.tokens == 2, "the session goes on"
        await channel.close()


@on_loop
async def test_above_a_tenants_bound_its_largest_call_ends_and_nobody_elses() -> None:
    memory = Room()
    boxes = {name: Outbox(memory, name[0]) for name in ("a1", "a2", "b1")}
    for outbox in boxes.values():
        outbox.writer = asyncio.create_task(asyncio.sleep(3600))
    for name, count in (("a1", 10), ("a2", 60), ("b1", 90)):
        for _ in range(count):
            boxes[name].put(pb.InferEvent(token=pb.Token(text="x" * 488)))
    assert memory.of("a") > 70_000 and memory.of("b") > 90_000
    boxes["b1"].close()
    boxes["b1"].put(pb.InferEvent())
    assert memory.of("b") == 0, "after its end nothing is kept"
    guard = asyncio.create_task(watch(boxes.values, memory, 60_000, 0.2))
    while boxes["a2"].unread is None:
        await asyncio.sleep(0.01)
    guard.cancel()
    assert boxes["a2"].unread.retryable
    assert boxes["a1"].unread is None and boxes["b1"].unread is None
    for outbox in boxes.values():
        assert outbox.writer is not None
        outbox.writer.cancel()


@on_loop
async def test_while_many_bytes_wait_no_more_requests_are_read() -> None:
    outbox = Outbox()
    for _ in range(4):
        outbox.put(pb.InferEvent(token=pb.Token(text="x" * (300 << 10))))
    waits = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not waits.done() and outbox.bytes > 1 << 20
    for _ in range(4):
        outbox.take()
    await waits
    assert outbox.bytes == 0
