"""The relay is the judge of every byte count, so it must count exactly and change nothing."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from protos.errors import ConfigError
from reference.demo.relay import Relay


class _Doubler(socketserver.BaseRequestHandler):
    """Sends back every byte twice."""

    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data + data)


@pytest.fixture
def server() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Doubler) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def _exchange(connection: socket.socket, sent: bytes) -> bytes:
    writer = threading.Thread(target=connection.sendall, args=(sent,))
    writer.start()
    received = b""
    while len(received) < 2 * len(sent):
        received += connection.recv(1 << 16)
    writer.join()
    return received


def test_every_byte_is_passed_on_and_counted_once(server: str) -> None:
    sent = bytes(range(256)) * 1000
    with Relay(server) as relay, _connect(relay.address) as connection:
        received = _exchange(connection, sent)
        counts = relay.counts()
    assert len(received) == 2 * len(sent)
    assert (counts.uplink_bytes, counts.downlink_bytes) == (len(sent), 2 * len(sent))
    assert counts.connections == 1


def test_what_passed_between_two_marks_is_told_apart(server: str) -> None:
    with Relay(server) as relay, _connect(relay.address) as connection:
        _exchange(connection, b"set-up")
        relay.mark("ready")
        _exchange(connection, b"frame" * 3)
        relay.mark("sent")
        assert relay.between("ready", "sent").uplink_bytes == 15
        assert relay.between("ready", "sent").downlink_bytes == 30


def test_connections_are_added_up(server: str) -> None:
    with Relay(server) as relay:
        for _ in range(3):
            with _connect(relay.address) as connection:
                _exchange(connection, b"ab")
        assert relay.counts().uplink_bytes == 6
        assert relay.counts().connections == 3


def test_a_server_that_is_not_there_closes_the_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with Relay(address) as relay, _connect(relay.address) as connection:
            assert connection.recv(1) == b""


@pytest.mark.parametrize("server", ["", "localhost", ":80", "host:port"])
def test_a_server_that_is_no_address_is_refused(server: str) -> None:
    with pytest.raises(ConfigError):
        Relay(server)
