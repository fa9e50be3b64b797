"""The service on IPv6."""

from __future__ import annotations

import socket
import urllib.request

import grpc
import pytest

from tests.cloud_server import stage
from tests.cloud_server.conftest import Files

pytestmark = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


@pytest.mark.slow
def test_the_service_answers_on_every_address_of_an_ipv6_wildcard(files: Files) -> None:
    flags = ("--host", "::", "--metrics-host", "[::]", "--insecure")
    with stage.running_server(files.model, [files.bundle], *flags) as server:
        for host in ("127.0.0.1", "[::1]"):
            with grpc.insecure_channel(f"{host}:{server.port}") as channel:
                client = stage.Client(channel)
                client.negotiate()
                assert client.answer(client.frame()).text
            page = urllib.request.urlopen(f"http://{host}:{server.metrics_port}/readyz", timeout=10)
            assert page.read() == b"ready\n"
