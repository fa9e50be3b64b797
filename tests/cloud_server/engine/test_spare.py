"""An engine that dies is replaced by a fork of the spare, which loaded everything once."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_server.engine import supervisor
from cloud_server.engine.spawn import FromSpare
from tests.cloud_server import stage
from tests.cloud_server.conftest import Files
from tests.cloud_server.front_end import Running, running
from tests.cloud_server.processes import alive, children, spare_of
from tests.fakes.loop import until


async def _died_and_back(server: Running, restarts: int) -> None:
    edge = await server.edge()
    last = await edge.say("die", seed=restarts)
    assert last.refused.retryable and last.refused.code == 502

    async def back() -> bool:
        return (
            await server.metric("engine_restarts_total") == restarts
            and (await server.get("/readyz"))[0] == 200
        )

    await server.until(back)
    assert (await edge.say("count 2", seed=100 + restarts)).answer.text == "0 1"


def test_engines_that_die_are_replaced_by_the_same_spare(paths: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running(paths, spare=True) as server:
            spare = spare_of(os.getpid())
            engines = {*children(spare)}
            for restarts in (1, 2, 3):
                await _died_and_back(server, restarts)
                assert spare_of(os.getpid()) == spare, "the spare was started again"
                (engine,) = children(spare)
                assert engine not in engines
                engines.add(engine)
        assert not alive(spare) and not any(map(alive, engines))

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_spare_that_is_killed_takes_its_engine_along_and_both_come_back(
    paths: dict[str, Any],
) -> None:
    async def scenario() -> None:
        async with running(paths, spare=True) as server:
            spare = spare_of(os.getpid())
            (engine,) = children(spare)
            os.kill(spare, signal.SIGKILL)

            async def back() -> bool:
                return (
                    await server.metric("engine_restarts_total") == 1
                    and (await server.get("/readyz"))[0] == 200
                )

            await server.until(back)
            assert not alive(engine)
            edge = await server.edge()
            assert (await edge.say("count 3")).answer.text == "0 1 2"
            assert spare_of(os.getpid()) != spare

    asyncio.run(scenario())


@pytest.fixture
def first_process() -> Iterator[None]:
    """This process inherits orphans, as the first one of a container does."""
    libc, subreaper = ctypes.CDLL(None), 36
    libc.prctl(subreaper, 1, 0, 0, 0)
    yield
    libc.prctl(subreaper, 0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are inherited so on Linux")
@pytest.mark.usefixtures("first_process")
def test_no_engine_is_left_as_a_zombie_where_the_service_is_a_containers_first_process(
    paths: dict[str, Any],
) -> None:
    async def scenario() -> None:
        async with running(paths, spare=True) as server:
            spare = spare_of(os.getpid())
            (engine,) = children(spare)
            os.kill(spare, signal.SIGKILL)

            async def back() -> bool:
                return await server.metric("engine_restarts_total") == 1

            await server.until(back)
            assert engine not in children(os.getpid())

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_spare_that_stands_still_when_its_engine_dies_is_replaced(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never says that the engine ended: the service waited for that for ever."""
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.2)

    async def scenario() -> None:
        async with running(paths, spare=True, heartbeat_timeout_s=1.0) as server:
            spare = spare_of(os.getpid())
            (engine,) = children(spare)
            os.kill(spare, signal.SIGSTOP)
            os.kill(engine, signal.SIGKILL)

            async def back() -> bool:
                return (
                    await server.metric("engine_restarts_total") == 1
                    and (await server.get("/readyz"))[0] == 200
                )

            await server.until(back)
            assert spare_of(os.getpid()) != spare and not alive(spare)
            edge = await server.edge()
            assert (await edge.say("count 3")).answer.text == "0 1 2"

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_service_ends_though_its_spare_stands_still_and_its_engine_is_dead(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.2)

    async def scenario() -> None:
        async with running(paths, spare=True):
            spare = spare_of(os.getpid())
            (engine,) = children(spare)
            os.kill(spare, signal.SIGSTOP)
            os.kill(engine, signal.SIGKILL)
        assert not alive(spare)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_spare_that_owes_an_engine_and_says_nothing_is_ended() -> None:
    async def scenario() -> None:
        spawn = FromSpare((sys.executable, "-c", "input(); input()"), silent_s=0.2)
        engine = await spawn("one")
        assert await engine.wait() == -signal.SIGKILL
        await spawn.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_what_else_is_printed_by_a_spare_is_no_word_of_an_engine() -> None:
    said = 'print("loaded!\\n7\\n{\\"started\\": 5}\\n{\\"ended\\": 5, \\"status\\": 3}")'

    async def scenario() -> None:
        spawn = FromSpare((sys.executable, "-c", said + "; input(); input()"))
        engine = await spawn("one")
        assert await engine.wait() == 3 and engine.pid == 5
        await spawn.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.slow
