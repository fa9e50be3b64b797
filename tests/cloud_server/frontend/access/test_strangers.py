"""Calls without a credential: bounded in number, time and bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.calls import SERVICE
from protos.errors import FrameMalformedError, OverloadedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.secured import asked, secured, typed
from tests.fakes.loop import on_loop

OPEN = (f"/{SERVICE}/Enrol", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")


async def ended(call: Any) -> Exception:
    """The service's own error that a call ended with."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    return typed(error.value)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", OPEN)
@on_loop
async def test_a_call_that_brings_no_message_ends_and_keeps_no_one_out(
    paths: dict[str, Any], tmp_path: Path, name: str
) -> None:
    async with secured(paths, tmp_path / "svc", request_arrival_s=0.5) as server:
        silent = [server.channel().stream_stream(name)() for _ in range(8)]
        ends = await asyncio.gather(*map(ended, silent))
        assert all(isinstance(end, FrameMalformedError) for end in ends), ends
        device = await server.enrol(server.premises.code())
        health = health_pb2_grpc.HealthStub(server.channel(device))
        serving = health_pb2.HealthCheckResponse.SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == serving


@on_loop
async def test_one_address_has_few_calls_that_wait_for_their_message(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", request_arrival_s=60, enrolment_burst=64) as server:
        calls = [server.channel().stream_stream(OPEN[0])() for _ in range(12)]
        reads = [asyncio.create_task(ended(call)) for call in calls]
        refused, waiting = set[asyncio.Task[Exception]](), set(reads)
        while len(refused) < 4:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert all(isinstance(task.result(), OverloadedError) for task in refused)
        for call in calls:
            call.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        await server.enrol(server.premises.code())


@pytest.mark.slow
@on_loop
async def test_a_known_callers_call_that_brings_no_message_ends(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", request_arrival_s=0.5) as server:
        device = await server.enrol(server.premises.code())
        for name in ("Negotiate", "Ask", "Renew"):
            call = server.channel(device).stream_stream(f"/{SERVICE}/{name}")()
            assert isinstance(await ended(call), FrameMalformedError), name


@pytest.mark.slow
@on_loop
async def test_the_port_for_strangers_takes_only_small_messages(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        for name in OPEN:
            call = server.channel().stream_stream(name)()
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call.write(bytes(1 << 20))
                await call.read()
            assert error.value.code() in (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.INTERNAL,  # the client was still writing
            )
        device = await server.enrol(server.premises.code())
        large = pb.NegotiateRequest(agent_version="x" * (1 << 20))
        with pytest.raises(FrameMalformedError):
            await asked(server.stub(device).Negotiate(large))


@on_loop
async def test_a_device_has_fewer_calls_open_than_a_key(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc", device_calls=2, caller_calls=3) as server:
        edge = await server.edge(await server.enrol(server.premises.code()))
        calls = [edge.open() for _ in range(2)]
        while server.service.access.open_calls < 2:
            await asyncio.sleep(0.01)
        assert isinstance(await ended(edge.open()), OverloadedError)
        assert all(not call.done() for call in calls)
