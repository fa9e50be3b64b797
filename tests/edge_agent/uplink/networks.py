"""Networks as devices meet them: names that move, proxies, login pages, servers without a word."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PAGE = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\n\r\n"
_A, _AAAA = 1, 28


@contextmanager
def _listening(
    serve: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """A listener of this machine; every connection gets `serve` in a thread."""
    listener = socket.create_server((host, port))
    taken: list[socket.socket] = []

    def one(near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(near)

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            taken.append(near)
            threading.Thread(target=one, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # else `accept` keeps the port
        listener.close()
        for near in taken:
            near.close()


@contextmanager
def login_page(
    context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """A captive portal: every request gets a page, over TLS if there is a context. Its port."""

    def serve(near: socket.socket) -> None:
        talk = context.wrap_socket(near, server_side=True) if context else near
        talk.recv(4096)
        talk.sendall(_PAGE)
        talk.close()

    with _listening(serve, host, port) as taken:
        yield taken


@contextmanager
def silence() -> Iterator[int]:
    """A server that accepts and says nothing. Its port."""
    with _listening(lambda near: None) as port:
        yield port


class ConnectProxy:
    """Takes CONNECT with one user and password, and leads every connection to one port."""

    def __init__(self, to_port: int, user: str = "", mute: bool = False) -> None:
        self.asked: list[str] = []
        self.port = 0
        self._to_port, self._user, self._mute = to_port, user, mute

    @contextmanager
    def open(self) -> Iterator[ConnectProxy]:
        with _listening(self._serve) as self.port:
            yield self

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        self.asked.append(head.decode().split()[1])
        if self._mute:
            return
        wanted = "Basic " + base64.b64encode(self._user.encode()).decode()
        if self._user and wanted not in head.decode():
            near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", self._to_port))
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=pump, args=(far, near), daemon=True).start()
        pump(near, far)


class Nat:
    """Forgets a connection on which nothing passes for a while: then it swallows every byte.

    Args:
        to_port: where it leads.
        forgets_s: how long it remembers, seconds.
    """

    def __init__(self, to_port: int, forgets_s: float) -> None:
        self._to_port, self._forgets_s = to_port, forgets_s
        self.port = 0
        self.forgotten = 0

    @contextmanager
    def open(self) -> Iterator[Nat]:
        with _listening(self._serve) as self.port:
            yield self

    def _serve(self, near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self._to_port))
        passed = [time.monotonic()]
        forgotten = [False]

        def one_way(reading: socket.socket, writing: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := reading.recv(1 << 16):
                    now = time.monotonic()
                    if not forgotten[0] and now - passed[0] > self._forgets_s:
                        forgotten[0] = True
                        self.forgotten += 1
                    if not forgotten[0]:
                        passed[0] = now
                        writing.sendall(data)

        threading.Thread(target=one_way, args=(far, near), daemon=True).start()
        one_way(near, far)
        far.close()


def pump(reading: socket.socket, writing: socket.socket) -> None:
    """Copy bytes until one side ends."""
    try:
        while data := reading.recv(1 << 16):
            writing.sendall(data)
        writing.shutdown(socket.SHUT_WR)
    except OSError:
        return


class NameServer:
    """A name server that gives every name the same addresses, which a test changes.

    Attributes:
        addresses: IPv4 and IPv6, as text.
        asked: how often it was asked.
        mute: whether it says nothing.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        self.mute = False
        self.port = 0

    @contextmanager
    def open(self, host: str = "127.0.0.1") -> Iterator[NameServer]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((host, 0))
            self.port = udp.getsockname()[1]
            threading.Thread(target=self._serve, args=(udp,), daemon=True).start()
            yield self

    def _serve(self, udp: socket.socket) -> None:
        while True:
            try:
                query, sender = udp.recvfrom(4096)
            except OSError:
                return
            self.asked += 1
            if not self.mute:
                udp.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
        family = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}.get(kind)
        found = [
            socket.inet_pton(family, one)
            for one in self.addresses
            if family is not None and (":" in one) == (kind == _AAAA)
        ]
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        each = [
            struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(packed)) + packed for packed in found
        ]
        return head + query[12:end] + b"".join(each)
