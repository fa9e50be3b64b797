"""The HTTP port: uvicorn in the front end's event loop (see `Part`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cloud_server.api.connection import Connection
from cloud_server.settings import Settings
from protos.errors import ConfigError
from protos.process.addresses import Address, listen
from protos.process.logs import Logger

_BACKLOG = 512
_MOST_HEADER_BYTES = 16 << 10
_KEEP_ALIVE_S = 75
_LAST_ANSWERS_S = 2
"""Longest wait for answers that are still being sent when everything else has ended."""


class HttpPort:
    """Serves an application over HTTP (see `Part`).

    Args:
        settings: where it listens, and its limits.
        app: the application.
        context: TLS context; None for plain text.
        log: a bound logger.

    Attributes:
        port: where it listens, once it has started.
    """

    def __init__(
        self, settings: Settings, app: ASGIApp, context: ssl.SSLContext | None, log: Logger
    ) -> None:
        self._settings, self._app, self._context, self._log = settings, app, context, log
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def connections(self) -> int:
        """Connections that are open, handshakes included."""
        return 0 if self._server is None else self._server.connections

    async def start(self) -> None:
        """See `Part`."""
        settings = self._settings
        host, port = settings.api_host, settings.http_port or 0
        try:
            sockets = listen(host, port, _BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"HTTP port {Address(host, port)} cannot be bound ({error.strerror or error}); "
                "choose another --api-port, or 0 for a free one"
            ) from error
        self.port = int(sockets[0].getsockname()[1])
        protocol = type(
            "Connection",
            (Connection,),
            {"arrive_s": settings.request_arrival_s, "read_s": settings.keepalive_timeout_s},
        )
        config = uvicorn.Config(
            self._app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        )
        # uvicorn warns about each malformed request. The door logs the application's errors.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self._server = _Server(
            config, self._context, settings.api_connections, settings.handshake_timeout_s
        )
        self._serving = asyncio.create_task(self._server.serve(sockets))
        self._log.info("listening", http_port=self.port, tls=self._context is not None)

    async def drain(self) -> None:
        """See `Part`; each answer closes its connection, and questions are refused."""

    async def close(self) -> None:
        """See `Part`."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with bounds on connections.

    Args:
        config: uvicorn's.
        context: TLS context.
        most: connections at once, handshakes included; further ones are closed at once.
        handshake_s: longest time of a TLS handshake.
    """

    def __init__(
        self, config: uvicorn.Config, context: ssl.SSLContext | None, most: int, handshake_s: float
    ) -> None:
        super().__init__(config)
        self._context, self._most, self._handshake_s = context, most, handshake_s
        self._made: weakref.WeakSet[asyncio.Protocol] = weakref.WeakSet()

    @property
    def connections(self) -> int:
        """Connections that are open, handshakes included."""
        return len(self._made)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on sockets that are already bound."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        patience = self._handshake_s if self._context is not None else None
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=one,
                ssl=self._context,
                ssl_handshake_timeout=patience,
                backlog=_BACKLOG,
            )
            for one in sockets or ()
        ]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        """Called when a peer connects, before TLS.

        Raises:
            ConnectionRefusedError: there are too many connections; asyncio drops this one.
        """
        if len(self._made) >= self._most:
            raise ConnectionRefusedError
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self._made.add(made)
        return made
