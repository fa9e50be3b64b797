"""The health port: what it shows, and that strangers cannot exhaust it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from prometheus_client import CollectorRegistry, Counter

from protos.errors import ConfigError
from protos.process.health import HealthServer
from tests.fakes.pages import fetch

Serve = Callable[..., HealthServer]


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("answers_total", "Answers", registry=registry).inc(3)
    return registry


@pytest.fixture
def serve(registry: CollectorRegistry) -> Iterator[Serve]:
    with ExitStack() as stack:

        def made(not_ready: Callable[[], str] = str, **given: object) -> HealthServer:
            server = HealthServer(registry, not_ready, **given)  # type: ignore[arg-type]
            stack.callback(server.close)
            return server

        yield made


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def gone(connection: socket.socket) -> bool:
    """Whether the server ends it; waits until it does."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def test_the_port_shows_metrics_health_and_readiness(serve: Serve) -> None:
    missing = ["no session with the server"]
    server = serve(lambda: missing[0])
    status, text = fetch(server.port, "/metrics")
    assert status == 200 and "answers_total 3.0" in text
    assert fetch(server.port, "/healthz") == (200, "ok\n")
    assert fetch(server.port, "/healthz?from=probe") == (200, "ok\n")
    assert fetch(server.port, "/readyz") == (503, "no session with the server\n")
    missing[0] = ""
    assert fetch(server.port, "/readyz") == (200, "ready\n")
    assert fetch(server.port, "/other")[0] == 404


def test_a_probe_may_ask_for_the_head_alone_and_nothing_else(serve: Serve) -> None:
    server = serve(lambda: "the engine is not up")
    assert fetch(server.port, "/healthz", "HEAD") == (200, "")
    assert fetch(server.port, "/readyz", "HEAD") == (503, "")
    assert fetch(server.port, "/metrics", "HEAD") == (200, "")
    for path in ("/metrics", "/healthz", "/readyz"):
        assert fetch(server.port, path, "POST")[0] == 405


def test_a_port_that_is_taken_is_named(serve: Serve) -> None:
    server = serve()
    with pytest.raises(ConfigError, match=rf"metrics port .*:{server.port} cannot be bound"):
        serve(port=server.port)


def test_a_closed_server_gives_its_port_and_its_connections_back(serve: Serve) -> None:
    server = serve()
    with closing(connect(server)) as silent:
        assert fetch(server.port, "/healthz")[0] == 200  # hence the silent one is served too
        server.close()
        assert gone(silent)
    assert serve(port=server.port).port == server.port


@pytest.mark.quick(1)
@pytest.mark.parametrize("says", [b"", b"GET", b"GET /healthz HTTP/1.1\r\nX: ", b"\0" * 40])
def test_a_connection_that_does_not_come_to_an_end_is_closed(serve: Serve, says: bytes) -> None:
    server = serve(patience_s=0.05)
    with closing(connect(server)) as stranger:
        stranger.sendall(says)
        assert gone(stranger)


def test_a_connection_that_trickles_is_closed_all_the_same(serve: Serve) -> None:
    server = serve(patience_s=0.05)
    with closing(connect(server)) as stranger:
        stranger.settimeout(0.01)
        for _ in range(5000):
            try:
                stranger.sendall(b"X")
                if not stranger.recv(1):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("a byte every 10 ms holds a connection for ever")


def test_beyond_the_cap_connections_are_closed_and_the_port_is_free_when_they_leave(
    serve: Serve,
) -> None:
    server = serve(most=4, patience_s=600.0)
    silent = [connect(server) for _ in range(4)]
    for _ in range(20):
        with closing(connect(server)) as stranger:
            assert gone(stranger)
    for connection in silent:
        connection.close()
    for _ in range(10_000):
        try:
            if fetch(server.port, "/healthz") == (200, "ok\n"):
                return
        except (ConnectionError, http.client.HTTPException):
            continue
    pytest.fail("the port stays closed")


def test_a_broken_connection_says_nothing_on_standard_error(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(most=64)
    for says in (b"", b"\xff\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with closing(connect(server)) as stranger:
            stranger.sendall(says)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert fetch(server.port, "/healthz")[0] == 200
    server.close()
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_wildcard_of_ipv6_takes_ipv4_too(serve: Serve) -> None:
    server = serve(host="::")
    for host in ("127.0.0.1", "::1"):
        with closing(http.client.HTTPConnection(host, server.port, timeout=10)) as connection:
            connection.request("GET", "/readyz")
            assert connection.getresponse().read() == b"ready\n"
