"""Two front ends on one PostgreSQL and one authority: both accept and refuse the same callers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_server.cli import main
from cloud_server.state import devices
from protos.errors import ConflictError, EnrolmentError, UnauthenticatedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import Premises, asked, serving
from tests.cloud_server.state import postgresql
from tests.fakes.loop import on_loop


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgresql.Postgres]:
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        yield server


@on_loop
async def test_a_device_of_one_front_end_is_known_by_the_other(
    paths: dict[str, Any], tmp_path: Path, postgres: postgresql.Postgres
) -> None:
    premises = Premises(tmp_path / "svc", postgres.create())
    async with serving(paths, premises) as one, serving(paths, premises) as other:
        device = await one.enrol(premises.code())
        await other.settled()
        edge = await other.edge(device)
        assert (await edge.say("count 2")).answer.text == "0 1"

        code = premises.code("gate-4")
        tries = [server.enrol(code) for server in (one, other) for _ in range(5)]
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(end, Device) for end in ends) == 1, ends
        assert sum(isinstance(end, EnrolmentError) for end in ends) == 9, ends

        with premises.store.write("test") as tx:
            devices.disable(tx, "acme", "gate-3")
        for server in (one, other):
            await server.settled()
            with pytest.raises(UnauthenticatedError):
                await asked(server.stub(device).Negotiate(pb.NegotiateRequest()))
    premises.store.close()


@pytest.mark.slow
@on_loop
async def test_a_second_machine_joins_with_a_copy_of_the_directory_and_not_with_init(
    paths: dict[str, Any],
    tmp_path: Path,
    postgres: postgresql.Postgres,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = tmp_path / "a"
    premises, copy = Premises(first, postgres.create()), tmp_path / "b"
    again = ["init", str(copy), "--database", premises.database]
    assert main(again) == ConflictError.exit_code
    told = capsys.readouterr().err
    assert "2 tenants" in told and "copy that directory" in told and not list(copy.iterdir())
    premises.code("gate-9")
    shutil.copytree(first, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("root-key.pem"))
    names = ["--name", "b.example", "--name", "127.0.0.1"]
    assert main(["authority", "server-certificate", "--directory", str(copy), *names]) == 0
    beside = Premises(copy, premises.database, made=True)
    async with serving(paths, premises) as one, serving(paths, beside) as other:
        device = await other.enrol(premises.code())
        await one.settled()
        for server in (one, other):
            assert (await (await server.edge(device)).say("count 2")).answer.text == "0 1"
        with premises.store.write("test") as tx:
            devices.revoke(tx, "acme", "gate-3")
        for server in (one, other):
            await server.settled()
            with pytest.raises(UnauthenticatedError):
                await asked(server.stub(device).Negotiate(pb.NegotiateRequest()))
    shutil.rmtree(copy)
    assert main([*again, "--new-authority"]) == 0, "when it is wanted"
    premises.store.close()
    beside.store.close()
