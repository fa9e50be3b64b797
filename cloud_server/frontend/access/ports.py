"""The front end's ports for gRPC and metrics."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cloud_server.frontend import descriptors
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.health import Health
from cloud_server.metrics import Metrics
from cloud_server.settings import Settings
from protos.calls import SERVICE
from protos.errors import ConfigError
from protos.process.addresses import Address
from protos.process.health import HealthServer
from protos.process.logs import Logger

_STREAM_GRACE_S = 1.0
_MARGIN_BYTES = 16 << 20
"""A message this much above the limit is refused alone; beyond that gRPC ends the stream."""
_SMALL_BYTES = 64 << 10
_OPEN_SHARE = 8
"""One connection in so many is for clients without a certificate."""
_LOOKAHEAD_BYTES = 1 << 20
"""HTTP/2 window of each stream: bytes that a client may send before the service reads them."""


class GrpcPort:
    """The gRPC server (see `Part`).

    Args:
        settings: where it listens, and its limits.
        bridge: the service.
        health: gRPC's health service.
        access: identities and TLS.
        descriptor_limit: file descriptors that this process may open.
        log: a bound logger.

    Attributes:
        ports: port numbers once it has started: `port`, and with TLS also `open_port`. With TLS,
        clients of `port` must show a certificate, and `open_port` takes only small messages.
    """

    def __init__(
        self,
        settings: Settings,
        bridge: Bridge,
        health: Health,
        access: Access,
        descriptor_limit: int,
        log: Logger,
    ) -> None:
        self._settings, self._bridge, self._health = settings, bridge, health
        self._access = access
        self._descriptor_limit, self._log = descriptor_limit, log
        self._servers: list[grpc.aio.Server] = []
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """See `Part`."""
        settings = self._settings
        most = descriptors.connections(
            self._descriptor_limit,
            descriptors.open_now(),
            settings.other_connections,
            settings.max_connections,
        )
        handlers = (
            self._bridge.handler(),
            self._access.strangers.health(self._health.checks),
            _reflection(self._access),
        )
        if self._access.tls is None:
            await self._serve("port", settings.port, server_options(settings, most), handlers)
        else:
            few = max(1, most // _OPEN_SHARE)
            options = server_options(settings, max(1, most - few))
            await self._serve("port", settings.port, options, handlers)
            options = server_options(settings, few, _small_bytes(settings))
            await self._serve("open_port", settings.open_port, options, handlers)
        self._access.device_port = self.ports["port"]
        for server in self._servers:
            await server.start()
        self._log.info(
            "listening",
            connections=most,
            descriptors=self._descriptor_limit,
            **self.ports,
        )

    async def drain(self) -> None:
        """See `Part`; open calls go on, and `Bridge` refuses new requests."""

    async def close(self) -> None:
        """See `Part`; open calls have a moment to send their last events."""
        await asyncio.gather(*(server.stop(_STREAM_GRACE_S) for server in self._servers))

    async def _serve(
        self,
        name: str,
        port: int,
        options: list[tuple[str, int]],
        handlers: tuple[grpc.GenericRpcHandler, ...],
    ) -> None:
        """Bind a server of its own to a port, because gRPC bounds messages for a whole server."""
        server = grpc.aio.server(options=options)
        self._servers.append(server)
        server.add_generic_rpc_handlers(handlers)
        address, tls = str(Address(self._settings.host, port)), self._access.tls
        try:
            if tls is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, tls.credentials(name == "port"))
        except RuntimeError as error:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"gRPC port {address} cannot be bound; choose another {flag}, or 0 for a free one"
            ) from error
        self.ports[name] = int(bound)


def _reflection(access: Access) -> grpc.GenericRpcHandler:
    """The reflection service; on a service with identities only for operators."""
    name = "ServerReflectionInfo"
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {name: access.for_operators(handler, name)}
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, methods)


class MetricsPort:
    """The port of /metrics, /healthz and /readyz (see `Part`).

    Args:
        settings: where it listens, and its limits.
        metrics: the service's metrics.
        health: the service's readiness.
        access: identities and TLS.

    Attributes:
        port: where it listens, once it has started.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, health: Health, access: Access
    ) -> None:
        self._settings, self._metrics, self._health = settings, metrics, health
        self._access = access
        self._server: HealthServer | None = None
        self.port = 0

    async def start(self) -> None:
        """See `Part`."""
        settings, tls = self._settings, self._access.tls
        self._server = HealthServer(
            self._metrics.registry,
            self._health.not_ready,
            settings.metrics_host,
            settings.metrics_port,
            settings.metrics_connections,
            settings.handshake_timeout_s,
            self._access.may_see_metrics,
            tls.context() if tls is not None and not settings.metrics_on_loopback else None,
        )
        self.port = self._server.port

    async def drain(self) -> None:
        """See `Part`; the port stays open, so that probes see the drain."""

    async def close(self) -> None:
        """See `Part`."""
        if self._server is not None:
            await asyncio.to_thread(self._server.close)


def server_options(
    settings: Settings, connections: int, message_bytes: int = 0
) -> list[tuple[str, int]]:
    """Options of a gRPC server.

    Args:
        settings: its limits.
        connections: most connections at once.
        message_bytes: longest message; 0 for a little more than the longest request.
    """
    # A message above gRPC's own cap ends the whole stream, so that cap is higher than ours: a
    # message between the two is refused like any bad frame, and the stream goes on.
    return [
        (
            "grpc.max_receive_message_length",
            message_bytes or settings.limits.max_request_bytes + _MARGIN_BYTES,
        ),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Close the connection of a peer that vanished, or that never spoke.
        # `ping_timeout_ms` decides when; `keepalive_timeout_ms` changes nothing.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_s)),
        ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout_s)),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.idle_connection_s)),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", settings.max_calls),
        # Bandwidth probes cost a PING, its answer and a window update for most frames. A
        # fixed window replaces them, so that large uploads need not wait.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", min(message_bytes or _LOOKAHEAD_BYTES, _LOOKAHEAD_BYTES)),
    ]


def _small_bytes(settings: Settings) -> int:
    """Longest message on the port for clients without a certificate: a question, or a code."""
    return _SMALL_BYTES + settings.max_question_bytes


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
