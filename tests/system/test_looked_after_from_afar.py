"""An agent process takes the orders of a real front end: from the order to its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cloud_server.state import device_reports, devices, orders
from cloud_server.state.orders import DeviceOrder
from edge_agent.settings import PREFIX
from protos.neuralbridge.v1 import bridge_pb2 as pb
from tests.cloud_server.conftest import paths  # noqa: F401
from tests.cloud_server.secured import Premises, secured
from tests.fakes.loop import on_loop

pytestmark = pytest.mark.slow

AGENT = """
import sys
from edge_agent import assemble, cli
from edge_agent.prefill import Sight
from tests.cloud_server import stage
from tests.fakes.fake_edge import FakeModel
class Model(FakeModel):
    def __init__(self):
        super().__init__()
        self.layout = stage.SOURCE
    def see(self, seen):
        return Sight(stage.state(1), lambda question, limit: "edge")
assemble.load = lambda *_: Model()
sys.exit(cli.main(sys.argv[1:]))
"""


async def command(folder: Path, *arguments: str) -> Any:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name != "NOTIFY_SOCKET"
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, *arguments, "--state-dir", "state",
        cwd=folder,
        env=environ | {"PYTHONPATH": os.getcwd()},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=(folder / "said.txt").open("a"),
    )  # fmt: skip


def begin(folder: Path) -> Any:
    return command(
        folder, "run", "--model", "model", "--source", "folder://pictures?watch=1",
        "--question", "count 2", "--output", "out.jsonl",
    )  # fmt: skip


async def ended(premises: Premises, given: DeviceOrder) -> DeviceOrder:
    """An order once it has ended."""

    async def look() -> DeviceOrder:
        while True:
            with premises.store.read() as session:
                found = orders.of(session, "acme", "gate-3", time.time())
            one = next(one for one in found if one.id == given.id)
            if one.ended_s is not None:
                return one
            await asyncio.sleep(0.05)

    return await asyncio.wait_for(look(), 120)


def give(premises: Premises, order: pb.Order) -> DeviceOrder:
    with premises.store.write("cli:test", quiet=True) as tx:
        return orders.give(tx, "acme", "gate-3", order)


@on_loop
async def test_an_agent_is_configured_restarted_read_and_heard_after_a_crash(
    paths: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "device"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "pictures").mkdir()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "pictures" / "first.png")
    async with secured(paths, tmp_path / "svc") as it:
        code = str(it.premises.code())
        open_port = f"127.0.0.1:{it.ports['open_port']}"
        enrolled = await command(folder, "enrol", "--server", open_port, "--code", code)
        assert await enrolled.wait() == 0, (folder / "said.txt").read_text()
        with it.premises.store.write("cli:test", quiet=True) as tx:  # before it ever connects
            values = {"linger_ms": 100, "mask": "gate=0,0 1,0 1,1"}
            # As a service would that does not know better; the device has the last word.
            configured = orders.give(
                tx, "acme", "gate-3",
                pb.Order(configure=pb.Configure(revision=1, settings_json=json.dumps(values))),
            )  # fmt: skip
        agent = await begin(folder)
        try:
            one = await ended(it.premises, configured)
            assert one.state == "refused" and "mask" in one.cause and "linger_ms" in one.cause
            with it.premises.store.read() as session:
                stands = device_reports.standing(session, "acme", "gate-3")
            assert stands is not None and (stands.revision, stands.tried) == (1, 1)
            assert {one["kind"] for one in stands.running} == {"agent", "model", "bundle"}
            restarted = await ended(it.premises, give(it.premises, pb.Order(restart=pb.Restart())))
            assert (restarted.state, restarted.cause) == ("done", "the agent started again")
            fetched = give(it.premises, pb.Order(send_logs=pb.SendLogs(lines=500)))
            assert (await ended(it.premises, fetched)).state == "done"
            with it.premises.store.read() as session:
                device = devices.find(session, "acme", "gate-3").id
                lines = device_reports.log_of(session, device, fetched.id)
            events = [json.loads(line).get("event") for line in lines]
            assert "attended" in events and "order" in events
            assert agent.returncode is None, "the same process, started anew"
            agent.send_signal(signal.SIGKILL)
            await agent.wait()
            agent = await begin(folder)

            async def reported() -> str:
                while True:
                    with it.premises.store.read() as session:
                        found = device_reports.of(session, "acme", "gate-3")
                    if crashes := [one.kind for one in found if one.kind != "log"]:
                        return crashes[0]
                    await asyncio.sleep(0.05)

            assert await asyncio.wait_for(reported(), 120) == "killed"
            agent.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(agent.wait(), 120) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                agent.kill()
            await agent.wait()
