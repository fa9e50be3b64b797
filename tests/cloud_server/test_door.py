"""Strangers at the door: connections that say nothing, too many of them, no descriptors left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.engine.spawn import EngineProcess, Spawn, spawn_engine
from cloud_server.frontend import descriptors
from cloud_server.frontend.service import Service
from cloud_server.settings import Settings, load
from protos.errors import ConfigError, EngineUnavailableError
from tests.cloud_server.test_service import FAST, Edge, Running, running
from tests.cloud_server.test_service import paths as paths  # noqa: PLC0414 - a fixture

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SCARCE = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "Too many open files in system"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    RuntimeError("can't start new thread"),
]


async def closed_by_the_server(port: int, *, says: bytes = b"") -> None:
    """Connect, say something, and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(says)
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(1 << 16), 120):
            pass
    writer.close()


@pytest.mark.parametrize("says", [b"", b"GET", PREFACE], ids=["nothing", "not-http2", "preface"])
def test_connections_that_go_silent_are_closed_and_those_that_answer_stay(
    paths: dict[str, Any], says: bytes
) -> None:
    async def scene() -> None:
        quick = {"handshake_timeout_s": 0.3, "keepalive_s": 0.3, "keepalive_timeout_s": 0.3}
        async with running(paths, **quick) as server:
            edge = await server.edge()
            call = edge.open()
            await call.write(edge.frame(seed=1, question="count 1"))
            await call.read()
            await asyncio.gather(*(closed_by_the_server(server.port, says=says) for _ in range(40)))
            await closed_by_the_server(server.metrics_port, says=says)
            await call.write(edge.frame(seed=2, question="count 1"))
            while not (event := await call.read()).HasField("answer") or event.frame_number != 2:
                assert event is not grpc.aio.EOF
            call.cancel()

    asyncio.run(scene())


def test_a_connection_without_any_call_is_not_held_for_ever(paths: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running(paths, idle_connection_s=0.2) as server:
            await server.edge()
            await server.until(lambda: _not_ready(server.channel))
            assert (await (await server.edge()).say("count 1")).HasField("answer")

    asyncio.run(scene())


async def _not_ready(channel: Any) -> bool:
    return channel.get_state() is not grpc.ChannelConnectivity.READY


def test_connections_beyond_the_cap_are_closed_and_those_before_it_are_served(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, max_connections=8) as server:
            edge = await server.edge()  # one connection
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(7)]
            await asyncio.gather(*(closed_by_the_server(server.port) for _ in range(20)))
            assert (await edge.say("count 1")).HasField("answer")
            for reader, writer in silent:
                assert not reader.at_eof()
                writer.close()

    asyncio.run(scene())


def test_the_metrics_port_has_a_cap_of_its_own_and_is_free_again_when_they_leave(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, metrics_connections=4) as server:
            port = server.metrics_port
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            await asyncio.gather(*(closed_by_the_server(port) for _ in range(20)))
            for _, writer in silent:
                writer.close()

            async def served() -> bool:
                with contextlib.suppress(Exception):
                    return (await server.get("/healthz"))[0] == 200
                return False

            await server.until(served)

    asyncio.run(scene())


class Scarce:
    """Starts engines; while `error` is set, the system has nothing to start one with."""

    spare_pid = 0

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tried = 0
        self._start: Spawn

    def of(self, settings: Settings, address: str) -> Spawn:
        self._start = spawn_engine(settings, address, module="tests.cloud_server.fake_engine")
        return self

    async def __call__(self, identity: str) -> EngineProcess:
        if self.error is not None:
            self.tried += 1
            raise self.error
        return await self._start(identity)

    async def close(self) -> None:
        await self._start.close()


@contextlib.asynccontextmanager
async def scarce(paths: dict[str, Any], spawn: Scarce) -> AsyncIterator[Running]:
    lines: asyncio.Queue[str] = asyncio.Queue()
    settings = load(paths | FAST | {"restart_backoff_max_s": 0.01}, environ={})
    service = Service(settings, lines.put_nowait, spawn.of)
    task = asyncio.create_task(service.run())
    made = Running(service, task, json.loads(await asyncio.wait_for(lines.get(), 120)))
    try:
        yield made
    finally:
        await made.channel.close()
        service.stop()
        await task


@pytest.mark.parametrize("error", SCARCE, ids=str)
def test_an_engine_that_cannot_be_started_again_for_now_does_not_end_the_service(
    paths: dict[str, Any], error: Exception
) -> None:
    async def scene() -> None:
        spawn = Scarce()
        async with scarce(paths, spawn) as server:
            edge = await server.edge()
            spawn.error = error
            assert (await edge.say("die")).refused.code == 502

            async def tried() -> bool:
                return spawn.tried >= 5

            await server.until(tried)
            refused = (await edge.say("count 1")).refused
            assert refused.code == 502 and refused.retryable
            spawn.error = None

            async def back() -> bool:
                return (await edge.say("count 1")).HasField("answer")

            await server.until(back)
            assert not server.task.done()

    asyncio.run(scene())


