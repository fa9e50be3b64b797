"""Versions of bundles while the database, an engine or the front end fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from cloud_server.frontend import service
from cloud_server.state import bundles
from projector.bundle.load import Bundle
from tests.cloud_server import stage
from tests.cloud_server.front_end import Running, running
from tests.cloud_server.frontend.versions.test_rollout import (
    FAST,
    GOOD,
    Operator,
    serving,
    until,
    versions_of,
)
from tests.cloud_server.nest import engines
from tests.cloud_server.state import postgresql
from tests.fakes.loop import on_loop


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, engines answer nothing."""
    silence = tmp_path / "silence"
    monkeypatch.setenv("FAKE_ENGINE_SILENT_IF", str(silence))
    return silence


@contextmanager
def unwritable(operator: Operator) -> Iterator[None]:
    """No version can be changed while the block runs, as on a full disk."""
    with operator.store.write("test") as tx:
        tx.session.execute(
            text(
                "CREATE TRIGGER full BEFORE UPDATE ON bundle_versions "
                "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
            )
        )
    yield
    with operator.store.write("test") as tx:
        tx.session.execute(text("DROP TRIGGER full"))


@pytest.mark.quick(1)
@pytest.mark.parametrize("good", [True, False])
@on_loop
async def test_a_version_that_was_not_judged_when_the_service_was_killed_is_judged_after_the_start(
    paths: dict[str, Any], tmp_path: Path, good: bool
) -> None:
    """The state that a kill -9 in mid-judgement leaves: wanted for all, never served."""
    async with serving(paths, tmp_path) as (server, operator):
        await until(lambda: "serving" in operator.states().values())
    operator = Operator(tmp_path / "home")
    digest = operator.add(2, canary=stage.canary(*GOOD))
    operator.act(bundles.activate, digest)
    if not good:
        shutil.rmtree(operator.home / "v2")
    async with running(paths, **(FAST | {"directory": operator.home})) as server:
        assert await versions_of(server) in ("1", "2") if good else "1"
        await until(lambda: operator.states().get(digest) == ("serving" if good else "refused"))
        assert await versions_of(server) == ("2" if good else "1")
        assert operator.wanted()[2] == ("active" if good else "rolled_back")
    if good:  # known to work: the next start begins with it and does not need the first
        operator.act(bundles.retire, Bundle.peek(paths["bundles"][0]).digest)
        async with running(paths, **(FAST | {"directory": operator.home})) as server:
            assert await versions_of(server) == "2"
    operator.store.close()


@on_loop
async def test_a_refused_version_is_rolled_back_once_the_database_can_be_written_again(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        edge = await server.edge()
        digest = operator.add(2, canary=stage.canary(*("other",) * 48))
        operator.act(bundles.activate, digest)
        with unwritable(operator):

            async def refused() -> bool:
                return await server.metric("bundle_refusals_total") == 1

            await server.until(refused)
            assert (await edge.say("count 1")).HasField("answer")
            assert operator.wanted()[2] == "active"
        await until(lambda: operator.wanted() == {1: "active", 2: "rolled_back"})
        assert "0 of 48 answers" in operator.note(digest)
        assert await server.metric("bundle_refusals_total") == 1


@pytest.mark.slow
@on_loop
async def test_a_worse_version_serves_nobody_although_the_database_cannot_be_written(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        edge = await server.edge()
        for seed in range(100):
            assert (await edge.say("count 1", seed=seed)).HasField("answer")
        digest = operator.add(2, canary=stage.canary(*GOOD), refuses=True)
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        with unwritable(operator):
            edge = await server.edge()
            assert edge.session.bundle_version == "2"
            for seed in range(60):
                try:
                    await edge.say("count 1", seed=1000 + seed)
                except grpc.aio.AioRpcError:
                    break  # it is asked to move already

            async def rolled_back() -> bool:
                return await server.metric("bundle_rollbacks_total") == 1

            await server.until(rolled_back)
            assert operator.wanted()[2] == "active"

            async def old() -> bool:
                return await versions_of(server) == "1"

            await server.until(old)
        await until(lambda: operator.wanted() == {1: "active", 2: "rolled_back"})
        assert await server.metric("bundle_rollbacks_total") == 1


@on_loop
async def test_a_rollout_goes_on_while_the_database_is_gone(
    paths: dict[str, Any], tmp_path: Path, quiet: Path
) -> None:
    async with serving(paths, tmp_path, canary_timeout_s=30.0) as (server, operator):
        edge = await server.edge()
        digest = operator.add(2, canary=stage.canary(*GOOD[:12]))
        with operator.store.write("test") as tx:
            bundles.activate(tx, digest, unjudged=True)
        await until(lambda: operator.states().get(digest) in ("loading", "serving"))
        file, away = operator.home / "state.db", operator.home / "away.db"
        file.rename(away)

        async def new() -> bool:
            return await versions_of(server) == "2"

        await server.until(new)
        await edge.meet()
        assert (await edge.say("count 1")).HasField("answer")
        away.rename(file)
        await until(lambda: operator.states().get(digest) == "serving")


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGSTOP, signal.SIGKILL])
@on_loop
async def test_an_engine_that_stops_or_dies_while_it_judges_is_replaced_and_the_version_judged(
    paths: dict[str, Any], tmp_path: Path, quiet: Path, kill: signal.Signals
) -> None:
    async with serving(
        paths, tmp_path, heartbeat_timeout_s=0.5, canary_timeout_s=60.0, canary_s=0.0
    ) as (server, operator):
        edge = await server.edge()
        assert (await edge.say("count 1")).HasField("answer")
        quiet.touch()
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "judging")
        (before,) = engines()
        quiet.unlink()
        os.kill(before, kill)
        await until(lambda: operator.states().get(digest) == "serving")
        assert operator.wanted() == {1: "replaced", 2: "active"} and before not in engines()
        assert await versions_of(server) == "2"


