"""The proxy's settings: devices are identified through it; each address has a bound."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.checkout import ROOT
from tests.cloud_server.front_end import Edge
from tests.cloud_server.secured import secured
from tests.fakes.loop import on_loop, until

SETTINGS = ROOT / "deploy" / "haproxy.cfg"
MOST = 20

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is missing")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def silent(port: int) -> None:
    """Connect, say nothing, and wait until the other side closes."""
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.read()
        writer.close()


@contextmanager
def proxy(folder: Path, service: int) -> Iterator[int]:
    """A proxy with the settings of this repository, other ports apart."""
    port, text = free_port(), SETTINGS.read_text()
    for ours, theirs in (
        ("bind :50051", f"bind 127.0.0.1:{port}"),
        ("127.0.0.1:50061", f"127.0.0.1:{service}"),
        ("127.0.0.1:50062", f"127.0.0.1:{service}"),
    ):
        assert ours in text
        text = text.replace(ours, theirs)
    settings = folder / "haproxy.cfg"
    settings.write_text(text)
    with subprocess.Popen(["haproxy", "-f", str(settings)]) as process:
        try:
            until(lambda: answers(port))
            yield port
        finally:
            process.kill()


@needs_haproxy
def test_the_settings_are_valid() -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(SETTINGS)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@needs_haproxy
@on_loop
async def test_a_device_is_known_through_the_proxy_and_an_address_has_a_bound(
    paths: dict[str, Any], tmp_path: Path
) -> None:
    async with secured(paths, tmp_path / "svc") as server:
        device = await server.enrol(server.premises.code())
        with proxy(tmp_path, server.ports["port"]) as port:
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", device.credentials())
            edge = Edge(channel)
            await edge.meet()
            assert (await edge.say("count 3")).answer.tokens == 3
            ends = [asyncio.create_task(silent(port)) for _ in range(MOST + 15)]
            done, waiting = set[Any](), set(ends)
            while len(done) < 15:
                ended, waiting = await asyncio.wait(
                    waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED
                )
                assert ended
                done |= ended
            assert waiting, "those within the bound are not closed at once"
            assert (await edge.say("count 2", seed=2)).answer.tokens == 2
            await asyncio.wait(ends, timeout=60)
            assert all(end.done() for end in ends), "who says nothing is closed"
            await channel.close()
