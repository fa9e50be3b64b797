"""A process's HTTP port: `/metrics`, `/healthz` (it is up), `/readyz` (it can work).

It is `prometheus_client`'s server, on threads of its own; `exposition.py` writes the page.
Strangers cannot exhaust it: both the number of connections and the time of each are limited.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer

from protos.errors import BridgeError, ConfigError
from protos.process import addresses
from protos.process.exposition import Page

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment  # from Python 3.11 on

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.1
"""How long to accept nobody when the system has no descriptor or memory left."""


class HealthServer:
    """A small HTTP server.

    Args:
        registry: what `/metrics` shows.
        not_ready: returns what is still missing, or an empty string once ready; called on any
            thread.
        host: address to bind.
        port: port to bind; 0 takes a free one, `port` then tells which.
        most: connections at once; more are closed as they come.
        patience_s: how long a connection may take, seconds; then it is closed.
        may_see: raises an error if the sender of an `Authorization` header may not see
        `/metrics`; called on any thread. By default everyone may.
        context: TLS context; plain text without it.

    Raises:
        ConfigError: the port cannot be bound.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        not_ready: Callable[[], str],
        host: str = "127.0.0.1",
        port: int = 0,
        most: int = 64,
        patience_s: float = 10.0,
        may_see: Callable[[str], None] = lambda _: None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        try:
            sockets = addresses.listen(host, port)
        except OSError as error:
            raise ConfigError(
                f"metrics port {addresses.Address(host, port)} cannot be bound "
                f"({error.strerror or error}); choose another --metrics-port, or 0 for a free one"
            ) from error
        self.host = host
        self.port = int(sockets[0].getsockname()[1])
        self._open: dict[socket.socket, float] = {}
        pages = _pages(registry, not_ready, may_see)
        self._servers = [
            _Server(one, pages, self._open, most, patience_s, context) for one in sockets
        ]
        self._threads = [
            threading.Thread(target=server.serve_forever, daemon=True) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop serving and give the port back."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()
        for connection in list(self._open):
            _cut(connection)


class _Server(ThreadingWSGIServer):
    """Serves one listening socket.

    Args:
        listening: the socket.
        pages: the application.
        connections: open ones and when each came; shared by the sockets of one port.
        most: connections at once.
        patience_s: how long each may take.
        context: TLS context.
    """

    def __init__(
        self,
        listening: socket.socket,
        pages: Callable[..., Any],
        connections: dict[socket.socket, float],
        most: int,
        patience_s: float,
        context: ssl.SSLContext | None,
    ) -> None:
        address = listening.getsockname()
        super().__init__(address[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = address[:2]
        self.setup_environ()
        self.set_app(pages)
        self._connections, self._most, self._patience_s = connections, most, patience_s
        self._context = context

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            connection, peer = super().get_request()
            if self._context is None:
                return connection, peer
            # The connection's own thread does the handshake, at its first read.
            secured = self._context.wrap_socket(connection, True, do_handshake_on_connect=False)
            return secured, peer
        except OSError as error:
            if error.errno in _SCARCE:
                time.sleep(_PAUSE_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._connections) < self._most

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        late = time.monotonic() - self._patience_s
        for connection, since in list(self._connections.items()):
            if since < late:
                _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that breaks."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def _pages(
    registry: CollectorRegistry, not_ready: Callable[[], str], may_see: Callable[[str], None]
) -> Callable[..., Any]:
    metrics = Page(registry)

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            try:
                may_see(environ.get("HTTP_AUTHORIZATION", ""))
            except BridgeError as error:
                return _refused(error, start_response)
            if environ["REQUEST_METHOD"] == "GET":
                return metrics(environ, start_response)
        status, text = "200 OK", "ok"
        if environ["REQUEST_METHOD"] != "GET":
            status, text = "405 Method Not Allowed", "use GET"
        elif path == "/readyz":
            missing = not_ready()
            status, text = ("503 Service Unavailable", missing) if missing else (status, "ready")
        elif path != "/healthz":
            status, text = "404 Not Found", "try /metrics, /healthz or /readyz"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def pages(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return page(environ, start_response)
        page(environ | {"REQUEST_METHOD": "GET"}, start_response)
        return []

    return pages


def _refused(error: BridgeError, start_response: StartResponse) -> list[bytes]:
    status = HTTPStatus(error.http_status)
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    start_response(f"{status.value} {status.phrase}", headers)
    return [f"{error.message}\n".encode()]


def _cut(connection: socket.socket) -> None:
    """End a connection whose thread waits for it; the thread closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
