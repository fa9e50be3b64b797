"""A running service while its database is gone, locked, or restored."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_server.cli import main
from cloud_server.state import connect, devices, quotas
from protos.errors import StateError, UnauthenticatedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.secured import Secured, asked, secured


async def _until(good: Callable[[], Awaitable[bool]]) -> None:
    end_s = time.monotonic() + 60
    while not await good():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


async def _stale_s(service: Secured, key: str) -> float:
    status, page = await service.page("/metrics", key)
    assert status == 200, page
    found = re.search(r"^neural_bridge_cloud_directory_stale_seconds (\S+)$", page, re.M)
    assert found is not None
    return float(found[1])


def test_a_service_whose_database_is_gone_answers_who_it_knew_and_recovers_by_itself(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async def scene() -> None:
        async with secured(paths, tmp_path / "service") as service:
            premises = service.premises
            key = premises.operator()
            device = await service.enrol(premises.code())
            await service.settled()
            code = premises.code("gate-4")
            database = premises.directory / "state.db"
            database.rename(tmp_path / "away")
            edge = await service.edge(device)
            assert (await edge.say("count 2")).answer.text == "0 1"

            async def stale() -> bool:
                return await _stale_s(service, key) > 1.5

            await _until(stale)
            with pytest.raises(StateError):
                await service.enrol(code)
            (tmp_path / "away").rename(database)
            await service.enrol(code)  # the code was not used up

            async def fresh() -> bool:
                return await _stale_s(service, key) < 1.5

            await _until(fresh)
            with premises.store.write("test") as tx:
                devices.disable(tx, "acme", "gate-3")
            await service.settled()
            with pytest.raises(UnauthenticatedError):
                await asked(service.stub(device).Negotiate(pb.NegotiateRequest(), timeout=60))

    asyncio.run(scene())


def test_a_locked_database_holds_up_no_answer(
    paths: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "LOCK_WAIT_S", 1.0)

    async def scene() -> None:
        async with secured(paths, tmp_path / "service") as service:
            premises = service.premises
            device = await service.enrol(premises.code())
            code = premises.code("gate-4")
            edge = await service.edge(device)
            lock = sqlite3.connect(premises.directory / "state.db", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            enrolling = asyncio.create_task(service.enrol(code))
            for number in range(2, 6):
                said = " ".join(map(str, range(number)))
                assert (await edge.say(f"count {number}")).answer.text == said
            with pytest.raises(StateError, match="another process"):
                await enrolling
            lock.execute("ROLLBACK")
            lock.close()
            await service.enrol(code)

    asyncio.run(scene())


def test_a_running_service_follows_a_restore(paths: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery")
    backup = str(tmp_path / "state.nb")
    where = ["--directory", str(tmp_path / "service")]
    flags = ["--passphrase-file", str(tmp_path / "passphrase"), *where]

    async def command(*arguments: str) -> None:
        assert await asyncio.to_thread(main, arguments) == 0

    async def scene() -> None:
        async with secured(paths, tmp_path / "service") as service:
            premises = service.premises
            kept = await service.enrol(premises.code())
            lost = await service.enrol(premises.code("gate-4"))
            await command("backup", backup, *flags)
            with premises.store.write("test") as tx:
                devices.remove(tx, "acme", "gate-4")
                quotas.change(tx, "acme", "gate-3", {"scenes": 7})
            late = await service.enrol(premises.code("gate-5"))
            await service.settled()
            await service.edge(late)
            await command("restore", backup, "--force", *flags)
            await service.settled()
            edge = await service.edge(kept)
            assert (await edge.say("count 2")).answer.text == "0 1"
            for out in (lost, late):
                with pytest.raises(UnauthenticatedError):
                    await asked(service.stub(out).Negotiate(pb.NegotiateRequest(), timeout=60))

    asyncio.run(scene())
