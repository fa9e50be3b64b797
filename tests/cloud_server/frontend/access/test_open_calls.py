"""When a caller is disabled or its certificate expires, open calls end and new ones are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2_grpc

from cloud_server.identity.authority import DAY_S
from cloud_server.state import devices, keys, tenants
from cloud_server.state.store import Transaction
from protos.errors import OverloadedError, UnauthenticatedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.front_end import Edge
from tests.cloud_server.secured import Secured, secured, typed
from tests.fakes.loop import on_loop

LIMIT_S = 10.0
"""Longest time until an open call ends."""


SHUT_OUT: dict[str, Callable[[Transaction], object]] = {
    "certificate revoked": lambda tx: devices.revoke(tx, "acme", "gate-3"),
    "device disabled": lambda tx: devices.disable(tx, "acme", "gate-3"),
    "device removed": lambda tx: devices.remove(tx, "acme", "gate-3"),
    "tenant disabled": lambda tx: tenants.disable(tx, "acme"),
}


async def refused(call: Any) -> None:
    """Wait until a call ends with a stranger's error."""

    async def read() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(read(), LIMIT_S)
    assert isinstance(typed(error.value), UnauthenticatedError)


async def open_calls(edge: Edge) -> list[Any]:
    """A stream of requests with one that is not answered yet, and a stream of events."""
    infer = edge.open()
    await infer.write(edge.frame(seed=90, question="hold"))
    assert (await infer.read()).HasField("accepted")
    events = edge.stub.Events(pb.EventsRequest(session_id=edge.session.session_id))
    await events.initial_metadata()
    return [infer, events]


@pytest.mark.quick(1)
@pytest.mark.parametrize("how", SHUT_OUT)
@on_loop
async def test_open_calls_of_a_revoked_device_end_and_its_connection_is_refused(
    paths: dict[str, Any], tmp_path: Path, how: str
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        gone = await server.edge(await server.enrol(server.premises.code()))
        other = await server.edge(await server.enrol(server.premises.code("gate-4", "globex")))
        kept = other.open()
        calls = await open_calls(gone)
        with server.premises.store.write("test") as tx:
            SHUT_OUT[how](tx)
        await asyncio.gather(*map(refused, calls))
        await refused(gone.open())
        await kept.write(other.frame(question="count 2"))
        await kept.done_writing()
        *_, last = [event async for event in kept]
        assert last.answer.text == "0 1", "another tenant's stream goes on"


@pytest.mark.slow
@on_loop
async def test_a_client_that_reads_nothing_keeps_no_other_call_open(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        deaf = await server.edge(await server.enrol(server.premises.code()))
        other = await server.edge(await server.enrol(server.premises.code("gate-4")))
        unread = deaf.open()
        for seed in range(4):
            await unread.write(deaf.frame(seed=seed, question="count 20000"))
        calls = await open_calls(other)
        with server.premises.store.write("test") as tx:
            tenants.disable(tx, "acme")
        await asyncio.gather(*map(refused, calls))
        await counted(server, 0)


@on_loop
async def test_a_device_that_was_removed_and_added_again_needs_a_new_certificate(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        before = await server.enrol(server.premises.code())
        with server.premises.store.write("test") as tx:
            devices.remove(tx, "acme", "gate-3")
        after = await server.enrol(server.premises.code())
        await refused(Edge(server.channel(before)).stub.Infer())
        assert (await (await server.edge(after)).say("count 1")).answer.text == "0"


@pytest.mark.slow
@on_loop
async def test_a_call_ends_with_its_certificate(paths: dict[str, Any], tmp_path: Path) -> None:
    life = {"device_certificate_days": 4.0 / DAY_S}
    async with secured(paths, tmp_path / "svc", **life) as server:
        edge = await server.edge(await server.enrol(server.premises.code()))
        call = edge.open()
        await call.write(edge.frame(question="count 1"))
        assert (await call.read()).HasField("accepted"), "it is valid yet"
        await refused(call)


@pytest.mark.slow
@on_loop
async def test_a_removed_keys_open_calls_end(paths: dict[str, Any], tmp_path: Path) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        key = server.premises.operator()
        await server.settled()
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel())
        call = stub.ServerReflectionInfo(metadata=(("authorization", f"Bearer {key}"),))
        await counted(server, 1)
        with server.premises.store.write("test") as tx:
            keys.remove(tx, "service", "root")
        await refused(call)
        await counted(server, 0)


async def counted(server: Secured, calls: int) -> None:
    """Wait until the service has this number of open calls."""

    async def poll() -> None:
        while server.service.access.open_calls != calls:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), 30)


@on_loop
async def test_one_devices_open_calls_are_bounded_and_others_are_not_affected(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", caller_calls=2) as server:
        greedy = await server.edge(await server.enrol(server.premises.code()))
        other = await server.edge(await server.enrol(server.premises.code("gate-4")))
        calls = [greedy.open() for _ in range(2)]
        await counted(server, 2)
        third = greedy.open()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await third.read()
        refusal = typed(error.value)
        assert isinstance(refusal, OverloadedError) and refusal.retryable
        assert (await other.say("count 1")).answer.text == "0"
        await calls[0].done_writing()
        assert await calls[0].read() is grpc.aio.EOF
        await counted(server, 1)
        assert (await greedy.say("count 1")).answer.text == "0", "as soon as one has ended"


@pytest.mark.slow
@on_loop
async def test_revoking_one_device_again_and_again_leaves_nothing_behind(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        for _ in range(3):
            edge = await server.edge(await server.enrol(server.premises.code()))
            calls = await open_calls(edge)
            with server.premises.store.write("test") as tx:
                devices.revoke(tx, "acme", "gate-3")
            await asyncio.gather(*map(refused, calls))
        await counted(server, 0)
        good = await server.edge(await server.enrol(server.premises.code()))
        assert (await good.say("count 2")).answer.text == "0 1"
