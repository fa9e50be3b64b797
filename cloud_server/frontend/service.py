"""The front-end process: puts gRPC port, HTTP port, link and supervisor together and runs them.

In order: sockets → HTTP and gRPC ports → supervisor starts the engine → readiness line → SIGTERM:
nothing new is taken, requests under way end, the engine leaves. Never touches a tensor library.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_server.engine.jobs import Offer, Status
from cloud_server.engine.link import FrontLink
from cloud_server.engine.socket_directory import SocketDirectory
from cloud_server.engine.spawn import Spawn, spawn_engine
from cloud_server.engine.supervisor import Supervisor
from cloud_server.frontend import descriptors
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.canary import Canary
from cloud_server.metrics import Metrics
from cloud_server.settings import PREFIX, Settings
from cloud_server.throttle import Throttle
from protos.calls import SERVICE
from protos.errors import BridgeError, ConfigError
from protos.process.addresses import Address
from protos.process.console import ReaderGoneError
from protos.process.environment import service_links
from protos.process.files import write_file, writing
from protos.process.health import HealthServer
from protos.process.logs import Logger, adopt_libraries, configure
from protos.process.memory import MemoryWatch, resident_bytes

_STREAM_GRACE_S = 1.0
_MARGIN_BYTES = 16 << 20
"""A message up to this far above the limit is refused alone; beyond it gRPC ends the stream."""
_LOOKAHEAD_BYTES = 1 << 20
"""HTTP/2 window of each stream: how much a client may send before the service has read it."""


class Service:
    """One front end and the engine it keeps.

    Args:
        settings: checked with `Settings.check_paths` by `run`.
        announce: called once with the readiness line.
        spawn: given the settings and the link's address, returns how engine processes are started.
    """

    def __init__(
        self,
        settings: Settings,
        announce: Callable[[str], None],
        spawn: Callable[[Settings, str], Spawn] = spawn_engine,
    ) -> None:
        self._settings, self._announce, self._spawn = settings, announce, spawn
        self._stop = asyncio.Event()
        self._metrics = Metrics()
        self._log: Logger = configure(
            settings.log_level,
            "frontend",
            on_drop=self._metrics.log_lines_dropped.labels("frontend").inc,
        )

    def stop(self) -> None:
        """Begin to drain."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            ConfigError: a port or the socket directory cannot be used.
            ModelError, BundleMissingError: see `Settings.check_paths`.
            BridgeError: the engine cannot start.
        """
        settings = self._settings
        settings.check_paths()
        if links := service_links(os.environ, PREFIX):
            self._log.info("service_links_ignored", variables=links)
        limit = descriptors.raise_limit()
        directory = SocketDirectory(settings.engine_socket_dir)
        loop = asyncio.get_running_loop()
        few = Throttle(settings.log_burst, self._more, settings.log_interval_s)
        before = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: self._unexpected(few, context))
        try:
            await self._serve(settings, directory, limit)
        finally:
            loop.set_exception_handler(before)
            few.flush()
            directory.close()

    def _unexpected(self, few: Throttle, context: dict[str, Any]) -> None:
        """Log what the event loop reports; without descriptors it reports every connection."""
        message, error = str(context.get("message", "")), context.get("exception")
        if few.passes(message):
            self._log.error(
                "event loop", message=message, error=repr(error) if error is not None else ""
            )

    def _more(self, message: str, count: int) -> None:
        self._log.error("event loop, more of the same", message=message, count=count)

    async def _serve(
        self, settings: Settings, directory: SocketDirectory, descriptor_limit: int
    ) -> None:
        metrics = self._metrics
        link = FrontLink(
            directory.engine_address,
            settings.heartbeat_s,
            lambda message: supervisor.notice(message),
        )
        bridge = Bridge(settings, link, metrics, self._log)
        memory = MemoryWatch("engine", self._log)
        came_up = asyncio.Event()
        checks = health.aio.HealthServicer()
        told: set[asyncio.Task[None]] = set()
        engine_dropped = [0]

        def tell_health(serving: bool) -> None:
            status = health_pb2.HealthCheckResponse
            for service in ("", SERVICE):
                task = loop.create_task(
                    checks.set(service, status.SERVING if serving else status.NOT_SERVING)
                )
                told.add(task)
                task.add_done_callback(told.discard)

        def on_ready(offers: list[Offer]) -> None:
            memory.restart()
            bridge.engine_up(offers)
            canary.engine_up(offers)
            answering()

        def answering() -> None:
            good = bridge.engine_ready and not canary.failing
            metrics.answering.set(good)
            tell_health(good and not self._stop.is_set())
            if good:
                came_up.set()

        def on_lost() -> None:
            bridge.engine_down()
            canary.engine_down()
            metrics.answering.set(0)
            metrics.engine_restarts.inc(0 if self._stop.is_set() else 1)
            tell_health(False)

        def on_status(status: Status) -> None:
            metrics.running.set(status.running)
            metrics.scenes.set(status.scenes)
            metrics.scene_bytes.set(status.scene_bytes)
            fresh = status.log_lines_dropped - engine_dropped[0]
            metrics.log_lines_dropped.labels("engine").inc(max(0, fresh))
            engine_dropped[0] = status.log_lines_dropped
            metrics.pool_bytes.set(status.pool_bytes)
            metrics.resident_bytes.labels("engine").set(status.resident_bytes)
            metrics.resident_bytes.labels("front_end").set(resident_bytes())
            metrics.resident_bytes.labels("spare").set(
                resident_bytes(spawn.spare_pid) if spawn.spare_pid else 0
            )
            if supervisor.ready:
                memory.see(status.resident_bytes, status.cap_bytes)

        def not_ready() -> str:
            if bridge.draining:
                return "draining"
            return canary.failing if bridge.engine_ready else "the engine is not up"

        loop = asyncio.get_running_loop()
        spawn = self._spawn(settings, directory.engine_address)
        supervisor = Supervisor(
            settings,
            spawn,
            lambda: reserve.lent(),
            on_ready,
            on_lost,
            on_status,
            self._log,
        )
        canary = Canary(settings, link, metrics, self._log, answering)
        asking = asyncio.create_task(canary.run())
        await link.start()
        bridge.start()
        stopping = asyncio.create_task(self._stop.wait())
        http: HealthServer | None = None
        server: grpc.aio.Server | None = None
        keeper: asyncio.Task[None] | None = None
        failure: BaseException | None = None
        try:
            tell_health(False)
            http = HealthServer(
                metrics.registry,
                not_ready,
                settings.metrics_host,
                settings.metrics_port,
                settings.metrics_connections,
                settings.handshake_timeout_s,
            )
            most = descriptors.connections(
                descriptor_limit,
                descriptors.open_now(),
                settings.metrics_connections,
                settings.max_connections,
            )
            server = self._server(bridge, checks, most)
            port = await self._bind(server)
            self._log.info("listening", port=port, connections=most, descriptors=descriptor_limit)
            reserve = descriptors.Reserve()
            keeper = asyncio.create_task(supervisor.run(link))
            up = asyncio.create_task(came_up.wait())
            await asyncio.wait({keeper, stopping, up}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if came_up.is_set():
                self._ready(port, http.port)
                await asyncio.wait({keeper, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                tell_health(False)
                self._log.info("draining", under_way=link.depth)
                if not await bridge.drain(settings.drain_s):
                    self._log.warning("drain timed out", under_way=link.depth)
        finally:
            stopping.cancel()
            asking.cancel()
            if server is not None:
                await server.stop(_STREAM_GRACE_S)
            if keeper is not None:
                await supervisor.stop(link)
                await asyncio.wait({keeper})
                failure = keeper.exception()
                reserve.close()
            if http is not None:
                await asyncio.to_thread(http.close)
            await bridge.close()
            await link.stop()
            self._log.info("stopped")
        if failure is not None:
            raise failure

    def _server(
        self, bridge: Bridge, checks: health.aio.HealthServicer, connections: int
    ) -> grpc.aio.Server:
        # A message above gRPC's own cap ends the whole stream, so that cap is higher than ours: a
        # message between the two is refused like any bad frame, and the stream goes on.
        settings = self._settings
        most = settings.limits.max_request_bytes + _MARGIN_BYTES
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most),
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
                ("grpc.http2.lookahead_bytes", _LOOKAHEAD_BYTES),
            ]
        )
        server.add_generic_rpc_handlers((bridge.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    async def _bind(self, server: grpc.aio.Server) -> int:
        settings = self._settings
        address = str(Address(settings.host, settings.port))
        try:
            port = server.add_insecure_port(address)
            await server.start()
        except RuntimeError as error:
            raise ConfigError(
                f"gRPC port {address} cannot be bound; choose another --port, or 0 for a free one"
            ) from error
        return int(port)

    def _ready(self, port: int, metrics_port: int) -> None:
        line = json.dumps({"event": "ready", "port": port, "metrics_port": metrics_port})
        if self._settings.ready_file is not None:
            with writing(f"ready file {self._settings.ready_file}"):
                write_file(self._settings.ready_file, f"{line}\n".encode())
        self._log.info("ready", port=port, metrics_port=metrics_port)
        self._announce(line)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM; the readiness line goes to standard output.

    Raises:
        BridgeError: see `Service.run`.
    """

    async def run() -> None:
        service = Service(settings, _announce)
        adopt_libraries(structlog.get_logger(component="frontend"))
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, service.stop)
        await service.run()

    asyncio.run(run())


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _announce(line: str) -> None:
    """Print the readiness line; if it cannot be written, the service runs on."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (OSError, BridgeError, ReaderGoneError) as error:
        structlog.get_logger(component="frontend").warning("readiness line lost", cause=str(error))
