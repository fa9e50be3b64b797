"""The engine is started, watched and started again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloud_server.engine.spawn import EngineProcess, Spawn, spawn_engine
from cloud_server.frontend.service import Service
from cloud_server.settings import Settings, load
from protos.errors import BundleLayoutError, EngineUnavailableError
from tests.cloud_server.front_end import FAST, Running, make, running


def test_an_engine_that_dies_is_started_again_and_meanwhile_the_service_says_so(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the pause is long enough for all that is looked at meanwhile, on a busy machine too
    monkeypatch.setattr("cloud_server.engine.supervisor.random.uniform", lambda *_: 3.0)

    async def scene() -> None:
        async with running(paths) as server:
            edge = await server.edge()
            assert (await server.get("/readyz"))[0] == 200
            refused = (await edge.say("die")).refused
            assert refused.code == 502 and refused.retryable
            assert (await server.get("/readyz"))[0] == 503
            assert (await server.get("/healthz"))[0] == 200
            assert await server.metric("engine_up") == 0
            assert (await edge.say("count 1")).refused.code == 502

            async def back() -> bool:
                return (await server.get("/readyz"))[0] == 200

            await server.until(back)
            assert (await edge.say("count 1")).HasField("answer")
            assert await server.metric("engine_restarts_total") == 1
            assert await server.metric("engine_up") == 1

    asyncio.run(scene())


def test_an_engine_that_hangs_in_a_step_is_ended_and_its_requests_may_be_sent_again(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, engine_stall_s=0.5) as server:
            edge = await server.edge()
            refused = (await edge.say("hang")).refused
            assert refused.code == 502 and "hung" in refused.message

            async def back() -> bool:
                return (await edge.say("count 1")).HasField("answer")

            await server.until(back)

    asyncio.run(scene())


def test_an_engine_that_says_why_it_cannot_start_ends_the_service_with_that_error(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "typed")
    with pytest.raises(BundleLayoutError, match="another model"):
        asyncio.run(make(paths, lambda line: None).run())


def test_an_engine_that_never_gets_ready_is_given_up_after_some_starts(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "silent")
    with pytest.raises(EngineUnavailableError, match="exit code 3"):
        asyncio.run(make(paths, lambda line: None).run())


SCARCE = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENFILE, "Too many open files in system"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    RuntimeError("can't start new thread"),
]


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


@pytest.mark.slow
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
