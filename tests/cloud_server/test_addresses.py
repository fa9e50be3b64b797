"""The service on IPv6, and its engine when the front end is killed."""

from __future__ import annotations

import socket
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from tests.cloud_server import stage
from tests.cloud_server.conftest import Files

pytestmark = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


def test_the_service_answers_on_every_address_of_an_ipv6_wildcard(files: Files) -> None:
    flags = ("--host", "::", "--metrics-host", "[::]")
    with stage.running_server(files.model, [files.bundle], *flags) as server:
        for host in ("127.0.0.1", "[::1]"):
            with grpc.insecure_channel(f"{host}:{server.port}") as channel:
                client = stage.Client(channel)
                client.negotiate()
                assert client.answer(client.frame()).text
            page = urllib.request.urlopen(f"http://{host}:{server.metrics_port}/readyz", timeout=10)
            assert page.read() == b"ready\n"


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_the_engine_ends_with_a_front_end_that_is_killed(files: Files) -> None:
    with stage.running_server(
        files.model, [files.bundle], "--heartbeat-timeout-s", "600"
    ) as server:
        engines = _children(server.process.pid)
        assert engines
        server.process.kill()
        server.process.wait()
        running = engines
        for _ in range(600):
            running = [pid for pid in running if _runs(pid)]
            if not running:
                break
            time.sleep(0.05)
        assert not running, "the engine goes on without its front end"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
