"""Versions of bundles in a running front end: judge, offer, move, roll back, retire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.state import bundles
from cloud_server.state.location import open_store
from projector.bundle.keys import SigningKey
from projector.bundle.load import Bundle
from protos.errors import NonFiniteError, UnknownSessionError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from protos.refusals import error_in
from tests.cloud_server import stage
from tests.cloud_server.front_end import Running, running
from tests.cloud_server.frontend.shadowing.sending import held, parts, send
from tests.fakes.loop import on_loop

GOOD = ("0",) * 48
FAST = {"bundle_move_s": 0.0, "insecure": True, "open_port": 0, "api_port": 0, "drain_s": 30.0}


class Operator:
    """Types `cloud-server bundles`, as far as the database sees it."""

    def __init__(self, home: Path, database: str = "") -> None:
        self.home, self.store = home, open_store(database, home, create=True)

    def add(self, version: int, **fake: Any) -> str:
        """Add a version that only the fake engine has; returns its digest."""
        folder = self.home / f"v{version}"
        digest = stage.describe(folder, version, **fake)
        info = Bundle.peek(folder)
        with self.store.write("test") as tx:
            bundles.add(
                tx,
                digest=digest,
                bundle_id=info.id,
                version=version,
                source=info.source.fingerprint,
                path=str(folder),
            )
        return digest

    def act(self, verb: Callable[..., object], name: str, *given: object) -> None:
        with self.store.write("test") as tx:
            verb(tx, name, *given)

    def wanted(self) -> dict[int, str]:
        with self.store.read() as session:
            return {row.version: row.wanted for row in bundles.every(session)}

    def note(self, name: str) -> str:
        with self.store.read() as session:
            return bundles.find(session, name).note

    def states(self) -> dict[str, str]:
        with self.store.read() as session:
            return {one.digest: one.state for one in bundles.said(session, time.time())}


@asynccontextmanager
async def serving(
    paths: dict[str, Any], tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[Running, Operator]]:
    home = tmp_path / "home"
    home.mkdir()
    operator = Operator(home, settings.get("database", ""))
    async with running(paths, **(FAST | {"directory": home} | settings)) as server:
        yield server, operator
    operator.store.close()


async def until(holds: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not holds():
            await asyncio.sleep(0.02)

    await asyncio.wait_for(poll(), 60)


async def versions_of(server: Running) -> str:
    """The version that a new session gets."""
    edge = await server.edge()
    return str(edge.session.bundle_version)


@on_loop
async def test_a_good_version_takes_over_and_what_was_under_way_ends_on_the_old_one(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        edge = await server.edge()
        call = edge.open()
        held = edge.frame(seed=0, question="hold")
        await call.write(held)
        assert (await call.read()).HasField("accepted")
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        late = edge.frame(seed=5, question="count 1")
        await call.write(late)
        other = await server.edge()
        assert other.session.bundle_version == "2"
        assert (await other.say("release")).HasField("answer")
        events: list[pb.InferEvent] = []
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while (event := await call.read()) is not grpc.aio.EOF:
                events.append(event)
        assert isinstance(error_in(ended.value.trailing_metadata(), ""), UnknownSessionError)
        assert [e.request_id for e in events if e.HasField("answer")] == [held.request_id]
        assert not [e for e in events if e.request_id == late.request_id], "it was left unread"
        await edge.meet()
        assert edge.session.bundle_version == "2"
        assert (await edge.say("count 1", seed=5)).HasField("answer")
        assert operator.wanted() == {1: "replaced", 2: "active"}


@on_loop
async def test_a_version_whose_answers_differ_from_the_recorded_ones_is_refused_with_figures(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        digest = operator.add(2, canary=stage.canary(*("0",) * 40, *("other",) * 8))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.wanted()[2] == "rolled_back")
        assert operator.wanted()[1] == "active"
        assert "40 of 48 answers" in operator.note(digest) and "70.4% to 91.3%" in operator.note(
            digest
        )
        assert await versions_of(server) == "1"
        assert await server.metric("bundle_refusals_total") == 1


@pytest.mark.slow
@on_loop
async def test_without_a_canary_set_a_version_serves_only_if_the_operator_insists(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        digest = operator.add(2)
        operator.act(bundles.activate, digest)
        await until(lambda: operator.wanted()[2] == "rolled_back")
        assert "has no canary set" in operator.note(digest)
        with operator.store.write("test") as tx:
            bundles.activate(tx, digest, unjudged=True)
        await until(lambda: operator.states().get(digest) == "serving")
        assert await versions_of(server) == "2"


@on_loop
async def test_a_version_whose_folder_was_replaced_is_refused_and_nobody_loses_a_session(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        edge = await server.edge()
        digest = operator.add(2, canary=stage.canary(*GOOD))
        stage.describe(operator.home / "v2", version=3, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.wanted()[2] == "rolled_back")
        assert "replaced on disk" in operator.note(digest)
        assert (await edge.say("count 1")).HasField("answer")


@on_loop
async def test_a_version_that_refuses_frames_is_rolled_back_by_itself(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        edge = await server.edge()
        for seed in range(100):
            assert (await edge.say("count 1", seed=seed)).HasField("answer")
        digest = operator.add(2, canary=stage.canary(*GOOD), refuses=True)
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        refused = 0
        for seed in range(100):
            try:
                last = await edge.say("count 1", seed=1000 + seed)
            except grpc.aio.AioRpcError:
                await edge.meet()
                continue
            if last.HasField("refused") and last.refused.code == NonFiniteError.code:
                refused += 1
            elif edge.session.bundle_version == "1" and refused:
                break
        await until(lambda: operator.wanted() == {1: "active", 2: "rolled_back"})
        assert "refused: " in operator.note(digest) and "0.0% on the old one" in operator.note(
            digest
        )
        assert await server.metric("bundle_rollbacks_total") == 1
        await until(lambda: operator.states().get(digest) in ("gone", "retiring"))
        assert await versions_of(server) == "1"


@on_loop
async def test_a_version_whose_answers_differ_from_the_pictures_is_rolled_back_by_itself(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path, shadow_questions=1) as (server, operator):
        edge = await server.edge()
        (number,) = await held(edge, "count 1")
        assert await send(server, parts(edge, number, b"0") * 40) == 40
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        while edge.session.bundle_version != "2":
            await edge.meet()
        (number,) = await held(edge, "count 1")
        for _ in range(100):
            if await send(server, parts(edge, number, b"1")) != 1:
                break  # the session is moved already
        await until(lambda: operator.wanted() == {1: "active", 2: "rolled_back"})
        assert "disagreed: " in operator.note(digest)


@pytest.mark.slow
@on_loop
async def test_a_version_retires_when_nothing_refers_to_it_and_comes_back_at_a_rollback(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path, bundle_scenes_s=0.0) as (server, operator):
        old = Bundle.peek(paths["bundles"][0]).digest
        edge = await server.edge()
        assert (await edge.say("count 1")).HasField("answer")
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(old) == "gone")
        assert await versions_of(server) == "2"
        operator.act(bundles.rollback, digest)
        await until(lambda: operator.states().get(digest) == "gone")
        assert await versions_of(server) == "1"


@on_loop
async def test_every_engine_has_every_version_also_one_that_began_anew(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path, engines=2) as (server, operator):
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        edge = await server.edge()
        assert (await edge.say("die")).HasField("refused")
        for seed in range(40):
            assert (await edge.say("count 1", seed=seed + 1)).HasField("answer")


@pytest.mark.slow
@on_loop
async def test_an_engine_that_cannot_load_a_version_again_stays_out_while_the_other_serves_it(
    paths: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(paths, tmp_path, engines=2) as (server, operator):
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
        edge = await server.edge()
        stage.describe(operator.home / "v2", 3)
        assert (await edge.say("die")).HasField("refused")
        names = [f'engine_ready{{engine="{index}"}}' for index in (0, 1)]

        async def ready(count: int) -> bool:
            return sum([await server.metric(name) for name in names]) == count

        async def tried() -> bool:
            return "cannot be loaded again" in capfd.readouterr().err

        await server.until(tried)
        for seed in range(1, 20):
            assert (await edge.say("count 1", seed=seed)).HasField("answer")
        assert await versions_of(server) == "2" and operator.states()[digest] == "serving"
        assert await ready(1)
        stage.describe(operator.home / "v2", 2, canary=stage.canary(*GOOD))
        await server.until(partial(ready, 2))
        assert await versions_of(server) == "2" and operator.states()[digest] == "serving"


@on_loop
async def test_without_a_directory_a_replaced_bundle_is_noticed_and_taken_up_by_sighup(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with running(paths, bundle_move_s=0.0) as server:
        assert await versions_of(server) == "1"
        stage.describe(tmp_path, version=2, canary=stage.canary(*GOOD))
        assert await versions_of(server) == "1"
        server.service.reload()

        async def taken_up() -> bool:
            return await versions_of(server) == "2"

        await server.until(taken_up)
        stage.describe(tmp_path, version=3, canary=stage.canary(*("other",) * 48))
        server.service.reload()

        async def refused() -> bool:
            return await server.metric("bundle_refusals_total") == 1

        await server.until(refused)
        assert await versions_of(server) == "2"


@on_loop
async def test_a_changed_setting_of_trusted_keys_decides_about_the_next_version(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(paths, tmp_path) as (server, operator):
        trusted = tmp_path / "trusted.toml"
        trusted.write_text(f'[keys]\n"me" = "{SigningKey.create(tmp_path / "key.pem").public}"\n')
        (operator.home / "settings.toml").write_text(f'trusted_keys = "{trusted}"\n')
        server.service.reload()
        digest = operator.add(2, canary=stage.canary(*GOOD))
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "refused")
        assert await versions_of(server) == "1", "what serves goes on"
        (operator.home / "settings.toml").write_text("")
        server.service.reload()
        operator.act(bundles.activate, digest)
        await until(lambda: operator.states().get(digest) == "serving")
