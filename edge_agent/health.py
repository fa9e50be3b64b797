"""The agent's own HTTP port: `/metrics`, `/healthz` (the process is up), `/readyz` (it can work).

Knows HTTP and a callable that says what is not ready; knows nothing of the agent's insides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from protos.errors import ConfigError
from protos.process import addresses


class HealthServer:
    """A small HTTP server on a thread of its own.

    Args:
        registry: what `/metrics` shows.
        not_ready: returns what is still missing, or an empty string once ready.
        host: address to bind.
        port: port to bind; 0 takes a free one, `port` then tells which.

    Raises:
        ConfigError: the port cannot be bound.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        not_ready: Callable[[], str],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._reply(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/healthz":
                    self._reply(200, b"ok\n")
                elif path == "/readyz":
                    missing = not_ready()
                    self._reply(503 if missing else 200, f"{missing or 'ready'}\n".encode())
                else:
                    self._reply(404, b"try /metrics, /healthz or /readyz\n")

            def _reply(self, status: int, body: bytes, kind: str = "text/plain") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        try:
            sockets = addresses.listen(host, port)
        except OSError as error:
            raise ConfigError(
                f"metrics_port: {addresses.Address(host, port)} cannot be bound: "
                f"{error.strerror or error}"
            ) from error
        self.host = host
        self.port = int(sockets[0].getsockname()[1])
        self._servers = []
        for one in sockets:
            server = ThreadingHTTPServer((host, port), _Handler, bind_and_activate=False)
            server.socket.close()
            server.socket = one
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            self._servers.append((server, thread))

    def close(self) -> None:
        """Stop serving and give the port back."""
        for server, thread in self._servers:
            server.shutdown()
            server.server_close()
            thread.join()
