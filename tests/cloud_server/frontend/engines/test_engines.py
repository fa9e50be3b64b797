"""Several engines behind one front end: routing, rebuilt scenes, crashes, hangs, quarantine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cloud_server.frontend.engines.engines import settings_of_each
from cloud_server.identity.caller import NO_TENANT
from cloud_server.settings import load
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.neuralbridge.v1 import bridge_pb2_grpc
from protos.requests import seal_ask
from tests.cloud_server.front_end import Edge, Running, at_least, running
from tests.cloud_server.nest import engines

TWO = {"engines": 2, "restart_backoff_max_s": 0.02}


async def all_up(server: Running, count: int) -> bool:
    lines = (await server.get("/metrics"))[1].splitlines()
    up = [line for line in lines if line.startswith("neural_bridge_cloud_engine_ready{")]
    return sum(float(line.split()[1]) for line in up) == count


async def both_up(server: Running) -> bool:
    return await all_up(server, 2)


async def ask(server: Running, edge: Edge, number: int, question: str) -> str:
    """The answer to a question about a scene that is held."""
    constants, session = edge.session.session_constants, edge.session.session_id
    request = seal_ask(constants, session, edge.request_id(), number, question, 6)
    stub = bridge_pb2_grpc.BridgeStub(server.channel)
    events = [event async for event in stub.Ask(request, timeout=60)]
    return str(events[-1].answer.text)


async def where(server: Running, edge: Edge, number: int) -> int:
    return int(await ask(server, edge, number, "where"))


async def answered(edge: Edge, question: str, seed: int) -> pb.InferEvent:
    """Send a request as an agent does: again, unchanged, while its refusal is retryable."""
    request = edge.frame(seed=seed, question=question)
    while True:
        call = edge.open()
        await call.write(request)
        await call.done_writing()
        events: list[pb.InferEvent] = [event async for event in call]
        ends = [e for e in events if e.WhichOneof("event") in ("answer", "refused")]
        assert len(ends) == 1, "each request ends exactly once"
        if not ends[0].refused.retryable:
            return ends[0]
        await asyncio.sleep(0.01)


def test_work_goes_to_the_engine_that_has_least_and_a_question_to_where_its_scene_lives(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, **TWO) as server:
            await server.until(lambda: both_up(server))
            edge = await server.edge()
            holding = edge.open()
            await holding.write(edge.frame(seed=1, question="hold"))
            while not (await holding.read()).HasField("accepted"):
                pass
            assert (await edge.say("", seed=2)).HasField("accepted")
            homes = [await where(server, edge, number) for number in (1, 2)]
            assert len(set(homes)) == 2 and set(homes) == set(engines())
            assert [await where(server, edge, number) for number in (1, 2)] == homes
            holding.cancel()

    asyncio.run(scene())


def test_scenes_of_an_engine_that_was_killed_are_made_again_from_their_frames(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, **TWO) as server:
            await server.until(lambda: both_up(server))
            edge = await server.edge()
            for number in range(1, 6):
                assert (await edge.say("", seed=number)).HasField("accepted")
            home = await where(server, edge, 1)
            os.kill(home, signal.SIGKILL)

            async def gone() -> bool:
                return home not in engines()

            await server.until(gone)
            for number in range(1, 6):
                assert await where(server, edge, number) != home
            assert await server.metric("scenes_remade_total") >= 1

    asyncio.run(scene())


def test_a_request_that_ends_its_engine_twice_is_quarantined_and_the_others_are_answered(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "quarantine"

    async def scene() -> None:
        async with running(paths, quarantine_dir=folder, restart_backoff_max_s=0.02) as server:
            edge = await server.edge()
            (engine,) = engines()
            os.kill(engine, signal.SIGSTOP)  # so that all of them are in it when it dies
            others = [
                asyncio.create_task(answered(edge, f"count {seed}", seed)) for seed in range(1, 5)
            ]
            guilty = asyncio.create_task(answered(edge, "die", 7))
            late = asyncio.create_task(answered(edge, "count 6", 6))
            await server.until(lambda: at_least(server.metric("queue_depth"), 6))
            os.kill(engine, signal.SIGCONT)
            last = await guilty
            assert last.refused.code == 505 and not last.refused.retryable
            assert [(await other).answer.tokens for other in others] == [1, 2, 3, 4]
            assert (await late).answer.tokens == 6, "innocent"
            restarts = await server.metric("engine_restarts_total")
            assert restarts == 2
            stranger = await server.edge()
            assert (await answered(stranger, "die", 7)).refused.code == 505
            assert (await answered(stranger, "count 2", 7)).answer.tokens == 2
            assert await server.metric("engine_restarts_total") == restarts, "it was not tried"
            assert await server.metric("quarantined_requests") == 1
            assert await server.metric("suspect_requests") == 0

    asyncio.run(scene())
    (written,) = folder.iterdir()
    plain = json.loads(written.read_text())
    assert plain["question"] == "die" and plain["owner"].split("/")[0] == NO_TENANT
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.quick(1)
@pytest.mark.parametrize("how", ["stopped", "leaks"])
def test_an_engine_that_is_stopped_or_leaks_is_replaced_and_its_requests_are_answered(
    paths: dict[str, Any], how: str
) -> None:
    async def scene() -> None:
        limits = {"heartbeat_timeout_s": 1.0, "engine_memory_bytes": 300 << 20}
        async with running(paths, **limits) as server:
            edge = await server.edge()
            (engine,) = engines()
            if how == "stopped":
                os.kill(engine, signal.SIGSTOP)
            else:
                await edge.say("leak", 2)
            assert (await answered(edge, "count 3", 3)).answer.tokens == 3

            async def replaced() -> bool:
                return engines() not in ([engine], [])

            await server.until(replaced)
            assert (await answered(edge, "count 4", 4)).answer.tokens == 4
            assert await server.metric("engine_restarts_total") == 1

    asyncio.run(scene())


@pytest.mark.slow
def test_engines_killed_over_and_over_under_load_lose_no_answer_and_double_none(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        async with running(paths, **TWO) as server:
            await server.until(lambda: both_up(server))
            edges = [await server.edge() for _ in range(4)]
            stop = asyncio.Event()
            ends: list[tuple[int, pb.InferEvent]] = []

            async def keep_asking(edge: Edge, first: int) -> None:
                seed = first
                while not stop.is_set():
                    seed += 1
                    tokens = 1 + seed % 4
                    ends.append((tokens, await answered(edge, f"count {tokens}", seed)))

            tasks = [
                asyncio.create_task(keep_asking(edge, 1000 * index + 1000 * place))
                for index, edge in enumerate(edges)
                for place in (10, 20)
            ]

            async def cleared() -> bool:
                suspects = await server.metric("suspect_requests")
                return suspects == 0 and await both_up(server)

            for kill in range(12):
                before = len(ends)

                async def more(before: int = before) -> bool:
                    return len(ends) >= before + 8

                await server.until(more)
                engine = engines()[kill % 2]
                os.kill(engine, signal.SIGKILL)

                async def replaced(engine: int = engine) -> bool:
                    return engine not in engines() and await cleared()

                await server.until(replaced)
            stop.set()
            await asyncio.gather(*tasks)
            assert [end.answer.tokens for tokens, end in ends] == [tokens for tokens, _ in ends]
            assert await server.metric("engine_restarts_total") >= 12
            assert await server.metric("quarantined_requests") == 0

    asyncio.run(scene())


@pytest.mark.slow
def test_a_request_that_runs_alone_while_engines_are_killed_or_stopped_is_not_quarantined(
    paths: dict[str, Any],
) -> None:
    async def scene() -> None:
        quick = {"heartbeat_timeout_s": 1.0, "restart_backoff_max_s": 0.02}
        async with running(paths, **quick) as server:
            edge = await server.edge()
            for how in (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP):
                (engine,) = engines()
                before = await server.metric("engine_restarts_total")
                os.kill(engine, signal.SIGSTOP)
                asked = asyncio.create_task(edge.say("count 2", 5))
                await server.until(lambda: at_least(server.metric("queue_depth"), 1))
                os.kill(engine, how)
                assert (await asked).refused.code == 502

                async def back(before: float = before) -> bool:
                    restarts = await server.metric("engine_restarts_total")
                    return restarts > before and await all_up(server, 1)

                await server.until(back)
                assert await server.metric("suspect_requests") == 1
            assert (await answered(edge, "count 2", 5)).answer.tokens == 2
            assert await server.metric("suspect_requests") == 0

    asyncio.run(scene())


def test_each_engine_has_a_gpu_of_its_own_or_its_share_of_the_threads(
    paths: dict[str, Any],
) -> None:
    on_gpu = {"engines": 3, "device": "cuda", "backend_device": "cuda"}
    each = settings_of_each(load(paths | on_gpu, environ={}))
    assert [(own.device, own.backend_device) for own in each] == [
        ("cuda:0", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("cuda:2", "cuda:2"),
    ]
    each = settings_of_each(load(paths | {"engines": 2, "threads": 3}, environ={}))
    assert [(own.device, own.threads) for own in each] == [("cpu", 3), ("cpu", 3)]
    (one,) = settings_of_each(load(paths | {"device": "cuda"}, environ={}))
    assert one.device == "cuda"
