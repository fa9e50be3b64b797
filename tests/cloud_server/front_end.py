"""The front end on the test's own event loop, with an engine that has no model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from cloud_server.engine.spawn import Spawn, spawn_engine
from cloud_server.frontend.service import Service
from cloud_server.settings import Settings, load
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from tests.cloud_server import stage
from tests.cloud_server.nest import FromNest
from tests.fakes.pages import fetch

FAST = {
    "port": 0,
    "metrics_port": 0,
    "engine": "fake",
    "heartbeat_s": 0.05,
    "restart_backoff_s": 0.01,
    "drain_s": 0.1,
    "log_level": "error",
}


class Edge(stage.Client):
    """A client on the event loop."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)

    async def meet(self) -> pb.NegotiateResponse:
        self.session = await super().negotiate()
        reply: pb.NegotiateResponse = self.session
        return reply

    def open(self) -> Any:
        return bridge_pb2_grpc.BridgeStub(self.channel).Infer(metadata=self.metadata, timeout=120)

    async def say(self, question: str, seed: int = 0) -> pb.InferEvent:
        """One request on a stream of its own; its last event."""
        call = self.open()
        await call.write(self.frame(seed=seed, question=question))
        await call.done_writing()
        events = [event async for event in call]
        last: pb.InferEvent = events[-1]
        return last


class Running:
    def __init__(self, service: Service, task: asyncio.Task[None], ready: dict[str, Any]) -> None:
        self.service, self.task = service, task
        self.port, self.metrics_port = ready["port"], ready["metrics_port"]
        self.api_port: int = ready.get("api_port", 0)
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
        )

    async def edge(self) -> Edge:
        edge = Edge(self.channel)
        await edge.meet()
        return edge

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(fetch, self.metrics_port, path)

    async def metric(self, name: str) -> float:
        lines = (await self.get("/metrics"))[1].splitlines()
        found = [
            line.split()[1] for line in lines if line.startswith(f"neural_bridge_cloud_{name} ")
        ]
        return float(found[0]) if found else 0.0

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async def poll() -> None:
            while not await holds():
                await asyncio.sleep(0.01)

        await asyncio.wait_for(poll(), 120)


def make(paths: dict[str, Any], announce: Callable[[str], None], **settings: Any) -> Service:
    """A service with fake engines: of the nest, or (`spare` given) of processes of their own."""
    again = partial(load, paths | FAST | settings, environ={})
    own = partial(spawn_engine, module="tests.cloud_server.fake_engine")
    stage.encoder()  # fitted before the service lives: it takes long, and heartbeats would wait
    spawn: Callable[[Settings, str], Spawn] = own if "spare" in settings else FromNest
    return Service(again(), announce, spawn, again)


@asynccontextmanager
async def begun(
    paths: dict[str, Any], **settings: Any
) -> AsyncIterator[tuple[Service, asyncio.Task[None], dict[str, Any]]]:
    """A service that is ready, its task and its readiness line; it ends with the block."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    service = make(paths, lines.put_nowait, **settings)
    task = asyncio.create_task(service.run())
    line = asyncio.create_task(lines.get())
    await asyncio.wait({task, line}, return_when=asyncio.FIRST_COMPLETED, timeout=120)
    if task.done():
        line.cancel()
        await task
    try:
        yield service, task, json.loads(line.result())
    finally:
        service.stop()
        await task


@asynccontextmanager
async def running(paths: dict[str, Any], **settings: Any) -> AsyncIterator[Running]:
    async with begun(paths, **settings) as parts:
        made = Running(*parts)
        try:
            yield made
        finally:
            await made.channel.close()


async def at_least(value: Any, least: float) -> bool:
    return bool(await value >= least)


async def let_go_of(server: Running) -> float:
    """Requests that ended with their call. (A client may cancel just before its deadline is up.)"""
    told = [
        await server.metric(f'left_requests_total{{how="{how}"}}')
        for how in ("cancelled", "deadline")
    ]
    return sum(told)
