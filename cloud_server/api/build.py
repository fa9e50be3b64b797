"""Builds the HTTP port from the parts of the front end."""

from __future__ import annotations

import base64
from collections.abc import Callable

from fastapi import APIRouter

from cloud_server.api import health
from cloud_server.api.admin import audit, bundles, care, devices, keys, quotas, tenants
from cloud_server.api.admin.management import Management
from cloud_server.api.application import application
from cloud_server.api.bodies import Bodies
from cloud_server.api.chat import Chat
from cloud_server.api.completion import Question
from cloud_server.api.devices import Devices
from cloud_server.api.door import Door
from cloud_server.api.held import Held
from cloud_server.api.idempotency import Idempotency
from cloud_server.api.models import Models
from cloud_server.api.port import HttpPort
from cloud_server.api.scenes import Scenes
from cloud_server.frontend.access.access import Access
from cloud_server.frontend.bridge import Bridge
from cloud_server.frontend.scenes import HeldScenes
from cloud_server.metrics import Metrics
from cloud_server.page.build import page_routers
from cloud_server.settings import Settings
from cloud_server.throttle import Throttle
from protos.process.logs import Logger

_JSON_BYTES = 64 << 10
"""Bytes in a request for everything but its picture."""


def http_port(
    settings: Settings,
    bridge: Bridge,
    scenes: HeldScenes,
    access: Access,
    not_ready: Callable[[], str],
    metrics: Metrics,
    log: Logger,
) -> HttpPort:
    """The HTTP port.

    Args:
        settings: where it listens, and its limits.
        bridge: the service that answers.
        scenes: the scenes held.
        access: who callers are, and TLS.
        not_ready: why the service is not ready; empty if it is.
        metrics: the service's metrics.
        log: a bound logger.
    """
    held = Held(scenes)
    idempotency: Idempotency[Question] = Idempotency(settings.idempotency_memory_bytes)
    models = Models(settings.model_path.name)
    routers: list[APIRouter] = [
        Chat(settings.limits, models, held, bridge.asker, bridge.under_way, idempotency).router(),
        models.router(),
        Devices(access.live, held, bridge.shadows.ledger).router(),
        Scenes(held).router(),
        health.router(not_ready),
    ]
    routers += page_routers(settings, bridge, scenes, held, access, log)
    routers += _management(access)
    most = len(base64.b64encode(bytes(settings.max_picture_bytes))) + _JSON_BYTES
    bodies = Bodies(most, settings.body_memory_bytes)
    metrics.idempotency_bytes.set_function(lambda: idempotency.memory_bytes)
    metrics.http_body_bytes.set_function(lambda: bodies.held_bytes)
    few = Throttle(
        settings.log_burst,
        lambda what, count: log.warning("more of the same", what=what, count=count),
        settings.log_interval_s,
    )
    door = Door(
        application(routers),
        access,
        bridge.quotas,
        bodies,
        metrics,
        log,
        few,
        lambda: bridge.under_way.draining,
    )
    context = None if access.tls is None else access.tls.context()
    port = HttpPort(settings, door, context, log)
    metrics.http_connections.set_function(lambda: port.connections)
    return port


def _management(access: Access) -> list[APIRouter]:
    """Management routes; none on a service without identities."""
    tls = access.tls
    if access.store is None or access.live is None or tls is None:
        return []
    management = Management(access.store, access.live)
    return [
        tenants.router(management),
        devices.router(management, lambda: tls.authority.root_der),
        care.router(management),
        keys.router(management),
        quotas.router(management),
        bundles.router(management),
        audit.router(management),
    ]
