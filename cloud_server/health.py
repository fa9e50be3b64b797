"""The service's HTTP port: `/metrics`, `/healthz` (the front end is up), `/readyz` (it can answer).

Knows HTTP and a callable that says what is not ready; knows nothing of gRPC or the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from protos.errors import ConfigError
from protos.process import addresses


class _TurnedAway(asyncio.Protocol):
    """A connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class HealthServer:
    """A small HTTP server on the running event loop.

    Args:
        registry: what `/metrics` shows.
        not_ready: returns what is still missing, or an empty string once ready.
        most: connections at once; more are closed as they come.
        silence_s: a connection that asks nothing for so long is closed, seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        not_ready: Callable[[], str],
        most: int = 64,
        silence_s: float = 10.0,
    ) -> None:
        self._registry = registry
        self._not_ready = not_ready
        self._most = most
        self._listeners: list[asyncio.Server] = []
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=silence_s
        )

    async def start(self, host: str, port: int) -> int:
        """Bind and serve; returns the port (a free one if `port` is 0).

        Raises:
            ConfigError: the port cannot be bound.
        """
        await self._runner.setup()
        try:
            sockets = addresses.listen(host, port)
        except OSError as error:
            raise ConfigError(
                f"metrics port {addresses.Address(host, port)} cannot be bound "
                f"({error.strerror or error}); choose another --metrics-port, or 0 for a free one"
            ) from error
        loop = asyncio.get_running_loop()
        for one in sockets:
            one.setblocking(False)
            self._listeners.append(await loop.create_server(self._connection, sock=one, backlog=16))
        return int(sockets[0].getsockname()[1])

    def _connection(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._most:
            return _TurnedAway()
        return server()

    async def stop(self) -> None:
        """Close the port."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        missing = self._not_ready()
        return web.Response(text=f"{missing or 'ready'}\n", status=503 if missing else 200)
