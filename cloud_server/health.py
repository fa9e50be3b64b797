"""The service's HTTP port: `/metrics`, `/healthz` (the front end is up), `/readyz` (it can answer).

Knows HTTP and a callable that says what is not ready; knows nothing of gRPC or the engine.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from protos.errors import ConfigError


class HealthServer:
    """A small HTTP server on the running event loop.

    Args:
        registry: what `/metrics` shows.
        not_ready: returns what is still missing, or an empty string once ready.
    """

    def __init__(self, registry: CollectorRegistry, not_ready: Callable[[], str]) -> None:
        self._registry = registry
        self._not_ready = not_ready
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def start(self, host: str, port: int) -> int:
        """Bind and serve; returns the port (a free one if `port` is 0).

        Raises:
            ConfigError: the port cannot be bound.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"metrics port {host}:{port} cannot be bound ({error.strerror or error}); "
                "choose another --metrics-port, or 0 for a free one"
            ) from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port."""
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
