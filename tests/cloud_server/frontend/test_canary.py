"""Ready means that questions are answered: the service asks the engine itself, and says so."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_server.frontend import canary
from cloud_server.frontend.canary import SESSION
from cloud_server.frontend.service import Service
from tests.cloud_server.front_end import Running, make, running
from tests.cloud_server.processes import spare_of


async def asked(server: Running, outcome: str) -> float:
    return await server.metric(f'canaries_total{{outcome="{outcome}"}}')


def late(service: Service) -> float:
    value = service._metrics.registry.get_sample_value
    return value("neural_bridge_cloud_canaries_total", {"outcome": "late"}) or 0.0


async def serving(server: Running) -> bool:
    stub = health_pb2_grpc.HealthStub(server.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest())
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def test_an_engine_that_answers_no_more_makes_the_service_not_ready_until_it_does(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = tmp_path / "silent"
    monkeypatch.setenv("FAKE_ENGINE_SILENT_IF", str(silent))

    async def scene() -> None:
        async with running(paths, canary_s=0.05, canary_timeout_s=0.2) as server:
            assert (await server.get("/readyz"))[0] == 200
            assert await serving(server) and await server.metric("answering") == 1
            silent.touch()

            async def unready() -> bool:
                return (await server.get("/readyz"))[0] == 503

            await server.until(unready)
            assert "no answer in 0.2 s" in (await server.get("/readyz"))[1]
            assert not await serving(server) and await server.metric("answering") == 0
            assert await server.metric("engine_up") == 1, "the engine lives and sends heartbeats"
            assert await server.metric("queue_depth") == 0
            assert await asked(server, "late") >= 1
            silent.unlink()

            async def ready() -> bool:
                return (await server.get("/readyz"))[0] == 200

            await server.until(ready)
            assert await serving(server)

    asyncio.run(scene())


def test_the_service_is_not_ready_before_its_first_answer(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = tmp_path / "silent"
    silent.touch()
    monkeypatch.setenv("FAKE_ENGINE_SILENT_IF", str(silent))

    async def scene() -> None:
        lines: asyncio.Queue[str] = asyncio.Queue()
        service = make(paths, lines.put_nowait, canary_s=0.05, canary_timeout_s=0.2)
        task = asyncio.create_task(service.run())
        while not late(service):
            assert not task.done()
            await asyncio.sleep(0.01)
        assert lines.empty(), "ready before anything could be answered"
        silent.unlink()
        assert "ready" in await asyncio.wait_for(lines.get(), 60)
        service.stop()
        await task

    asyncio.run(scene())


def test_a_question_that_had_no_answer_is_asked_again_soon_however_long_the_usual_pause(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = tmp_path / "silent"
    silent.touch()
    monkeypatch.setenv("FAKE_ENGINE_SILENT_IF", str(silent))
    monkeypatch.setattr(canary, "_AGAIN_S", 0.05)

    async def scene() -> None:
        lines: asyncio.Queue[str] = asyncio.Queue()
        service = make(paths, lines.put_nowait, canary_s=3600, canary_timeout_s=0.2)
        task = asyncio.create_task(service.run())
        while late(service) < 2:
            assert not task.done()
            await asyncio.sleep(0.01)
        silent.unlink()
        assert "ready" in await asyncio.wait_for(lines.get(), 60)
        service.stop()
        await task

    asyncio.run(scene())


@pytest.mark.slow
def test_an_engine_that_was_replaced_is_asked_at_once_and_not_before_counts_as_ready(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = tmp_path / "silent"
    monkeypatch.setenv("FAKE_ENGINE_SILENT_IF", str(silent))
    monkeypatch.setattr(canary, "_AGAIN_S", 0.05)

    async def scene() -> None:
        async with running(paths, canary_s=3600, canary_timeout_s=0.2, spare=True) as server:
            edge = await server.edge()

            async def replaced() -> bool:
                restarts = await server.metric("engine_restarts_total")
                return restarts > before and await server.metric("engine_up") == 1

            async def ready() -> bool:
                return (await server.get("/readyz"))[0] == 200

            before = await server.metric("engine_restarts_total")
            assert (await edge.say("what is it ?", 1)).HasField("answer")
            await edge.say("die", 2)
            await server.until(replaced)
            await server.until(ready)
            assert await asked(server, "answered") == 2

            before = await server.metric("engine_restarts_total")
            late = await asked(server, "late")
            assert (await edge.say("what is it ?", 3)).HasField("answer")
            silent.touch()
            os.kill(spare_of(os.getpid()), signal.SIGKILL)
            await server.until(replaced)

            async def was_late() -> bool:
                return await asked(server, "late") > late

            await server.until(was_late)
            assert not await ready(), "an answer of the engine before it counts"

    asyncio.run(scene())


def test_our_own_questions_leave_no_trace_among_the_devices(
    paths: dict[str, Any],  # noqa: F811
) -> None:
    async def scene() -> None:
        async with running(paths, canary_s=3600) as server:
            assert await asked(server, "answered") == 1
            edge = await server.edge()
            for seed in range(5):
                assert (await edge.say("what is it ?", seed)).HasField("answer")
            assert await asked(server, "answered") == 1
            assert await server.metric("queue_depth") == 0
            assert await server.metric("sessions") == 1

            async def only_devices() -> bool:
                return await server.metric("scenes") == 5

            await server.until(only_devices)
            page = (await server.get("/metrics"))[1]
            assert SESSION not in page.replace("canaries_total", "").replace("canaries_created", "")

    asyncio.run(scene())


def test_without_the_setting_nothing_is_asked(paths: dict[str, Any]) -> None:  # noqa: F811
    async def scene() -> None:
        async with running(paths, canary_s=0) as server:
            assert (await server.get("/readyz"))[0] == 200
            page = (await server.get("/metrics"))[1]
            counts = {line.split()[-1] for line in page.splitlines() if "canaries_total{" in line}
            assert counts == {"0.0"}

    asyncio.run(scene())
