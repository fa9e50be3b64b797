"""Two front ends on one PostgreSQL and one authority: both accept and refuse the same callers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_server.state import devices
from protos.errors import EnrolmentError, UnauthenticatedError
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.identity.pki import Device
from tests.cloud_server.secured import Premises, asked, serving
from tests.cloud_server.state import postgresql
from tests.fakes.loop import on_loop


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL is installed (Debian: apt-get install postgresql)")
    with postgresql.running(programs) as server:
        yield server.create()


@on_loop
async def test_a_device_of_one_front_end_is_known_by_the_other(
    paths: dict[str, Any], tmp_path: Path, database: str
) -> None:
    premises = Premises(tmp_path / "svc", database)
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
