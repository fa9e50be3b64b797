"""The front-end process: puts its parts together and runs them.

In order: socket directory → parts start → an engine answers → readiness line → SIGTERM: health
reports the stop, new requests are refused, requests under way end → parts close, engines first.
It imports no tensor library.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cloud_server.engine.socket_directory import SocketDirectory
from cloud_server.engine.spawn import Spawn, spawn_engine
from cloud_server.frontend import descriptors
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.access.ports import GrpcPort, MetricsPort
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.engines.engines import Engines
from cloud_server.frontend.engines.loader import Loader
from cloud_server.frontend.health import Health
from cloud_server.frontend.parts import Part
from cloud_server.frontend.reload import Reload
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.frontend.telemetry import Telemetry
from cloud_server.frontend.versions.plans import DatabasePlan, Plan, SettingsPlan, front_end_name
from cloud_server.frontend.versions.rollout import Rollout
from cloud_server.metrics import Metrics
from cloud_server.settings import PREFIX, Settings
from cloud_server.throttle import Throttle
from protos.errors import BridgeError
from protos.process.console import ReaderGoneError
from protos.process.environment import service_links
from protos.process.files import write_file, writing
from protos.process.logs import Logger, adopt_libraries, configure

if TYPE_CHECKING:
    from cloud_server.api.port import HttpPort

_NEW_OBJECTS = 20000
"""Python objects that come into being before the garbage collector looks at the new ones."""


class Service:
    """One front end and the engines it keeps.

    Args:
        settings: checked with `Settings.check_paths` by `run`.
        announce: called once with the readiness line.
        spawn: given the settings and a link's address, returns how engine processes are started.
        again: reads the settings again, for `reload`; by default they never change.
        file: the settings file, watched for changes; None without one.

    Attributes:
        access: identities and TLS; made by `run`.
    """

    access: Access

    def __init__(
        self,
        settings: Settings,
        announce: Callable[[str], None],
        spawn: Callable[[Settings, str], Spawn] = spawn_engine,
        again: Callable[[], Settings] | None = None,
        file: Path | None = None,
    ) -> None:
        self._settings, self._announce, self._spawn = settings, announce, spawn
        self._again, self._file = again or (lambda: settings), file
        self._reload: Reload | None = None
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

    def reload(self) -> None:
        """Apply changes of certificates, keys, quotas and reloadable settings."""
        if self._reload is not None:
            self._reload.now()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            ConfigError: a port or the socket directory cannot be used.
            ModelError, BundleMissingError: see `Settings.check_paths`.
            CertificateError, StateError: see `Access`.
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
            await self._serve(directory, limit)
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

    async def _serve(self, directory: SocketDirectory, descriptor_limit: int) -> None:
        settings, metrics, log = self._settings, self._metrics, self._log
        telemetry = Telemetry.of(settings, metrics, log)
        self.access = access = Access(settings, telemetry, log)
        plan: Plan = SettingsPlan(settings.bundles, log)
        if access.store is not None:
            plan = DatabasePlan(access.store, front_end_name(), settings.bundles, log)
        settings = settings.model_copy(update={"bundles": plan.begin()})
        health = Health(metrics, lambda: engines.why_not())
        scenes = HeldScenes(
            settings.held_scene_bytes, lambda tenant, device: access.quota_of(tenant, device).scenes
        )
        if access.live is not None:
            access.live.on_removal(scenes.forget)
        metrics.held_scenes.set_function(lambda: len(scenes))
        metrics.held_scene_bytes.set_function(lambda: scenes.bytes)
        engines = Engines(settings, directory, self._spawn, scenes, metrics, log, health.look)
        bridge = Bridge(settings, engines.dispatch, scenes, telemetry, log, access)
        engines.listeners.append(bridge)
        loader = Loader(settings.engine_start_s)
        rollout = Rollout(settings, plan, engines.kept, loader, bridge, scenes, metrics, log)
        engines.heard.append(loader.hear)
        engines.lost.append(loader.lost)
        engines.catching_up.append(rollout.catch_up)
        page = MetricsPort(settings, metrics, health, access)
        port = GrpcPort(settings, bridge, health, access, descriptor_limit, log)
        self._reload = reload = Reload(settings, self._again, self._file, access, rollout, log)
        parts: list[Part] = [access, reload, page, bridge, port, engines, rollout]
        http: HttpPort | None = None
        if settings.http_port is not None:
            from cloud_server.api.build import http_port

            http = http_port(settings, bridge, scenes, access, health.not_ready, metrics, log)
            parts.insert(parts.index(engines), http)
        begun: list[Part] = []
        stopping = asyncio.create_task(self._stop.wait())
        try:
            health.look()
            for part in parts:
                begun.append(part)
                await part.start()
            up = asyncio.create_task(health.came_up.wait())
            waits: set[asyncio.Future[Any]] = {engines.ended, stopping}
            await asyncio.wait({*waits, up}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if health.came_up.is_set():
                ports = port.ports | {"metrics_port": page.port}
                self._ready(ports if http is None else ports | {"api_port": http.port})
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await health.leave()
            if self._stop.is_set():
                await asyncio.gather(*(part.drain() for part in parts))
        finally:
            stopping.cancel()
            for part in reversed(begun):
                await part.close()
            await asyncio.to_thread(telemetry.close)
            log.info("stopped")
        engines.ended.result()

    def _ready(self, ports: dict[str, int]) -> None:
        line = json.dumps({"event": "ready", **ports})
        if self._settings.ready_file is not None:
            with writing(f"ready file {self._settings.ready_file}"):
                write_file(self._settings.ready_file, f"{line}\n".encode())
        self._log.info("ready", **ports)
        self._announce(line)


def serve(settings: Settings, again: Callable[[], Settings], file: Path | None) -> None:
    """Serve until SIGTERM, reload at SIGHUP; the readiness line goes to standard output.

    Args:
        settings: the settings at the start.
        again: reads the settings again.
        file: the settings file; None without one.

    Raises:
        BridgeError: see `Service.run`.
    """

    async def run() -> None:
        service = Service(settings, announce, again=again, file=file)
        adopt_libraries(structlog.get_logger(component="frontend"))
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, service.stop)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        await service.run()

    asyncio.run(run())


def announce(line: str) -> None:
    """Print the readiness line; if it cannot be written, the service runs on.

    What the process has loaded by now stays, so the garbage collector leaves it alone from here on:
    nearly half a million objects, and every request waits while it looks at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (OSError, BridgeError, ReaderGoneError) as error:
        structlog.get_logger(component="frontend").warning("readiness line lost", cause=str(error))
