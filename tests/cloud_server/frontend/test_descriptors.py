"""File descriptors: how many connections fit, and what is kept in reserve."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_server.frontend import descriptors
from protos.errors import ConfigError
from tests.cloud_server.front_end import Edge


def test_more_connections_than_the_limit_of_open_files_lets_are_refused_at_start() -> None:
    assert descriptors.connections(1024, 40, 64, 0) == 1024 - 40 - 64 - descriptors.RESERVE
    assert descriptors.connections(1024, 40, 64, 800) == 800
    with pytest.raises(ConfigError, match=r"5000 gRPC .* need 5168 .* the limit is 1024"):
        descriptors.connections(1024, 40, 64, 5000)
    with pytest.raises(ConfigError, match="the limit is 64"):
        descriptors.connections(64, 20, 64, 0)


def test_the_reserve_is_free_within_its_block_and_held_again_after_it() -> None:
    before = descriptors.open_now()
    reserve = descriptors.Reserve(8)
    assert descriptors.open_now() == before + 8
    with reserve.lent():
        assert descriptors.open_now() == before
    assert descriptors.open_now() == before + 8
    reserve.close()
    assert descriptors.open_now() == before


_TIGHT = """
import asyncio, json, resource, sys
from functools import partial
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {limit}))
from cloud_server.frontend.service import Service
from cloud_server.settings import load
from cloud_server.engine.spawn import spawn_engine
from tests.cloud_server.front_end import FAST
settings = load({settings!r} | FAST | {{"log_level": "info"}}, environ={{}})
service = Service(
    settings,
    lambda line: print(line, flush=True),
    partial(spawn_engine, module="tests.cloud_server.fake_engine"),
)
async def run():
    import signal
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
    await service.run()
asyncio.run(run())
"""


@pytest.mark.slow
def test_without_descriptors_left_for_strangers_a_dead_engine_is_started_again(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    limit, flood = 256, 300
    settings = {"model": str(paths["model"]), "bundles": [str(paths["model"])]}
    code = _TIGHT.format(limit=limit, settings=settings)
    log = tmp_path / "log"

    async def scene(port: int, metrics_port: int) -> None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        edge = Edge(channel)
        await edge.meet()
        held = []
        for _ in range(flood):
            held.append(await asyncio.open_connection("127.0.0.1", port))
            held.append(await asyncio.open_connection("127.0.0.1", metrics_port))
        assert (await edge.say("die")).refused.code == 502

        async def back() -> None:
            while not (await edge.say("count 1")).HasField("answer"):
                await asyncio.sleep(0.01)

        await asyncio.wait_for(back(), 120)
        for _, writer in held:
            writer.close()
        await channel.close()

    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=stderr)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        ready = json.loads(line)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == limit, "not raised"
        asyncio.run(scene(ready["port"], ready["metrics_port"]))
        assert process.poll() is None, log.read_text()
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    told = log.read_text().splitlines()
    assert len(told) < 100 and "Traceback" not in "".join(told), told[:100]