def test_a_first_engine_that_cannot_be_started_is_a_typed_error_and_no_traceback(
    paths: dict[str, Any],
) -> None:
    spawn = Scarce()
    spawn.error = SCARCE[0]
    service = Service(load(paths | FAST, environ={}), lambda line: None, spawn.of)
    with pytest.raises(EngineUnavailableError, match="Too many open files"):
        asyncio.run(service.run())
    assert spawn.tried == 3


_TIGHT = """
import asyncio, json, resource, sys
from functools import partial
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {limit}))
from cloud_server.frontend.service import Service
from cloud_server.settings import load
from cloud_server.engine.spawn import spawn_engine
from tests.cloud_server.test_service import FAST
settings = load({settings!r} | FAST | {{"log_level": "info"}}, environ={{}})
service = Service(
    settings,
    lambda line: print(line, flush=True),
    partial(spawn_engine, module="tests.cloud_server.fake_engine"),
)
async def run():
    import signal
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
    await service.run()
asyncio.run(run())
"""


def test_without_descriptors_left_for_strangers_a_dead_engine_is_started_again(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    limit, flood = 256, 300
    settings = {"model": str(paths["model"]), "bundles": [str(paths["model"])]}
    code = _TIGHT.format(limit=limit, settings=settings)
    log = tmp_path / "log"

    async def scene(port: int, metrics_port: int) -> None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        edge = Edge(channel)
        await edge.meet()
        held = []
        for _ in range(flood):
            held.append(await asyncio.open_connection("127.0.0.1", port))
            held.append(await asyncio.open_connection("127.0.0.1", metrics_port))
        assert (await edge.say("die")).refused.code == 502

        async def back() -> None:
            while not (await edge.say("count 1")).HasField("answer"):
                await asyncio.sleep(0.01)

        await asyncio.wait_for(back(), 120)
        for _, writer in held:
            writer.close()
        await channel.close()

    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=stderr)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        ready = json.loads(line)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == limit, "not raised"
        asyncio.run(scene(ready["port"], ready["metrics_port"]))
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    told = log.read_text().splitlines()
    assert len(told) < 100 and "Traceback" not in "".join(told), told[:100]


def test_more_connections_than_the_limit_of_open_files_lets_are_refused_at_start() -> None:
    assert descriptors.connections(1024, 40, 64, 0) == 1024 - 40 - 64 - descriptors.RESERVE
    assert descriptors.connections(1024, 40, 64, 800) == 800
    with pytest.raises(ConfigError, match=r"5000 gRPC .* need 5168 .* the limit is 1024"):
        descriptors.connections(1024, 40, 64, 5000)
    with pytest.raises(ConfigError, match="the limit is 64"):
        descriptors.connections(64, 20, 64, 0)


def test_the_reserve_is_free_within_its_block_and_held_again_after_it() -> None:
    before = descriptors.open_now()
    reserve = descriptors.Reserve(8)
    assert descriptors.open_now() == before + 8
    with reserve.lent():
        assert descriptors.open_now() == before
    assert descriptors.open_now() == before + 8
    reserve.close()
    assert descriptors.open_now() == before


def test_what_the_event_loop_reports_over_and_over_is_told_a_few_times_and_then_counted(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with running(paths, log_burst=3, log_interval_s=3600.0):
            loop = asyncio.get_running_loop()
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            for _ in range(14_080):
                loop.call_exception_handler(
                    {"message": "socket.accept() out of system resource", "exception": error}
                )

    asyncio.run(scene())
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in told].count("event loop") == 3
    assert told[-1]["count"] == 14_080 - 3


def test_refusals_beyond_a_few_are_counted_in_the_log_and_all_of_them_in_the_metrics(
    paths: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        slow = {"log_level": "warning", "log_burst": 3, "log_interval_s": 3600.0}
        async with running(paths, **slow) as server:
            edge = await server.edge()
            call = edge.open()
            for seed in range(50):
                await call.write(edge.frame(seed=seed, question=" "))
                assert (await call.read()).refused.code == 401
            call.cancel()
            assert await server.metric('refusals_total{reason="question"}') == 50

    asyncio.run(scene())
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = [line for line in told if "question" in (line.get("error"), line.get("what"))]
    assert [line["event"] for line in lines] == ["refused"] * 3 + ["more of the same"]
    assert lines[-1]["count"] == 47