def test_a_spare_that_loads_says_that_it_is_there() -> None:
    code = (
        "import threading\n"
        "from cloud_server.engine.spare import keep\n"
        "keep(lambda: threading.Event().wait(), lambda identity: 0)\n"
    )
    spare = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert spare.stdout is not None
        for _ in range(2):
            assert json.loads(spare.stdout.readline()) == {"waiting": spare.pid}
    finally:
        spare.kill()
        spare.communicate()


@pytest.mark.slow
def test_without_a_spare_the_next_engine_is_a_new_process(paths: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with running(paths, spare=False) as server:
            assert not [c for c in children(os.getpid()).values() if "--spare" in c]
            await _died_and_back(server, 1)

    asyncio.run(scenario())


@pytest.mark.slow
def test_an_engine_that_was_never_ready_ends_its_spare_too(
    paths: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the spare holds may be what is wrong: the next engine is made from a new one."""
    count = tmp_path / "starts"
    monkeypatch.setenv("FAKE_ENGINE_STARTS", str(count))
    monkeypatch.setenv("FAKE_ENGINE_FAILS", "once")

    async def scenario() -> None:
        async with running(paths, spare=True) as server:
            assert (await server.get("/readyz"))[0] == 200
            spares = [int(line.split()[1]) for line in count.read_text().splitlines()]
            assert len(spares) == 2 and len(set(spares)) == 2

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_real_engine_killed_under_load_is_replaced_by_the_spare_and_answers_as_before(
    files: Files,
) -> None:
    with stage.running_server(files.model, [files.bundle]) as server, server.channel() as channel:
        client = stage.Client(channel)
        client.negotiate()
        expected = client.answer(client.frame(seed=1, number=1)).text
        spare = spare_of(server.process.pid)
        for turn in range(2):
            (engine,) = children(spare)
            frames = [client.frame(seed=s, number=1000 * turn + s) for s in range(10, 26)]
            os.kill(engine, signal.SIGSTOP)  # or it might have answered everything before
            call = channel.stream_stream("/neuralbridge.v1.Bridge/Infer")(
                iter([frame.SerializeToString() for frame in frames]),
                metadata=client.metadata,
                timeout=120,
            )
            os.kill(engine, signal.SIGKILL)
            events = [stage.pb.InferEvent.FromString(raw) for raw in call]
            ended = {e.request_id for e in events if e.HasField("answer")} | {
                e.request_id for e in events if e.HasField("refused") and e.refused.retryable
            }
            assert ended == {frame.request_id for frame in frames}
            until(lambda engine=engine: [*children(spare)] not in ([], [engine]))  # type: ignore[misc]
            answer = ""
            for attempt in range(1200):
                last = client.infer(client.frame(seed=1, number=5000 * (turn + 1) + attempt))[-1]
                if last.HasField("answer"):
                    answer = last.answer.text
                    break
                assert last.refused.retryable
                threading.Event().wait(0.05)
            assert answer == expected
            assert spare_of(server.process.pid) == spare
        said = [json.loads(line) for line in list(server.log) if line.startswith("{")]
        chosen = [line for line in said if line["event"] == "threads"]
        assert len(chosen) == 3, "what a fork logs is lost"
        assert {line["threads"] for line in chosen} == {1}


@pytest.mark.slow
def test_nobody_outlives_a_front_end_that_is_killed(files: Files) -> None:
    with stage.running_server(files.model, [files.bundle]) as server:
        spare = spare_of(server.process.pid)
        (engine,) = children(spare)
        server.process.kill()
        until(lambda: not alive(spare) and not alive(engine))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_fork_can_compute_on_many_threads_after_the_spare_has() -> None:
    """OpenMP's threads do not survive a fork: a fork that waits for them waits for ever."""
    code = (
        "import sys, torch\n"
        "from cloud_server.engine.spare import keep\n"
        "def work():\n"
        "    torch.set_num_threads(3)\n"
        "    a = torch.ones(400, 400)\n"
        "    return float((a @ a).exp().log1p().sum()) + float(torch.randn(4_000_000).sum()) * 0\n"
        "def live(identity):\n"
        "    return 7 if work() == work() and identity == 'one' else 1\n"
        "sys.exit(keep(lambda: work() and None, live))\n"
    )
    spare = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    try:
        assert spare.stdin is not None and spare.stdout is not None
        spare.stdin.write(b"one\n")
        spare.stdin.flush()
        said = (line for line in map(json.loads, spare.stdout) if "waiting" not in line)
        started, ended = next(said), next(said)
        assert ended == {"ended": started["started"], "status": 7}
        spare.stdin.close()
        assert spare.wait(30) == 0
    finally:
        spare.kill()
        spare.wait()