@pytest.mark.slow
@on_loop
async def test_a_version_that_makes_engines_leak_while_it_is_judged_is_refused_in_the_end(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path, engine_memory_bytes=300 << 20, canary_timeout_s=60.0) as (
        server,
        operator,
    ):
        digest = operator.add(2, canary=stage.canary(*GOOD, question="leak"))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.wanted()[2] == "rolled_back")
        assert await server.metric("bundle_refusals_total") == 1

        async def answered() -> bool:
            try:
                edge = await server.edge()
                return (await edge.say("count 1")).HasField("answer")
            except grpc.aio.AioRpcError:
                return False

        await server.until(answered)
        assert await versions_of(server) == "1"


@pytest.mark.slow
@on_loop
async def test_a_version_for_a_share_of_devices_is_offered_again_after_a_start(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest, 0.5)
        await until(lambda: operator.states().get(digest) == "serving")
    operator = Operator(tmp_path / "home")
    async with running(paths, **(FAST | {"directory": operator.home})) as server:
        assert await versions_of(server) == "1" or operator.states().get(digest) == "serving"
        await until(lambda: operator.states().get(digest) == "serving")
        assert operator.wanted() == {1: "active", 2: "offered"}
        operator.act(bundles.retire, digest)
        await until(lambda: operator.states().get(digest) in ("retiring", "gone"))
        assert await versions_of(server) == "1"
    async with running(paths, **(FAST | {"directory": operator.home})) as server:
        assert await versions_of(server) == "1"
        assert digest not in operator.states()
    operator.store.close()


@pytest.mark.quick(1)
@pytest.mark.parametrize("state", ["offered", "retiring"])
@on_loop
async def test_an_engine_that_stops_beside_two_versions_comes_back_with_those_that_are_needed(
    paths: dict[str, Any], tmp_path: Path, state: str
) -> None:
    async with serving(paths, tmp_path, heartbeat_timeout_s=0.5) as (server, operator):
        edge = await server.edge()
        call = edge.open()
        await call.write(edge.frame(seed=0, question="count 1"))
        while not (await call.read()).HasField("answer"):
            pass
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest, 0.5 if state == "offered" else 1.0)
        await until(lambda: operator.states().get(digest) == "serving")
        (before,) = engines()
        os.kill(before, signal.SIGSTOP)

        async def replaced() -> bool:
            return before not in engines() and await server.metric("engine_up") >= 0

        await server.until(replaced)
        for seed in range(1, 9):

            async def answered(seed: int = seed) -> bool:
                try:
                    edge = await server.edge()
                    return (await edge.say("count 1", seed=seed)).HasField("answer")
                except grpc.aio.AioRpcError:
                    return False

            await server.until(answered)
        assert operator.wanted()[2] == ("offered" if state == "offered" else "active")
        call.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@on_loop
async def test_two_front_ends_on_one_database_roll_a_version_out_and_back(
    paths: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names = iter(("one", "other"))
    monkeypatch.setattr(service, "front_end_name", lambda: next(names))
    with contextlib.ExitStack() as stack:
        more: dict[str, Any] = {}
        if kind == "postgresql":
            programs = postgresql.binaries()
            if programs is None:
                pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
            more["database"] = stack.enter_context(postgresql.running(programs)).create()
        async with (
            serving(paths, tmp_path, **more) as (one, operator),
            running(paths, **(FAST | {"directory": operator.home} | more)) as other,
        ):
            both = one, other

            async def serve(version: str) -> None:
                for server in both:

                    async def there(server: Running = server) -> bool:
                        return await versions_of(server) == version

                    await server.until(there)

            await serve("1")
            good = operator.add(2, canary=stage.canary(*GOOD))
            operator.act(bundles.activate, good)
            await serve("2")
            bad = operator.add(3, canary=stage.canary(*GOOD), answer="other")
            operator.act(bundles.activate, bad)
            await until(lambda: operator.wanted() == {1: "replaced", 2: "active", 3: "rolled_back"})
            await serve("2")
            operator.act(bundles.rollback, good)
            await serve("1")
            with operator.store.read() as session:
                said = bundles.said(session, time.time())
            assert {report.front_end for report in said} == {"one", "other"}
